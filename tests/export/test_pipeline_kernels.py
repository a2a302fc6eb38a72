"""An exported file is checked twice: by its function bodies or in Larq's interpreter, and on our kernels."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnas.export import gate
from bnas.export.gate import GateError
from bnas.export.pipeline import export_network
from bnas.profiles.errors import InputError
from bnas.runtime_bench import native_library
from bnas.runtime_bench.litert_engine import LiteRtEngine

IMAGES = np.random.default_rng(0).standard_normal((300, 3, 6, 6)).astype(np.float32)


class Network(nn.Module):
    """A stem, a binary convolution with its residual, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 40, 3, padding=1), nn.Linear(40, 4)
        self.weight, self.norm = nn.Parameter(torch.randn(40, 40, 1, 1)), nn.BatchNorm2d(40)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = nn.functional.conv2d(torch.where(x < 0, -1.0, 1.0), torch.where(self.weight < 0, -0.1, 0.1))
        return self.head((self.norm(y) + x).mean(dim=(2, 3)))


@pytest.fixture
def network(require: Callable[[str], None]) -> Network:
    require("bnas.runtime_bench.native._native")
    return Network()


def test_both_are_reported(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BNAS_ISA", "portable")
    steps: list[tuple[str, int, int]] = []
    report = export_network(
        network, IMAGES, tmp_path / "net.onnx", "onnx", {}, twins=False, progress=lambda *step: steps.append(step)
    )
    assert report["kernels"]["engine"] == "native-portable" and report["kernels"]["images"] == 300
    assert report["kernels"]["argmax_agreement"] >= 0.997 and report["kernels"]["max_abs_diff"] < 1e-4
    checked = [(done, total) for stage, done, total in steps if stage == "check"]
    assert checked == sorted(checked) and checked[-1] == (600, 600)
    monkeypatch.setattr("bnas.runtime_bench.native.__path__", [])
    assert export_network(network, IMAGES, tmp_path / "net.onnx", "onnx", {}, twins=False)["kernels"] is None


def test_wrong_kernels_are_named(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(gate.ExposedOnnx):
        def run(self, images: np.ndarray, /) -> gate.Shown:
            shown = super().run(images)
            wrong = {name: gate.UnitValues(u.x, u.residual, u.y + 1, u.stage) for name, u in shown.units.items()}
            return shown._replace(units=wrong)

    right = gate.ExposedOnnx
    monkeypatch.setattr(gate, "ExposedOnnx", lambda *given: Wrong(*given) if len(given) == 3 else right(*given))
    monkeypatch.setenv("BNAS_ISA", "reference")
    with pytest.raises(GateError, match="on native-reference: conv2d_1: fed the same input"):
        export_network(network, IMAGES, tmp_path / "net.onnx", "onnx", {}, twins=False)
    monkeypatch.setenv("BNAS_ISA", "sse9")
    with pytest.raises(InputError, match="BNAS_ISA=sse9 is not one of"):
        export_network(network, IMAGES, tmp_path / "net.onnx", "onnx", {}, twins=False)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def delegate(require: Callable[[str], None]) -> None:
    require("larq_compute_engine")
    if native_library.litert_library() is None:
        stop = pytest.fail if os.environ.get("BNAS_REQUIRE_ALL") == "1" else pytest.skip
        stop("needs the delegate for LiteRT, which is built with the native kernels")


def test_a_tflite_is_checked_in_both_interpreters(
    network: Network, delegate: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BNAS_ISA", "portable")
    report = export_network(network, IMAGES, tmp_path / "net.tflite", "tflite", {}, twins=False)
    assert report["kernels"]["engine"] == "litert-native-portable" and report["kernels"]["images"] == 300
    assert report["kernels"]["argmax_agreement"] >= 0.997 and report["kernels"]["max_abs_diff"] < 1e-4
    monkeypatch.setattr("bnas.runtime_bench.native.__path__", [])
    assert export_network(network, IMAGES, tmp_path / "net.tflite", "tflite", {}, twins=False)["kernels"] is None


@pytest.mark.parametrize("value", [0, -1], ids=["of the whole file", "of a unit"])
def test_wrong_kernels_for_tflite_are_named(
    value: int, network: Network, delegate: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(LiteRtEngine):
        def predict(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
            found = super().predict(inputs)
            found[value] = found[value] + (np.arange(4) if value == 0 else 1)
            return found

    monkeypatch.setattr("bnas.runtime_bench.litert_engine.LiteRtEngine", Wrong)
    with pytest.raises(GateError, match="on litert-native-"):
        export_network(network, IMAGES, tmp_path / "net.tflite", "tflite", {}, twins=False)
    assert not list(tmp_path.iterdir())
