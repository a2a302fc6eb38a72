"""The best architecture under a limit when scores add up: a multiple-choice knapsack, solved to proven optimality.

One candidate for each gene, the greatest sum of scores, a sum of latencies under the limit (Sinha and Zoltners 1979).
A calibrated latency stays a sum, so this holds for it too. The solver is HiGHS. It works with tolerances, so it is
given a limit that is a little too high, and what it finds is checked by the latency model itself and, if over the
limit, forbidden: no answer is over the limit by a rounding error, and a limit equal to the optimum's latency loses
nothing.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import fsum

import numpy as np

from bnas.profiles.errors import InputError

from ..latency import LatencyModel, check_limit

# Architectures whose scores differ by less than this part of the spread (the best less the worst score, summed over the
# genes) are equals. HiGHS tells apart what differs by 1e-6; on a scale of SCALE, MARGIN is five times that.
RESOLUTION = 1e-9
SCALE = 1e4
MARGIN = RESOLUTION * SCALE / 2
# Nodes of search trees that a selection may take, which keeps it under a second. Scores that are independent of the
# latency take a few, those that follow it to a tenth 100, and scores that are nearly a function of it more than anyone
# waits for.
NODES = 250
LEAST_NODES, UNCOUNTED_NODES = 5, 50  # what a solution counts as at least, and one that HiGHS has no count for
LARGEST = 1e300  # a score; sums of larger ones overflow
INFEASIBLE = 2  # scipy's name for it


@dataclass(frozen=True)
class Selection:
    """An architecture under a limit, and what is proven: no other that could have been taken scores above `bound`."""

    indices: tuple[int, ...]
    score: float
    bound: float
    latency_ms: float
    limit_ms: float

    @property
    def gap(self) -> float:
        """By how much the optimum can be better at most; 0: this is the optimum."""
        return self.bound - self.score

    def certificate(self, profile_hash: str) -> str:
        claim = "optimal" if self.gap == 0 else "not proven optimal"
        return (
            f"{claim} under profile {profile_hash} and limit {self.limit_ms:.6g} ms: "
            f"bound = {self.bound:.6g}, gap {self.gap:.3g}"
        )


@dataclass(frozen=True, eq=False)
class Ceiling:
    """A second limit: fixed + the sum of costs[g][k], whole numbers such as bytes, is at most `most`."""

    fixed: int
    costs: tuple[np.ndarray, ...]
    most: int

    def of(self, indices: Sequence[int]) -> int:
        return self.fixed + sum(int(costs[i]) for costs, i in zip(self.costs, indices, strict=True))


def select(
    latency: LatencyModel, scores: tuple[np.ndarray, ...], limit_ms: float, ceiling: Ceiling | None = None
) -> Selection:
    """The architecture with the greatest sum of scores under the limit, and under the ceiling.

    scores[g][k]: what candidate k of gene g adds, of any sign. Of equals (see RESOLUTION) the one with the lowest
    latency wins, of those the one with the earlier candidate at the first gene where they differ, unless there are so
    many that NODES do not suffice to order them. Where these do not suffice for the proof, `gap` says what is open.
    Raises InputError if no architecture meets both or a score is not a number of at most LARGEST.
    """
    if found := several(latency, scores, limit_ms, 1, ceiling):
        return found[0]
    assert ceiling is not None  # the limit alone is met by some
    least = ceiling.of([int(costs.argmin()) for costs in ceiling.costs])
    raise InputError(
        f"no architecture of {latency.space.id} meets {limit_ms:.6g} ms and {ceiling.most:,} bytes together; the "
        f"smallest has {least:,} bytes and the fastest takes {latency.ms(latency.fastest()):.6g} ms"
    )


def several(
    latency: LatencyModel,
    scores: tuple[np.ndarray, ...],
    limit_ms: float,
    count: int,
    ceiling: Ceiling | None = None,
) -> list[Selection]:
    """The `count` best architectures, each the one that `select` would take if those before it were not there.

    Fewer if fewer meet limit and ceiling. Raises InputError if none meets the limit alone, or for a score, as `select`.
    """
    check_scores(latency, scores)
    check_limit(latency, limit_ms)
    found: list[Selection] = []
    while len(found) < count:
        best = _best(latency, scores, limit_ms, [selection.indices for selection in found], ceiling)
        if best is None:
            break
        found.append(best)
    return found


def check_scores(latency: LatencyModel, scores: tuple[np.ndarray, ...]) -> None:
    """Raises InputError naming the first score that is not a number of at most LARGEST."""
    for gene, values in zip(latency.space.genes, scores, strict=True):
        for candidate, value in zip(gene.candidates, values, strict=True):
            if not abs(value) <= LARGEST:
                raise InputError(
                    f"the score of {candidate} at {gene.id} is {value}, not a finite number; if training diverged, "
                    "lower the learning rate"
                )


def score_of(scores: tuple[np.ndarray, ...], indices: Sequence[int]) -> float:
    """The sum of the scores, rounded once: the order of the genes plays no part."""
    return fsum(values[i] for values, i in zip(scores, indices, strict=True))


def _best(
    latency: LatencyModel,
    scores: tuple[np.ndarray, ...],
    limit_ms: float,
    banned: list[tuple[int, ...]],
    ceiling: Ceiling | None,
) -> Selection | None:
    """The first in the order of `select` that is not banned; None if all that meet the limits are."""
    kept = _undominated(latency, scores, limit_ms, len(banned) + 1, ceiling)
    if not all(map(len, kept)):
        return None
    nodes = NODES
    while True:
        knapsack = _Knapsack(latency, scores, kept, limit_ms, banned, ceiling, nodes)
        indices, least = knapsack.minimise(knapsack.loss)
        if indices is None and least < np.inf:  # nothing yet, which is no reason to stop
            nodes *= 2
            continue
        if indices is None:
            return None
        # A candidate that alone loses more than all of the solution is in none that is better. Scores that forbid, say
        # -1e12, would otherwise set the spread, and what matters would be below the resolution.
        most = knapsack.cost(knapsack.loss, indices) + MARGIN
        kept = [k[knapsack.loss[part] <= most] for k, part in zip(kept, knapsack.parts, strict=True)]
        if _spread(scores, kept) >= knapsack.spread / 1000:
            break
    if least >= knapsack.cost(knapsack.loss, indices) - MARGIN:
        indices = knapsack.first_of_equals(indices)
    score = score_of(scores, indices)
    best = fsum(values[k].max() for values, k in zip(scores, knapsack.kept, strict=True))
    bound = best - least / SCALE * knapsack.spread
    if bound - score <= RESOLUTION * knapsack.spread + 4 * np.finfo(float).eps * abs(score):
        bound = score
    return Selection(indices, score, bound, latency.ms_of(indices), limit_ms)


def _undominated(
    latency: LatencyModel, scores: tuple[np.ndarray, ...], limit_ms: float, rank: int, ceiling: Ceiling | None
) -> list[np.ndarray]:
    """For each gene the candidates that the `rank` best architectures can contain, as sorted indices.

    Left out are those that meet a limit with no others, and those to which `rank` candidates of the gene are preferable
    in score, latency and what has a ceiling: exchanging gives that many preferable architectures, which also meet the
    limits, because a sum of floats never grows when a term shrinks.
    """

    def fitting(costs: tuple[np.ndarray, ...], fits: Callable[[tuple[int, ...]], bool]) -> list[list[bool]]:
        """Of each candidate, whether it meets the limit with the cheapest others."""
        least = [int(values.argmin()) for values in costs]
        return [[fits((*least[:g], k, *least[g + 1 :])) for k in range(len(v))] for g, v in enumerate(costs)]

    within = fitting(latency.candidate_ms, lambda indices: latency.ms_of(indices) <= limit_ms)
    below = None if ceiling is None else fitting(ceiling.costs, lambda indices: ceiling.of(indices) <= ceiling.most)
    kept = []
    for g, (ms, values) in enumerate(zip(latency.candidate_ms, scores, strict=True)):
        k = np.flatnonzero(within[g] if below is None else np.logical_and(within[g], below[g]))
        ms, values = ms[k], values[k]
        as_good = (values[:, None] >= values) & (ms[:, None] <= ms)
        if ceiling is not None:
            costs = ceiling.costs[g][k]
            as_good &= costs[:, None] <= costs
        equal = (values[:, None] == values) & (ms[:, None] == ms)
        preferable = as_good & (~equal | (k[:, None] < k))
        kept.append(k[preferable.sum(0) < rank])
    return kept


def _spread(scores: tuple[np.ndarray, ...], kept: list[np.ndarray]) -> float:
    return fsum(np.ptp(values[k]) for values, k in zip(scores, kept, strict=True))


class _Knapsack:
    """The integer program: for each candidate kept a variable that is 1 if it is taken.

    loss and over have an entry for each variable, of which `parts` are the genes': how much the candidate's score is
    below the gene's best, and its latency above the gene's lowest, on a scale on which the spread and the room under
    the limit are SCALE. What turns out to be over the limit is added to `banned`. nodes: how many of
    search trees may still be spent.
    """

    def __init__(
        self,
        latency: LatencyModel,
        scores: tuple[np.ndarray, ...],
        kept: list[np.ndarray],
        limit_ms: float,
        banned: list[tuple[int, ...]],
        ceiling: Ceiling | None,
        nodes: int,
    ) -> None:
        self.latency, self.limit_ms, self.ceiling, self.kept = latency, limit_ms, ceiling, kept
        self.banned, self.nodes = banned, nodes
        ends = np.cumsum([len(k) for k in kept]).tolist()
        self.parts = [slice(end - len(k), end) for k, end in zip(kept, ends, strict=True)]
        values = [v[k] for v, k in zip(scores, kept, strict=True)]
        times = [ms[k] for ms, k in zip(latency.candidate_ms, kept, strict=True)]
        self.spread = _spread(scores, kept)
        self.loss = np.concatenate([v.max() - v for v in values]) / (self.spread or 1.0) * SCALE
        slowest = latency.ms_of(tuple(int(ms.argmax()) for ms in latency.candidate_ms))
        room_ms = min(limit_ms, slowest) - latency.ms(latency.fastest())
        # No sum of these latencies is rounded by more, whatever the order.
        rounding_ms = np.finfo(float).eps * (len(kept) + 2) * (abs(latency.fixed_ms) + sum(abs(t).max() for t in times))
        unit_ms = max(room_ms, rounding_ms) or 1.0
        self.over = np.concatenate([t - t.min() for t in times]) / unit_ms * SCALE
        self.rows = [(self.over, (room_ms + rounding_ms) / unit_ms * SCALE + MARGIN)]
        if ceiling is not None:
            costs = [c[k] for c, k in zip(ceiling.costs, kept, strict=True)]
            room = ceiling.most - ceiling.fixed - sum(int(c.min()) for c in costs)
            row = np.concatenate([c - c.min() for c in costs]) / max(room, 1) * SCALE
            self.rows.append((row, max(room, 0) / max(room, 1) * SCALE + MARGIN))
        self.allowed = np.ones(ends[-1])

    def cost(self, costs: np.ndarray, indices: Sequence[int]) -> float:
        return fsum(costs[self._taken(indices)])

    def minimise(self, costs: np.ndarray) -> tuple[tuple[int, ...] | None, float]:
        """The solution of least cost that meets all rows and the limit and is not banned, and a bound: none costs less.

        (None, inf) if there is no solution, (None, a bound) if none was found in the nodes that are left.

        To HiGHS, whole is what is whole to 1e-6, so a solution may hold a millionth of a candidate, and its bound may
        be that of such a solution. Where the bound is not met, we branch ourselves: on the gene of the largest
        fraction, once with only what was taken there, and once without it. A gene with one candidate has no fractions.
        """
        best, least, bound = None, np.inf, np.inf  # least: the cost of the best
        branches = [(self.allowed, 0.0)]  # no cost is below 0
        while branches:
            allowed, below = branches.pop()
            shares, below = self._solve(costs, allowed, below)
            if shares is None:
                bound = min(bound, below)
                continue
            taken = self._rounded(shares)
            if best is None or self.cost(costs, taken) < least:
                best, least = taken, self.cost(costs, taken)
            open_genes = [g for g, part in enumerate(self.parts) if allowed[part].sum() > 1]
            if below >= least - MARGIN or self.nodes <= 0 or not open_genes:
                bound = min(bound, below)
                continue
            gene = max(open_genes, key=lambda g: float(np.abs(shares - shares.round())[self.parts[g]].max()))
            part, variable = self.parts[gene], self._taken(taken)[gene]
            without, alone = allowed.copy(), allowed.copy()
            without[variable] = 0.0
            alone[part] = np.arange(part.start, part.stop) == variable
            branches += [(without, below), (alone, below)]
        return best, bound

    def _solve(self, costs: np.ndarray, allowed: np.ndarray, bound: float) -> tuple[np.ndarray | None, float]:
        """HiGHS's solution with the variables up to `allowed`, whole to 1e-6 and valid when rounded, and its bound.

        (None, inf) if there is no solution, (None, a bound) if none was found. bound: one that is known.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp  # type: ignore[import-untyped]
        from scipy.sparse import csr_array  # type: ignore[import-untyped]

        while self.nodes > 0:
            bans = [self._taken(b) for b in self.banned if all(i in k for i, k in zip(b, self.kept, strict=True))]
            genes, forbidden = np.zeros((len(self.parts), len(costs))), np.zeros((len(bans), len(costs)))
            for row, part in zip(genes, self.parts, strict=True):
                row[part] = 1.0
            for row, taken in zip(forbidden, bans, strict=True):
                row[taken] = 1.0
            matrix = np.vstack([genes, *(row for row, _ in self.rows), forbidden])
            lower = [1.0] * len(genes) + [-np.inf] * (len(self.rows) + len(bans))
            upper = [1.0] * len(genes) + [most for _, most in self.rows] + [len(genes) - 1.0] * len(bans)
            with _without_stdout():
                result = milp(
                    costs,
                    integrality=np.ones(len(costs)),
                    bounds=Bounds(0.0, allowed),
                    constraints=LinearConstraint(csr_array(matrix), lower, upper),
                    # Presolving saves little here, and was seen to call two nearly parallel rows infeasible.
                    options={"mip_rel_gap": 0.0, "node_limit": self.nodes, "presolve": False},
                )
            self.nodes -= max(LEAST_NODES, result.mip_node_count or UNCOUNTED_NODES)
            if result.status == INFEASIBLE:
                return None, np.inf
            if result.mip_dual_bound is not None:
                bound = max(bound, float(result.mip_dual_bound))
            if result.x is None:
                return None, bound
            indices = self._rounded(result.x)
            if indices in self.banned:
                raise RuntimeError(f"HiGHS returned a solution that it was forbidden, {indices}: {result.message}")
            meets_rows = all(self.cost(row, indices) <= most for row, most in self.rows[1:])
            meets_ceiling = self.ceiling is None or self.ceiling.of(indices) <= self.ceiling.most
            if meets_rows and meets_ceiling and self.latency.ms_of(indices) <= self.limit_ms:
                return result.x, bound
            self.banned.append(indices)
        return None, bound

    def first_of_equals(self, best: tuple[int, ...]) -> tuple[int, ...]:
        """Of the solutions as good as `best`, one of least loss, the first in the order of `select`."""
        window = self.cost(self.loss, best) + MARGIN
        self.banned.append(best)
        _, others = self.minimise(self.loss)
        self.banned.remove(best)
        if others > window:
            return best
        self.rows.append((self.loss, window))
        best = self.minimise(self.over)[0] or best
        self.rows.append((self.over, self.cost(self.over, best) + MARGIN))
        for g, (k, part) in enumerate(zip(self.kept, self.parts, strict=True)):
            if best[g] != k[0]:
                position = np.zeros(len(self.loss))
                position[part] = np.arange(len(k))
                best = self.minimise(position)[0] or best
            self.allowed[part] = k == best[g]
        return best

    def _rounded(self, shares: np.ndarray) -> tuple[int, ...]:
        return tuple(int(k[shares[part].argmax()]) for k, part in zip(self.kept, self.parts, strict=True))

    def _taken(self, indices: Sequence[int]) -> list[int]:
        """The variables that are 1."""
        parts = zip(self.parts, self.kept, indices, strict=True)
        return [part.start + int(np.searchsorted(k, i)) for part, k, i in parts]


@contextmanager
def _without_stdout() -> Iterator[None]:
    """HiGHS has one message that it prints even when told to be silent; what we print there may be JSON."""
    if os.name != "posix":
        yield
        return
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # into a pipe, C prints only when its buffer is full
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
