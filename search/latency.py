"""Latency of an architecture from a table, as the sum a search needs: a fixed part and one part per choice."""

from dataclasses import dataclass

import numpy as np

from bnas.profiles.errors import InputError
from bnas.profiles.table import LatencyTable

from .spaces import Architecture, ChainSpace


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """T(arch) = fixed_ms + sum over d of candidate_ms[d][choice d]; the same number `LatencyTable.latency_ms` gives.

    The table's whole-network estimate is linear in its rows, so splitting it by decision is exact.
    """

    space: ChainSpace
    fixed_ms: float
    candidate_ms: tuple[np.ndarray, ...]

    def ms(self, arch: Architecture) -> float:
        return self.ms_of(self.space.indices(arch))

    def ms_of(self, indices: tuple[int, ...]) -> float:
        return self.fixed_ms + float(sum(ms[i] for ms, i in zip(self.candidate_ms, indices, strict=True)))

    def fastest(self) -> Architecture:
        return self.space.architecture([int(ms.argmin()) for ms in self.candidate_ms])


def latency_model(space: ChainSpace, table: LatencyTable) -> LatencyModel:
    """Raises InputError if the table covers a unit of the space neither by a row nor by a cost model."""
    ends = (space.stem, space.head)
    fixed = table.latency_ms(ends)
    parts = tuple(
        np.array([table.latency_ms((*ends, *layer.workloads(c))) - fixed for c in layer.decision.candidates])
        for layer in space.layers
    )
    return LatencyModel(space, fixed, parts)


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

    scores[d][k] estimates how good candidate k is at decision d, in any unit. Equal losses take the smallest saving
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
