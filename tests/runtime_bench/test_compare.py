"""Comparing files: what is recorded, and when a ratio may be printed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bnas.profiles.errors import InputError
from bnas.runtime_bench.compare import bench_files, speedups
from bnas.runtime_bench.measure import Measurement


def test_two_files_at_one_thread_and_at_all(conv: Callable[..., bytes], tmp_path: Path) -> None:
    small, large = tmp_path / "small.onnx", tmp_path / "large.onnx"
    small.write_bytes(conv(4, 4))
    large.write_bytes(conv(48, 32))
    stages: list[tuple[str, int, int]] = []
    files = {"s": small, "l": large}
    report = bench_files(files, seconds=0.4, threads=[1, 2, 1], progress=lambda *step: stages.append(step))
    assert json.loads(json.dumps(report)) == report
    results = report["results"]
    assert [(r["threads"], r["label"]) for r in results] == [(1, "s"), (1, "l"), (2, "s"), (2, "l")]
    for record in results:
        path = files[record["label"]]
        assert record["engine"] == "onnxruntime" and record["bytes"] == path.stat().st_size
        assert 0 < record["p10_ms"] <= record["p50_ms"] <= record["p90_ms"]
        assert len(record["samples_ns"]) == record["count"] >= 5
        assert record["first_run_ms"] > 0 and record["load_ms"] > 0
    assert results[1]["p50_ms"] > 5 * results[0]["p50_ms"]
    assert report["speedups"] == []
    assert report["no_speedup_reason"] == (
        "a speed-up needs native kernels or Larq Compute Engine on 64-bit ARM; here ran: onnxruntime"
    )
    assert report["environment"]["processor"] == report["environment"]["after"]["processor"]
    assert stages[-1] == ("bench, 2 threads", 4, 4) and ("bench, 1 thread", 4, 4) in stages


def test_one_file_has_no_rival(conv: Callable[..., bytes], tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(conv(2, 2))
    report = bench_files({"a": tmp_path / "a.onnx"}, [1], 0.05)
    assert report["speedups"] == [] and report["no_speedup_reason"] == "nothing to compare with"


def test_bad_requests(conv: Callable[..., bytes], tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(conv(2, 2))
    with pytest.raises(InputError, match="nothing to bench"):
        bench_files({})
    with pytest.raises(InputError, match="seconds must be positive, got -1"):
        bench_files({"a": tmp_path / "a.onnx"}, seconds=-1)
    with pytest.raises(InputError, match="does not exist"):
        bench_files({"a": tmp_path / "b.onnx"})


def took(ms: float, engine: str) -> Measurement:
    return Measurement((int(ms * 1e6),), engine, threads=2)


def test_ratios_only_for_entitled_engines_and_against_the_fastest_rival() -> None:
    native = {
        "mine": took(2, "native-avx2"),
        "fp32": took(8, "onnxruntime"),
        "int8": took(3, "onnxruntime"),
    }
    assert speedups(native) == [{"label": "mine", "against": "int8", "threads": 2, "ratio": 1.5}]
    assert speedups({"mine": took(2, "function-float"), "fp32": took(8, "onnxruntime")}) == []
    assert speedups({"mine": took(2, "lce-portable"), "fp32": took(8, "onnxruntime")}) == []
    assert speedups({"mine": took(2, "lce"), "also": took(2, "native-neon")}) == []
