"""Published networks: as points of our spaces where they are such, else as a space of one architecture.

Their costs are known, so they show that ours are counted right; and they are what a found network is compared with.
"""

from .architecture import Architecture
from .blocks import bireal, react, shuffle
from .cells import from_genotype
from .options import Settings
from .space import SearchSpace
from .wiring import IMAGE, Value, Wiring

OPTIONS: dict[str, tuple[str, ...]] = {}
STRIDES = {"imagenet": 32}


def bireal18(settings: Settings) -> SearchSpace:
    """ResNet-18 with a shortcut around each of its 16 1-bit convolutions (Bi-Real Net, Liu et al. 2018).

    Where channels grow the shortcut is a 2x2 mean and a float 1x1 convolution; no activation but the sign.
    """
    w = Wiring()
    x = w.conv("stem", Value(IMAGE, *settings.shape), 64, 7, 2)
    x = w.step("pool", "max_pool", x, kernel=3, stride=2)
    for number in range(16):
        channels, stride = 64 << number // 4, 2 if number in (4, 8, 12) else 1
        part = w.at(f"blocks.{number}")
        if stride == 1:
            x = bireal(part, x, channels, 3, 1, act="")
        else:
            pooled = part.step("pool", "downsample", x, out=x.channels, kernel=2, stride=2)
            shortcut = part.conv("point", pooled, channels, 1)
            x = part.binary("conv", x, channels, 3, 2, act="", shortcut=shortcut)
    w.step("head", "head", x, out=settings.classes)
    return _network("bireal18", settings, w)


def reactnet_a(settings: Settings) -> SearchSpace:
    """MobileNetV1's 13 blocks, each a 3x3 and a 1x1 1-bit convolution (ReActNet-A, Liu et al. 2020)."""
    w = Wiring()
    x = w.conv("stem", Value(IMAGE, *settings.shape), 32, 3, 2)
    widths = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    for number, channels in enumerate(widths):
        stride = 2 if number in (1, 3, 5, 11) else 1
        x = react(w.at(f"blocks.{number}"), x, channels, 3, stride)
    w.step("head", "head", x, out=settings.classes)
    return _network("reactnet_a", settings, w)


def shufflenetv2(settings: Settings) -> SearchSpace:
    """ShuffleNetV2 1.0 in float (Ma et al. 2018)."""
    w = Wiring()
    x = w.conv("stem", Value(IMAGE, *settings.shape), 24, 3, 2, act="relu")
    x = w.step("pool", "max_pool", x, kernel=3, stride=2)
    for stage, (channels, depth) in enumerate(((116, 4), (232, 8), (464, 4))):
        for block in range(depth):
            part = w.at(f"stages.{stage}.{block}")
            x = shuffle(part, x, channels, 3, 1 if block else 2, bits=32, passed=channels // 2)
    x = w.conv("final", x, 1024, 1, act="relu")
    w.step("head", "head", x, out=settings.classes)
    return _network("shufflenetv2", settings, w)


def _network(name: str, settings: Settings, w: Wiring) -> SearchSpace:
    return SearchSpace(name, settings.instance, settings.shape, settings.classes, (), (), (), w.template)


NETWORKS = {"bireal18": bireal18, "reactnet_a": reactnet_a, "shufflenetv2": shufflenetv2}

# Points of our spaces: name -> (space, how to choose)
MOBILENETV2_DEPTHS = (2, 3, 4, 3, 3)
SPOS = (2, 1, 0, 1, 2, 0, 2, 0, 2, 0, 2, 3, 0, 0, 0, 0, 3, 2, 3, 3)  # the architecture released with the paper
DARTS_V2 = """Genotype(
    normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 1),
            ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5],
    reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0),
            ('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"""


def mobilenetv2(space: SearchSpace) -> Architecture:
    """MobileNetV2 1.0 (Sandler et al. 2018): 17 blocks, the first of which no decision makes."""
    choices = ("k3e6" if block < depth else "identity" for depth in MOBILENETV2_DEPTHS for block in range(4))
    return Architecture(space.id, tuple(choices))


POINTS = {
    "mobilenetv2": ("mobilenet:imagenet:bits=32", mobilenetv2),
    "spos": ("shufflenet:imagenet:bits=32", lambda space: space.architecture(SPOS)),
    "darts_v2": ("cells:imagenet:bits=32", lambda space: from_genotype(space, DARTS_V2)),
}
REFERENCES = (*NETWORKS, *POINTS)
