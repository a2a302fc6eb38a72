"""What a candidate of a trained supernet is worth: batch-norm statistics rebuilt for its path, then accuracy.

The same images serve every candidate; nothing but running statistics changes (SPOS, Guo et al. 2020, section 3.3; with
cumulative averages, so that the result does not depend on what ran before).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .augment import DeviceSplit
from .binary.layers import Quantize
from .training.trainer import accuracy


@torch.no_grad()
def recalibrate(model: nn.Module, forward: Callable[[Tensor], Tensor], images: list[Tensor]) -> None:
    """Rebuild what `forward` reaches from batches of [B, C, H, W]: the running mean and variance of batch-norms, and
    the ranges of 8-bit values."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    for module in model.modules():
        if isinstance(module, Quantize):
            module.reset_range()
    model.train()
    for batch in images:
        forward(batch)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def calibration_batches(data: DeviceSplit, count: int, batch_size: int = 128) -> list[Tensor]:
    """The first `count` training images in batches, without augmentation; a last batch of one image is left out."""
    count = min(count, len(data))
    starts = range(0, count, batch_size)
    batches = [data.batch(torch.arange(s, min(s + batch_size, count)))[0] for s in starts]
    return [b for b in batches if len(b) > 1] or batches


def score(supernet: nn.Module, gates: tuple[int, ...], calibration: list[Tensor], validation: DeviceSplit) -> float:
    """Validation accuracy, 0 to 1, of the path `gates` with the supernet's weights."""

    def forward(x: Tensor) -> Tensor:
        return supernet(x, gates)

    recalibrate(supernet, forward, calibration)
    return accuracy(forward, validation)
