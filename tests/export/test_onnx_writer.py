"""The expected values come from a loop over taps in integers, written here and nowhere else."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from bnas.export.graph import BinaryConv, FloatOp, Graph, same_pads
from bnas.export.onnx_functions import CONVS
from bnas.export.onnx_writer import to_onnx, write_onnx

Arrays = dict[str, np.ndarray]


def integer_dots(unit: BinaryConv, x: np.ndarray) -> np.ndarray:
    """conv(sign(x - shift), W) in int64. x: [N, C, H, W]."""
    shift = np.zeros(1) if unit.shift is None else unit.shift
    signs = np.where(x < shift.reshape(-1, 1, 1), -1, 1)
    top, left, bottom, right = unit.pads
    signs = np.pad(signs, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=1)
    weights = np.where(unit.negative, -1, 1)
    out, depth, kh, kw = weights.shape
    (sh, sw), (dh, dw) = unit.strides, unit.dilations
    height = (signs.shape[2] - dh * (kh - 1) - 1) // sh + 1
    width = (signs.shape[3] - dw * (kw - 1) - 1) // sw + 1
    total = np.zeros((len(x), out, height, width), np.int64)
    per_group = out // unit.groups
    for o in range(out):
        first = o // per_group * depth
        for ky in range(kh):
            for kx in range(kw):
                rows = slice(ky * dh, ky * dh + sh * (height - 1) + 1, sh)
                columns = slice(kx * dw, kx * dw + sw * (width - 1) + 1, sw)
                taps = signs[:, first : first + depth, rows, columns]
                total[:, o] += np.einsum("nchw,c->nhw", taps, weights[o, :, ky, kx])
    return total


def expected(unit: BinaryConv, x: np.ndarray, residual: np.ndarray | None) -> np.ndarray:
    def channel(value: np.ndarray | None, neutral: float) -> np.ndarray:
        return np.asarray([neutral] if value is None else value, np.float64).reshape(-1, 1, 1)

    v = integer_dots(unit, x) * channel(unit.scale, 1) + channel(unit.bias, 0)
    if residual is not None:
        v = v + residual
    v = v - channel(unit.act_shift_in, 0)
    return np.where(v < 0, v * channel(unit.slope, 1), v) + channel(unit.act_shift_out, 0)


def hard_values(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Normal values among exact zeros, -0.0, NaN, infinities and denormals."""
    x = rng.standard_normal(shape).astype(np.float32)
    special = rng.choice(np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-40, -1e-40], np.float32), shape)
    return np.where(rng.random(shape) < 0.3, special, x)


