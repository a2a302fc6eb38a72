"""Pareto fronts: exact over budgets where scores add up, and among scored architectures for any objectives."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ..latency import LatencyModel
from .exact import Selection, select

Sense = Literal["max", "min"]


def sweep(latency: LatencyModel, scores: tuple[np.ndarray, ...], points: int) -> list[Selection]:
    """The optimum under each of `points` limits, evenly spaced from the fastest to the best architecture's latency.

    scores as for `exact.select`. Each is on the Pareto front of score against latency, as of equal scores the fastest
    is taken; optima under neighbouring limits may be the same architecture, which is then in the list once, with its
    lowest limit. No limit above the last adds to the front.
    """
    if points < 2:
        raise ValueError(f"a sweep from the fastest to the best needs at least 2 points, not {points}")
    best = select(latency, scores, float("inf"))
    limits = np.linspace(latency.ms(latency.fastest()), best.latency_ms, points)
    found: dict[tuple[int, ...], Selection] = {}
    for limit_ms in limits.tolist():
        selection = select(latency, scores, limit_ms)
        found.setdefault(selection.indices, selection)
    return list(found.values())


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
