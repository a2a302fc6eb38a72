"""Quick backward passes are those of PyTorch: of each operator, in whole networks, without a loop over groups."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from bnas.search import quick_backward
from bnas.search.quick_backward import Geometry, QuickBackward, depthwise_weight_gradient
from bnas.search.second_order import PRODUCTS, gradients, trained
from bnas.search.spaces import make_space
from bnas.search.supernet import Supernet


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_backward, "SMALL", 0)


CONVS = {  # kernel, size, stride, padding, dilation, (in, out, groups)
    "depthwise 3x3": (3, 6, 1, 1, 1, (4, 4, 4)),
    "depthwise 5x5": (5, 6, 1, 2, 1, (4, 4, 4)),
    "depthwise 7x7": (7, 6, 1, 3, 1, (4, 4, 4)),
    "stride": (3, 6, 2, 1, 1, (4, 4, 4)),
    "stride, 5x5, a row left over": (5, 6, 2, 2, 1, (4, 4, 4)),
    "stride, 7x7": (7, 7, 2, 3, 1, (3, 3, 3)),
    "no padding, rows left over": (5, 8, 2, 0, 1, (3, 3, 3)),
    "dilation": (3, 7, 1, 2, 2, (4, 4, 4)),
    "dilation, 5x5, stride": (5, 7, 2, 4, 2, (3, 3, 3)),
    "two per channel": (5, 5, 1, 2, 1, (2, 4, 2)),
    "groups": (3, 5, 2, 1, 1, (4, 6, 2)),
    "pointwise": (1, 4, 1, 0, 1, (4, 6, 2)),
    "one group, which is left to PyTorch": (3, 5, 1, 1, 1, (3, 2, 1)),
}
FORMATS = [torch.contiguous_format, torch.channels_last]
Function = Callable[..., Tensor]


def conv_of(name: str, memory_format: torch.memory_format = torch.contiguous_format) -> tuple[Function, list[Tensor]]:
    kernel, size, stride, padding, dilation, (inputs, outputs, groups) = CONVS[name]
    torch.manual_seed(0)
    x = torch.randn(2, inputs, size, size, dtype=torch.float64).contiguous(memory_format=memory_format)
    w = torch.randn(outputs, inputs // groups, kernel, kernel, dtype=torch.float64)
    bias = torch.randn(outputs, dtype=torch.float64)

    def run(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, w, bias, stride, padding, dilation, groups)

    return run, [t.requires_grad_() for t in (x, w, bias)]


def norm_of(
    affine: bool, memory_format: torch.memory_format = torch.contiguous_format
) -> tuple[Function, list[Tensor]]:
    torch.manual_seed(0)
    x = (3 * torch.randn(3, 2, 2, 3, dtype=torch.float64) + 1).contiguous(memory_format=memory_format)
    parameters = [torch.randn(2, dtype=torch.float64) for _ in range(2 * affine)]

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, *parameters, training=True, eps=0.1)

    return run, [t.requires_grad_() for t in (x, *parameters)]


def quick(run: Function) -> Function:
    def within(*inputs: Tensor) -> Tensor:
        with QuickBackward():
            return run(*inputs)

    return within


def derivatives(run: Function, inputs: list[Tensor]) -> list[Tensor]:
    """The value, its gradients along a random direction, and the gradients of those along others."""
    torch.manual_seed(1)
    y = run(*inputs)
    upstream = torch.randn_like(y).requires_grad_()
    first = torch.autograd.grad(y, inputs, upstream, create_graph=True)
    along = sum((g * torch.randn_like(g)).sum() for g in first)
    second = torch.autograd.grad(along, [upstream, *inputs], allow_unused=True, materialize_grads=True)
    return [t.detach() for t in (y, *first, *second)]


def assert_same(run: Function, inputs: list[Tensor]) -> None:
    for found, want in zip(derivatives(quick(run), inputs), derivatives(run, inputs), strict=True):
        torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-10 * float(want.norm()))


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("name", CONVS)
def test_convolutions_have_the_derivatives_of_pytorch(name: str, memory_format: torch.memory_format) -> None:
    assert_same(*conv_of(name, memory_format))


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("name", CONVS)
def test_in_float32_they_are_as_near_as_that_allows(name: str, memory_format: torch.memory_format) -> None:
    """Where wide depthwise kernels go another way."""
    run, inputs = conv_of(name, memory_format)
    torch.manual_seed(1)
    upstream, *directions = (torch.randn_like(t) for t in (run(*inputs), *inputs))

    def product(run: Function, kind: torch.dtype) -> list[Tensor]:
        at = [t.detach().to(kind).requires_grad_() for t in inputs]
        first = torch.autograd.grad(run(*at), at, upstream.to(kind), create_graph=True)
        along = sum((g * d.to(kind)).sum() for g, d in zip(first, directions, strict=True))
        return [*first, *torch.autograd.grad(along, at[:2])]

    for found, want in zip(product(quick(run), torch.float32), product(run, torch.float64), strict=True):
        torch.testing.assert_close(found, want.float(), rtol=1e-5, atol=1e-5 * float(want.norm()))


@pytest.mark.parametrize("name", CONVS)
def test_convolutions_against_finite_differences(name: str) -> None:
    run, inputs = conv_of(name)
    assert torch.autograd.gradcheck(quick(run), inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(quick(run), inputs, fast_mode=True)


@pytest.mark.parametrize("name", [name for name, conv in CONVS.items() if conv[5][0] == conv[5][1] == conv[5][2]])
def test_the_weight_gradient_of_a_depthwise_convolution_is_one_of_more_channels(name: str) -> None:
    """Directly, since networks use it in float32 only."""
    run, (x, w, bias) = conv_of(name)
    _, _, stride, padding, dilation, (_, _, groups) = CONVS[name]
    y = run(x, w, bias)
    upstream = torch.randn_like(y)
    (want,) = torch.autograd.grad(y, w, upstream)
    at = Geometry((stride,) * 2, (padding,) * 2, (dilation,) * 2, groups)
    found = depthwise_weight_gradient(x.detach(), upstream, w.shape[2:], at)
    torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("affine", [False, True])
def test_batch_norm_has_the_derivatives_of_pytorch(affine: bool, memory_format: torch.memory_format) -> None:
    run, inputs = norm_of(affine, memory_format)
    assert_same(run, inputs)
    assert torch.autograd.gradcheck(quick(run), inputs)
    assert torch.autograd.gradgradcheck(quick(run), inputs)


def test_batch_norm_moves_its_statistics_or_reads_them_as_ever() -> None:
    torch.manual_seed(0)
    found, want = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 2, 2) + 5
    with QuickBackward():
        found(x)
    want(x)
    torch.testing.assert_close(found.state_dict(), want.state_dict())
    with QuickBackward():
        torch.testing.assert_close(found.eval()(x), want.eval()(x))
        with pytest.raises(ValueError, match="more than 1 value"):
            found.train()(x[:1, :, :1, :1])


def test_a_third_derivative_is_refused_where_it_would_be_wrong() -> None:
    run, (x,) = norm_of(affine=False)
    y = quick(run)(x)
    (first,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.sum().backward()


def test_inputs_by_name_and_empty_batches_are_those_of_pytorch() -> None:
    weight = torch.randn(8, 1, 5, 5, requires_grad=True)
    for images in (0, 2):
        x, training = torch.randn(images, 8, 9, 9), images > 0
        with QuickBackward():
            y = F.conv2d(input=x, weight=weight, groups=8)
            z = F.batch_norm(input=y, running_mean=None, running_var=None, training=training)
        torch.testing.assert_close(y, F.conv2d(x, weight, groups=8))
        torch.testing.assert_close(z, F.batch_norm(y, None, None, training=training))
        assert torch.autograd.grad(z.sum(), weight)[0].shape == weight.shape


def test_autocast_stays_that_of_pytorch() -> None:
    run, inputs = conv_of("depthwise 5x5")
    with torch.autocast("cpu", torch.bfloat16), QuickBackward():
        y = run(*(t.float() for t in inputs))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()


class Count(TorchDispatchMode):
    """How many operators run."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def operators(channels: int, mode: Any) -> int:
    x, w = torch.randn(2, channels, 5, 5), torch.randn(channels, 1, 5, 5)
    inputs = [x.requires_grad_(), w.requires_grad_()]
    with Count() as count:
        with mode:
            y = F.conv2d(x, w, padding=2, groups=channels)
        first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
    return count.calls


