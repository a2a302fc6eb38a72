"""The fused binary unit as a PyTorch module: what is trained is what is exported is what is measured."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .quantizers import ClippedIdentitySign, PolynomialSign, less, sign


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """(before, after) of TensorFlow SAME for one axis of `size` pixels; the larger half comes after."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


class ShiftedPReLU(torch.autograd.Function):
    """prelu(x - shift_in; slope) + shift_out for training: faster on the CPU (benchmarks/training.py).

    With n = min(x - shift_in, 0): y = (x - shift_in) + (slope - 1) n + shift_out. The backward pass is made of
    differentiable operations on saved tensors, so double backward works.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift_in: Tensor, slope: Tensor, shift_out: Tensor) -> Tensor:
        centred = x - shift_in
        negative, bend = centred.clamp(max=0), (slope - 1).view(1, -1, 1, 1)
        ctx.save_for_backward(negative, bend)
        return torch.addcmul(centred.add_(shift_out), negative, bend)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        negative, bend = ctx.saved_tensors
        to_input = torch.addcmul(gradient, gradient * less(negative, 0.0), bend)
        pixels = (0, 2, 3)
        return (
            to_input,
            -to_input.sum(pixels, keepdim=True),
            (gradient * negative).sum(pixels),
            gradient.sum(pixels, keepdim=True),
        )


class RPReLU(nn.Module):
    """prelu(x - shift_in; slope) + shift_out, each per channel (ReActNet, Liu et al. 2020, eq. 5). x: [N, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift_in = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.slope = nn.Parameter(torch.full((channels,), 0.25))
        self.shift_out = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return ShiftedPReLU.apply(x, self.shift_in, self.slope, self.shift_out)
        return F.prelu(x - self.shift_in, self.slope) + self.shift_out


class BinaryConv2d(nn.Module):
    """conv(sign(x - shift), sign(weight)) with one-padding in TensorFlow SAME order; no bias, no scale.

    x: [N, in, H, W] float -> [N, out, ceil(H / stride), ceil(W / stride)], integers in float. A scale would vanish in
    the batch-norm that always follows. While training, gradients pass by `PolynomialSign` and `ClippedIdentitySign`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.dilation, self.groups = kernel, stride, dilation, groups
        self.shift = nn.Parameter(torch.zeros(1, in_channels, 1, 1))
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel, kernel).uniform_(-0.1, 0.1))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            activation, weight = PolynomialSign.apply(x - self.shift), ClippedIdentitySign.apply(self.weight)
        else:
            activation, weight = sign(x, self.shift), sign(self.weight)
        top, bottom = same_padding(x.shape[2], self.kernel, self.stride, self.dilation)
        left, right = same_padding(x.shape[3], self.kernel, self.stride, self.dilation)
        if top or bottom or left or right:
            activation = F.pad(activation, (left, right, top, bottom), value=1.0)
        return F.conv2d(activation, weight, stride=self.stride, dilation=self.dilation, groups=self.groups)

    @torch.no_grad()
    def clip(self) -> None:
        """Keep the latent weights in [-1, 1], where their gradient is not zero."""
        self.weight.clamp_(-1, 1)


class BinaryUnit(nn.Module):
    """act(batch_norm(binary_conv(x)) + residual): the unit of docs/architecture.md. residual: [N, out, H', W']."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, affine: bool = True
    ) -> None:
        super().__init__()
        self.conv = BinaryConv2d(in_channels, out_channels, kernel, stride)
        self.norm = nn.BatchNorm2d(out_channels, affine=affine)
        self.act = RPReLU(out_channels)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)) + residual)
