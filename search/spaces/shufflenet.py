"""`shufflenet`: a chain of ShuffleNetV2 blocks, four candidates each (SPOS, Guo et al. 2020)."""

from functools import partial

from .architecture import Decision
from .blocks import DEPTHWISE, shuffle
from .options import BITS, ENDS, Settings, bit_widths, label
from .space import SearchSpace, chain_genes
from .wiring import IMAGE, Describe, Value, Wiring

OPTIONS = {"bits": BITS, "depthwise": tuple(DEPTHWISE)} | ENDS
STRIDES = {"micro": 4, "cifar": 8, "imagenet": 32}
KERNELS = {"shuffle3": 3, "shuffle5": 5, "shuffle7": 7, "xception": 0}

# (channels, decisions, stride of the first); float imagenet: as published. Half of a stage's channels go through a
# branch; for 1 bit they are a multiple of 32, and each stage doubles them, so that every shortcut is a repetition.
FLOAT_STAGES = {
    "micro": ((32, 4, 2), (64, 4, 2)),
    "cifar": ((64, 4, 1), (160, 4, 2), (320, 8, 2), (640, 4, 2)),
    "imagenet": ((64, 4, 2), (160, 4, 2), (320, 8, 2), (640, 4, 2)),
}
BINARY_STAGES = {
    "micro": ((64, 4, 2), (128, 4, 2)),
    "cifar": ((64, 4, 1), (128, 4, 2), (256, 8, 2), (512, 4, 2)),
    "imagenet": ((64, 4, 2), (128, 4, 2), (256, 8, 2), (512, 4, 2)),
}
FLOAT_STEMS = {"micro": 16, "cifar": 64, "imagenet": 16}
BINARY_STEMS = {"micro": 32, "cifar": 64, "imagenet": 32}
FINAL = 1024


def shufflenet(settings: Settings) -> SearchSpace:
    """shuffle3, shuffle5, shuffle7 and xception for each of 20 layers (8 in the micro instance)."""
    widths, instance, depthwise = bit_widths(settings["bits"]), settings.instance, settings["depthwise"]
    lowest = min(widths)
    stages = (BINARY_STAGES if lowest == 1 else FLOAT_STAGES)[instance]
    stem = (BINARY_STEMS if lowest == 1 else FLOAT_STEMS)[instance]
    w = Wiring()
    ends, halved, act = settings.end_bits, 2 if instance == "imagenet" else 1, "" if lowest == 1 else "relu"
    x = w.conv("stem", Value(IMAGE, *settings.shape), stem, 3, halved, bits=ends, act=act)
    decisions: list[Decision] = []
    for stage, (channels, depth, stride) in enumerate(stages, start=1):
        for block in range(depth):
            step = stride if block == 0 else 1
            candidates: dict[str, Describe] = {
                label(name, bits, widths): partial(
                    shuffle, out=channels, kernel=kernel, stride=step, bits=bits, depthwise=depthwise
                )
                for bits in widths
                for name, kernel in KERNELS.items()
            }
            d = len(decisions)
            decisions.append(Decision(f"stage{stage}.block{block + 1}", tuple(candidates)))
            x = w.choice(f"layers.{d}", d, x, candidates)
    if instance != "micro":
        x = w.binary("final", x, FINAL, 1) if lowest == 1 else w.conv("final", x, FINAL, 1, bits=lowest, act="relu")
    w.step("head", "head", x, out=settings.classes, bits=ends)
    return SearchSpace(
        "shufflenet", instance, settings.shape, settings.classes, settings.given, tuple(decisions),
        chain_genes(decisions), w.template,
    )  # fmt: skip
