"""Products of second derivatives of a loss with a direction of the weights; the network is left as it was."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from .quick_backward import QuickBackward

Loss = Callable[[], Tensor]  # at the present values; the same call gives the same

SHIFT = 0.01  # how far `Difference` moves the weights, all together; as published


class Products(Protocol):
    """slope(): dL/dw of the trained weights. The call: d(dL/dw . direction)/dwanted for alphas or weights."""

    def slope(self) -> list[Tensor]: ...

    def __call__(self, direction: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[Tensor]: ...


class Exact:
    """By a second backward pass; all products and the slope share one forward and one first backward pass.

    In a 1-bit network signs have the first and the second derivative of their surrogates throughout: the product is
    that of a smooth network which has the same values and these derivatives at the present weights.
    """

    def __init__(self, loss: Loss, model: nn.Module) -> None:
        weights = trained(model)
        with QuickBackward():
            value = loss()
        self._slope = torch.autograd.grad(value, weights, create_graph=True, allow_unused=True, materialize_grads=True)

    def slope(self) -> list[Tensor]:
        return [part.detach() for part in self._slope]

    def __call__(self, direction: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[Tensor]:
        along = torch.stack([(s * d).sum() for s, d in zip(self._slope, direction, strict=True)]).sum()
        return gradients(along, wanted, keep=True)


class Difference:
    """(g(w + eps d) - g(w - eps d)) / (2 eps), eps = 0.01 / ||d||, g = dL/dwanted (DARTS, Liu et al. 2019, equation 8).

    Needs less memory. But g jumps where a value in front of a sign or a ReLU crosses zero, which thousands do over so
    long a way: on our micro networks, 1-bit or float, the result had cosines from -0.4 to 0.3 with the exact product in
    most cases, and many times its length. Over 1e-8, in float64, the two agree in a float network.
    """

    def __init__(self, loss: Loss, model: nn.Module) -> None:
        self._loss, self._model = loss, model

    def slope(self) -> list[Tensor]:
        return gradients(self._loss(), trained(self._model))

    def __call__(self, direction: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[Tensor]:
        weights = trained(self._model)
        eps = SHIFT / length(direction).clamp(min=torch.finfo(torch.float32).tiny)
        with moved(weights, direction, eps), undisturbed(self._model):
            ahead = gradients(self._loss(), wanted)
        with moved(weights, direction, -eps), undisturbed(self._model):
            behind = gradients(self._loss(), wanted)
        return [(a - b) / (2 * eps) for a, b in zip(ahead, behind, strict=True)]


PRODUCTS: dict[str, Callable[[Loss, nn.Module], Products]] = {"exact": Exact, "difference": Difference}


def gradients(loss: Tensor, wanted: Sequence[Tensor], *, keep: bool = False) -> list[Tensor]:
    """dloss/dwanted, zero where the loss does not depend on it; no other gradient is computed or kept.

    keep: the graph of the loss, for another call.
    """
    found = torch.autograd.grad(loss, list(wanted), retain_graph=keep, allow_unused=True, materialize_grads=True)
    return list(found)


def length(direction: Sequence[Tensor]) -> Tensor:
    """Euclidean length of all tensors together, a scalar on their device."""
    return torch.stack(torch._foreach_norm(list(direction))).norm()


@contextmanager
def moved(weights: Sequence[Tensor], direction: Sequence[Tensor], amount: Tensor | float) -> Iterator[None]:
    """Within, weights + amount * direction; after, the very tensors of before, so graphs made of them still hold."""
    kept = [weight.data for weight in weights]
    places = torch._foreach_add(kept, torch._foreach_mul(list(direction), amount))
    try:
        for weight, place in zip(weights, places, strict=True):
            weight.data = place
        yield
    finally:
        for weight, value in zip(weights, kept, strict=True):
            weight.data = value


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """After, the running statistics of `model` are what they were before."""
    kept = [buffer.clone() for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in zip(model.buffers(), kept, strict=True):
            buffer.copy_(value)


@contextmanager
def constant(model: nn.Module) -> Iterator[None]:
    """Within, the parameters of `model` need no gradients."""
    learning = trained(model)
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
