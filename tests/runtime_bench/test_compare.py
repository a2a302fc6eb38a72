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
    report = bench_files(
        {"s": small, "l": large}, seconds=0.4, progress=lambda *step: stages.append(step), threads=[1, 2, 1]
    )
    assert json.loads(json.dumps(report)) == report
    assert [result["threads"] for result in report["results"]] == [1, 2]
    for result in report["results"]:
        assert list(result["files"]) == ["s", "l"]
        for label, path in (("s", small), ("l", large)):
            record = result["files"][label]
            assert record["engine"] == "onnxruntime" and record["bytes"] == path.stat().st_size
            assert 0 < record["p10_ms"] <= record["p50_ms"] <= record["p90_ms"]
            assert len(record["samples_ns"]) == record["count"] >= 5
            assert record["first_run_ms"] > 0 and record["load_ms"] > 0
        assert result["files"]["l"]["p50_ms"] > 5 * result["files"]["s"]["p50_ms"]
        assert result["speedups"] == {}
        assert result["no_speedup_reason"] == (
            "a speed-up needs native kernels or Larq Compute Engine on 64-bit ARM; here ran: onnxruntime"
        )
    assert report["environment"]["before"]["processor"] == report["environment"]["after"]["processor"]
    assert stages[-1] == ("bench, 2 threads", 4, 4) and ("bench, 1 thread", 4, 4) in stages


def test_bad_requests(conv: Callable[..., bytes], tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(conv(2, 2))
    with pytest.raises(InputError, match="nothing to bench"):
        bench_files({})
    with pytest.raises(InputError, match="seconds must be positive, got -1"):
        bench_files({"a": tmp_path / "a.onnx"}, seconds=-1)
    with pytest.raises(InputError, match="does not exist"):
        bench_files({"a": tmp_path / "b.onnx"})


def took(ms: float, engine: str) -> Measurement:
    return Measurement((int(ms * 1e6),), engine)


def test_ratios_only_for_entitled_engines() -> None:
    native = {
        "mine": took(2, "native-avx2"),
        "fp32": took(8, "onnxruntime"),
        "int8": took(3, "onnxruntime"),
        "portable": took(1, "lce-portable"),
    }
    assert speedups(native) == {
        "speedups": {"mine": {"fp32": 4.0, "int8": 1.5, "portable": 0.5}},
        "no_speedup_reason": None,
    }
    emulated = speedups({"mine": took(2, "function-float"), "fp32": took(8, "onnxruntime")})
    assert emulated["speedups"] == {} and "function-float, onnxruntime" in emulated["no_speedup_reason"]
    assert speedups({"mine": took(2, "lce")}) == {"speedups": {}, "no_speedup_reason": "nothing to compare with"}
