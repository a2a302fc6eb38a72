"""Products with second derivatives of a loss, from differences of its gradients; the network is left as it was.

A product H d is (g(w + eps d) - g(w - eps d)) / (2 eps), with eps = 0.01 / ||d|| (DARTS, Liu et al. 2019, equation 8):
two gradients and no second graph. In a network with 1-bit weights hardly a sign flips over so short a way, so the
product sees what depends smoothly on the weights: batch-norms, activations, scales, float layers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

SHIFT = 0.01  # how far the weights are moved, all together


def gradients(loss: Tensor, wanted: Sequence[Tensor]) -> list[Tensor]:
    """dloss/dwanted, zero where the loss does not depend on it; no other gradient is computed or kept."""
    return list(torch.autograd.grad(loss, list(wanted), allow_unused=True, materialize_grads=True))


def product(
    gradient: Callable[[], list[Tensor]], weights: Sequence[Tensor], direction: Sequence[Tensor]
) -> list[Tensor]:
    """d gradient/d weights . direction. gradient(): at the present values of `weights`, moved here and put back."""
    eps = SHIFT / length(direction).clamp(min=torch.finfo(torch.float32).tiny)
    with moved(weights, direction, eps):
        ahead = gradient()
    with moved(weights, direction, -eps):
        behind = gradient()
    return [(a - b) / (2 * eps) for a, b in zip(ahead, behind, strict=True)]


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
