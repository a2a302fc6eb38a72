"""Spaces small enough to look at every architecture, and the slow and obvious optimum."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from bnas.search.latency import LatencyModel
from bnas.search.spaces.architecture import Decision
from bnas.search.spaces.space import SearchSpace, chain_genes

Scores = tuple[np.ndarray, ...]


def toy(candidate_ms: Sequence[Sequence[float]], fixed_ms: float = 0.0) -> LatencyModel:
    """A chain with these latencies; its candidates have the names 0, 1, ..."""
    decisions = tuple(Decision(f"d{d}", tuple(map(str, range(len(ms))))) for d, ms in enumerate(candidate_ms))
    space = SearchSpace("toy", "micro", (1, 8, 8), 10, (), decisions, chain_genes(decisions), ())
    ms = tuple(np.array(ms, dtype=float) for ms in candidate_ms)
    return LatencyModel(space, fixed_ms, ms, ms)


@dataclass(frozen=True)
class Ranked:
    """An architecture that meets a limit, with its exact sums."""

    score: Fraction
    exact_ms: Fraction
    indices: tuple[int, ...]


def every(model: LatencyModel, scores: Scores, limit_ms: float) -> list[Ranked]:
    """All that meet the limit: best score first, of equals the fastest, of those the first in order."""
    met = []
    for indices in product(*(range(len(ms)) for ms in model.candidate_ms)):
        if model.ms_of(indices) <= limit_ms:
            score = sum((Fraction(float(s[i])) for s, i in zip(scores, indices, strict=True)), Fraction())
            time = sum((Fraction(float(m[i])) for m, i in zip(model.candidate_ms, indices, strict=True)), Fraction())
            met.append(Ranked(score, time, indices))
    return sorted(met, key=lambda r: (-r.score, r.exact_ms, r.indices))


@pytest.fixture(scope="session")
def make_toy() -> Callable[..., LatencyModel]:
    return toy


@pytest.fixture(scope="session")
def brute_force() -> Callable[..., list[Ranked]]:
    return every
