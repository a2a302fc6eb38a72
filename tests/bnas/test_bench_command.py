"""`bnas bench` of files: any names, against each other, on a device that goes away."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bnas import cli
from bnas.profiles.schema import load_profile
from bnas.profiles.workload import Workload
from bnas.runtime_bench import devices
from bnas.runtime_bench.devices import ConnectionLost
from bnas.runtime_bench.devices.local import LocalTarget

ODD = (
    "a b.onnx",
    "it's.onnx",
    'say "hi".onnx',
    "x;touch pwned;.onnx",
    "$(touch pwned).onnx",
    "-v.onnx",
    "ü\n.onnx",
    "[bold].onnx",
    "q[\\x].onnx",
)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A float convolution in the current folder, model.onnx."""
    from bnas.export.units import unit_model

    monkeypatch.chdir(tmp_path)
    Path("model.onnx").write_bytes(unit_model(Workload("conv", 32, 8, 8, 8, 8, 3)).SerializeToString())
    return Path("model.onnx")


def bench(capfd: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> dict[str, Any]:
    assert cli.run(["bench", "--threads", "1", "--seconds", "0.05", "--json", *map(str, arguments)]) == code
    printed = capfd.readouterr()
    return dict(json.loads(printed.out)) if code == 0 else {"error": printed.err}


def test_any_files_against_the_first(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("other").mkdir()
    shutil.copy(model, "other/model.onnx")
    shutil.copy(model, "b.onnx")
    document = bench(capfd, "--compare", model, "b.onnx", "other/model.onnx", "b.onnx", "--out", "found.json")
    labels = ["model.onnx", "b.onnx", "other/model.onnx", "b.onnx (2)"]
    assert [row["label"] for row in document["results"]] == labels
    assert [(line["label"], line["against"]) for line in document["comparisons"]] == [
        (label, "model.onnx") for label in labels[1:]
    ]
    assert document["speedups"] == []
    assert json.loads(Path("found.json").read_text()) == document
    assert sorted(p.name for p in Path().iterdir()) == ["b.onnx", "found.json", "model.onnx", "other"]


def test_files_may_be_called_anything(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ODD:
        shutil.copy(model, name)
    document = bench(capfd, "--compare", "--", *ODD)
    assert [row["path"] for row in document["results"]] == list(ODD)
    assert not Path("pwned").exists()
    Path("d[").mkdir()
    shutil.copy(model, "d[/red].onnx")
    assert (
        cli.run(["bench", "--threads", "1", "--seconds", "0.01", "--units", "--compare", "d[/red].onnx", *ODD[-2:]])
        == 0
    )
    printed = capfd.readouterr().out
    assert "red].onnx, node by node" in printed and "[bold].onnx, node by node" in printed


def test_what_cannot_be_compared_is_said(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "--compare needs at least two files, got 1" in bench(capfd, "--compare", model, code=2)["error"]
    assert "add --compare" in bench(capfd, model, model, code=2)["error"]
    assert "--accuracy needs a run" in bench(capfd, model, "--accuracy", code=2)["error"]
    assert "must be a file that ends with .json" in bench(capfd, model, "--out", model, code=2)["error"]
    Path("folder.json").mkdir()
    assert "must be a file that ends with .json" in bench(capfd, model, "--out", "folder.json", code=2)["error"]
    assert "no folder nowhere" in bench(capfd, model, "--out", "nowhere/a.json", code=2)["error"]


def test_every_node_with_its_time(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    nodes = bench(capfd, model, "--units")["units"]["onnx"]
    assert any(node["op"] in ("Conv", "FusedConv") for node in nodes)
    assert all(node["ms"] >= 0 and node["name"] for node in nodes)


class Leaving(LocalTarget):
    """This machine, but gone when the n-th file is opened."""

    url = "ssh://pi@kitchen"
    opened, leaves_at = 0, 10**9

    def open(self, *arguments: Any, **named: Any) -> Any:
        Leaving.opened += 1
        if Leaving.opened > Leaving.leaves_at:
            raise ConnectionLost("the connection to ssh://pi@kitchen was lost")
        return super().open(*arguments, **named)


@pytest.fixture
def leaving(monkeypatch: pytest.MonkeyPatch) -> type[Leaving]:
    @contextmanager
    def open_device(url: str, **options: Any) -> Iterator[Leaving]:
        yield Leaving()

    monkeypatch.setattr(devices, "open_device", open_device)
    monkeypatch.setattr(Leaving, "opened", 0)
    return Leaving


def test_a_lost_connection_keeps_what_was_measured(
    model: Path, leaving: type[Leaving], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaving, "leaves_at", 6)
    error = bench(capfd, model, "--out", "found.json", code=1)["error"]
    assert "was lost" in error and ".found.partial.json, and the same command goes on" in error
    assert "Traceback" not in error and not Path("found.json").exists()
    monkeypatch.setattr(leaving, "leaves_at", 10**9)
    monkeypatch.setattr(leaving, "opened", 0)
    document = bench(capfd, model, "--out", "found.json")
    assert leaving.opened == 10 - 6 and len(document["results"][0]["samples_ns"]) == 10
    assert sorted(p.name for p in Path().iterdir()) == ["found.json", "model.onnx"]


def test_a_profile_build_goes_on_after_a_lost_connection(
    leaving: type[Leaving],
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(leaving, "leaves_at", 40)
    command = ["profiles", "build", "--out", "k.yaml", "--seconds", "0.01", "--networks", "0"]
    assert cli.run(command) == 1
    error = capfd.readouterr().err
    assert "rows measured so far are kept in .k.partial.json" in error and "Traceback" not in error
    kept = len(json.loads(Path(".k.partial.json").read_text())["rows"])
    assert kept == 20  # a row opens a unit and the empty graph
    monkeypatch.setattr(leaving, "leaves_at", 10**9)
    monkeypatch.setattr(leaving, "opened", 0)
    assert cli.run(command) == 0
    profile = load_profile("k.yaml")
    assert leaving.opened == 2 * (3 * len(profile.rows) - kept)
    assert profile.device.name == "ssh://pi@kitchen" and not Path(".k.partial.json").exists()


def test_nothing_is_left_at_home(model: Path, tmp_path: Path, command: Any) -> None:
    """onnxruntime would leave an identifier there, and send events."""
    home = tmp_path / "home"
    home.mkdir()
    env = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home)}
    env.pop("ORT_DISABLE_TELEMETRY")
    done = command("bench", model, "--threads", 1, "--seconds", 0.05, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert list(home.iterdir()) == []
