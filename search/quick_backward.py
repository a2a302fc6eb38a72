"""Grouped convolution and batch-norm as PyTorch has them, with backward passes that cost what they should.

PyTorch differentiates the backward pass of a grouped convolution by one convolution for each group, hundreds for a
depthwise one, and that of a batch-norm by some thirty passes over the image. oneDNN's weight gradients of depthwise 5x5
and 7x7 convolutions take 10 to 25 times as long as they need. In the space of MobileNet blocks that was more than half
of a product with a Hessian. Values and derivatives are PyTorch's, up to the order of sums.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten
Pair: TypeAlias = tuple[int, int]

SMALL = 2**15  # values up to which PyTorch's batch-norm is as quick


class QuickBackward(TorchFunctionMode):
    """Within, what is computed has a graph that is quick to differentiate, once and twice.

    Only the forward pass has to be inside. A third derivative raises RuntimeError where there is a batch-norm. What
    the operators of this module do not cover (GPUs, where nothing was measured, autocast, eval mode) is left to
    PyTorch, and so is what is quick there: convolutions without groups, batch-norms of small images.
    """

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return OPERATORS.get(func, func)(*args, **(kwargs or {}))


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Tensor:
    """F.conv2d. input: [N, C, H, W] -> [N, O, H', W']."""
    if groups == 1 or isinstance(padding, str) or not _covered(input):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    y = Conv.apply(input, weight, Geometry(_pair(stride), _pair(padding), _pair(dilation), groups))
    return y if bias is None else y + bias.view(1, -1, 1, 1)


def _covered(x: Tensor) -> bool:
    return x.dim() == 4 and x.numel() > 0 and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


class Geometry(NamedTuple):
    """What a convolution is besides its two tensors; pairs are (rows, columns)."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


# y = x * w is linear in both, and so are its two adjoints: <y', x * w> = <input(y', w), x> = <weight(x, y'), w>. Hence
# the derivatives of each of the three are the other two. `like` has the shape and format of the result.


class Conv(torch.autograd.Function):
    """(x, w) -> x * w."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, at: Geometry) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.at = at
        return aten.convolution(x, w, None, at.stride, at.padding, at.dilation, False, (0, 0), at.groups)

    @staticmethod
    def backward(ctx: Any, y: Tensor) -> tuple[Tensor | None, ...]:
        (x, w), at, need = ctx.saved_tensors, ctx.at, ctx.needs_input_grad
        to_x = ToInput.apply(y, w, x.detach(), at) if need[0] else None
        return to_x, ToWeight.apply(x, y, w.detach(), at) if need[1] else None, None


class ToInput(torch.autograd.Function):
    """(y, w) -> the gradient for the input of a convolution with w whose result has gradient y."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, w: Tensor, like: Tensor, at: Geometry) -> Tensor:
        ctx.save_for_backward(y, w)
        ctx.at = at
        return _adjoint(y, like, w, at, (True, False, False))[0]

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> tuple[Tensor | None, ...]:
        (y, w), at, need = ctx.saved_tensors, ctx.at, ctx.needs_input_grad
        to_y = Conv.apply(x, w, at) if need[0] else None
        return to_y, ToWeight.apply(x, y, w.detach(), at) if need[1] else None, None, None