def session(model: onnx.ModelProto, optimised: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def assert_close(actual: np.ndarray, wanted: np.ndarray) -> None:
    assert actual.shape == wanted.shape
    assert np.abs(actual - wanted).max() <= 1e-5 * np.abs(wanted).max()


@st.composite
def units(draw: st.DrawFn) -> tuple[Graph, Arrays, np.ndarray]:
    """A graph of one unit, its inputs and what it must give."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    depth = draw(st.sampled_from([1, 3, 8, 31, 32, 33, 64]))
    out = groups * draw(st.sampled_from([1, 3, 8, 33]))
    kernel = draw(st.sampled_from([1, 3, 5, 7]))
    stride, dilation = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 1, 2]))
    size = (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    unit = BinaryConv(
        "unit",
        "x",
        "y",
        negative=rng.random((out, depth, kernel, kernel)) < 0.5,
        scale=rng.standard_normal(out).astype(np.float32),  # negative for half of the channels
        bias=rng.standard_normal(out).astype(np.float32),
        strides=(stride, stride),
        pads=same_pads(size, (kernel, kernel), (stride, stride), (dilation, dilation)),
        dilations=(dilation, dilation),
        groups=groups,
        shift=_maybe(draw, rng, depth * groups),
        residual="residual" if draw(st.booleans()) else None,
        slope=_maybe(draw, rng, out),
        act_shift_in=_maybe(draw, rng, out),
        act_shift_out=_maybe(draw, rng, out),
    )
    batch = draw(st.sampled_from([1, 2, 3]))
    inputs = {"x": hard_values(rng, batch, depth * groups, *size)}
    output_shape = (out, -(-size[0] // stride), -(-size[1] // stride))
    extra: tuple = ()
    if unit.residual:
        inputs["residual"] = rng.standard_normal((batch, *output_shape)).astype(np.float32)
        extra = (("residual", output_shape),)
    graph = Graph("x", (depth * groups, *size), "y", (unit,), extra)
    assert graph.shapes()["y"] == output_shape
    return graph, inputs, expected(unit, inputs["x"], inputs.get("residual"))


def _maybe(draw: st.DrawFn, rng: np.random.Generator, channels: int) -> np.ndarray | None:
    return rng.standard_normal(channels).astype(np.float32) if draw(st.booleans()) else None


@settings(max_examples=60, deadline=None)
@given(units())
def test_onnxruntime_agrees_with_integers(case: tuple[Graph, Arrays, np.ndarray]) -> None:
    graph, inputs, wanted = case
    assert_close(session(to_onnx(graph, {})).run(None, inputs)[0], wanted)


@settings(max_examples=12, deadline=None)
@given(units())
def test_the_reference_evaluator_agrees_with_integers(case: tuple[Graph, Arrays, np.ndarray]) -> None:
    graph, inputs, wanted = case
    assert_close(ReferenceEvaluator(to_onnx(graph, {})).run(None, inputs)[0], wanted)


def binary_block(rng: np.random.Generator, name: str, x: str, channels: int, **parts: object) -> BinaryConv:
    def per_channel() -> np.ndarray:
        return rng.standard_normal(channels).astype(np.float32)

    return BinaryConv(
        name, x, name, rng.random((channels, channels, 3, 3)) < 0.5, per_channel(), per_channel(), pads=(1, 1, 1, 1),
        shift=per_channel(), slope=per_channel(), act_shift_in=per_channel(), act_shift_out=per_channel(), **parts,
    )  # fmt: skip


def every_operator(rng: np.random.Generator) -> Graph:
    """A graph with every kind of float operator and two binary units. Image 3 x 9 x 8 -> 5 classes."""

    def floats(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    def conv(inputs: int, outputs: int, pads: tuple[int, int, int, int]) -> dict:
        geometry = {"strides": (1, 1), "pads": pads, "dilations": (1, 1), "groups": 1}
        return {"weight": floats(outputs, inputs, 3, 3), "bias": floats(outputs), **geometry}

    return Graph(
        "image",
        (3, 9, 8),
        "logits",
        (
            FloatOp("conv", "stem", ("image",), "stem", conv(3, 8, (1, 1, 1, 1))),
            FloatOp("prelu", "prelu", ("stem",), "prelu", {"slope": floats(8)}),
            binary_block(rng, "unit1", "prelu", 8, residual="prelu"),
            FloatOp(
                "avg_pool", "pool", ("unit1",), "pool", {"kernel": (2, 2), "strides": (2, 2), "pads": (0, 0, 1, 0)}
            ),
            FloatOp("concat", "twice", ("pool", "pool"), "twice"),
            FloatOp("affine", "affine", ("twice",), "affine", {"scale": floats(16), "bias": floats(16)}),
            FloatOp("slice", "half1", ("affine",), "half1", {"start": 0, "stop": 8, "step": 1}),
            FloatOp("slice", "half2", ("affine",), "half2", {"start": 1, "stop": 16, "step": 2}),
            FloatOp("add", "sum", ("half1", "half2"), "sum"),
            binary_block(rng, "unit2", "sum", 8),
            FloatOp("max_pool", "max", ("unit2",), "max", {"kernel": (3, 3), "strides": (1, 1), "pads": (1, 1, 1, 1)}),
            FloatOp("sign", "sign", ("max",), "sign", {"shift": floats(8)}),
            FloatOp("pad", "pad", ("sign",), "pad", {"pads": (0, 1, 2, 1), "value": 0.5}),
            FloatOp("conv", "float", ("pad",), "float", conv(8, 6, (0, 0, 0, 0))),
            FloatOp("relu", "relu", ("float",), "relu"),
            FloatOp("global_mean", "mean", ("relu",), "mean"),
            FloatOp("affine", "shift", ("mean",), "shift", {"scale": np.ones(1), "bias": floats(6)}),
            FloatOp("flatten", "flat", ("shift",), "flat"),
            FloatOp("linear", "head", ("flat",), "logits", {"weight": floats(5, 6), "bias": floats(5)}),
        ),
    )


@pytest.fixture(scope="module")
def network() -> tuple[Graph, Arrays, np.ndarray]:
    """(graph, inputs, what onnx's reference evaluator gives)."""
    rng = np.random.default_rng(0)
    graph = every_operator(rng)
    inputs = {"image": rng.standard_normal((3, 3, 9, 8)).astype(np.float32)}
    return graph, inputs, ReferenceEvaluator(to_onnx(graph, {})).run(None, inputs)[0]


def test_every_operator_runs_in_onnxruntime(network: tuple[Graph, Arrays, np.ndarray]) -> None:
    graph, inputs, wanted = network
    assert_close(session(to_onnx(graph, {})).run(None, inputs)[0], wanted)


def test_an_average_over_the_edge_counts_only_pixels_inside() -> None:
    attributes = {"kernel": (2, 2), "strides": (2, 2), "pads": (0, 0, 1, 1)}
    graph = Graph("x", (1, 3, 3), "y", (FloatOp("avg_pool", "pool", ("x",), "y", attributes),))
    x = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    np.testing.assert_allclose(session(to_onnx(graph, {})).run(None, {"x": x})[0][0, 0], [[2, 3.5], [6.5, 8]])


def test_onnxruntime_unpacks_the_weights_once_at_load(
    network: tuple[Graph, Arrays, np.ndarray], tmp_path: Path
) -> None:
    session(to_onnx(network[0], {}), tmp_path / "optimised.onnx")
    operators = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert "Conv" in operators
    assert not operators & {"BitShift", "BitwiseAnd", *CONVS, "Unsqueeze", "Reshape", "Transpose"}


def test_a_written_file_has_its_metadata_and_packed_weights(
    network: tuple[Graph, Arrays, np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "network.onnx"
    write_onnx(network[0], path, {"classes": "0,1,2,3,4"})
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {p.key: p.value for p in model.metadata_props} == {"classes": "0,1,2,3,4"}
    assert (model.ir_version, {(o.domain, o.version) for o in model.opset_import}) == (9, {("", 18), ("ai.bnas", 1)})
    units = [node for node in model.graph.node if node.op_type in CONVS]
    assert {node.op_type: len(node.input) for node in units} == {"BinaryConv2d": 9, "BinaryConv2dSkip": 8} and all(
        all(node.input) for node in units
    )
    packed = {t.name: t for t in model.graph.initializer}[units[0].input[1]]
    assert list(packed.dims) == [8, 3, 3, 1] and packed.data_type == onnx.TensorProto.UINT8
    assert [p.name for p in tmp_path.iterdir()] == ["network.onnx"]


def test_writing_needs_neither_torch_nor_tensorflow() -> None:
    code = "import bnas.export.units, sys; print([m for m in ('torch', 'tensorflow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_oldest_supported_onnxruntime_gives_the_same(
    network: tuple[Graph, Arrays, np.ndarray], old_python: str, tmp_path: Path
) -> None:
    graph, inputs, wanted = network
    write_onnx(graph, tmp_path / "network.onnx", {})
    np.savez(tmp_path / "arrays.npz", expected=wanted, **inputs)
    script = Path(__file__).with_name("old_runtime.py")
    command = [old_python, str(script), str(tmp_path / "network.onnx"), str(tmp_path / "arrays.npz")]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    version, difference = done.stdout.split()
    assert version.startswith("1.17") and float(difference) <= 1e-5
