"""The one sign, and what stands in for its derivative while training.

Forward, everywhere: -1 where x < shift, else +1; so +0, -0 and NaN give +1 (docs/architecture.md, numeric contract).
"""

from typing import Any

import torch
from torch import Tensor


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


class ClippedIdentitySign(torch.autograd.Function):
    """sign(x); derivative 1 where |x| <= 1, else 0 (DCP-NAS, eq. 4.35). For weights.

    The backward pass is made of differentiable operations on the saved tensor, so double backward works.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return sign(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (1 - less(-x.abs(), -1.0))


class PolynomialSign(torch.autograd.Function):
    """sign(x); derivative 2 - 2|x| where |x| < 1, else 0 (Bi-Real Net, Liu et al. 2018, eq. 7). For activations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return sign(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (2 - 2 * x.abs()).clamp(min=0)
