"""The one sign and the 8-bit weights, and what stands in for their derivatives while training.

Forward of the sign, everywhere: -1 where x < shift, else +1; so +0, -0 and NaN give +1 (docs/architecture.md, numeric
contract). Its true derivative is zero, so training uses that of a soft function S that is near it: `SURROGATES`. All
backward passes are made of differentiable operations, so double backward sees S''.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Derivative = Callable[[Tensor, float], Tensor]  # (x, share 0..1 of the training that is done) -> S'(x)

SMALLEST_SCALE = 1e-8  # below what training reaches; a scale of 0 would be no 1-bit weight and divide by zero


def sign(x: Tensor, shift: Tensor | float = 0.0) -> Tensor:
    """-1 where x < shift, else +1. x: any shape; shift broadcasts against it. No gradient flows."""
    if torch.compiler.is_exporting():
        return torch.where(x < shift, -1.0, 1.0)
    # The same values, several times faster on the CPU (benchmarks/training.py): `where` is not vectorised there.
    return less(x, shift).mul_(-2).add_(1)


def less(x: Tensor, bound: Tensor | float) -> Tensor:
    """1 where x < bound, else 0, in the type of x. No gradient flows."""
    bound = bound.detach() if isinstance(bound, Tensor) else bound
    return torch.lt(x.detach(), bound, out=torch.empty_like(x.detach()))


def polynomial(x: Tensor, progress: float = 0.0) -> Tensor:
    """S'(x) = 2 - 2|x| where |x| < 1, else 0 (Bi-Real Net, Liu et al. 2018, eq. 7).

    S(x) = 2x + x^2 on [-1, 0), 2x - x^2 on [0, 1), -1 and 1 outside.
    """
    return (2 - 2 * x.abs()).relu()  # quicker to differentiate than `clamp(min=0)`


def clipped(x: Tensor, progress: float = 0.0) -> Tensor:
    """S'(x) = 1 where |x| <= 1, else 0; S(x) = x clamped to [-1, 1] (DCP-NAS, eq. 4.35)."""
    return 1 - less(-x.abs(), -1.0)


def growing(x: Tensor, progress: float = 0.0) -> Tensor:
    """S'(x) = k t (1 - tanh(t x)^2) with t = 0.1 * 100^progress, k = max(1/t, 1); S(x) = k tanh(t x).

    Wide at the start, so that every value learns, and near the step at the end (IR-Net, Qin et al. 2020: the error
    decay estimator). Floats round it to 0 where |t x| is large.
    """
    t = 0.1 * 100**progress
    return max(1.0, t) * (1 - (t * x).tanh().square())


SURROGATES: dict[str, Derivative] = {"polynomial": polynomial, "clipped": clipped, "growing": growing}


class SurrogateSign(torch.autograd.Function):
    """Forward: sign(x), times `scale` if there is one. Backward: gradient * derivative(x, progress), never scaled."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, derivative: Derivative, progress: float, scale: Tensor | None) -> Tensor:
        ctx.save_for_backward(x)
        ctx.derivative, ctx.progress = derivative, progress
        return sign(x) if scale is None else sign(x).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        return gradient * ctx.derivative(x, ctx.progress), None, None, None


def activation_sign(x: Tensor, shift: Tensor | None, derivative: Derivative, progress: float) -> Tensor:
    """sign(x, shift) in [N, C, H, W]; d/dx = derivative(x - shift), d/dshift = -derivative(x - shift), summed.

    shift: [1, C, 1, 1], or None for 0 (RSign: ReActNet, Liu et al. 2020).
    """
    if _no_gradient():
        return sign(x, 0.0 if shift is None else shift)
    # In IEEE floats x - t < 0 exactly where x < t.
    return SurrogateSign.apply(x if shift is None else x - shift, derivative, progress, None)


def weight_sign(weight: Tensor, scale: Tensor | None = None) -> Tensor:
    """sign(weight), times a constant `scale`; d/dweight = clipped(weight) either way. weight: [O, I, kh, kw]."""
    if _no_gradient():
        return sign(weight) if scale is None else sign(weight) * scale
    return SurrogateSign.apply(weight, clipped, 0.0, scale)


def _no_gradient() -> bool:
    return not torch.is_grad_enabled() or torch.compiler.is_exporting()


def mean_magnitude(weight: Tensor) -> Tensor:
    """mean |w| of each output channel, a constant: [O, I, kh, kw] -> [O, 1, 1, 1] (XNOR-Net, Rastegari et al. 2016).

    It minimises ||w - beta o sign(w)||^2 over beta.
    """
    return weight.detach().abs().mean((1, 2, 3), keepdim=True).clamp(min=SMALLEST_SCALE)


def unscaled(weight: Tensor, beta: Tensor | None) -> Tensor:
    """sign(w); a scale would vanish in the batch-norm that always follows. d/dw: `clipped`."""
    return weight_sign(weight)


def xnor(weight: Tensor, beta: Tensor | None) -> Tensor:
    """mean|w| o sign(w); the scale is a constant, and the gradient passes to w without it (Bi-Real Net, ReActNet)."""
    return weight_sign(weight, mean_magnitude(weight))


def learned(weight: Tensor, beta: Tensor | None) -> Tensor:
    """|beta| o sign(w), beta [O, 1, 1, 1] (DCP-NAS, eq. 4.22), with gradients as the chain rule gives them.

    d/dw = |beta| * clipped(w); d/dbeta_o = sign(beta_o) <upstream_o, sign(w_o)>. The absolute value keeps the deployed
    scale positive; where a channel should turn around, the sign of the batch-norm's gamma does it.
    """
    assert beta is not None
    return weight_sign(weight) * beta.abs()


SCALES: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {"none": unscaled, "xnor": xnor, "learned": learned}


def int8_weight(weight: Tensor) -> Tensor:
    """Weights [O, ...] rounded, half to even, to s_o * {-127 .. 127} with s_o = max|w_o| / 127.

    d/dw = 1: nothing lies outside of the range. s_o is a constant.
    """
    scale = weight.detach().abs().flatten(1).amax(1).float() / 127
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny)  # a channel of zeros
    zero_point = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero_point, 0, -127, 127)
