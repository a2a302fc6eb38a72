"""Fused units as PyTorch modules: one for each kind of `Workload`, so that what is described is what is trained."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnas.profiles.workload import Workload

from .layers import BinaryConv2d, Quantize, QuantizedConv2d, QuantizedLinear, RPReLU, Style


class BinaryUnit(nn.Module):
    """act(batch_norm(binary_conv(x)) + residual): the unit of docs/architecture.md. residual: [N, out, H', W']."""

    def __init__(self, w: Workload, style: Style, affine: bool) -> None:
        super().__init__()
        self.conv = BinaryConv2d(w.in_channels, w.out_channels, w.kernel, w.stride, w.dilation, w.groups, style=style)
        self.norm = nn.BatchNorm2d(w.out_channels, affine=affine)
        self.act = _activation(w)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = self.norm(self.conv(x))
        return self.act(y if residual is None else y + residual)


class ConvUnit(nn.Module):
    """act(batch_norm(conv(x))), float or, with 8 bits, on integers in weights, input and result; zero padding."""

    def __init__(self, w: Workload, affine: bool) -> None:
        super().__init__()
        sizes = (w.in_channels, w.out_channels, w.kernel, w.stride)
        if w.bits == 8:
            self.conv: nn.Module = QuantizedConv2d(*sizes, w.dilation, w.groups)
        else:
            padding = w.dilation * (w.kernel // 2)
            self.conv = nn.Conv2d(*sizes, padding, w.dilation, w.groups, bias=False)
        self.norm = nn.BatchNorm2d(w.out_channels, affine=affine)
        self.act = _activation(w)
        self.quantize = Quantize() if w.bits == 8 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.quantize(self.act(self.norm(self.conv(x))))


def _activation(w: Workload) -> nn.Module:
    acts = [name for name in w.epilogue if name != "residual"]
    return ACTIVATIONS[acts[0]](w.out_channels) if acts else nn.Identity()


ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "relu": lambda channels: nn.ReLU(),
    "prelu": lambda channels: nn.PReLU(channels),
    "rprelu": RPReLU,
}


class Downsample(nn.Module):
    """2x2 average with stride 2, then the channels `times` times: [N, C, H, W] -> [N, times * C, H / 2, W / 2]."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        return repeat_channels(F.avg_pool2d(x, 2), self.times)


class Duplicate(nn.Module):
    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        return repeat_channels(x, self.times)


class Average(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return average_channels(x, self.groups)


class Pool(nn.Module):
    """3x3 maximum or mean over what is inside of the image, TensorFlow SAME: with stride 2 on even sizes the odd pixel
    of padding comes after. [N, C, H, W] -> [N, C, ceil(H / stride), ceil(W / stride)]."""

    def __init__(self, w: Workload) -> None:
        super().__init__()
        if w.kernel != 3 or (w.stride == 2 and w.height % 2 != w.width % 2):
            raise ValueError(f"{w.key}: pools are 3x3, with stride 2 on sizes that are both even or both odd")
        self.maximum, self.stride = w.kind == "max_pool", w.stride
        self.after = w.stride == 2 and w.height % 2 == 0

    def forward(self, x: Tensor) -> Tensor:
        padding = 0 if self.after else 1
        if self.maximum:
            return F.max_pool2d(x, 3, self.stride, padding, ceil_mode=self.after)
        return F.avg_pool2d(x, 3, self.stride, padding, ceil_mode=self.after, count_include_pad=False)


class Norm(nn.Module):
    """Batch-norm alone: what a search measures a block by."""

    def __init__(self, w: Workload, affine: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(w.out_channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Add(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Concat(nn.Module):
    def forward(self, *values: Tensor) -> Tensor:
        return torch.cat(values, dim=1)


class EveryOther(nn.Module):
    """Channels first, first + 2, ...: [N, C, H, W] -> [N, C / 2, H, W]."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.first :: 2]


class Head(nn.Module):
    """Global average pool and linear classifier: [N, C, H, W] -> [N, classes].

    With 8 bits the means are rounded and the weights are integers; the logits are not rounded.
    """

    def __init__(self, w: Workload) -> None:
        super().__init__()
        linear = QuantizedLinear if w.bits == 8 else nn.Linear
        self.quantize = Quantize() if w.bits == 8 else nn.Identity()
        self.linear = linear(w.in_channels, w.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.quantize(x.mean(dim=(2, 3))))


UNITS: dict[str, Callable[[Workload, Style, bool], nn.Module]] = {
    "binary_conv": BinaryUnit,
    "conv": lambda w, style, affine: ConvUnit(w, affine),
    "downsample": lambda w, style, affine: Downsample(w.out_channels // w.in_channels),
    "duplicate": lambda w, style, affine: Duplicate(w.out_channels // w.in_channels),
    "average": lambda w, style, affine: Average(w.in_channels // w.out_channels),
    "max_pool": lambda w, style, affine: Pool(w),
    "avg_pool": lambda w, style, affine: Pool(w),
    "relu": lambda w, style, affine: nn.ReLU(),
    "norm": lambda w, style, affine: Norm(w, affine),
    "quantize": lambda w, style, affine: Quantize(),
    "add": lambda w, style, affine: Add(),
    "concat": lambda w, style, affine: Concat(),
    "even_channels": lambda w, style, affine: EveryOther(0),
    "odd_channels": lambda w, style, affine: EveryOther(1),
    "head": lambda w, style, affine: Head(w),
}


def make_unit(w: Workload, style: Style | None = None, *, affine: bool = True) -> nn.Module:
    """The module of one unit, with fresh weights. affine: whether its batch-norm has gamma and beta."""
    return UNITS[w.kind](w, style or Style(), affine)


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
