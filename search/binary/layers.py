"""Convolutions and activations of 1 and 8 bits: what is trained is what is exported is what is measured."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnas.profiles.errors import unknown

from .quantizers import SCALES, SMALLEST_SCALE, SURROGATES, activation_sign, int8_weight, less, mean_magnitude, sign


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """(before, after) of TensorFlow SAME for one axis of `size` pixels; the larger half comes after."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


class ShiftedPReLU(torch.autograd.Function):
    """prelu(x - shift_in; slope) + shift_out for training: faster on the CPU (benchmarks/training.py).

    With c = x - shift_in and n = min(c, 0): y = c + (slope - 1) n + shift_out. n is a second result, which only the
    backward pass reads: what it saves must be an input or a result for double backward to see where it came from.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift_in: Tensor, slope: Tensor, shift_out: Tensor) -> tuple[Tensor, Tensor]:
        centred = x - shift_in
        negative = centred.clamp(max=0)
        ctx.save_for_backward(negative, slope)
        ctx.set_materialize_grads(False)
        return torch.addcmul(centred.add_(shift_out), negative, (slope - 1).view(1, -1, 1, 1)), negative

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, to_negative: Tensor | None) -> tuple[Tensor, ...]:
        """dy/dc = 1 + (slope - 1) [c < 0], dn/dc = [c < 0]. In the first backward pass `to_negative` is None."""
        negative, slope = ctx.saved_tensors
        below, pixels = less(negative, 0.0), (0, 2, 3)
        gradient = torch.zeros_like(negative) if gradient is None else gradient
        to_input = torch.addcmul(gradient, gradient * below, (slope - 1).view(1, -1, 1, 1))
        if to_negative is not None:
            to_input = to_input + to_negative * below
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
            return ShiftedPReLU.apply(x, self.shift_in, self.slope, self.shift_out)[0]
        return F.prelu(x - self.shift_in, self.slope) + self.shift_out


@dataclass(frozen=True)
class Style:
    """How 1-bit convolutions are trained; the deployed operator is the same for all.

    surrogate: what stands in for the derivative of the activations' sign (quantizers.SURROGATES). scale: of the weights
    (quantizers.SCALES). shifted: a learnable threshold per input channel (RSign), else 0. Raises InputError for a
    name that there is not.
    """

    surrogate: str = "polynomial"
    scale: str = "none"
    shifted: bool = True

    def __post_init__(self) -> None:
        if self.surrogate not in SURROGATES:
            raise unknown("surrogate", self.surrogate, SURROGATES)
        if self.scale not in SCALES:
            raise unknown("scale", self.scale, SCALES)


class BinaryConv2d(nn.Module):
    """conv(sign(x - shift), scale o sign(weight)) with one-padding in TensorFlow SAME order; no bias.

    x: [N, in, H, W] float -> [N, out, ceil(H / stride), ceil(W / stride)]; integers in float where there is no scale.
    Values do not depend on the mode, nor on whether gradients are on.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        *,
        style: Style = Style(),
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.dilation, self.groups = kernel, stride, dilation, groups
        self.style = style
        self.progress = 0.0  # of the training, 0 to 1: see set_progress
        weight = torch.empty(out_channels, in_channels // groups, kernel, kernel).uniform_(-0.1, 0.1)
        self.shift = nn.Parameter(torch.zeros(1, in_channels, 1, 1)) if style.shifted else None
        self.weight = nn.Parameter(weight)
        self.beta = nn.Parameter(mean_magnitude(weight)) if style.scale == "learned" else None

    def forward(self, x: Tensor) -> Tensor:
        activation = activation_sign(x, self.shift, SURROGATES[self.style.surrogate], self.progress)
        top, bottom = same_padding(x.shape[2], self.kernel, self.stride, self.dilation)
        left, right = same_padding(x.shape[3], self.kernel, self.stride, self.dilation)
        if top or bottom or left or right:
            activation = F.pad(activation, (left, right, top, bottom), value=1.0)
        weight = SCALES[self.style.scale](self.weight, self.beta)
        return F.conv2d(activation, weight, stride=self.stride, dilation=self.dilation, groups=self.groups)

    @torch.no_grad()
    def clip(self) -> None:
        """Keep the latent weights in [-1, 1], where their gradient is not zero, and the scales away from zero."""
        self.weight.clamp_(-1, 1)
        if self.beta is not None:
            self.beta.masked_fill_(self.beta.abs() < SMALLEST_SCALE, SMALLEST_SCALE)

    def reconstruction_loss(self) -> Tensor:
        """L_R = ||w - beta o sign(w)||^2, a scalar (DCP-NAS, eq. 4.23). beta: as learned, else mean |w| as a constant.

        dL_R/dw = 2 (w - beta o sign(w)), and with a learned beta dL_R/dbeta_o = -2 <w_o - beta_o sign(w_o), sign(w_o)>;
        at beta_o = mean |w_o| the latter is 0 and L_R minimal over beta.
        """
        scale = mean_magnitude(self.weight) if self.beta is None else self.beta.abs()
        return (self.weight - scale * sign(self.weight)).square().sum()


def set_progress(model: nn.Module, share: float) -> None:
    """Tell the 1-bit convolutions which share of the training is done, 0 to 1: the growing surrogate follows it.

    It is no part of a checkpoint: whoever trains knows the step, and sets it again.
    """
    for module in model.modules():
        if isinstance(module, BinaryConv2d):
            module.progress = share


def reconstruction_loss(model: nn.Module) -> Tensor:
    """The sum of L_R over all 1-bit convolutions of `model`, a scalar: those off the path get gradients, too."""
    losses = (m.reconstruction_loss() for m in model.modules() if isinstance(m, BinaryConv2d))
    return sum(losses, start=torch.zeros(()))


class Quantize(nn.Module):
    """x rounded to 256 levels: (clamp(round(x / scale) + zero_point, 0, 255) - zero_point) * scale, half to even.

    The levels span a moving range of minimum and maximum, always with 0, which is one of them (Jacob et al. 2018). The
    first training batch sets the range, each later one moves it by `MOMENTUM`; before any it is [-4, 4]. In eval mode
    it stands still. The gradient is 1 where x rounds to a level and 0 where it is cut off.
    """

    MOMENTUM = 0.1

    scale: Tensor
    zero_point: Tensor
    low: Tensor
    high: Tensor
    batches: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("scale", "low", "high"):
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.reset_range()

    @torch.no_grad()
    def reset_range(self) -> None:
        """Forget what was seen: the next training batch sets the range."""
        self.low.fill_(-4)
        self.high.fill_(4)
        self.batches.zero_()
        self._fit_levels()

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self._observe(x)
        return torch.fake_quantize_per_tensor_affine(x, self.scale.float(), self.zero_point, 0, 255)

    @torch.no_grad()
    def _observe(self, x: Tensor) -> None:
        low, high = torch.aminmax(x)
        share = torch.where(self.batches == 0, 1.0, self.MOMENTUM).to(self.low)
        self.low.lerp_(low.clamp(max=0).to(self.low), share)
        self.high.lerp_(high.clamp(min=0).to(self.high), share)
        self.batches += 1
        self._fit_levels()

    def _fit_levels(self) -> None:
        self.scale.copy_(((self.high - self.low) / 255).clamp(min=SMALLEST_SCALE))
        self.zero_point.copy_((-self.low / self.scale).round())


class QuantizedConv2d(nn.Conv2d):
    """Convolution with 8-bit weights (quantizers.int8_weight); no bias, padding dilation * (kernel // 2) zeros a side.

    x: [N, in, H, W], values of `Quantize` where it is deployed with integers.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1
    ) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, int8_weight(self.weight), None)


class QuantizedLinear(nn.Linear):
    """Linear layer with 8-bit weights (quantizers.int8_weight) and a float bias. x: [N, in], values of `Quantize`."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, int8_weight(self.weight), self.bias)
