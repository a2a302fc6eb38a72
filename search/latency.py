"""Latency of an architecture from a table, as the sum a search needs: a fixed part and one part per choice."""

from dataclasses import dataclass

import numpy as np

from bnas.profiles.errors import InputError
from bnas.profiles.table import LatencyTable

from .spaces import Architecture, SearchSpace


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """T(arch) = fixed_ms + sum over genes g of candidate_ms[g][choice g]; what `LatencyTable.latency_ms` gives.

    The table's whole-network estimate is linear in its rows, so splitting it by gene is exact, and so is
    decision_ms[d][k], the part of candidate k of decision d: a gene's part is the sum over the decisions it sets.
    """

    space: SearchSpace
    fixed_ms: float
    decision_ms: tuple[np.ndarray, ...]
    candidate_ms: tuple[np.ndarray, ...]

    def ms(self, arch: Architecture) -> float:
        return self.ms_of(self.space.indices(arch))

    def ms_of(self, indices: tuple[int, ...]) -> float:
        return self.fixed_ms + float(sum(ms[i] for ms, i in zip(self.candidate_ms, indices, strict=True)))

    def fastest(self) -> Architecture:
        return self.space.architecture([int(ms.argmin()) for ms in self.candidate_ms])


def latency_model(space: SearchSpace, table: LatencyTable) -> LatencyModel:
    """Raises InputError if the table covers a unit of the space neither by a row nor by a cost model."""
    ends = space.fixed_workloads()
    fixed = table.latency_ms(ends)

    def part(decision: int, candidate: int) -> float:
        return table.latency_ms((*ends, *space.candidate_workloads(decision, candidate))) - fixed

    decisions = tuple(
        np.array([part(d, k) for k in range(len(decision.candidates))]) for d, decision in enumerate(space.decisions)
    )
    genes = tuple(np.array([sum(decisions[d][k] for d, k in taken) for taken in g.settings]) for g in space.genes)
    return LatencyModel(space, fixed, decisions, genes)


def median_ms(model: LatencyModel, samples: int = 200, seed: int = 0) -> float:
    """The median latency of random architectures: the limit taken when the user names none."""
    rng = np.random.default_rng(seed)
    return float(np.median([model.ms(model.space.random(rng)) for _ in range(samples)]))


def check_limit(model: LatencyModel, limit_ms: float) -> None:
    """Raises InputError naming the fastest architecture if even that one is over the limit."""
    fastest = model.fastest()
    if (ms := model.ms(fastest)) > limit_ms:
        raise InputError(
            f"no architecture of {model.space.id} meets {limit_ms:.6g} ms: the fastest, {fastest.name}, takes "
            f"{ms:.6g} ms by the profile; raise --max-latency to at least {1.00001 * ms:.6g}ms"  # rounded up
        )


def repair(
    model: LatencyModel, indices: tuple[int, ...], limit_ms: float, scores: tuple[np.ndarray, ...]
) -> tuple[int, ...]:
    """The genome moved under the limit, deterministically: repeatedly the swap with the least score loss per ms saved.

    scores[d][k] estimates how good candidate k is for gene d, in any unit. Equal losses take the smallest saving
    that meets the limit, else the largest saving. Precondition: `check_limit` passed.
    """
    genome = list(indices)
    while (excess := model.ms_of(tuple(genome)) - limit_ms) > 0:
        best: tuple[tuple[float, bool, float], int, int] | None = None
        for d, (ms, score) in enumerate(zip(model.candidate_ms, scores, strict=True)):
            for k in range(len(ms)):
                saving = ms[genome[d]] - ms[k]
                if saving <= 0:
                    continue
                loss = max(0.0, float(score[genome[d]] - score[k])) / saving
                enough = saving >= excess
                rank = (loss, not enough, saving if enough else -saving)
                if best is None or rank < best[0]:
                    best = (rank, d, k)
        if best is None:  # every choice is the fastest; only rounding can bring us here
            break
        genome[best[1]] = best[2]
    return tuple(genome)
