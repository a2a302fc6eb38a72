"""Comparing files: how blocks are taken and kept, and when a ratio may be printed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnas.profiles.errors import InputError
from bnas.profiles.schema import EngineInfo
from bnas.runtime_bench.compare import bench_files, conclude
from bnas.runtime_bench.devices import ConnectionLost, open_device

STATE = {"governor": None, "clock_mhz": [], "limit_mhz": [], "temperature_c": None, "throttled": []}


class Simulated:
    """A device on which a file takes the ms it contains, each loading being a little quicker or slower."""

    def __init__(self, *, engine: str = "native-neon", spread: float = 0.01, drift: float = 0.02, seed: int = 0):
        self.url, self.local, self.emulated = "ssh://nowhere", False, False
        self.engine_name, self.spread, self.drift = engine, spread, drift
        self.rng = np.random.default_rng(seed)
        self.opened: list[str] = []
        self.asked: set[tuple[int, int]] = set()  # untimed and timed runs
        self.open_now = 0
        self.fail_at = -1
        self.mood = 0.0

    def describe(self) -> dict[str, Any]:
        return {"processor": "simulated", "cpus": [0, 1]}

    def state(self) -> dict[str, Any]:
        self.mood += self.rng.normal(0, self.drift)
        return STATE

    def fingerprint(self) -> str:
        return "0123456789ab"

    def usable_cores(self) -> int:
        return 2

    def engine(self) -> EngineInfo:
        return EngineInfo(name=self.engine_name, runtime="onnxruntime", version="1")

    def memory(self, source: Path, threads: int) -> dict[str, int]:
        return {"base_bytes": 10, "peak_bytes": 30}

    def open(self, source: Path, threads: int = 1, *, kernels: bool = True) -> "Simulated.Session":
        if len(self.opened) == self.fail_at:
            raise ConnectionLost("the connection to ssh://nowhere was lost")
        self.opened.append(source.stem)
        return Simulated.Session(self, float(source.read_text()), "twin" in source.stem)

    class Session:
        runtime, version, operators, means_of, load_ms = "onnxruntime", "1", None, None, 3.0

        def __init__(self, device: "Simulated", ms: float, twin: bool) -> None:
            self.name = "onnxruntime" if twin else device.engine_name
            self.device, self.ms = device, ms * np.exp(device.rng.normal(0, device.spread))
            device.open_now += 1

        def timed(self, untimed: int, count: int) -> list[int]:
            self.device.asked.add((untimed, count))
            noise = self.device.rng.normal(0, 0.02, count) + self.device.mood
            return [int(1e6 * self.ms * np.exp(x)) for x in noise]

        def close(self) -> None:
            self.device.open_now -= 1


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    taken = {"onnx": "2.0", "fp32 twin": "6.0", "int8 twin": "3.0"}
    for label, ms in taken.items():
        (tmp_path / f"{label}.onnx").write_text(ms)
    return {label: tmp_path / f"{label}.onnx" for label in taken}


def test_every_block_loads_all_files_in_an_order_of_its_own(files: dict[str, Path]) -> None:
    device = Simulated()
    steps: list[tuple[str, int, int]] = []
    report = bench_files(device, files, [1, 2], 0.02, lambda *step: steps.append(step), blocks=8)
    loads = [tuple(device.opened[i : i + 3]) for i in range(0, len(device.opened), 3)]
    assert len(loads) == 16 and all(sorted(load) == sorted(files) for load in loads)
    assert len(set(loads)) >= 4 and device.open_now == 0
    assert steps == [("bench", number, 16) for number in range(1, 17)]
    assert [(r["label"], r["threads"]) for r in report["results"]] == [(f, n) for n in (1, 2) for f in files]
    for result in report["results"]:
        assert len(result["samples_ns"]) == 8 and result["count"] == sum(map(len, result["samples_ns"]))
        assert result["p50_low_ms"] <= result["p50_ms"] <= result["p50_high_ms"]
        assert result["p10_ms"] <= result["p50_ms"] <= result["p90_ms"] and result["load_ms"] == 3.0
        assert result["bytes"] == 3 and (result["base_bytes"], result["peak_bytes"]) == (10, 30)
    assert json.loads(json.dumps(report)) == report


def test_slow_files_get_short_rounds(files: dict[str, Path]) -> None:
    """A round of seven runs of 2, 6 and 3 ms would take 77 ms."""
    for seconds, round_of in ((0.1, (1, 2)), (0.2, (2, 5))):
        device = Simulated()
        bench_files(device, files, [1], seconds, blocks=2)
        assert round_of in device.asked and not {(1, 2), (2, 5)} - {round_of} & device.asked


def test_the_ratio_is_against_the_fastest_rival_with_an_interval(files: dict[str, Path]) -> None:
    report = bench_files(Simulated(), files, [1], 0.05)
    (line,) = report["speedups"]
    assert (line["label"], line["against"], line["threads"]) == ("onnx", "int8 twin", 1)
    assert 1.4 < line["low"] < line["ratio"] < line["high"] < 1.6 and line["ratio"] == pytest.approx(1.5, rel=0.02)
    assert line["difference"] and report["no_speedup_reason"] is None


def test_the_same_file_makes_no_difference_19_times_of_20(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_text("1.0")
    same = {"a.onnx": tmp_path / "a.onnx", "a.onnx (2)": tmp_path / "a.onnx"}
    device = Simulated(spread=0.03)
    differing = 0
    for seed in range(60):
        report = bench_files(device, same, [1], 0.004, each=True, seed=seed, blocks=6)
        (line,) = report["comparisons"]
        differing += line["difference"]
        assert line["difference"] == (not line["low"] <= 1 <= line["high"])
    assert differing <= 9  # 3 are expected


def test_a_lost_connection_keeps_its_blocks_and_the_same_call_goes_on(files: dict[str, Path], tmp_path: Path) -> None:
    partial = tmp_path / "partial.json"
    device = Simulated()
    device.fail_at = 10  # the second file of the fourth block
    with pytest.raises(ConnectionLost):
        bench_files(device, files, [1], 0.02, blocks=6, partial=partial)
    assert device.open_now == 0
    kept = json.loads(partial.read_text())["blocks"]
    assert len(kept) == 3

    again = Simulated(seed=1)
    report = bench_files(again, files, [1], 0.02, blocks=6, partial=partial)
    assert len(again.opened) == 3 * 3
    assert report["results"][0]["samples_ns"][:3] == [block["files"]["onnx"]["samples_ns"] for block in kept]


def test_what_throttled_before_the_interruption_counts(files: dict[str, Path], tmp_path: Path) -> None:
    """The firmware counts since boot; it counted while the fourth block was measured, and then the connection broke."""
    device, partial = Simulated(), tmp_path / "partial.json"
    later = {**STATE, "throttled": [{"throttled by the firmware since boot": 1}]}
    device.state = lambda: later if len(device.opened) > 9 else STATE  # type: ignore[method-assign]
    device.fail_at = 12
    with pytest.raises(ConnectionLost):
        bench_files(device, files, [1], 0.02, blocks=6, partial=partial)
    device.fail_at = -1
    report = bench_files(device, files, [1], 0.02, blocks=6, partial=partial)
    assert report["environment"]["throttled"] == ["throttled by the firmware"] and report["speedups"] == []


@pytest.mark.parametrize("change", ["file", "engine", "seconds", "text", "samples", "url", "cpus"])
def test_blocks_of_another_bench_are_not_taken(files: dict[str, Path], tmp_path: Path, change: str) -> None:
    partial = tmp_path / "partial.json"
    bench_files(Simulated(), files, [1], 0.02, blocks=2, partial=partial)
    seconds = 0.02
    if change == "file":
        files["onnx"].write_text("2.1")
    elif change == "seconds":
        seconds = 0.03
    elif change == "text":
        partial.write_text(partial.read_text()[:-40])
    elif change == "samples":
        document = json.loads(partial.read_text())
        document["blocks"][0]["files"]["onnx"]["samples_ns"] = []
        partial.write_text(json.dumps(document))
    device = Simulated(engine="native-portable" if change == "engine" else "native-neon")
    if change == "url":
        device.url = "ssh://elsewhere"
    elif change == "cpus":
        device.describe = lambda: {"processor": "simulated", "cpus": [1]}  # type: ignore[method-assign]
    bench_files(device, files, [1], seconds, blocks=2, partial=partial)
    assert len(device.opened) == 2 * 3


def row(label: str, ms: float, engine: str, threads: int = 1) -> dict[str, Any]:
    rng = np.random.default_rng(len(label))
    samples = [[int(ms * 1e6 * np.exp(x)) for x in rng.normal(0, 0.01, 5)] for _ in range(6)]
    return {"label": label, "engine": engine, "threads": threads, "p50_ms": ms, "samples_ns": samples}


FAST = [row("onnx", 2, "native-avx2"), row("fp32 twin", 8, "onnxruntime"), row("int8 twin", 3, "onnxruntime")]


def test_nothing_is_compared_on_an_emulator_or_a_throttled_processor() -> None:
    assert conclude(FAST)["speedups"]
    for barred, reason in (
        (conclude(FAST, emulated=True), "an emulator ran the files"),
        (conclude(FAST, throttled=["under-voltage"]), "the processor was throttled: under-voltage"),
        (conclude(FAST, each=True, emulated=True), "an emulator ran the files"),
    ):
        assert barred["comparisons"] == barred["speedups"] == [] and reason in barred["no_speedup_reason"]


def test_stand_ins_take_no_part() -> None:
    """A rival that runs reference kernels is no rival, and neither is a network that runs by its function bodies."""
    portable = [*FAST, row("tflite", 1000, "lce-portable")]
    assert [(c["label"], c["against"]) for c in conclude(portable)["comparisons"]] == [("onnx", "int8 twin")]
    assert conclude([FAST[0], row("tflite", 9, "lce-portable")])["comparisons"] == []
    slow = [row("onnx", 20, "function-float"), *FAST[1:]]
    assert conclude(slow)["comparisons"] == [] and "a speed-up needs native kernels" in str(conclude(slow))
    others = [row("b", 2, "onnxruntime"), row("c", 2, "onnxruntime")]
    barred = conclude([row("a", 1, "native-reference"), *others], each=True)  # b does not become the first instead
    assert barred["comparisons"] == [] and "nothing can be compared with a by native-reference" in str(barred)


def test_what_is_not_faster_is_no_speedup() -> None:
    slower = conclude([row("onnx", 4, "native-avx2"), *FAST[1:]])
    (line,) = slower["comparisons"]
    assert line["ratio"] < 0.8 and line["difference"] and slower["speedups"] == []
    assert "not faster than its fastest rival" in slower["no_speedup_reason"]
    even = conclude([row("onnx", 3, "native-avx2"), *FAST[1:]])
    assert even["speedups"] == [] and not even["comparisons"][0]["difference"]


def test_thread_counts_are_compared_apart_and_foreign_files_with_the_first() -> None:
    both = [*FAST, *(row(r["label"], r["p50_ms"] / 2, r["engine"], 2) for r in FAST)]
    assert [c["threads"] for c in conclude(both)["comparisons"]] == [1, 2]
    foreign = conclude([row("a", 1, "onnxruntime"), row("b", 2, "onnxruntime"), row("c", 3, "tflite")], each=True)
    assert [(c["label"], c["against"]) for c in foreign["comparisons"]] == [("b", "a"), ("c", "a")]
    assert foreign["comparisons"][1]["ratio"] == pytest.approx(1 / 3, rel=0.05)
    assert foreign["speedups"] == []  # a comparison of engines, no speed-up of 1-bit kernels


def test_noise_and_drift_are_said(files: dict[str, Path]) -> None:
    assert bench_files(Simulated(spread=0.001, drift=0), files, [1], 0.02)["warnings"] == []
    loud = bench_files(Simulated(spread=0.3), files, [1], 0.02)["warnings"]
    assert "too noisy: the median of" in loud[0] and "--seconds" in loud[0]
    drifting = Simulated(spread=0.001)
    drifting.state = lambda: setattr(drifting, "mood", drifting.mood + 0.03) or STATE  # type: ignore[method-assign]
    assert any("changed its speed" in warning for warning in bench_files(drifting, files, [1], 0.02)["warnings"])
    single = bench_files(Simulated(), files, [1], 0.02, blocks=1)
    assert "from one block" in single["warnings"][0] and single["results"][0]["p50_high_ms"] is None
    assert single["speedups"] == [] and json.dumps(single, allow_nan=False)


def test_two_files_here_at_one_thread_and_at_all(conv: Callable[..., bytes], tmp_path: Path) -> None:
    small, large = tmp_path / "small.onnx", tmp_path / "large.onnx"
    small.write_bytes(conv(4, 4))
    large.write_bytes(conv(48, 32))
    with open_device("local") as target:
        report = bench_files(target, {"s": small, "l": large}, [1, 2, 1], 0.4, each=True)
    results = report["results"]
    assert [(r["threads"], r["label"]) for r in results] == [(1, "s"), (1, "l"), (2, "s"), (2, "l")]
    for record in results:
        assert record["engine"] == "onnxruntime" and record["p10_ms"] > 0 and record["first_run_ms"] > 0
        assert record["peak_bytes"] > 0
    assert results[1]["p50_ms"] > 5 * results[0]["p50_ms"]
    assert all(c["ratio"] < 0.3 and c["difference"] for c in report["comparisons"])
    assert report["speedups"] == [] and report["no_speedup_reason"] == "files were compared with the first one"


def test_bad_requests(conv: Callable[..., bytes], tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(conv(2, 2))
    with open_device("local") as target:
        one = bench_files(target, {"a": tmp_path / "a.onnx"}, [1], 0.05)
        assert one["comparisons"] == [] and one["no_speedup_reason"] == "nothing to compare with"
        with pytest.raises(InputError, match="nothing to bench"):
            bench_files(target, {})
        with pytest.raises(InputError, match="seconds must be positive, got -1"):
            bench_files(target, {"a": tmp_path / "a.onnx"}, seconds=-1)
        with pytest.raises(InputError, match="does not exist"):
            bench_files(target, {"a": tmp_path / "b.onnx"})
