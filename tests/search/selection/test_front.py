"""The sweep lies on the front of all architectures; what is non-dominated is so by the definition, read aloud."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnas.profiles.schema import load_profile
from bnas.profiles.table import LatencyTable
from bnas.search.latency import latency_model
from bnas.search.selection.exact import select
from bnas.search.selection.front import non_dominated, sweep
from bnas.search.spaces import SPACES, make_space


@given(st.integers(0, 2**32 - 1), st.integers(2, 12))
@settings(deadline=None, max_examples=30)
def test_every_point_is_on_the_front_of_all_architectures(make_toy, brute_force, seed: int, points: int) -> None:
    rng = np.random.default_rng(seed)
    model = make_toy(rng.integers(1, 9, (4, 3)).tolist())
    scores = tuple(rng.integers(0, 6, 3).astype(float) for _ in range(4))
    everything = brute_force(model, scores, math.inf)
    front = {
        (r.score, r.exact_ms)
        for r in everything
        if not any(o.score >= r.score and o.exact_ms <= r.exact_ms and (o.score, o.exact_ms) != (r.score, r.exact_ms)
                   for o in everything)
    }  # fmt: skip
    swept = [(s.score, s.latency_ms) for s in sweep(model, scores, points)]
    assert set(swept) <= front and swept == sorted(set(swept))
    assert swept[0] == min(front) and swept[-1] == max(front)
    if points == 12:
        limits = np.linspace(float(min(front)[1]), float(max(front)[1]), points)
        assert set(swept) == {max(f for f in front if f[1] <= limit) for limit in limits}


@pytest.mark.parametrize("name", SPACES)
def test_a_sweep_of_a_space(name: str, rng: np.random.Generator) -> None:
    model = latency_model(make_space(name, (3, 32, 32), 10), LatencyTable(load_profile("rtx3080")))
    scores = tuple(rng.normal(size=len(ms)) for ms in model.candidate_ms)
    swept = sweep(model, scores, 6)
    assert 2 <= len(swept) <= 6 and all(s.gap == 0 and s.latency_ms <= s.limit_ms for s in swept)
    assert non_dominated([(s.score, s.latency_ms) for s in swept], ("max", "min")) == list(range(len(swept)))
    assert swept[-1].score == select(model, scores, math.inf).score


def test_a_sweep_needs_two_ends(make_toy) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        sweep(make_toy([[1.0, 2.0]]), (np.zeros(2),), 1)


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
