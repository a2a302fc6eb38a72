"""The calibration finds known coefficients, equals an independent solver, and reports an honest held-out error."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnas.profiles.calibration import fit
from bnas.profiles.errors import InputError

optimize = pytest.importorskip("scipy.optimize")


def networks(count: int, seed: int, units: tuple[int, int] = (5, 20)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(0.5, 8.0, count), rng.integers(*units, count)


@settings(deadline=None)
@given(a=st.floats(0.01, 2), b=st.floats(0.3, 2), c=st.floats(0.001, 0.2), seed=st.integers(0, 1000))
def test_known_coefficients_are_found(a: float, b: float, c: float, seed: int) -> None:
    sums, units = networks(24, seed)
    samples = [(float(s), int(u), float(a + b * s + c * u)) for s, u in zip(sums, units, strict=True)]
    found = fit(samples)
    assert (found.a_ms, found.b, found.c_ms) == pytest.approx((a, b, c), rel=1e-5, abs=1e-7)
    assert found.kfold_error < 1e-6 and found.within_10pct == 1 and found.nets == 24


@settings(deadline=None)
@given(seed=st.integers(0, 1000), noise=st.floats(0, 0.5), shift=st.floats(-2, 2))
def test_the_fit_is_the_best_without_negative_terms(seed: int, noise: float, shift: float) -> None:
    sums, units = networks(20, seed)
    rng = np.random.default_rng(seed + 1)
    measured = np.maximum(0.1, shift + 0.9 * sums - 0.05 * units) * np.exp(noise * rng.standard_normal(20))
    found = fit(list(zip(sums.tolist(), units.tolist(), measured.tolist(), strict=True)))
    terms = np.stack([np.ones(20), sums, units], axis=1) / measured[:, None]
    _, residual = optimize.nnls(terms, np.ones(20))
    ours = np.linalg.norm(terms @ [found.a_ms, found.b, found.c_ms] - 1)
    assert ours == pytest.approx(residual, rel=1e-6, abs=1e-9)
    assert min(found.a_ms, found.b, found.c_ms) >= 0


def test_equal_unit_counts_drop_c() -> None:
    sums, _ = networks(15, 0)
    found = fit([(float(s), 12, float(0.3 + 0.8 * s)) for s in sums])
    assert found.c_ms == 0
    assert (found.a_ms, found.b) == pytest.approx((0.3, 0.8))


def test_the_error_is_held_out_and_by_hand() -> None:
    """Five samples, one per fold: each is predicted from the other four, by polyfit on the weighted line."""
    sums = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    measured = np.array([1.6, 2.5, 3.8, 4.4, 5.9])
    errors = []
    for i in range(5):
        kept = np.arange(5) != i
        b, a = np.polyfit(sums[kept], measured[kept], 1, w=1 / measured[kept])
        assert a > 0 and b > 0
        errors.append(abs(a + b * sums[i] - measured[i]) / measured[i])
    found = fit([(s, 7, m) for s, m in zip(sums.tolist(), measured.tolist(), strict=True)])
    assert found.kfold_error == pytest.approx(np.mean(errors))
    assert found.within_10pct == pytest.approx(np.mean(np.array(errors) <= 0.1))


def test_bad_samples() -> None:
    with pytest.raises(InputError, match="a calibration needs at least 5 networks, got 4"):
        fit([(1.0, 3, 1.0)] * 4)
    with pytest.raises(ValueError, match="measured times must be positive"):
        fit([(1.0, 3, 0.0)] * 5)
    same = fit([(2.0, 3, 1.0)] * 5)  # nothing varies: any exact answer will do
    assert same.a_ms + 2 * same.b == pytest.approx(1.0)
