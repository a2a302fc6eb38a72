"""`mobilenet`: a chain of MobileNetV2 blocks in which kernel, expansion, depth and, if asked for, bits are searched."""

from functools import partial

from .architecture import Decision
from .blocks import DEPTHWISE, identity, mobile
from .options import BITS, ENDS, Settings, bit_widths, label
from .space import SearchSpace, chain_genes
from .wiring import IMAGE, Describe, Value, Wiring

OPTIONS = {"bits": BITS, "identity": ("yes", "no"), "depthwise": tuple(DEPTHWISE)} | ENDS
STRIDES = {"micro": 2, "cifar": 8, "imagenet": 32}
KERNELS, EXPANSIONS = (3, 5, 7), (3, 6)

# (channels, decisions, stride) of the stages. Float: the widths of MobileNetV2 1.0, in the five stages of four that the
# searches on it use (BN-NAS, DI-NAS). 1 bit: multiples of 32 that double, so that every shortcut is a repetition.
FLOAT_STAGES = {
    "micro": ((16, 3, 1), (24, 3, 2)),
    "cifar": ((24, 4, 1), (32, 4, 2), (64, 4, 2), (96, 4, 1), (160, 4, 2)),
    "imagenet": ((24, 4, 2), (32, 4, 2), (64, 4, 2), (96, 4, 1), (160, 4, 2)),
}
BINARY_STAGES = {
    "micro": ((32, 3, 1), (32, 3, 2)),
    "cifar": ((32, 4, 1), (64, 4, 2), (128, 4, 2), (128, 4, 1), (256, 4, 2)),
    "imagenet": ((32, 4, 2), (64, 4, 2), (128, 4, 2), (128, 4, 1), (256, 4, 2)),
}
# (stem, first block, last block, last convolution): the parts that are not searched; the micro instance has a stem only
FLOAT_ENDS, BINARY_ENDS = (32, 16, 320, 1280), (32, 32, 512, 1024)


def mobilenet(settings: Settings) -> SearchSpace:
    """Six candidates MB(k, e) for each of 20 layers (6 in the micro instance), and identity where shapes permit.

    bits=32 with the imagenet instance holds MobileNetV2 1.0 itself: k3e6 with identity in the places it has no block.
    """
    widths, instance = bit_widths(settings["bits"]), settings.instance
    lowest, depthwise = min(widths), settings["depthwise"]
    stages = (BINARY_STAGES if lowest == 1 else FLOAT_STAGES)[instance]
    stem, first, last, final = BINARY_ENDS if lowest == 1 else FLOAT_ENDS
    micro = instance == "micro"
    act = "" if lowest == 1 else "relu"
    ends, halved = settings.end_bits, 2 if instance == "imagenet" else 1

    w = Wiring()
    x = w.conv("stem", Value(IMAGE, *settings.shape), stages[0][0] if micro else stem, 3, halved, bits=ends, act=act)
    if not micro:
        x = mobile(w.at("first"), x, first, 3, 1, 1, bits=lowest, depthwise=depthwise)
    decisions: list[Decision] = []
    for stage, (channels, depth, stride) in enumerate(stages, start=1):
        for block in range(depth):
            step = stride if block == 0 else 1
            candidates: dict[str, Describe] = {
                label(f"k{k}e{e}", bits, widths): partial(
                    mobile, out=channels, kernel=k, expansion=e, stride=step, bits=bits, depthwise=depthwise
                )
                for bits in widths
                for k in KERNELS
                for e in EXPANSIONS
            }
            if settings["identity"] == "yes" and step == 1 and x.channels == channels:
                candidates["identity"] = identity
            d = len(decisions)
            decisions.append(Decision(f"stage{stage}.block{block + 1}", tuple(candidates)))
            x = w.choice(f"layers.{d}", d, x, candidates)
    if not micro:
        x = mobile(w.at("last"), x, last, 3, 6, 1, bits=lowest, depthwise=depthwise)
        x = w.binary("final", x, final, 1) if lowest == 1 else w.conv("final", x, final, 1, bits=lowest, act="relu")
    w.step("head", "head", x, out=settings.classes, bits=ends)
    return SearchSpace(
        "mobilenet", instance, settings.shape, settings.classes, settings.given, tuple(decisions),
        chain_genes(decisions), w.template,
    )  # fmt: skip
