"""Relaxations: from alphas to the gates of a supernet, so that a gradient flows back from the loss.

alpha is one tensor [K] for each decision. It belongs to the search, never to the supernet, whose optimizer must not
know it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from .augment import generator
from .spaces import SearchSpace
from .supernet import Gate

Probabilities: TypeAlias = tuple[np.ndarray, ...]  # for each decision [K], float64


class Alphas(nn.Module):
    """alpha of every decision: mean + deviation * N(0, 1), of (space, seed) alone.

    What else a method learns about candidates or remembers (a weight for each edge, masks, scores) it adds to a
    subclass as parameters, which the same optimizer trains, or as buffers: both are in the checkpoint and the digest.
    """

    def __init__(self, space: SearchSpace, seed: int, *, mean: float = 0.0, deviation: float = 1e-3) -> None:
        super().__init__()
        sizes = [len(decision.candidates) for decision in space.decisions]
        values = mean + deviation * torch.randn(sum(sizes), generator=generator(seed, 1, 1))
        self.values = nn.ParameterList(values.split(sizes))

    def probabilities(self) -> Probabilities:
        """softmax(alpha), on the CPU: what the candidates of a derived network are chosen by.

        A subclass may weigh decisions against each other, each by a positive factor.
        """
        flat = torch.cat([alpha.detach() for alpha in self.values]).cpu().double()
        return tuple(alpha.softmax(0).numpy() for alpha in flat.split([len(alpha) for alpha in self.values]))

    def split(self, flat: Tensor) -> Probabilities:
        """Undo numpy.concatenate(probabilities())."""
        return tuple(part.numpy() for part in flat.split([len(alpha) for alpha in self.values]))


def entropy(given: Probabilities) -> float:
    """Mean entropy of the decisions, in nats: log K where nothing is decided, 0 where all is.

    given: shares, brought to a sum of 1 for each decision.
    """
    shares = [p / p.sum() for p in given]
    return float(np.mean([-(p * np.log(np.maximum(p, np.finfo(float).tiny))).sum() for p in shares]))


class Relaxed(NamedTuple):
    """gates: for the supernet; weights and survival: what latency is expected with (see `ExpectedLatency`)."""

    gates: list[Gate]
    weights: list[Tensor]
    survival: Tensor | None = None


class Relaxation(Protocol):
    """From the parameters of `Alphas`, in their order, to gates.

    progress: share of the training that is done, 0 to 1; noise: fresh, so that the same call gives the same.
    """

    def __call__(self, alphas: Sequence[Tensor], progress: float, noise: torch.Generator) -> Relaxed: ...

    def temperature(self, progress: float) -> float: ...


@dataclass(frozen=True)
class Softmax:
    """sum over k of softmax(alpha)_k o_k(x): every candidate runs (DARTS, Liu et al., ICLR 2019, eq. 2)."""

    def temperature(self, progress: float) -> float:
        return 1.0

    def __call__(self, alphas: Sequence[Tensor], progress: float, noise: torch.Generator) -> Relaxed:
        weights = [alpha.softmax(0) for alpha in alphas]
        return Relaxed(list(weights), weights)


@dataclass(frozen=True)
class Concrete:
    """sum over k of z_k o_k(x), z = softmax((log softmax(alpha) + G) / tau), G ~ Gumbel (SNAS, Xie et al., ICLR 2019).

    tau falls linearly from `first` to `last`.
    """

    first: float = 1.0
    last: float = 0.03

    def temperature(self, progress: float) -> float:
        return self.first + progress * (self.last - self.first)

    def __call__(self, alphas: Sequence[Tensor], progress: float, noise: torch.Generator) -> Relaxed:
        weights = gumbel_softmax(alphas, self.temperature(progress), noise)
        return Relaxed(list(weights), weights)


@dataclass(frozen=True)
class HardGumbel:
    """o_k(x) alone, k = argmax of ptilde = softmax((log softmax(alpha) + G) / tau) (GDAS, Dong and Yang, CVPR 2019).

    The gate is 1 in value and ptilde_k in gradient, so alpha learns through the selected candidate only, and what was
    not selected neither runs nor has a gradient. Latency is expected under softmax(alpha), which has less variance than
    the one-hot draw. On a GPU the choice is read once for all decisions.
    """

    first: float = 10.0
    last: float = 0.1

    def temperature(self, progress: float) -> float:
        return self.first + progress * (self.last - self.first)

    def __call__(self, alphas: Sequence[Tensor], progress: float, noise: torch.Generator) -> Relaxed:
        soft = gumbel_softmax(alphas, self.temperature(progress), noise)
        taken = torch.stack([p.detach().argmax() for p in soft]).tolist()
        gates: list[Gate] = [(k, p[k] - p[k].detach() + 1.0) for k, p in zip(taken, soft, strict=True)]
        return Relaxed(gates, [alpha.softmax(0) for alpha in alphas])


def gumbel_softmax(alphas: Sequence[Tensor], temperature: float, noise: torch.Generator) -> list[Tensor]:
    """For each decision softmax((log softmax(alpha) + G) / temperature); G = -log(Exp(1)), drawn on the CPU."""
    sizes = [len(alpha) for alpha in alphas]
    exponential = torch.empty(sum(sizes)).exponential_(generator=noise).clamp_(min=torch.finfo(torch.float32).tiny)
    gumbel = exponential.log_().neg_().to(alphas[0], non_blocking=True).split(sizes)
    return [((a.log_softmax(0) + g) / temperature).softmax(0) for a, g in zip(alphas, gumbel, strict=True)]


RELAXATIONS: dict[str, Callable[[], Relaxation]] = {"softmax": Softmax, "concrete": Concrete, "gumbel": HardGumbel}
