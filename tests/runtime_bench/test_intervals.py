"""Intervals hold the truth as often as they say, for data whose truth is known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnas.runtime_bench import intervals
from bnas.runtime_bench.intervals import Interval, median, ratio


@pytest.mark.parametrize("count", [3, 6, 10])
def test_equal_files_are_called_equal_19_times_of_20(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that drifts by 3 % from block to block, and a file that each loading makes 2 % faster or slower."""
    monkeypatch.setattr(intervals, "DRAWS", 300)
    rng = np.random.default_rng(count)

    def taken(drift: np.ndarray) -> list[np.ndarray]:
        return [np.exp(level + rng.normal(0, 0.02) + rng.normal(0, 0.03, 15)) for level in drift]

    held = 0
    for seed in range(400):
        drift = np.cumsum(rng.normal(0, 0.03, count))
        held += ratio(taken(drift), taken(drift), seed).holds(1.0)
    assert 0.91 <= held / 400 <= 0.99  # 95 %, give or take four standard errors


def test_an_interval_that_ignores_blocks_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same samples without their blocks: what each loading did to a file passes for a difference."""
    rng = np.random.default_rng(0)
    fooled = right = 0
    for seed in range(100):
        a, b = ([np.exp(rng.normal(0, 0.02) + rng.normal(0, 0.01, 20)) for _ in range(8)] for _ in range(2))
        right += ratio(a, b, seed).holds(1.0)
        singles = [[[x] for block in blocks for x in block] for blocks in (a, b)]
        fooled += not ratio(*singles, seed).holds(1.0)
    assert right >= 88 and fooled > 40


def test_a_real_difference_is_seen() -> None:
    rng = np.random.default_rng(1)
    slow, fast = ([level * np.exp(rng.normal(0, 0.02, 20)) for _ in range(10)] for level in (3.0, 2.0))
    found = ratio(slow, fast)
    assert found.low < 1.5 < found.high and found.low > 1.4 and not found.holds(1.0)


blocks = st.lists(st.lists(st.floats(0.1, 100), min_size=1, max_size=6), min_size=2, max_size=8)


@given(blocks)
def test_the_inverse_ratio_has_the_inverse_interval(data: list[list[float]]) -> None:
    other = [[x * 1.7 for x in reversed(block)] for block in reversed(data)]
    there, back = ratio(data, other), ratio(other, data)
    assert math.isclose(there.value * back.value, 1.0, rel_tol=1e-9)
    assert math.isclose(there.low * back.high, 1.0, rel_tol=1e-9)


@given(blocks, st.floats(0.01, 100))
def test_units_of_time_do_not_matter(data: list[list[float]], factor: float) -> None:
    scaled = [[x * factor for x in block] for block in data]
    here, there = median(data), median(scaled)
    assert math.isclose(here.value * factor, there.value, rel_tol=1e-9)
    assert math.isclose(here.relative_error, there.relative_error, rel_tol=1e-6, abs_tol=1e-12)
    assert here.low <= here.value * (1 + 1e-12) and here.value <= here.high * (1 + 1e-12)


def test_one_block_tells_nothing_about_the_error() -> None:
    assert median([[1.0, 2.0, 3.0]]) == Interval(pytest.approx(2.0), 0.0, math.inf)
    assert ratio([[4.0]], [[2.0]]).holds(1e9)


def test_blocks_must_match() -> None:
    with pytest.raises(ValueError, match="3 and 2 blocks were not interleaved"):
        ratio([[1.0]] * 3, [[1.0]] * 2)
    with pytest.raises(ValueError, match="at least one block"):
        median([])
    with pytest.raises(ValueError, match="none without samples"):
        median([[1.0], []])
