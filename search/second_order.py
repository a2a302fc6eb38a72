"""Products of second derivatives of a loss with a direction of the weights; the network is left as it was."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

# (direction of the weights, wanted) -> d2L/dwanted dw . direction, one tensor for each of wanted (alphas or weights)
Product = Callable[[Sequence[Tensor], Sequence[Tensor]], list[Tensor]]
Loss = Callable[[], Tensor]  # at the present values; the same call gives the same

SHIFT = 0.01  # how far `difference` moves the weights, all together; as published


def exact(loss: Loss, model: nn.Module) -> Product:
    """d(dL/dw . direction)/dwanted by a second backward pass; all products share one forward and one first backward.

    In a 1-bit network signs have the first and the second derivative of their surrogates throughout: the product is
    that of a smooth network which has the same values and these derivatives at the present weights.
    """
    weights = trained(model)
    slope = torch.autograd.grad(loss(), weights, create_graph=True, allow_unused=True, materialize_grads=True)

    def product(direction: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[Tensor]:
        along = torch.stack([(s * d).sum() for s, d in zip(slope, direction, strict=True)]).sum()
        return gradients(along, wanted, keep=True)

    return product


def difference(loss: Loss, model: nn.Module) -> Product:
    """(g(w + eps d) - g(w - eps d)) / (2 eps), eps = 0.01 / ||d||, g = dL/dwanted (DARTS, Liu et al. 2019, equation 8).

    Needs less memory. But g jumps where a value in front of a sign or a ReLU crosses zero, which thousands do over so
    long a way: on our micro networks, 1-bit or float, the result had cosines from -0.4 to 0.3 with the exact product in
    most cases, and many times its length. Over 1e-8, in float64, the two agree in a float network.
    """
    weights = trained(model)

    def product(direction: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[Tensor]:
        eps = SHIFT / length(direction).clamp(min=torch.finfo(torch.float32).tiny)
        with moved(weights, direction, eps), undisturbed(model):
            ahead = gradients(loss(), wanted)
        with moved(weights, direction, -eps), undisturbed(model):
            behind = gradients(loss(), wanted)
        return [(a - b) / (2 * eps) for a, b in zip(ahead, behind, strict=True)]

    return product


PRODUCTS: dict[str, Callable[[Loss, nn.Module], Product]] = {"exact": exact, "difference": difference}


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
    """Within, weights + amount * direction; after, exactly what was before."""
    kept = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        torch._foreach_add_(list(weights), torch._foreach_mul(list(direction), amount))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(weights), kept)


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
