import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnas.export import gate
from bnas.export.gate import GateError
from bnas.export.pipeline import export_network
from bnas.profiles.errors import InputError

IMAGES = np.random.default_rng(0).standard_normal((300, 1, 6, 6)).astype(np.float32)


class Network(nn.Module):
    """A stem and two binary convolutions; `pad_value` 0 makes them zero-padded, so that they stay float."""

    def __init__(self, pad_value: float = 1.0, residual: bool = True) -> None:
        super().__init__()
        self.residual = residual
        torch.manual_seed(0)
        self.stem, self.head, self.pad_value = nn.Conv2d(1, 32, 3, padding=1), nn.Linear(32, 4), pad_value
        self.weights = nn.ParameterList([torch.randn(32, 32, 3, 3) for _ in range(2)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(32) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for weight, norm in zip(self.weights, self.norms, strict=True):
            signs = F.pad(torch.where(x < 0, -1.0, 1.0), (1, 1, 1, 1), value=self.pad_value)
            y = norm(F.conv2d(signs, torch.where(weight < 0, -0.1, 0.1)))
            x = F.relu(y + x if self.residual else y) - 0.5
        return self.head(x.mean(dim=(2, 3)))


def test_onnx_with_its_twins(tmp_path: Path) -> None:
    stages: list[tuple[str, int, int]] = []
    report = export_network(
        Network(), IMAGES, tmp_path / "net.onnx", "onnx", {"classes": "4"}, progress=lambda *step: stages.append(step)
    )
    assert json.loads(json.dumps(report)) == report
    assert {k: report[k] for k in ("format", "binary_convs", "float_convs", "images")} == {
        "format": "onnx", "binary_convs": 2, "float_convs": 1, "images": 300,
    }  # fmt: skip
    assert report["argmax_agreement"] >= 0.997 and 0 <= report["max_abs_diff"] < 1e-3 and report["sign_flips"] >= 0
    assert [c["kind"] for c in report["convolutions"]] == ["float", "binary", "binary"]
    assert [c["reason"] is None for c in report["convolutions"]] == [False, True, True]
    assert {p.name for p in tmp_path.iterdir()} == {"net.onnx", "net.fp32.onnx", "net.int8.onnx"}
    assert report["bytes"] == (tmp_path / "net.onnx").stat().st_size
    assert {"fp32", "int8"} <= set(report["twins"])
    assert [stage for stage, done, total in stages if done == total] == ["capture", "write", "check", "twins"]
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {"image": IMAGES[:7]})[0].shape == (7, 4)
    assert {p.key: p.value for p in onnx.load(tmp_path / "net.onnx").metadata_props} == {"classes": "4"}


def test_a_network_without_residuals_is_written_with_bits_between_its_units(tmp_path: Path) -> None:
    report = export_network(Network(residual=False), IMAGES, tmp_path / "net.onnx", "onnx", {})
    assert (report["binary_convs"], report["float_convs"]) == (2, 1) and report["argmax_agreement"] >= 0.997
    operators = [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node if node.domain == "ai.bnas"]
    assert operators == ["PackSigns", "BinaryConv2dBits", "BinaryConv2dFromBits"]
    assert {p.name for p in tmp_path.iterdir()} == {"net.onnx", "net.fp32.onnx", "net.int8.onnx"}


def test_tflite(tmp_path: Path, require: Callable[[str], None]) -> None:
    require("tensorflow")
    require("larq_compute_engine")
    report = export_network(Network(), IMAGES, tmp_path / "net.tflite", "tflite", {}, twins=False)
    assert (report["format"], report["binary_convs"], report["float_convs"]) == ("tflite", 2, 1)
    assert report["argmax_agreement"] >= 0.997 and report["twins"] == {}
    assert [p.name for p in tmp_path.iterdir()] == ["net.tflite"]


def test_require_binary_names_the_convolution_and_the_reason(tmp_path: Path) -> None:
    network = Network(pad_value=0.0)
    with pytest.raises(InputError, match=r"--require-binary: convolution conv2d_1 stays float \(zero padding\)"):
        export_network(network, IMAGES, tmp_path / "net.onnx", "onnx", {}, require_binary=True, twins=False)
    assert not list(tmp_path.iterdir())
    report = export_network(network, IMAGES, tmp_path / "net.onnx", "onnx", {}, twins=False)
    assert (report["binary_convs"], report["float_convs"]) == (0, 3)
    export_network(Network(), IMAGES, tmp_path / "net.onnx", "onnx", {}, require_binary=True, twins=False)


def test_a_failing_gate_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: gate.ExposedOnnx, images: np.ndarray, /) -> gate.Shown:
        shown = run(self, images)
        return shown._replace(units={k: gate.UnitValues(u.x, u.residual, u.y + 1) for k, u in shown.units.items()})

    run = gate.ExposedOnnx.run
    monkeypatch.setattr(gate.ExposedOnnx, "run", wrong)
    (tmp_path / "net.onnx").write_text("old")
    with pytest.raises(GateError, match="conv2d_1: fed the same input"):
        export_network(Network(), IMAGES, tmp_path / "net.onnx", "onnx", {})
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"] and (tmp_path / "net.onnx").read_text() == "old"


@pytest.mark.parametrize(
    ("images", "format", "problem"),
    [
        (IMAGES[:299], "onnx", r"at least 300 images .* got \[299, 1, 6, 6\]"),
        (IMAGES[:, 0], "onnx", r"got \[300, 6, 6\]"),
        (IMAGES, "onx", "did you mean 'onnx'"),
    ],
)
def test_bad_input_is_one_line(images: np.ndarray, format: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=problem):
        export_network(Network(), images, tmp_path / "net.onnx", format, {})
    assert not list(tmp_path.iterdir())
