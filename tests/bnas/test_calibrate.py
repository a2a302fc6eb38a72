"""`bnas profiles calibrate`: fitted to benches that are about the profile's device and engine, and to no others."""

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnas import cli, runs
from bnas.profiles.schema import Device, EngineInfo, Profile, Row, load_profile, save_profile
from bnas.profiles.table import LatencyTable
from bnas.search.spaces import Architecture, make_space

SPACE = make_space("tiny", (1, 8, 8), 10)
ENGINE = EngineInfo(name="native-neon", runtime="onnxruntime", version="1.23.2", operators="0.1.0")


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """kitchen.yaml in the current folder: unit i of the tiny space takes i + 1 us."""
    monkeypatch.chdir(tmp_path)
    rows = []
    for index, workload in enumerate(SPACE.all_workloads(), start=1):
        us = index / 1000
        rows.append(Row(workload=workload.key, p10_ms=us, p50_ms=us, p90_ms=us, count=30))
    kitchen = Profile(
        name="kitchen", source="measured", description="a test", created=datetime.date(2026, 1, 1),
        device=Device(name="ssh://pi@kitchen", fingerprint="0123456789ab"), engine=ENGINE, threads=1,
        precision="1-bit", error=0.3, error_source="assumed", rows=tuple(rows),
    )  # fmt: skip
    save_profile(kitchen, tmp_path / "kitchen.yaml")
    return tmp_path / "kitchen.yaml"


def benched(profile: Path, seed: int, **change: Any) -> Path:
    """A run of a random network that took 0.02 ms + 1.5 times the sum of its rows."""
    arch: Architecture = SPACE.random(np.random.default_rng(seed))
    run = runs.start({"seed": seed, "change": str(change)}, f"run{seed}", out=None, restart=False)
    run.write("search.json", {"run": str(run.folder)})
    run.path("architecture.yaml").write_text(arch.to_yaml())
    ms = 0.02 + 1.5 * LatencyTable(load_profile(profile)).sum_ms(SPACE.workloads(arch))
    row = {"label": "onnx", "threads": 1, "p50_ms": ms, "engine": ENGINE.name, **ENGINE.model_dump(exclude={"name"})}
    bench = {
        "run": str(run.folder),
        "device": {
            "url": "ssh://pi@kitchen",
            "emulated": change.get("emulated", False),
            "local": change.get("local", False),
        },
        "environment": {
            "processor": "ARM",
            "fingerprint": change.get("fingerprint", "0123456789ab"),
            "throttled": change.get("throttled", []),
        },
        "results": [{**row, **{name: value for name, value in change.items() if name in row}}],
    }
    run.write("bench.json", bench)
    return run.folder


def calibrate(capfd: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert cli.run(["profiles", "calibrate", *map(str, arguments), "--json"]) == 0
    return dict(json.loads(capfd.readouterr().out))


OTHERS = {
    "version": ("1.20.0", "the profile is about native-neon (onnxruntime 1.23.2"),
    "engine": ("function-float", "benched with function-float"),
    "threads": (4, "not benched with 1 thread"),
    "fingerprint": ("ffffffffffff", "another device"),
    "local": (True, "another device"),
    "p50_ms": (None, "benched by another version"),
    "emulated": (True, "an emulator ran it"),
    "throttled": (["under-voltage"], "throttled: under-voltage"),
}


def test_what_was_measured_is_found_again(profile: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good = [benched(profile, seed) for seed in range(6)]
    bad = {name: benched(profile, 100 + i, **{name: value}) for i, (name, (value, _)) in enumerate(OTHERS.items())}
    before = profile.read_text()
    # As a shell writes `--from runs/*` out.
    document = calibrate(capfd, profile, "--from", *good, *bad.values(), "--out", "new.yaml")
    assert profile.read_text() == before
    fitted = load_profile("new.yaml")
    assert fitted.calibration is not None
    assert (fitted.calibration.a_ms, fitted.calibration.b) == pytest.approx((0.02, 1.5), rel=1e-3)
    assert fitted.error == fitted.calibration.kfold_error < 1e-3 and "6 benched networks" in fitted.error_source
    assert sorted(row["run"] for row in document["used"]) == sorted(map(str, good))
    reasons = {row["run"]: row["reason"] for row in document["left_out"]}
    assert reasons.keys() == set(map(str, bad.values()))
    for name, (_, reason) in OTHERS.items():
        assert reason in reasons[str(bad[name])]
    calibrate(capfd, "--from", good[0], profile, *good[1:])
    assert load_profile(profile).calibration == fitted.calibration


def test_the_engine_decides_which_file_is_meant(profile: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Runs in which the ONNX file took twice as long as the .tflite, and one without a .tflite."""
    litert = EngineInfo(name="litert-native-neon", runtime="ai-edge-litert", version="2.3.0", operators="0.1.0")
    about = {"native": ENGINE, "litert": litert}
    for name, engine in about.items():
        save_profile(load_profile(profile).model_copy(update={"engine": engine}), Path(f"{name}.yaml"))
    folders = [benched(profile, seed) for seed in range(7)]
    for folder in folders[:6]:
        run = runs.open_run(folder)
        bench = run.read("bench.json")
        assert bench is not None
        (onnx,) = bench["results"]
        tflite = {**onnx, "label": "tflite", "engine": litert.name, **litert.model_dump(exclude={"name"})}
        twin = {**tflite, "label": "int8 twin", "p50_ms": 99.0}
        bench["results"] = [{**onnx, "p50_ms": 2 * onnx["p50_ms"]}, twin, tflite]
        run.write("bench.json", bench)
    document = calibrate(capfd, "litert.yaml", "--from", *folders)
    fitted = load_profile("litert.yaml").calibration
    assert fitted is not None and (fitted.a_ms, fitted.b) == pytest.approx((0.02, 1.5), rel=1e-3)
    (left,) = document["left_out"]
    assert left["run"] == str(folders[6])
    assert f"benched with {ENGINE.text}, the profile is about {litert.text}" in left["reason"]
    calibrate(capfd, "native.yaml", "--from", *folders[:6])
    fitted = load_profile("native.yaml").calibration
    assert fitted is not None and (fitted.a_ms, fitted.b) == pytest.approx((0.04, 3.0), rel=1e-3)


def test_too_few_networks_change_nothing(profile: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folders = [benched(profile, 0, tag=number) for number in range(4)]  # one network, benched four times
    unbenched = runs.start({"seed": 9}, "run9", out=None, restart=False).folder
    before = profile.read_text()
    command = ["profiles", "calibrate", str(profile), "--from", *map(str, (*folders, unbenched))]
    assert cli.run(command) == 2
    error = capfd.readouterr().err
    assert "1 different networks" in error and "at least 5" in error and "bnas bench" in error
    assert profile.read_text() == before
    assert cli.run(["profiles", "calibrate", "--from", str(folders[0])]) == 2
