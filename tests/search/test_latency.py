"""The latency model is the table's own sum, limits hold after repair, and errors name the fastest architecture."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnas.profiles.errors import InputError
from bnas.profiles.schema import Calibration, load_profile
from bnas.profiles.table import LatencyTable
from bnas.search.latency import LatencyModel, check_limit, latency_model, median_ms, repair
from bnas.search.spaces import SearchSpace


@pytest.mark.parametrize("profile", ["rtx3080", "rpi4b"])
def test_the_split_equals_the_table(plain: SearchSpace, profile: str, rng: np.random.Generator) -> None:
    """By gene and by decision, whatever the space: in cells a gene sets two decisions, which several cells share."""
    table = LatencyTable(load_profile(profile))
    latency = latency_model(plain, table)
    for _ in range(20):
        arch = plain.random(rng)
        indices = plain.indices(arch)
        parts = [ms[k] for ms, k in zip(latency.decision_ms, plain.gates(indices), strict=True)]
        expected = pytest.approx(table.latency_ms(plain.workloads(arch)), rel=1e-12)
        assert latency.ms(arch) == latency.ms_of(indices) == expected
        assert latency.fixed_ms + sum(parts) == expected
        assert latency.ms(arch) >= latency.ms(latency.fastest())


def test_a_calibration_counts_every_unit_once(plain: SearchSpace, rng: np.random.Generator) -> None:
    """With a ms for the graph, b times the rows and c ms a unit, the split still is the table's own estimate."""
    fit = Calibration(a_ms=0.7, b=1.3, c_ms=0.01, nets=20, kfold_error=0.1, within_10pct=0.9)
    table = LatencyTable(load_profile("rtx3080").model_copy(update={"calibration": fit}))
    latency = latency_model(plain, table)
    for _ in range(5):
        arch = plain.random(rng)
        units = plain.workloads(arch)
        by_hand = 0.7 + 1.3 * sum(table.lookup(w).ms for w in units) + 0.01 * len(units)
        assert latency.ms(arch) == pytest.approx(by_hand, rel=1e-12)


def test_fastest_is_the_minimum_over_all_architectures(latency: LatencyModel) -> None:
    grids = np.meshgrid(*latency.candidate_ms, indexing="ij")
    assert latency.ms(latency.fastest()) == pytest.approx(latency.fixed_ms + sum(grids).min())


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_repair_meets_the_limit_and_changes_nothing_that_met_it(latency: LatencyModel, seed: int, where: float) -> None:
    rng = np.random.default_rng(seed)
    space = latency.space
    low = latency.ms(latency.fastest())
    high = latency.fixed_ms + sum(ms.max() for ms in latency.candidate_ms)
    limit = low + where * (high - low)
    genome = space.indices(space.random(rng))
    scores = tuple(rng.random(len(ms)) for ms in latency.candidate_ms)
    repaired = repair(latency, genome, limit, scores)
    assert latency.ms_of(repaired) <= limit * (1 + 1e-12)
    assert repaired == repair(latency, genome, limit, scores)
    if latency.ms_of(genome) <= limit:
        assert repaired == genome


def test_repair_takes_the_swap_that_loses_least_score_per_ms(latency: LatencyModel) -> None:
    """Only decision 0 may lose nothing: one swap there is enough, so nothing else changes."""
    genome = tuple(int(ms.argmax()) for ms in latency.candidate_ms)
    scores = tuple(np.zeros(len(ms)) if d == 0 else ms * 100 for d, ms in enumerate(latency.candidate_ms))
    limit = latency.ms_of(genome) - (latency.candidate_ms[0].max() - np.sort(latency.candidate_ms[0])[-2]) / 2
    repaired = repair(latency, genome, limit, scores)
    assert repaired[1:] == genome[1:] and repaired[0] != genome[0]


def test_a_limit_below_the_fastest_names_it(latency: LatencyModel) -> None:
    fastest = latency.fastest()
    check_limit(latency, latency.ms(fastest))
    with pytest.raises(InputError, match=fastest.name):
        check_limit(latency, latency.ms(fastest) * 0.99)


def test_the_default_limit_is_the_median_of_200_random_architectures(latency: LatencyModel) -> None:
    rng = np.random.default_rng(0)
    times = sorted(latency.ms(latency.space.random(rng)) for _ in range(200))
    assert median_ms(latency) == pytest.approx((times[99] + times[100]) / 2)
