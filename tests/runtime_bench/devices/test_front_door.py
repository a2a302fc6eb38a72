"""`bnas bench` and `bnas profiles build` on devices, from the command line to the file, and after a cut connection."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bnas.cli import run
from bnas.export.units import unit_model
from bnas.profiles.schema import load_profile
from bnas.profiles.workload import Workload
from bnas.runtime_bench.devices import open_device
from bnas.runtime_bench.engines import open_engine

from .ssh_server import SshServer

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def files(tmp_path: Path, network: bytes) -> list[str]:
    """A binary and a float file, to be compared."""
    rival = unit_model(Workload("conv", 32, 32, 32, 8, 8, kernel=3, epilogue=("relu",)))
    (tmp_path / "binary; one.onnx").write_bytes(network)
    (tmp_path / "float.onnx").write_bytes(rival.SerializeToString())
    return [str(path) for path in sorted(tmp_path.glob("*.onnx"))]


@pytest.mark.parametrize("url", ["ssh", "adb", "emulator"], indirect=True)
def test_bench(url: str, files: list[str], tmp_path: Path, device_folder: Path, capfd: Captured) -> None:
    command = ["bench", "--compare", *files, "--device", url, "--threads", "1", "--seconds", "0.3", "--json", "--units"]
    assert run(command) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["device"] == {"url": url, "local": False, "emulated": url == "emulator"}
    engines = {row["label"]: row["engine"] for row in found["results"]}
    assert engines["binary; one.onnx"].startswith("native-") and engines["float.onnx"] == "onnxruntime"
    assert all(node["ms"] >= 0 for nodes in found["units"].values() for node in nodes)
    if url == "emulator":
        assert found["speedups"] == [] and "emulator" in found["no_speedup_reason"]
    assert not any(device_folder.iterdir())


@pytest.mark.parametrize("url", ["ssh"], indirect=True)
def test_a_cut_bench_goes_on(
    url: str, files: list[str], server: SshServer, tmp_path: Path, device_folder: Path, capfd: Captured
) -> None:
    out = tmp_path / "bench.json"
    command = ["bench", "--compare", *files, "--device", url, "--threads", "1", "--seconds", "2", "--out", str(out)]

    def cut() -> None:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".bench*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        server.cut()

    cutting = threading.Thread(target=cut)
    cutting.start()
    assert run(command) == 1
    cutting.join()
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert "ssh://board is lost" in said and "is kept" in said and not out.exists()
    (partial,) = tmp_path.glob(".bench*")
    before = json.loads(partial.read_text())["blocks"]
    assert before
    assert run(command) == 0
    found = json.loads(out.read_text())
    for label, record in before[0]["files"].items():
        (row,) = (row for row in found["results"] if row["label"] == label)
        assert record["samples_ns"] in row["samples_ns"]
    assert not partial.exists() and not any(device_folder.iterdir())


@pytest.mark.parametrize("url", ["ssh"], indirect=True)
def test_profiles_build(url: str, tmp_path: Path, device_folder: Path) -> None:
    out = tmp_path / "board.yaml"
    command = ["profiles", "build", "--device", url, "--networks", "0", "--seconds", "0.003", "--out", str(out)]
    assert run(command) == 0
    profile = load_profile(out)
    with open_device(url) as target:
        assert profile.device.fingerprint == target.fingerprint() and profile.engine == target.engine()
    assert len(profile.rows) > 5 and profile.device.name == url
    assert not any(device_folder.iterdir())


@pytest.mark.parametrize("url", ["emulator behind ssh"], indirect=True)
def test_the_same_class_for_all_test_digits(url: str, tmp_path: Path, require: Callable[[str], None]) -> None:
    """A network that learnt a little, exported, on this processor and on another."""
    require("torch")
    import torch
    from torch import nn

    from bnas.export.pipeline import export_network
    from bnas.search.data import load_images

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.head = nn.Conv2d(1, 32, 3, padding=1), nn.Linear(32, 10)
            self.weight = nn.Parameter(torch.randn(32, 32, 3, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            signs = nn.functional.pad(torch.where(x < 0, -1.0, 1.0), (1, 1, 1, 1), value=1.0)
            y = nn.functional.conv2d(signs, torch.where(self.weight < 0, -0.05, 0.05))
            return self.head(nn.functional.max_pool2d(y + x, 4).mean((2, 3)))

    images = load_images("digits")
    train, test = (
        (split.images.astype(np.float32) / 255 - images.mean[0]) / images.std[0]
        for split in (images.train, images.test)
    )
    network, labels = Network(), torch.from_numpy(np.asarray(images.train.labels)).long()
    optimizer = torch.optim.Adam(network.head.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(torch.from_numpy(train)), labels).backward()
        optimizer.step()
    path = tmp_path / "digits.onnx"
    export_network(network.eval(), train[:300], path, "onnx", {}, require_binary=True, twins=False)
    here = open_engine(path).run(test).argmax(1)
    with open_device(url) as target:
        there = target.open(path).infer(test).argmax(1)
    assert (here == np.asarray(images.test.labels)).mean() > 0.5
    np.testing.assert_array_equal(here, there)
