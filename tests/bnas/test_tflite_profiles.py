"""Profiles of .tflite files: built with what runs them, compared with the file that their engine ran, or refused."""

import datetime
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnas import cli, runs
from bnas.commands import settings
from bnas.commands.bench import _predicted
from bnas.profiles.schema import Device, EngineInfo, Profile, Row, load_profile, save_profile
from bnas.profiles.workload import FIXED
from bnas.runtime_bench import devices, machine, native_library
from bnas.runtime_bench.devices.local import LocalTarget
from bnas.runtime_bench.devices.remote import RemoteTarget
from bnas.runtime_bench.litert_engine import find_host
from bnas.search.spaces import make_space

ONNX = EngineInfo(name="native-neon", runtime="onnxruntime", version="1.23.2", operators="0.1.0")
TFLITE = EngineInfo(name="litert-native-neon", runtime="ai-edge-litert", version="2.3.0", operators="0.1.0")
OTHER = TFLITE.model_copy(update={"version": "1.4.0"})


def profile_of(engine: EngineInfo) -> Profile:
    """Of this machine, by `engine`, with the fixed cost alone."""
    row = Row(workload=FIXED.key, p10_ms=0.001, p50_ms=0.001, p90_ms=0.001, count=30)
    return Profile(
        name="here", source="measured", description="a test", created=datetime.date(2026, 1, 1),
        device=Device(name="local", fingerprint=machine.fingerprint()), engine=engine, threads=1,
        precision="1-bit", error=0.3, error_source="assumed", rows=(row,),
    )  # fmt: skip


def row(label: str, engine: EngineInfo, ms: float, threads: int = 1) -> dict[str, Any]:
    """As in the "results" of a bench."""
    taken = {"label": label, "threads": threads, "p50_ms": ms}
    return {**taken, "engine": engine.name, **engine.model_dump(exclude={"name"})}


TWIN = row("fp32 twin", EngineInfo(name="onnxruntime", runtime="onnxruntime", version="1.23.2"), 9.0)
CASES = {  # what the profile is about, what was benched, and what the predicted 2 ms are compared with, or why not
    "onnx": (ONNX, [row("onnx", ONNX, 2.2), TWIN, row("tflite", TFLITE, 3.0)], 2.2),
    "tflite": (TFLITE, [row("onnx", ONNX, 2.2), TWIN, row("tflite", TFLITE, 3.0)], 3.0),
    "only tflite": (TFLITE, [row("tflite", TFLITE, 3.0)], 3.0),
    "threads": (TFLITE, [row("tflite", TFLITE, 1.5, threads=2), row("tflite", TFLITE, 3.0)], 3.0),
    "other threads": (TFLITE, [row("tflite", TFLITE, 1.5, threads=2)], "with 1 thread, which was not measured"),
    "no tflite": (TFLITE, [row("onnx", ONNX, 2.2), TWIN], "--format tflite"),
    "no onnx": (ONNX, [row("tflite", TFLITE, 3.0)], "--format onnx"),
    "other version": (OTHER, [row("onnx", ONNX, 2.2), row("tflite", TFLITE, 3.0)], "--device local --engine tflite"),
    "a twin of that engine": (TFLITE, [row("tflite", OTHER, 3.0), row("int8 twin", TFLITE, 1.0)], "not measured"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_engine_decides_what_a_prediction_is_compared_with(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, results, wanted = CASES[case]
    monkeypatch.setattr(LocalTarget, "bound_gmacs", lambda self: None)
    run = runs.start({}, "run", out=tmp_path / "run", restart=False)
    run.write("search.json", {"run": "run", "predicted_ms": 2.0, "prediction": "2 ms"})
    found = _predicted(run, profile_of(engine), {"results": results}, LocalTarget())
    if isinstance(wanted, float):
        assert found["comparable"] and found["measured_ms"] == wanted
        assert found["deviation"] == pytest.approx(wanted / 2.0 - 1)
    else:
        assert not found["comparable"] and wanted in found["reason"] and "measured_ms" not in found


@pytest.mark.parametrize("change", [{"version": "0.0.1"}, {"operators": "0.0.1"}, {"name": "litert-native-mmx"}])
def test_a_profile_is_compared_with_the_engine_of_its_own_files(
    change: dict[str, str], fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalTarget, "engine", lambda self, format: {"onnx": ONNX, "tflite": TFLITE}[format])
    assert settings.outdated(profile_of(ONNX)) == settings.outdated(profile_of(TFLITE)) == ""
    old = TFLITE.model_copy(update=change)
    save_profile(profile_of(old), "old.yaml")
    line = fails("search", "--profile", "old.yaml")
    assert f"measured with {old.text}, but here runs {TFLITE.text}" in line
    assert "measure again: bnas profiles build --device local --engine tflite --space tiny" in line
    elsewhere = profile_of(old).model_copy(update={"device": Device(name="local", fingerprint="0123456789ab")})
    assert settings.outdated(elsewhere) == ""


def test_a_device_without_python_is_refused(fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is converted: neither tensorflow nor larq-compute-engine is asked for."""

    class Opened(RemoteTarget):
        url, emulated = "ssh://pi@kitchen", False

        def __init__(self) -> None:
            """Nothing is connected to."""

        def usable_cores(self) -> int:
            return 4

        def __enter__(self) -> "Opened":
            return self

        def __exit__(self, *_: object) -> None:
            return None

    monkeypatch.setattr(devices, "open_device", lambda *_, **__: Opened())
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    line = fails("profiles", "build", "--engine", "tflite", "--device", "ssh://pi@kitchen", "--out", "pi.yaml")
    assert "ssh://pi@kitchen" in line and "device without Python" in line and "--engine onnx" in line


@pytest.mark.parametrize("absent", ["tensorflow", "larq_compute_engine"])
def test_what_writes_the_files_is_asked_for(
    absent: str, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    line = fails("profiles", "build", "--engine", "tflite", "--out", "here.yaml")
    assert "bnas[tflite]" in line


def test_an_engine_is_onnx_or_tflite(fails: Callable[..., str]) -> None:
    assert "did you mean 'tflite'" in fails("profiles", "build", "--engine", "tflte")


@pytest.mark.slow  # 23 conversions
def test_a_whole_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, require: Callable[[str], None]) -> None:
    require("larq_compute_engine")
    if native_library.litert_library() is None:
        pytest.skip("needs the delegate, which is built with the native kernels")
    monkeypatch.chdir(tmp_path)
    command = ["profiles", "build", "--engine", "tflite", "--seconds", "0.05", "--networks", "5", "--out", "k.yaml"]
    assert cli.run(command) == 0
    profile = load_profile("k.yaml")
    assert profile.engine.name.startswith("litert-native-") and profile.engine.runtime == find_host()
    assert settings.outdated(profile) == ""
    workloads = (FIXED, *make_space("tiny", (1, 8, 8), 10).all_workloads())
    assert [row.workload for row in profile.rows] == [workload.key for workload in workloads]
    assert profile.calibration is not None and profile.calibration.nets == 5
    assert [path.name for path in tmp_path.iterdir()] == ["k.yaml"]