def test_no_operator_runs_for_each_channel() -> None:
    assert operators(4, QuickBackward()) == operators(32, QuickBackward())
    assert operators(4, nullcontext()) < operators(32, nullcontext())  # else PyTorch needs no help any more


@pytest.mark.parametrize("text", ["mobilenet", "shufflenet", "cells", "mobilenet:micro:bits=8+32"])
def test_products_with_the_hessian_of_a_supernet_are_those_of_plain_double_backward(text: str) -> None:
    space = make_space(text, (1, 8, 8), 10)
    torch.manual_seed(0)
    model = Supernet(space).double()
    alphas = [torch.zeros(len(d.candidates), dtype=torch.float64, requires_grad=True) for d in space.decisions]
    x, y = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.tensor([3, 7])
    weights = trained(model)

    def loss() -> Tensor:
        return F.cross_entropy(model(x, [a.softmax(0) for a in alphas]), y)

    v = [torch.randn_like(w) for w in weights]
    product = PRODUCTS["exact"](loss, model)
    slope = torch.autograd.grad(loss(), weights, create_graph=True, allow_unused=True, materialize_grads=True)
    along = sum((s * d).sum() for s, d in zip(slope, v, strict=True))
    for wanted in (weights, alphas):
        want = torch.cat([g.flatten() for g in gradients(along, wanted, keep=True)])
        found = torch.cat([g.flatten() for g in product(v, wanted)])
        assert float((found - want).norm() / want.norm()) < 1e-10
