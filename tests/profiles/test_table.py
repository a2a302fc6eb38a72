"""Table look-ups, whole-network estimates and how they are printed."""

import datetime

import pytest

from bnas.profiles.errors import InputError
from bnas.profiles.schema import Calibration, Device, EngineInfo, MacLinear, Profile, Row, load_profile
from bnas.profiles.table import LatencyTable, Prediction, format_ms, predict
from bnas.profiles.workload import FIXED, Workload

A = Workload("binary_conv", 1, 64, 64, 8, 8, 3, epilogue=("rprelu",))
B = Workload("conv", 32, 3, 64, 32, 32, 3)
C = Workload("head", 32, 64, 10, 8, 8)
MODEL = MacLinear(kind="mac-linear", formula="test", binary_ms_per_gmac=1000, float_ms_per_gmac=2000)
FIT = Calibration(a_ms=0.5, b=0.8, c_ms=0.01, nets=24, kfold_error=0.05, within_10pct=0.9)


def row(workload: Workload, ms: float, source: str = "measured") -> Row:
    return Row.model_validate(
        {
            "workload": workload.key,
            "p10_ms": ms / 2,
            "p50_ms": ms,
            "p90_ms": ms * 3,
            "count": 30,
            "source": source,
        }
    )


def profile(*rows: Row, source: str = "measured", **more: object) -> Profile:
    return Profile.model_validate(
        {
            "name": "kitchen",
            "source": source,
            "description": "",
            "created": datetime.date(2026, 11, 22),
            "device": Device(name="board", fingerprint="0123456789ab"),
            "engine": EngineInfo(name="function-float", runtime="onnxruntime", version="1.31.1"),
            "threads": 1,
            "precision": "1-bit",
            "error": 0.06,
            "error_source": "test",
            "rows": rows,
            **more,
        }
    )


def test_a_row_wins_over_the_model() -> None:
    table = LatencyTable(profile(row(A, 2.0), cost_model=MODEL))
    assert (table.lookup(A).ms, table.lookup(A).source) == (2.0, "measured")
    assert table.lookup(B).source == "analytic"
    assert table.lookup(B).ms == pytest.approx(2000 * 32 * 32 * 64 * 3 * 9 / 1e9)


def test_a_missing_row_is_an_error_that_names_it_and_the_command() -> None:
    table = LatencyTable(profile(row(A, 2.0)))
    for ask in (table.lookup, lambda w: table.latency_ms([A, w]), lambda w: table.predict([w])):
        with pytest.raises(InputError) as caught:
            ask(B)
        assert str(caught.value) == (
            f"profile 'kitchen' has no row for {B.key}; "
            "measure it: bnas profiles build --device local --space SPACE --out FILE"
        )


def test_a_network_is_the_fixed_cost_once_and_its_units() -> None:
    table = LatencyTable(profile(row(FIXED, 0.01), row(A, 2.0), row(B, 3.0)))
    assert table.latency_ms([A, A, B]) == pytest.approx(0.01 + 2 + 2 + 3)
    assert table.latency_ms([FIXED, A]) == pytest.approx(0.01 + 2)
    assert table.sum_ms([A, A, B]) == pytest.approx(7)
    assert table.latency_ms([]) == pytest.approx(0.01)
    assert LatencyTable(profile(row(A, 2.0))).latency_ms([A]) == pytest.approx(2)


def test_a_calibration_replaces_the_fixed_row() -> None:
    table = LatencyTable(profile(row(FIXED, 0.01), row(A, 2.0), row(B, 3.0), calibration=FIT))
    assert table.latency_ms([A, A, B]) == pytest.approx(0.5 + 0.8 * 7 + 0.01 * 3)


def test_the_worst_source_labels_the_prediction() -> None:
    mixed = profile(row(A, 2.0), row(B, 3.0, source="transferred"), cost_model=MODEL)
    assert predict(mixed, [A]).source == "measured"
    assert predict(mixed, [A, B]).source == "transferred"
    assert predict(mixed, [A, B, C]).source == "analytic"
    published = profile(row(A, 2.0), source="published", cost_model=MODEL)
    assert predict(published, [A, C]).source == "published"
    assert predict(published, []).source == "published"


def test_predictions_print_their_band_and_source() -> None:
    assert str(Prediction(7.4, 0.06, "measured")) == "7.4 ms ±6 % (measured)"
    assert str(Prediction(18.234, 0.3, "analytic")) == "18.2 ms ±30 % (analytic)"
    assert str(Prediction(0.0123, 0.178, "published")) == "12.3 µs ±17.8 % (published)"
    text = str(predict(load_profile("rtx3080:popcount"), [A]))
    assert text.endswith("±30 % (analytic, hypothetical path popcount)")
    assert str(predict(load_profile("rtx3080"), [A])).endswith("±30 % (analytic)")


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (1234.56, "1235 ms"),
        (999.6, "1000 ms"),
        (123.4, "123 ms"),
        (1.0, "1 ms"),
        (0.99951, "1 ms"),
        (0.9994, "999 µs"),
        (0.0001, "0.1 µs"),
        (0.0, "0 µs"),
    ],
)
def test_three_digits(ms: float, text: str) -> None:
    assert format_ms(ms) == text
