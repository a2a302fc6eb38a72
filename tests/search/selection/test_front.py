"""The front is that of all architectures; what is non-dominated is so by the definition, read aloud."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnas.profiles.schema import load_profile
from bnas.profiles.table import LatencyTable
from bnas.search.latency import latency_model
from bnas.search.selection.exact import select
from bnas.search.selection.front import front, non_dominated
from bnas.search.spaces import SPACES, make_space


def points(everything) -> list[tuple]:
    """The front by its definition: (score, latency), from the fastest."""
    return sorted({
        (r.score, r.exact_ms)
        for r in everything
        if not any(o.score >= r.score and o.exact_ms <= r.exact_ms and (o.score, o.exact_ms) != (r.score, r.exact_ms)
                   for o in everything)
    })  # fmt: skip


@given(st.integers(0, 2**32 - 1), st.integers(1, 100), st.integers(0, 20))
@settings(deadline=None, max_examples=12)
def test_the_front_of_all_architectures(make_toy, brute_force, seed: int, count: int, room: int) -> None:
    rng = np.random.default_rng(seed)
    model = make_toy(rng.integers(1, 9, (4, 3)).tolist())
    scores = tuple(rng.integers(0, 6, 3).astype(float) for _ in range(4))
    limit_ms = model.ms(model.fastest()) + room
    expected = points(brute_force(model, scores, limit_ms))
    found = [(s.score, s.latency_ms) for s in front(model, scores, limit_ms, count)]
    assert len(found) == min(count, len(expected)) and found == sorted(set(found)) and set(found) <= set(expected)
    assert found[-1] == expected[-1]
    assert count == 1 or found[0] == expected[0]


@pytest.mark.parametrize("name", SPACES)
def test_the_front_of_a_space(name: str, rng: np.random.Generator) -> None:
    model = latency_model(make_space(name, (3, 32, 32), 10), LatencyTable(load_profile("rtx3080")))
    scores = tuple(rng.normal(size=len(ms)) for ms in model.candidate_ms)
    found = front(model, scores, math.inf, 6)
    assert len(found) == 6 and all(s.gap == 0 and s.latency_ms <= s.limit_ms for s in found)
    assert non_dominated([(s.score, s.latency_ms) for s in found], ("max", "min")) == list(range(len(found)))
    assert found[-1].score == select(model, scores, math.inf).score


@given(st.integers(1, 4).flatmap(lambda m: st.tuples(
    st.lists(st.lists(st.integers(0, 4), min_size=m, max_size=m), max_size=15),
    st.lists(st.sampled_from(["max", "min"]), min_size=m, max_size=m),
)))  # fmt: skip
def test_non_dominated_is_its_definition(case) -> None:
    rows, senses = case

    def at_least(a: int, b: int, sense: str) -> bool:
        return a >= b if sense == "max" else a <= b

    def preferable(a: list[int], b: list[int]) -> bool:
        return a != b and all(at_least(x, y, sense) for x, y, sense in zip(a, b, senses, strict=True))

    expected = [i for i, row in enumerate(rows) if not any(preferable(other, row) for other in rows)]
    assert non_dominated(rows, senses) == expected


def test_accuracy_latency_bytes() -> None:
    rows = [(0.9, 5.0, 100), (0.9, 5.0, 90), (0.8, 4.0, 200), (0.8, 4.0, 200), (0.7, 6.0, 80), (0.7, 6.0, 95)]
    assert non_dominated(rows, ("max", "min", "min")) == [1, 2, 3, 4]
