"""ProxylessNAS: binary gates, so that a step needs the memory of one path, or two for alphas (Cai et al., ICLR 2019).

Weights learn on one path, drawn with the probabilities softmax(alpha). Every fifth step alphas learn from the gates of
two candidates of each decision: the one that counts, and one that only tells its gradient. So the paper; the released
code by default runs all candidates for that, which is `AllPaths` here. Warm-up is the code's quarter of the epochs. The
latency loss is linear in the expected latency, as published, and asks for speed below the limit, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..expected_latency import Add
from ..relaxations import Relaxed, gumbel_softmax
from ..supernet import Gate
from .bilevel import AlphaRecipe, Method, search
from .task import SearchResult, SearchTask

SOURCE = "ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware (Cai et al., ICLR 2019)"


@dataclass(frozen=True)
class OnePath:
    """One candidate k ~ softmax(alpha) of each decision, with no gradient of alpha."""

    def temperature(self, progress: float) -> float:
        return 1.0

    def __call__(self, alphas: Sequence[Tensor], progress: float, noise: torch.Generator) -> Relaxed:
        return Relaxed(list(drawn(alphas, noise)), [alpha.softmax(0) for alpha in alphas])


@dataclass(frozen=True)
class TwoPaths:
    """Of each decision two candidates, drawn by p = softmax(alpha) without replacement; the gate g of one is 1, else 0.

    With q the p of the two, brought to a sum of 1, the one is drawn by q, and dL/dalpha_i = sum over the two j of
    dL/dg_j q_j (delta_ij - q_i) (eq. 4, section 3.2.1), dL/dg_j = <dL/dy, o_j(x)>. Other alphas have the gradient 0.
    Latency is expected under q.
    """

    def temperature(self, progress: float) -> float:
        return 1.0

    def __call__(self, alphas: Sequence[Tensor], progress: float, noise: torch.Generator) -> Relaxed:
        # The first two of the perturbed are a draw without replacement (Kool et al., ICML 2019).
        pairs = [p.detach().topk(min(2, len(p))).indices for p in gumbel_softmax(alphas, 1.0, noise)]
        logits = [alpha[pair] for alpha, pair in zip(alphas, pairs, strict=True)]
        shares = [logit.softmax(0) for logit in logits]
        names = iter(torch.cat(pairs).tolist())
        gates: list[Gate] = [
            [(next(names), g) for g in binary(q, k)] for q, k in zip(shares, drawn(logits, noise), strict=True)
        ]
        triples = zip(alphas, pairs, shares, strict=True)
        return Relaxed(gates, [torch.zeros_like(alpha).scatter(0, pair, q) for alpha, pair, q in triples])


@dataclass(frozen=True)
class AllPaths:
    """One candidate k ~ p = softmax(alpha) counts, all run: dL/dalpha_i = sum over j of dL/dg_j p_j (delta_ij - p_i).

    The gradient of TwoPaths without its variance, for the memory and time of all candidates.
    """

    def temperature(self, progress: float) -> float:
        return 1.0

    def __call__(self, alphas: Sequence[Tensor], progress: float, noise: torch.Generator) -> Relaxed:
        weights = [alpha.softmax(0) for alpha in alphas]
        return Relaxed([binary(p, k) for p, k in zip(weights, drawn(alphas, noise), strict=True)], weights)


def drawn(alphas: Sequence[Tensor], noise: torch.Generator) -> list[int]:
    """For each decision a candidate, by softmax(alpha); read from the device at once."""
    perturbed = gumbel_softmax([alpha.detach() for alpha in alphas], 1.0, noise)
    return torch.stack([p.argmax() for p in perturbed]).tolist()


def binary(p: Tensor, k: int) -> Tensor:
    """Gates [K]: 1 for candidate k and 0 for all others in value, p in gradient."""
    return torch.zeros_like(p).index_fill(0, torch.tensor(k, device=p.device), 1.0) + (p - p.detach())


def keep_others(before: Sequence[Tensor], alphas: Sequence[Tensor]) -> None:
    """Shift those alphas of a decision that a step has moved, so that the probabilities of all others are as before.

    By -log(sum of exp(new) / sum of exp(old)) over them (the released code; section 3.2.1 asks for the property).
    """
    for old, new in zip(before, alphas, strict=True):
        moved = old != new
        if moved.any():
            new[moved] -= new[moved].logsumexp(0) - old[moved].logsumexp(0)


METHOD = Method(
    relaxation=TwoPaths(),
    paths=OnePath(),
    order="weights",
    warmup=0.25,
    every=5,
    settle=keep_others,
    latency_loss=Add(),
    # Without momentum and decay, alphas that were not drawn do not move.
    alpha_recipe=AlphaRecipe(learning_rate=1e-3, betas=(0.0, 0.999), weight_decay=0.0),
)


def run(task: SearchTask, method: Method = METHOD) -> SearchResult:
    return search(task, method)
