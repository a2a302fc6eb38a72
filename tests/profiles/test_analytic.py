"""Cost models against hand-made arithmetic; shipped prices against a fit made here from the published data."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnas.profiles import analytic
from bnas.profiles.schema import MacLinear, Roofline, load_profile
from bnas.profiles.workload import FIXED, Workload

# larq/docs, docs/plots/zoo_hero.vg.json (measured 2020-10, Larq Compute Engine, one thread):
# name, 1-bit GMAC, float GMAC, Raspberry Pi 4B ms, Pixel 1 ms
LARQ_ZOO = [
    ("QuickNetSmall", 1.16, 0.015, 31.6, 17.5),
    ("QuickNet", 1.85, 0.029, 51.7, 27.4),
    ("QuickNetLarge", 3.70, 0.029, 84.3, 45.5),
    ("XNORNet", 1.03, 0.113, 54.7, 29.3),
    ("BiRealNet", 1.68, 0.138, 85.4, 41.7),
    ("BinaryResNetE18", 1.68, 0.138, 86.1, 41.8),
    ("RealToBinaryNet", 1.68, 0.138, 99.4, 48.8),
    ("BinaryDenseNet28", 3.59, 0.202, 181.0, 84.9),
    ("BinaryDenseNet37", 4.51, 0.200, 206.8, 97.1),
    ("BinaryDenseNet37Dilated", 7.77, 0.453, 352.3, 174.9),
    ("BinaryDenseNet45", 6.43, 0.244, 268.9, 129.3),
    ("MeliusNet22", 4.62, 0.136, 252.1, 110.7),
    ("BinaryAlexNet", 0.77, 0.073, 109.5, 44.4),
]
GMACS = np.array([[binary, full] for _, binary, full, _, _ in LARQ_ZOO])
MILLISECONDS = {"rpi4b": np.array([n[3] for n in LARQ_ZOO]), "pixel1": np.array([n[4] for n in LARQ_ZOO])}


def relative_fit(gmacs: np.ndarray, ms: np.ndarray) -> np.ndarray:
    """Prices minimising sum(((gmacs @ price - ms) / ms)^2), by the normal equations of the scaled rows."""
    scaled = gmacs / ms[:, None]
    return np.linalg.inv(scaled.T @ scaled) @ scaled.T @ np.ones(len(ms))


@pytest.mark.parametrize("name", ["rpi4b", "pixel1"])
def test_shipped_prices_are_the_fit_of_the_published_networks(name: str) -> None:
    profile, ms = load_profile(name), MILLISECONDS[name]
    assert isinstance(profile.cost_model, MacLinear)
    binary, full = relative_fit(GMACS, ms)
    assert profile.cost_model.binary_ms_per_gmac == pytest.approx(binary, rel=0.005)
    assert profile.cost_model.float_ms_per_gmac == pytest.approx(full, rel=0.005)  # the counts above are rounded

    errors = []
    for left_out in range(len(ms)):
        kept = np.arange(len(ms)) != left_out
        price = relative_fit(GMACS[kept], ms[kept])
        errors.append(abs(GMACS[left_out] @ price - ms[left_out]) / ms[left_out])
    assert profile.error == pytest.approx(np.mean(errors), abs=0.001)
    assert f"{sum(e <= 0.1 for e in errors)} of the 13" in profile.description


def test_mac_linear_by_hand() -> None:
    binary = Workload("binary_conv", 1, 64, 128, 56, 56, 3, stride=2)  # 28 * 28 * 128 * 64 * 9 MACs
    stem = Workload("conv", 32, 3, 64, 224, 224, 7, stride=2)  # 112 * 112 * 64 * 3 * 49
    assert analytic.mac_linear_ms(binary, binary_ms_per_gmac=20, float_ms_per_gmac=400) == pytest.approx(
        20 * 57_802_752 / 1e9
    )
    assert analytic.mac_linear_ms(stem, binary_ms_per_gmac=20, float_ms_per_gmac=400) == pytest.approx(
        400 * 118_013_952 / 1e9
    )


def test_roofline_by_hand() -> None:
    """Compute-bound, memory-bound and launch-bound units on a device of round numbers."""
    device = {"bandwidth_gb_s": 100.0, "derate": 0.5, "launch_floor_us": 3.0}
    heavy = Workload("binary_conv", 1, 256, 256, 56, 56, 3)  # 56 * 56 * 256 * 256 * 9 = 1_849_688_064 MACs
    assert analytic.roofline_ms(heavy, tera_ops=2, weight_bits=1, **device) == pytest.approx(
        2 * 1_849_688_064 / 1e12 * 1e3 + 0.003
    )
    pool = Workload("downsample", 32, 64, 128, 32, 32, stride=2)  # reads 64 * 1024, writes 128 * 256 floats
    assert analytic.roofline_ms(pool, tera_ops=2, weight_bits=32, **device) == pytest.approx(
        4 * (64 * 1024 + 128 * 256) / 50e9 * 1e3 + 0.003
    )
    head = Workload("head", 32, 512, 1000, 1, 1)  # 512 in, 1000 out, 512,000 weights of 16 bits, 1000 biases
    assert analytic.roofline_ms(head, tera_ops=1000, weight_bits=16, **device) == pytest.approx(
        (4 * 512 + 4 * 1000 + 2 * 512_000 + 4 * 1000) / 50e9 * 1e3 + 0.003
    )


@settings(deadline=None)
@given(
    channels=st.sampled_from([32, 64, 100, 256]),
    pixels=st.integers(1, 64),
    kernel=st.sampled_from([1, 3, 5]),
    path=st.sampled_from(["fp16-emulated", "int8", "b1-tensor", "popcount"]),
)
def test_no_unit_is_cheaper_than_a_launch_nor_faster_than_the_peak(
    channels: int, pixels: int, kernel: int, path: str
) -> None:
    model = load_profile(f"rtx3080:{path}").cost_model
    assert isinstance(model, Roofline)
    for bits, kind in ((1, "binary_conv"), (32, "conv")):
        w = Workload(kind, bits, channels, channels, pixels, pixels, kernel)
        ms = model.ms(w)
        peak = (model.paths[path].binary_units if bits == 1 else model.paths[path].float_units).tera_ops
        assert ms > 0.003
        assert ms > 2 * (channels * pixels * kernel) ** 2 / (peak * 1e12) * 1e3


def test_every_kind_has_a_cost_on_every_path() -> None:
    units = [
        FIXED,
        Workload("downsample", 32, 32, 64, 8, 8, stride=2),
        Workload("duplicate", 32, 32, 64, 8, 8),
        Workload("average", 32, 64, 32, 8, 8),
        Workload("head", 32, 64, 10, 4, 4),
    ]
    for path, w in itertools.product(["fp16-emulated", "int8", "b1-tensor", "popcount"], units):
        model = load_profile(f"rtx3080:{path}").cost_model
        assert model is not None and 0.003 <= model.ms(w) < 0.01
