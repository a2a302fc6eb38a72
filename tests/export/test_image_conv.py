"""Float stems in ONNX files: which convolutions become one operator, and that it computes what stood there before."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import bnas
from bnas.export.capture import capture
from bnas.export.gate import GateError, check, expose_onnx
from bnas.export.graph import BinaryConv, FloatOp, Graph
from bnas.export.image_conv import image_convs
from bnas.export.lowering import lower
from bnas.export.onnx_writer import to_onnx
from bnas.export.units import unit_model
from bnas.profiles.workload import Workload
from bnas.runtime_bench import native_library

RNG = np.random.default_rng(0)
CHANNELS = 9


def op(kind: str, name: str, *inputs: str, **attributes: Any) -> FloatOp:
    return FloatOp(kind, name, inputs, name, attributes)


def conv(**other: Any) -> FloatOp:
    weight = RNG.standard_normal((CHANNELS, 3, 7, 7)).astype(np.float32)
    bias = RNG.standard_normal(CHANNELS).astype(np.float32)
    given = {"strides": (2, 1), "pads": (0, 1, 1, 1), "dilations": (1, 1), "groups": 1}
    return op("conv", "conv", "image", **{"weight": weight, "bias": bias, **given, **other})


def conv_behind(x: str) -> FloatOp:
    weight = RNG.standard_normal((4, CHANNELS, 1, 1)).astype(np.float32)
    return replace(conv(weight=weight, bias=weight[:, 0, 0, 0], pads=(0, 0, 0, 0)), inputs=(x,), output="behind")


def per_channel() -> np.ndarray:
    return RNG.standard_normal(CHANNELS).astype(np.float32)


def prelu(x: str = "conv") -> FloatOp:
    return op("prelu", "act", x, slope=per_channel())


def pool(x: str, name: str = "pool") -> FloatOp:
    return op("max_pool", name, x, kernel=(3, 2), strides=(2, 2), pads=(1, 0, 1, 1))


def shift(x: str) -> FloatOp:
    return op("affine", "shift", x, scale=np.ones(1, np.float32), bias=per_channel())


def add(*inputs: str) -> FloatOp:
    return op("add", "sum", *inputs)


# nodes behind the image, and the operators of the file that they become
GRAPHS: dict[str, tuple[list[FloatOp], list[str]]] = {
    "a convolution": ([conv()], ["ImageConv2d"]),
    "relu": ([conv(), op("relu", "act", "conv")], ["ImageConv2d"]),
    "relu and a pool": ([conv(), op("relu", "act", "conv"), pool("act")], ["ImageConv2d"]),
    "prelu and a pool": ([conv(), prelu(), pool("act")], ["ImageConv2d"]),
    "prelu with a shift": ([conv(), prelu(), shift("act"), pool("shift")], ["ImageConv2d"]),
    "a pool alone": ([conv(), pool("conv")], ["ImageConv2d"]),
    "two pools": ([conv(), pool("conv"), pool("pool", "again")], ["ImageConv2d", "MaxPool"]),
    "a pool in front": ([pool("image"), replace(conv(), inputs=("pool",))], ["MaxPool", "ImageConv2d"]),
    "a pool that is not alone": (
        [conv(), pool("conv"), op("relu", "act", "conv"), pool("act", "other"), add("pool", "other")],
        ["ImageConv2d", "MaxPool", "Relu", "MaxPool", "Add"],
    ),
    "a rounding": ([conv(), op("quantize", "q", "conv", scale=0.5, zero_point=9)], ["ImageConv2d", "QuantizeLinear"]),
    "another convolution behind a pool": (
        [conv(), pool("conv"), conv_behind("pool")],
        ["Conv", "MaxPool", "Conv"],
    ),
    "dilated": ([conv(dilations=(1, 2))], ["Conv"]),
    "groups": ([conv(groups=3, weight=RNG.standard_normal((9, 1, 7, 7)).astype(np.float32))], ["Conv"]),
    "a small kernel": ([conv(weight=RNG.standard_normal((9, 3, 5, 5)).astype(np.float32))], ["Conv"]),
}


def run(model: onnx.ModelProto, x: np.ndarray, *, kernels: bool) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if kernels:
        options.register_custom_ops_library(bnas.ops_library_path())
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"image": x})[0]
    return result


@pytest.mark.parametrize(("nodes", "operators"), GRAPHS.values(), ids=GRAPHS)
def test_a_stem_is_one_operator_and_computes_what_it_did(nodes: list[FloatOp], operators: list[str]) -> None:
    graph = Graph("image", (3, 13, 22), nodes[-1].output, tuple(nodes))
    model = to_onnx(graph, {})
    assert [n.op_type for n in model.graph.node if n.op_type != "DequantizeLinear"] == operators
    plain = to_onnx(graph, {}, plain_image=True)
    assert not any(n.domain for n in plain.graph.node)
    x = RNG.standard_normal((2, 3, 13, 22)).astype(np.float32)
    wanted = run(plain, x, kernels=False)
    for kernels in [False, True] if native_library.operator_library() else [False]:
        found = run(model, x, kernels=kernels)
        # Rounding to 8 bits makes a step of a difference in the middle between two.
        near = np.abs(found - wanted) <= 1e-5 * np.abs(wanted).max()
        assert found.shape == wanted.shape and (near | ("QuantizeLinear" in operators)).all() and near.mean() > 0.999


@pytest.mark.parametrize(("bias", "shift", "fused"), [(0.25, None, True), (0, None, False), (0.25, 0.25, False)])
def test_no_black_window_decides_a_sign_by_rounding(bias: float, shift: float | None, fused: bool) -> None:
    stem = conv(bias=np.full(CHANNELS, bias, np.float32))
    one = np.ones(CHANNELS, np.float32)
    shifts = None if shift is None else np.full(CHANNELS, shift, np.float32)
    negative = np.zeros((CHANNELS, CHANNELS, 1, 1), bool)
    binary = BinaryConv("y", "pool", "y", negative, scale=one, bias=one, shift=shifts)
    packed = op("pack_signs", "y", "pool", shift=np.zeros(1, np.float32) if shifts is None else shifts)
    for reader in (binary, packed):
        found = image_convs(Graph("image", (3, 13, 22), "y", (stem, pool("conv"), reader)))
        assert list(found) == (["pool"] if fused else [])


def test_a_value_that_the_graph_gives_is_made() -> None:
    nodes = (conv(), pool("conv"))
    assert list(image_convs(Graph("image", (3, 13, 22), "conv", nodes))) == ["conv"]


@pytest.mark.parametrize(
    ("workload", "operator"),
    [
        (Workload("conv", 32, 3, 16, 8, 8, 7, 2, epilogue=("rprelu",)), "ImageConv2d"),
        (Workload("conv", 32, 1, 16, 8, 8, 7), "ImageConv2d"),
        (Workload("conv", 32, 3, 16, 8, 8, 3), "Conv"),
        (Workload("conv", 32, 5, 16, 8, 8, 7), "Conv"),
        (Workload("conv", 8, 3, 16, 8, 8, 3), "ByteConv2d"),
    ],
)
def test_a_unit_by_itself_is_what_it_is_in_a_network(workload: Workload, operator: str) -> None:
    assert operator in [node.op_type for node in unit_model(workload).graph.node]


def test_the_gate_names_a_wrong_operator(tmp_path: Path) -> None:
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 16, 7, 2, 3), nn.PReLU(16), nn.MaxPool2d(3, 2, 1))
    network = nn.Sequential(stem, nn.Flatten(), nn.Linear(64, 10)).eval()
    images = RNG.standard_normal((16, 3, 8, 8)).astype(np.float32)
    captured = capture(network, torch.from_numpy(images[:2]))
    lowered = lower(captured)
    model, (name,) = to_onnx(lowered.graph, {}), image_convs(lowered.graph)
    onnx.save(model, tmp_path / "right.onnx")
    check(captured, lowered, expose_onnx(tmp_path / "right.onnx", lowered.graph), images)
    for part in ("w", "bias", "slope", "act_shift_out"):
        wrong = onnx.ModelProto.FromString(model.SerializeToString())
        tensor = next(t for t in wrong.graph.initializer if t.name == f"{name}.{part}")
        values = onnx.numpy_helper.to_array(tensor).copy()
        values += 0.5
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        onnx.save(wrong, tmp_path / "wrong.onnx")
        with pytest.raises(GateError, match=r"fed the same input, file and PyTorch differ"):
            check(captured, lowered, expose_onnx(tmp_path / "wrong.onnx", lowered.graph), images)
