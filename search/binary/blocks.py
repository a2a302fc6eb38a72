"""Candidate blocks built from binary units; a real-valued shortcut goes around every binary convolution.

A block's name says what it is: `k3e1` is one 3x3 unit, `k5e2` widens twofold with a 5x5 unit and returns with a
1x1 unit. `search.spaces.chain` describes the same blocks as workloads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import BinaryUnit


def repeat_channels(x: Tensor, times: int) -> Tensor:
    """[N, C, H, W] -> [N, times * C, H, W]."""
    return torch.cat([x] * times, dim=1) if times > 1 else x


def average_channels(x: Tensor, groups: int) -> Tensor:
    """[N, groups * C, H, W] -> [N, C, H, W], the mean over the groups."""
    parts = x.chunk(groups, dim=1)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total * (1 / groups)


class Plain(nn.Module):
    """One unit. With stride 2 the shortcut is a 2x2 average pool, repeated where channels grow (ReActNet)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, *, affine: bool) -> None:
        super().__init__()
        self.stride, self.repeats = stride, out_channels // in_channels
        self.unit = BinaryUnit(in_channels, out_channels, kernel, stride, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.avg_pool2d(x, 2) if self.stride == 2 else x
        return self.unit(x, repeat_channels(shortcut, self.repeats))


class Widened(nn.Module):
    """Two units, stride 1: kernel x kernel to `expansion` times the channels, then 1x1 back."""

    def __init__(self, channels: int, kernel: int, expansion: int, *, affine: bool) -> None:
        super().__init__()
        self.expansion = expansion
        self.widen = BinaryUnit(channels, expansion * channels, kernel, affine=affine)
        self.narrow = BinaryUnit(expansion * channels, channels, 1, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.widen(x, repeat_channels(x, self.expansion))
        return self.narrow(wide, average_channels(wide, self.expansion))
