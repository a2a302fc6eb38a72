"""Rows are differences to the empty graph, and an interrupted build continues with the rows it has."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bnas.profiles.schema import EngineInfo, Row
from bnas.profiles.workload import FIXED, Workload
from bnas.runtime_bench import table_builder
from bnas.runtime_bench.devices import open_device
from bnas.runtime_bench.devices.target import FORMATS, Target
from bnas.runtime_bench.table_builder import FLOOR_MS, build_rows, measure_networks

NOTHING = Workload("average", 32, 1, 1, 1, 1)
SMALL = Workload("conv", 32, 4, 4, 8, 8, 3)
LARGE = Workload("conv", 32, 48, 48, 32, 32, 3)


@pytest.fixture(scope="module")
def here() -> Iterator[Target]:
    with open_device("local") as target:
        yield target


@pytest.fixture
def units(identity: bytes, conv: Callable[..., bytes], tmp_path: Path) -> list:
    (tmp_path / "small.onnx").write_bytes(conv(4, 8))
    return [(FIXED, identity), (NOTHING, identity), (SMALL, tmp_path / "small.onnx"), (LARGE, conv(48, 32))]


def test_rows_are_costs_above_the_empty_graph(here: Target, units: list) -> None:
    steps: list[tuple[str, int, int]] = []
    rows = build_rows(here, units, seconds_per_row=0.3, progress=lambda *step: steps.append(step))
    assert [row.workload for row in rows] == [workload.key for workload, _ in units]
    fixed, nothing, small, large = (row.p50_ms for row in rows)
    assert all(FLOOR_MS <= row.p10_ms <= row.p50_ms <= row.p90_ms for row in rows)
    assert nothing < fixed  # an empty graph above an empty graph
    assert large > 10 * small
    assert all(row.count >= 30 and row.source == "measured" for row in rows)
    assert steps == [("measure", number, 12) for number in range(1, 13)]


def test_the_row_is_the_unit_minus_the_empty_graph(here: Target, units: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the timing replaced by known samples."""
    from bnas.runtime_bench.measure import Measurement

    ms = {"empty": (0.1, 0.2, 0.3), "unit": (0.15, 1.2, 2.2)}
    taken = {name: Measurement(tuple(int(1e6 * t) for t in times)) for name, times in ms.items()}
    monkeypatch.setattr(table_builder, "run_interleaved", lambda *_, **__: taken)
    row = build_rows(here, [units[0], units[2]], seconds_per_row=0.05)[1]
    assert row.p50_ms == pytest.approx(1.2 - 0.2)
    assert row.p90_ms == pytest.approx(1.2 + 0.8 * (2.2 - 1.2) - 0.2)
    assert row.p10_ms == pytest.approx(0.15 + 0.2 * (1.2 - 0.15) - 0.2)
    taken["empty"] = taken["unit"]
    row = build_rows(here, [units[0], units[2]], seconds_per_row=0.05)[1]
    assert row.p10_ms == row.p50_ms == FLOOR_MS


def test_an_interrupted_build_continues(
    here: Target, units: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = tmp_path / "partial.json"

    def stop(stage: str, done: int, total: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_rows(here, units, seconds_per_row=0.05, partial_path=partial, progress=stop)
    saved = json.loads(partial.read_text())["rows"]
    assert len(saved) == 6 and {row["workload"] for row in saved} == {workload.key for workload, _ in units}

    measured: list[Workload] = []
    real = table_builder._measured_row

    def counted(workload: Workload, *rest: Any) -> Row:
        measured.append(workload)
        return real(workload, *rest)

    monkeypatch.setattr(table_builder, "_measured_row", counted)
    rows = build_rows(here, units, seconds_per_row=0.05, partial_path=partial)
    assert len(measured) == 6  # three times four, less what was saved
    assert [row.workload for row in rows] == [workload.key for workload, _ in units]
    assert all(row in json.loads(partial.read_text())["rows"] for row in saved)

    measured.clear()
    assert build_rows(here, units, partial_path=partial) == rows
    assert measured == []  # nothing left to measure


def test_one_spoilt_round_does_not_count(here: Target, units: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs 1, 9 (a burst of other work) and 2 ms in the three rounds: the row says 2 ms, with all samples."""
    costs = iter([1.0, 1.0, 9.0, 9.0, 2.0, 2.0])

    def row(workload: Workload, *rest: Any) -> Row:
        ms = next(costs)
        return Row(workload=workload.key, p10_ms=ms, p50_ms=ms, p90_ms=ms, count=10)

    monkeypatch.setattr(table_builder, "_measured_row", row)
    rows = build_rows(here, [units[0], units[2]])
    assert [(r.p50_ms, r.count) for r in rows] == [(2.0, 30), (2.0, 30)]


@pytest.mark.parametrize("damage", ["engine", "threads", "format", "text", "rows"])
def test_rows_of_another_build_are_not_taken(
    here: Target, units: list, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = {name: EngineInfo(name=name, runtime=name, version="1") for name in FORMATS}
    monkeypatch.setattr(type(here), "engine", lambda self, format: engines[format])
    partial = tmp_path / "partial.json"
    units = [units[0]]
    build_rows(here, units, seconds_per_row=0.02, partial_path=partial)
    document = json.loads(partial.read_text())
    for row in document["rows"]:
        row["p90_ms"] = 12345.0
    if damage == "format":
        document["format"] = 99
    if damage == "rows":
        document["rows"][0]["p50_ms"] = -1.0
    partial.write_text("{" if damage == "text" else json.dumps(document))
    threads, format = 2 if damage == "threads" else 1, FORMATS[damage == "engine"]
    rows = build_rows(here, units, seconds_per_row=0.02, partial_path=partial, threads=threads, format=format)
    assert rows[0].p90_ms < 12345.0


def test_the_empty_graph_is_needed(here: Target, units: list) -> None:
    with pytest.raises(ValueError, match="needs the model of the FIXED workload"):
        build_rows(here, units[1:])


def test_networks_come_back_in_order(here: Target, conv: Callable[..., bytes]) -> None:
    steps: list[int] = []
    medians = measure_networks(
        here,
        [conv(48, 32), conv(4, 8), conv(48, 32, layers=2)],
        seconds=0.2,
        progress=lambda _, done, __: steps.append(done),
    )
    assert medians[1] < medians[0] < medians[2]
    assert steps[-1] == 6 and steps == sorted(steps)


def test_a_cost_is_known_when_the_difference_is() -> None:
    """A median known within 1 % says little about a cost that is 2 % of it."""
    steady = {"empty": [1000, 1001, 1002] * 40, "unit": [2000, 2001, 2002] * 40}
    assert table_builder._cost_is_known(steady)
    assert not table_builder._cost_is_known({**steady, "unit": list(range(990, 1050)) * 2})
    assert not table_builder._cost_is_known({**steady, "unit": steady["empty"]})
