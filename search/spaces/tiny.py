"""`tiny`: a short chain of binary residual blocks for small images; kernel, width and depth are searched."""

from bnas.profiles.errors import InputError
from bnas.profiles.workload import Workload

from .architecture import Decision
from .chain import IDENTITY, ChainSpace, Layer

BLOCKS = ("k3e1", "k3e2", "k5e1", IDENTITY)
REDUCTIONS = ("k3e1", "k5e1")
BLOCKS_PER_STAGE = 3


def tiny(shape: tuple[int, int, int], classes: int) -> ChainSpace:
    """Two stages (32 and 64 channels) up to 16 pixels, three (64, 128, 256) behind a stride-2 stem above.

    shape: (channels, height, width). Images are 8 to 32 pixels a side with sides divisible by every stride.
    Raises InputError for other shapes.
    """
    channels, height, width = shape
    small = max(height, width) <= 16
    stem_stride, widths = (1, (32, 64)) if small else (2, (64, 128, 256))
    multiple = stem_stride * 2 ** (len(widths) - 1)
    if channels not in (1, 3):
        raise InputError(f"space 'tiny' takes images of 1 or 3 channels, got {channels}")
    if classes < 2:
        raise InputError(f"space 'tiny' needs at least 2 classes, got {classes}")
    if not all(8 <= side <= 32 and side % multiple == 0 for side in (height, width)):
        raise InputError(
            f"space 'tiny' takes images of 8 to 32 pixels a side, divisible by {multiple} here, got {height}x{width}; "
            "choose a size with --image-size"
        )
    stem = Workload("conv", 32, channels, widths[0], height, width, kernel=3, stride=stem_stride)
    layers: list[Layer] = []
    height, width = stem.out_height, stem.out_width
    for stage, stage_width in enumerate(widths):
        for block in range(BLOCKS_PER_STAGE):
            decision = Decision(f"stage{stage + 1}.block{block + 1}", BLOCKS)
            layers.append(Layer(decision, stage_width, stage_width, 1, height, width))
        if stage + 1 < len(widths):
            decision = Decision(f"reduction{stage + 1}", REDUCTIONS)
            layers.append(Layer(decision, stage_width, widths[stage + 1], 2, height, width))
            height, width = height // 2, width // 2
    return ChainSpace("tiny", shape, classes, stem, tuple(layers))
