"""The discrepancy between the gradients of Parent and Child, and what it adds to the Child's gradient (DCP-NAS).

Written with losses, l_C = -G = KL(Parent || Child) and l_P = -f^P = cross-entropy of the Parent, where the paper
maximises G and f^P (Li et al., IJCV 2023; equations 4.21 to 4.41 of its book chapter). With g = grad l_C at the
Child's alpha and t = grad l_P at the Parent's, both flat vectors [P], a constant t and F >= 0 for the Hessian of l_C:

    D = distance(g, t)                                                  4.31
    grad D = F . dD/dg;  for the Frobenius norm 2 F (g - t)              second term of 4.33
    grad L = g + lambda * grad D                                        4.33

The Hessian of G, which is maximised, is -F: with +F the printed 4.33 climbs D instead of descending it.
A network is here a function of its alphas alone, alphas -> logits [N, classes], on a batch that it holds. Each alpha is
a vector [K], or [N, K] with a row for each image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Logits = Callable[[Sequence[Tensor]], Tensor]  # (alphas, each [K] or [N, K]) -> [N, classes]
Product = Callable[[Tensor], Tensor]  # v [P] -> F v [P]

TINY = 1e-30  # keeps the cosine of a gradient that is zero finite


def child_loss(child: Tensor, parent: Tensor) -> Tensor:
    """l_C = mean over images of KL(p || p^) = sum_n p_n (log p_n - log p^_n), >= 0; the Parent is a constant (4.30).

    child, parent: logits [N, classes].
    """
    target = parent.detach().log_softmax(1)
    return F.kl_div(child.log_softmax(1), target, reduction="batchmean", log_target=True)


def tangent(parent: Logits, alphas: Sequence[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """(t [P], the Parent's logits): the gradient of l_P with respect to its alphas; labels: int64 [N].

    4.29 prints sum_n dp_n / d alpha, which is zero whatever the network, as probabilities sum to 1. Read with 4.21 it
    is the gradient of the log-likelihood.
    """
    leaves = _leaves(alphas)
    logits = parent(leaves)
    return flat(torch.autograd.grad(F.cross_entropy(logits, labels), leaves)), logits.detach()


def frobenius(g: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """D = ||g - t||^2, dD/dg = 2 (g - t)."""
    difference = g - t
    return difference.square().sum(), 2 * difference


def cosine(g: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """D = 1 - c with c = g.t / (|g| |t|), dD/dg = (c g/|g| - t/|t|) / |g|."""
    length = g.norm().clamp(min=TINY)
    unit, other = g / length, t / t.norm().clamp(min=TINY)
    c = unit @ other
    return 1 - c, (c * unit - other) / length


def l1(g: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """D = sum |g - t|, dD/dg = sign(g - t), 0 where they are equal."""
    difference = g - t
    return difference.abs().sum(), difference.sign()


DISTANCES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "frobenius": frobenius, "cosine": cosine, "l1": l1
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Slope:
    """l_C, a scalar, its gradient [P], and its curvature as the product v -> F v, with F symmetric and near >= 0.

    It holds the graph of the forward pass where the product needs it.
    """

    loss: Tensor
    gradient: Tensor
    curvature: Product


def ggn_rank1(child: Logits, alphas: Sequence[Tensor], parent: Tensor, chunks: int = 1) -> Slope:
    """F = g g^T, the product of the paper's 4.41 read on one batch.

    F v lies along g whatever v is: D only changes the length of the step, and not at all where g = 0.
    """
    leaves = _leaves(alphas)
    loss = child_loss(child(leaves), parent)
    g = flat(torch.autograd.grad(loss, leaves))
    return Slope(loss.detach(), g, lambda v: g * (g @ v))


def ggn_micro(child: Logits, alphas: Sequence[Tensor], parent: Tensor, chunks: int = 8) -> Slope:
    """F = sum over chunks k of share_k g_k g_k^T, g_k the gradient on one of `chunks` equal parts of the batch.

    Every image has its own copy of the alphas, so that one backward pass gives the gradients of all chunks. Their mean
    is g, also where images influence each other through batch statistics: there g_k is the derivative by the alphas
    that the images of the chunk see.
    """
    images = len(parent)
    leaves = [a.detach().expand(images, -1).clone().requires_grad_() for a in alphas]
    loss = child_loss(child(leaves), parent)
    rows = torch.cat(torch.autograd.grad(loss, leaves), dim=1)  # [N, P], each divided by N
    parts = torch.stack([part.sum(0) for part in rows.tensor_split(min(chunks, images))])  # share_k g_k
    shares = parts.new_tensor([len(part) / images for part in rows.tensor_split(len(parts))])
    return Slope(loss.detach(), parts.sum(0), lambda v: ((parts @ v) / shares) @ parts)


def fisher_class(child: Logits, alphas: Sequence[Tensor], parent: Tensor, chunks: int = 1) -> Slope:
    """F = 1/N sum_b sum_n p^_bn g_bn g_bn^T, g_bn = d log p^_n(x_b) / d alpha: the Fisher matrix (4.36).

    With J_b = d logits_b / d alpha it is 1/N sum_b J_b^T (diag(p^_b) - p^_b p^_b^T) J_b, so F v is one product with J
    and one with J^T, for any number of classes. It is the Hessian of l_C but for the curvature of the logits.
    """
    leaves = _leaves(alphas)
    logits = child(leaves)
    loss = child_loss(logits, parent)
    g = flat(torch.autograd.grad(loss, leaves, retain_graph=True))
    p = logits.detach().softmax(1)

    def product(v: Tensor) -> Tensor:
        # J^T u is linear in u, and its derivative by u in direction v is J v.
        u = torch.zeros_like(logits, requires_grad=True)
        back = flat(torch.autograd.grad(logits, leaves, u, create_graph=True))
        (along,) = torch.autograd.grad(back, u, v)
        centred = p * (along - (p * along).sum(1, keepdim=True)) / len(p)
        return flat(torch.autograd.grad(logits, leaves, centred, retain_graph=True))

    return Slope(loss.detach(), g, product)


def exact(child: Logits, alphas: Sequence[Tensor], parent: Tensor, chunks: int = 1) -> Slope:
    """F = the Hessian of l_C by double backward; for 1-bit networks with the derivatives of the surrogates.

    In deep networks it need not be >= 0.
    """
    leaves = _leaves(alphas)
    loss = child_loss(child(leaves), parent)
    g = flat(torch.autograd.grad(loss, leaves, create_graph=True))
    return Slope(loss.detach(), g.detach(), lambda v: flat(torch.autograd.grad(g @ v, leaves, retain_graph=True)))


# name -> (Child, alphas, the Parent's logits, chunks) -> Slope
CURVATURES: dict[str, Callable[[Logits, Sequence[Tensor], Tensor, int], Slope]] = {
    "ggn_rank1": ggn_rank1, "ggn_micro": ggn_micro, "fisher_class": fisher_class, "exact": exact
}  # fmt: skip


def discrepant(slope: Slope, t: Tensor, weight: float, distance: str = "frobenius") -> tuple[Tensor, Tensor]:
    """(D, g + weight * grad D), a scalar and [P]. With weight 0 the second is g: the objective of CP-NAS."""
    value, outward = DISTANCES[distance](slope.gradient, t)
    if weight == 0:
        return value, slope.gradient
    return value, slope.gradient + weight * slope.curvature(outward)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """One vector [P] of all their values."""
    return torch.cat([t.reshape(-1) for t in tensors])


def unflat(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Undo `flat`, in the shapes of `like`."""
    parts = vector.split([t.numel() for t in like])
    return [part.view_as(t) for part, t in zip(parts, like, strict=True)]


def _leaves(alphas: Sequence[Tensor]) -> list[Tensor]:
    return [a.detach().clone().requires_grad_() for a in alphas]
