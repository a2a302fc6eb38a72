"""Pareto fronts: exact where scores add up, and among scored architectures for any objectives."""

from collections.abc import Sequence
from itertools import pairwise
from math import inf, nextafter
from typing import Literal

import numpy as np

from ..latency import LatencyModel
from .exact import Selection, select

Sense = Literal["max", "min"]


def front(latency: LatencyModel, scores: tuple[np.ndarray, ...], limit_ms: float, count: int) -> list[Selection]:
    """`count` architectures on the front of score against latency, from the fastest to the best under the limit.

    scores as for `exact.select`. Each is the optimum under its latency as a limit, and of equals the fastest, so none
    that is left out is preferable. First come the two ends, then what halves the widest gap that is left, until there
    are `count` or all. Raises what `select` raises.
    """
    found = [select(latency, scores, limit_ms)]
    fastest = select(latency, scores, latency.ms(latency.fastest()))
    if count > 1 and fastest.score < found[0].score:
        found.insert(0, fastest)
    empty: set[tuple[int, ...]] = set()  # what nothing lies below of, down to the one before it
    while len(found) < count:
        pairs = enumerate(pairwise(found))
        gaps = [(b.latency_ms - a.latency_ms, i) for i, (a, b) in pairs if b.indices not in empty]
        if not gaps:
            break
        place = max(gaps)[1]
        lower, upper = found[place], found[place + 1]
        between = select(latency, scores, (lower.latency_ms + upper.latency_ms) / 2)
        if between.score <= lower.score:  # nothing in the lower half, so just below the upper end
            between = select(latency, scores, nextafter(upper.latency_ms, -inf))
        if lower.score < between.score < upper.score:
            found.insert(place + 1, between)
        else:
            empty.add(upper.indices)
    return found


def non_dominated(rows: Sequence[Sequence[float]], senses: Sequence[Sense]) -> list[int]:
    """The indices of the rows to which no other is preferable: as good in every objective and better in one.

    rows: [n][objectives], say accuracy, latency and bytes; senses: for each objective whether more or less is better.
    Rows with equal objectives stay or go together.
    """
    if not rows:
        return []
    signs = np.array([{"max": 1.0, "min": -1.0}[sense] for sense in senses])
    gains = np.array(rows, dtype=float) * signs
    return [i for i, row in enumerate(gains) if not ((gains >= row).all(axis=1) & (gains > row).any(axis=1)).any()]