class ToWeight(torch.autograd.Function):
    """(x, y) -> the gradient for the weights of a convolution of x whose result has gradient y."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, like: Tensor, at: Geometry) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.at = at
        depthwise = at.groups == x.shape[1] == y.shape[1]
        if depthwise and max(like.shape[2:]) > 3 and x.dtype == torch.float32:
            return depthwise_weight_gradient(x, y, like.shape[2:], at)
        return _adjoint(y, x, like, at, (False, True, False))[1]

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> tuple[Tensor | None, ...]:
        (x, y), at, need = ctx.saved_tensors, ctx.at, ctx.needs_input_grad
        to_x = ToInput.apply(y, w, x.detach(), at) if need[0] else None
        return to_x, Conv.apply(x, w, at) if need[1] else None, None, None


def depthwise_weight_gradient(x: Tensor, y: Tensor, kernel: torch.Size, at: Geometry) -> Tensor:
    """[N, C, H, W] and [N, C, H', W'] -> [C, 1, *kernel]: each image's channel correlated with that of the gradient.

    That is a depthwise convolution of N * C channels, stride and dilation in exchanged roles, and of as many products
    as the forward pass. For 3x3 oneDNN's way is as quick.
    """
    channels = len(x) * x.shape[1]
    one_image = x.reshape(1, channels, *x.shape[2:])
    kernels = y.reshape(channels, 1, *y.shape[2:])
    found = aten.convolution(one_image, kernels, None, at.dilation, at.padding, at.stride, False, (0, 0), channels)
    # Where the stride leaves pixels over, the result has rows and columns that no weight belongs to.
    found = found[:, :, : kernel[0], : kernel[1]].view(*x.shape[:2], *kernel)
    return found.sum(0).unsqueeze(1)


def _adjoint(y: Tensor, x: Tensor, w: Tensor, at: Geometry, mask: tuple[bool, bool, bool]) -> tuple[Tensor, ...]:
    where = (at.stride, at.padding, at.dilation, False, (0, 0), at.groups)
    return aten.convolution_backward(y, x, w, None, *where, mask)


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """F.batch_norm. input: [N, C, H, W]."""
    one_value = input.numel() == input.shape[1]  # in a channel, about which PyTorch has something to say
    if not training or not _covered(input) or input.numel() <= SMALL or one_value:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    y = Normalise.apply(input, running_mean, running_var, momentum, eps)
    y = y if weight is None else y * weight.view(1, -1, 1, 1)
    return y if bias is None else y + bias.view(1, -1, 1, 1)


class Normalise(torch.autograd.Function):
    """x -> s (x - mean), s = 1 / sqrt(variance + eps), of each channel in the batch; moves the running statistics."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, momentum: float, eps: float
    ) -> Tensor:
        y, mean, s = aten.native_batch_norm(x, None, None, running_mean, running_var, True, momentum, eps)
        ctx.save_for_backward(x, mean, s)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return NormaliseBackward.apply(gradient, *ctx.saved_tensors, ctx.eps), None, None, None, None


class NormaliseBackward(torch.autograd.Function):
    """(g, x) -> B(g) = s (g - mean(g) - h mean(g h)), h the normalised x.

    B is symmetric, so the derivative by g along u is B(u). x is in h, whose own derivative is B again, and in s, with
    ds/dx = -s^2 h / n for n values in a channel. With a = mean(u h), b = mean(g h), the derivative by x is therefore
    -s (a B(g) + b B(u) + mean(u B(g)) h).
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, mean: Tensor, s: Tensor, eps: float) -> Tensor:
        to_x, gh = _normalise_backward(g, x, mean, s, eps)
        ctx.save_for_backward(x, mean, s, to_x, gh)
        ctx.eps = eps
        return to_x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, s, along_g, gh = ctx.saved_tensors
        along_u, uh = _normalise_backward(u, x, mean, s, ctx.eps)
        factor = -s * x.shape[1] / x.numel()
        of_x = factor * s * (u * along_g).sum((0, 2, 3))
        of_g, of_u, of_x, constant = (t.view(1, -1, 1, 1) for t in (factor * uh, factor * gh, of_x, -of_x * mean))
        to_x = torch.addcmul(constant, x, of_x).addcmul_(along_g, of_g).addcmul_(along_u, of_u)
        return along_u, to_x, None, None, None


def _normalise_backward(g: Tensor, x: Tensor, mean: Tensor, s: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """B(g), and the sums [C] of g h."""
    mask = (True, True, False)
    to_x, gh, _ = aten.native_batch_norm_backward(g, x, None, None, None, mean, s, True, eps, mask)
    return to_x, gh


OPERATORS: dict[Callable, Callable] = {torch.conv2d: conv2d, F.batch_norm: batch_norm}
