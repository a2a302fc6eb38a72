"""`tiny`: a short chain of binary residual blocks; kernel, width and depth are searched."""

from functools import partial

from .architecture import Decision
from .blocks import bireal, identity, widened
from .options import ENDS, Settings
from .space import SearchSpace, chain_genes
from .wiring import IMAGE, Describe, Value, Wiring

OPTIONS = ENDS
STRIDES = {"micro": 2, "cifar": 8, "imagenet": 32}
STEMS = {"micro": (1,), "cifar": (2,), "imagenet": (2, 2)}
STAGES = {"micro": (32, 32), "cifar": (64, 128, 256), "imagenet": (64, 128, 256, 512)}
BLOCKS = {"micro": (3, 2), "cifar": (3, 3, 3), "imagenet": (3, 3, 3, 3)}
REDUCTIONS = {"micro": (1, 3), "cifar": (3, 5), "imagenet": (3, 5)}  # kernels


def tiny(settings: Settings) -> SearchSpace:
    """A few stages of residual blocks; a block keeps its shape, a reduction halves the image and may double channels.

    A block's name says what it is: `k3e1` is one 3x3 unit, `k5e2` would widen twofold with a 5x5 unit and return with
    a 1x1 unit.
    """
    w, stages = Wiring(), STAGES[settings.instance]
    x = Value(IMAGE, *settings.shape)
    for number, stride in enumerate(STEMS[settings.instance]):
        x = w.conv(f"stem{number}", x, stages[0], 3, stride, bits=settings.end_bits)
    decisions = []
    blocks = {"k3e1": (3, 1), "k3e2": (3, 2), "k5e1": (5, 1)}
    kept: dict[str, Describe] = {name: partial(widened, kernel=k, expansion=e) for name, (k, e) in blocks.items()}
    kept["identity"] = identity
    for stage, width in enumerate(stages):
        if stage:
            halved = {f"k{k}e1": partial(bireal, out=width, kernel=k, stride=2) for k in REDUCTIONS[settings.instance]}
            decisions.append(Decision(f"reduction{stage}", tuple(halved)))
            x = w.choice(f"layers.{len(decisions) - 1}", len(decisions) - 1, x, halved)
        for block in range(BLOCKS[settings.instance][stage]):
            decisions.append(Decision(f"stage{stage + 1}.block{block + 1}", tuple(kept)))
            x = w.choice(f"layers.{len(decisions) - 1}", len(decisions) - 1, x, kept)
    w.step("head", "head", x, out=settings.classes, bits=settings.end_bits)
    return SearchSpace(
        "tiny", settings.instance, settings.shape, settings.classes, settings.given, tuple(decisions),
        chain_genes(decisions), w.template,
    )  # fmt: skip
