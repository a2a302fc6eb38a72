"""Latency in a gradient search: the expectation over candidates, of the network as it will be deployed, and its losses.

The latency model is of the network to be deployed, whatever smaller network the search trains.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bnas.profiles.errors import InputError

from .latency import LatencyModel
from .spaces import SearchSpace
from .spaces.space import NONE

SMALLEST_SHARE = 1e-9


def survival_shares(space: SearchSpace) -> tuple[float, ...]:
    """For each decision its share of what its gene may set together: with what chance it is in an architecture.

    1 in a chain. In cells an edge of a node with n incoming edges is in C(n-1, 1) of C(n, 2) pairs: 2 / n, however many
    candidates each edge has.
    """
    shares = [0.0] * len(space.decisions)
    for gene in space.genes:
        together = {tuple(d for d, _ in setting) for setting in gene.settings}
        for d in set().union(*together):
            shares[d] = sum(d in decisions for decisions in together) / len(together)
    return tuple(shares)


class ExpectedLatency:
    """E[T] = fixed + sum over decisions d of survival_d * sum over candidates k of q_dk * LUT_dk, in ms; a scalar.

    weights: for each decision a tensor [K] that sums to 1, such as softmax(alpha). q is those weights without `none`,
    brought back to a sum of 1: `none` is never derived, so it must not be a way to look fast. survival: [D], with what
    chance the edge is in the derived network; by default as large for each edge of a node (`survival_shares`). With the
    one-hot weights of an architecture and survival 1 for its edges, 0 for all others, E[T] is its latency. Where `none`
    has all weight but SMALLEST_SHARE, as a draw at a low temperature may give it, what is missing to that share is
    spread over the others evenly: the slope of q would otherwise leave the range of floats.

    For q = softmax(alpha) the gradient is exact: dE/dalpha_dk = survival_d q_dk (LUT_dk - sum over j of q_dj LUT_dj)
    (ProxylessNAS, Cai et al. 2019, eq. 4). In float64, because a candidate is a small part of the sum.
    """

    def __init__(self, model: LatencyModel, device: torch.device | str = "cpu") -> None:
        space = model.space
        rows = [torch.from_numpy(ms) for ms in model.decision_ms]
        real = [torch.tensor([float(name != NONE) for name in d.candidates]).double() for d in space.decisions]
        self.fixed_ms = model.fixed_ms
        self.table = pad_sequence(rows, batch_first=True).to(device)
        self.real = pad_sequence(real, batch_first=True).to(device)
        self.survival = torch.tensor(survival_shares(space), dtype=torch.float64, device=device)

    def __call__(self, weights: Sequence[Tensor], survival: Tensor | None = None) -> Tensor:
        kept = pad_sequence(list(weights), batch_first=True).double() * self.real
        total = kept.sum(1, keepdim=True)
        missing = (SMALLEST_SHARE - total).clamp(min=0)
        q = (kept + missing * self.real / self.real.sum(1, keepdim=True)) / total.clamp(min=SMALLEST_SHARE)
        parts = (q * self.table).sum(1)
        return self.fixed_ms + (parts * (self.survival if survival is None else survival)).sum()


@dataclass(frozen=True)
class Hinge:
    """CE + weight * max(0, E/T - 1): no force under the limit T, where the exact selection has the last word."""

    weight: float = 1.0

    def __call__(self, cross_entropy: Tensor, expected_ms: Tensor, limit_ms: float) -> Tensor:
        return cross_entropy + self.weight * (expected_ms / limit_ms - 1).clamp(min=0).to(cross_entropy)


@dataclass(frozen=True)
class Add:
    """CE + weight * (E/T - 1): always faster, limit or not (ProxylessNAS's released code, `add#linear`)."""

    weight: float = 0.1

    def __call__(self, cross_entropy: Tensor, expected_ms: Tensor, limit_ms: float) -> Tensor:
        return cross_entropy + self.weight * (expected_ms / limit_ms - 1).to(cross_entropy)


@dataclass(frozen=True)
class Multiply:
    """scale * CE * (log E / log T)^exponent, E and T in microseconds (ProxylessNAS's released code, `mul#log`).

    Raises InputError for a limit of a microsecond or less, whose logarithm has no sense here.
    """

    scale: float = 0.2
    exponent: float = 0.3

    def __call__(self, cross_entropy: Tensor, expected_ms: Tensor, limit_ms: float) -> Tensor:
        if limit_ms <= 1e-3:
            raise InputError(f"latency loss 'mul' needs a limit above 1 us, got {limit_ms} ms; take 'hinge'")
        ratio = (1e3 * expected_ms).clamp(min=1 + 1e-6).log() / math.log(1e3 * limit_ms)
        return self.scale * cross_entropy * (ratio**self.exponent).to(cross_entropy)


@dataclass(frozen=True)
class Absolute:
    """CE + weight * |E/T - 1|: towards the limit from both sides (TuNAS, Bender et al., CVPR 2020, absolute reward)."""

    weight: float = 1.0

    def __call__(self, cross_entropy: Tensor, expected_ms: Tensor, limit_ms: float) -> Tensor:
        return cross_entropy + self.weight * (expected_ms / limit_ms - 1).abs().to(cross_entropy)


LatencyLoss: TypeAlias = Callable[[Tensor, Tensor, float], Tensor]  # (CE, E[T] in ms, limit in ms) -> loss
LATENCY_LOSSES: dict[str, Callable[..., LatencyLoss]] = {
    "hinge": Hinge,
    "add": Add,
    "mul": Multiply,
    "absolute": Absolute,
}
