"""Every kind of workload, from the table of kinds, as a graph and a file of its own, and found again."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnas.export.graph import FloatOp, Graph
from bnas.export.tflite_writer import to_tflite
from bnas.export.twins import optimised_nodes
from bnas.export.units import BITS, graph_file, graph_workloads, unit_graph, unit_model
from bnas.profiles.errors import InputError
from bnas.profiles.workload import FIXED, KINDS, Workload
from bnas.runtime_bench.engines import open_engine

ACTIVATIONS = [(), ("relu",), ("prelu",), ("rprelu",)]
KEEPS_CHANNELS = ("norm", "relu", "quantize")


@st.composite
def workloads(draw: st.DrawFn, kind: str) -> Workload:
    if kind == "fixed":
        return FIXED
    channels, size = draw(st.sampled_from([1, 3, 8, 33])), (draw(st.integers(2, 9)), draw(st.integers(2, 9)))
    times, groups = draw(st.integers(2, 4)), draw(st.integers(1, 2))
    bits = draw(st.sampled_from(BITS.get(kind, (32,))))
    if kind in ("binary_conv", "conv"):
        geometry = {
            "kernel": draw(st.sampled_from([1, 3, 5, 7])),
            "stride": draw(st.sampled_from([1, 2])),
            "dilation": draw(st.sampled_from([1, 2])),
            "groups": groups,
        }
        epilogue = draw(st.sampled_from(ACTIVATIONS))
        if kind == "binary_conv" and draw(st.booleans()):
            epilogue = ("residual", *epilogue)
        out = groups * draw(st.sampled_from([1, 3, 8]))
        if kind == "conv" and draw(st.booleans()):  # depthwise
            channels, out = 1, channels
            geometry["groups"] = groups = out
        return Workload(kind, bits, channels * groups, out, *size, **geometry, epilogue=epilogue)
    if kind == "downsample":
        return Workload(kind, bits, channels, channels * draw(st.integers(1, 3)), *size, kernel=2, stride=2)
    if kind in ("max_pool", "avg_pool"):
        return Workload(kind, bits, channels, channels, *size, kernel=3, stride=draw(st.sampled_from([1, 2])))
    if kind in KEEPS_CHANNELS:
        return Workload(kind, bits, channels, channels, *size)
    if kind == "concat":
        return Workload(kind, bits, channels + 1, channels + 1, *size)
    if kind in ("add", "even_channels", "odd_channels"):
        return Workload(kind, bits, 2 * channels, channels, *size)
    if kind == "average":
        return Workload(kind, bits, channels * times, channels, *size)
    return Workload(kind, bits, channels, channels * times, *size)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_workload_is_found_again_in_its_graph_and_runs(kind: str, data: st.DataObject) -> None:
    workload = data.draw(workloads(kind))
    graph = unit_graph(workload)
    assert graph_workloads(graph) == (workload,)
    model = unit_model(workload)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = {name: np.ones((2, *shape), np.float32) for name, shape in graph.inputs}
    (result,) = session.run(None, inputs)
    pixels = () if workload.kind == "head" else (workload.out_height, workload.out_width)
    assert result.shape == (2, workload.out_channels, *pixels)
    assert np.isfinite(result).all()
    read = sum(np.prod(shape) for name, shape in graph.inputs if name != "residual")
    assert read == workload.in_channels * workload.height * workload.width


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_a_file_says_which_unit_it_is(format: Literal["onnx", "tflite"], require: Callable[[str], None]) -> None:
    if format == "tflite":
        require("larq_compute_engine")
    workload = example("binary_conv", 1)
    engine = open_engine(graph_file(unit_graph(workload), format, {"workload": workload.key}))
    assert engine.metadata == {"workload": workload.key}
    assert engine.input_shape == (64, 9, 8) and engine.input_layout == {"onnx": "NCHW", "tflite": "NHWC"}[format]


@pytest.mark.parametrize("kind", KINDS)
def test_a_unit_computes_the_same_in_both_formats(kind: str, require: Callable[[str], None]) -> None:
    """Up to rounding, and single steps of 1/32 of values of 8 bits."""
    require("tensorflow")
    require("larq_compute_engine")
    from larq_compute_engine.tflite.python.interpreter import Interpreter

    for bits in BITS.get(kind, (32,)):
        workload = FIXED if kind == "fixed" else example(kind, bits)
        graph = unit_graph(workload)
        rng = np.random.default_rng(0)
        inputs = {name: rng.standard_normal((3, *shape)).astype(np.float32) for name, shape in graph.inputs}
        session = onnxruntime.InferenceSession(
            unit_model(workload).SerializeToString(), providers=["CPUExecutionProvider"]
        )
        wanted = session.run(None, inputs)[0]
        images = [np.ascontiguousarray(array.transpose(0, 2, 3, 1)) for array in inputs.values()]
        found = Interpreter(to_tflite(graph, {})).predict(images)
        difference = np.abs((found.transpose(0, 3, 1, 2) if found.ndim == 4 else found) - wanted)
        assert difference.max() <= (1 / 32 if bits == 8 else 1e-4) and (difference > 1e-4).mean() < 0.01


def example(kind: str, bits: int) -> Workload:
    """A workload of whole words and with what there is: stride, odd sizes, activation."""
    if kind in ("binary_conv", "conv"):
        return Workload(kind, bits, 64, 64, 9, 8, 3, 2, epilogue=("relu",) if bits == 8 else ("rprelu",))
    if kind in ("max_pool", "avg_pool"):
        return Workload(kind, bits, 64, 64, 9, 8, 3, 2)
    if kind in ("downsample", "duplicate"):
        return Workload(kind, bits, 32, 64, 9, 8, *((2, 2) if kind == "downsample" else (1, 1)))
    halves = kind in ("average", "add", "even_channels", "odd_channels", "head")
    return Workload(kind, bits, 64, 32 if halves else 64, 9, 8)


def test_the_fixed_cost_is_one_operator() -> None:
    assert [node.op_type for node in unit_model(FIXED).graph.node] == ["Relu"]


def test_an_8_bit_head_is_measured_in_integers() -> None:
    operators = [operator for operator, _ in optimised_nodes(unit_model(Workload("head", 8, 16, 5, 4, 4)))]
    assert "QGemm" in operators and "Gemm" not in operators


@pytest.mark.parametrize("epilogue", ACTIVATIONS)
@pytest.mark.parametrize("groups", [1, 16])
def test_an_8_bit_unit_is_measured_in_integers_where_onnxruntime_has_them(
    groups: int, epilogue: tuple[str, ...]
) -> None:
    workload = Workload("conv", 8, 16, 16, 6, 6, 3, groups=groups, epilogue=epilogue)
    operators = [operator for operator, _ in optimised_nodes(unit_model(workload))]
    wanted = "Conv" if "prelu" in "".join(epilogue) else "QLinearConv"
    assert [operator for operator in operators if "Conv" in operator] == [wanted]


def test_a_sum_that_is_part_of_a_mean_is_no_workload_of_its_own() -> None:
    halves = [{"start": 4 * i, "stop": 4 * i + 4, "step": 1} for i in range(2)]
    mean = {"scale": np.full(1, 0.5, np.float32), "bias": np.zeros(1, np.float32)}
    nodes = (
        FloatOp("slice", "a", ("x",), "a", halves[0]),
        FloatOp("slice", "b", ("x",), "b", halves[1]),
        FloatOp("add", "sum", ("a", "b"), "sum"),
        FloatOp("affine", "mean", ("sum",), "mean", mean),
        FloatOp("add", "y", ("mean", "mean"), "y"),
    )
    found = graph_workloads(Graph("x", (8, 5, 5), "y", nodes))
    assert found == (Workload("average", 32, 8, 4, 5, 5), Workload("add", 32, 8, 4, 5, 5))


def test_rounding_belongs_to_an_8_bit_convolution_but_not_to_a_float_one() -> None:
    steps = {"scale": 0.5, "zero_point": 0}
    weight = {8: np.array([127, -3, 64, 0], np.float32) / 50, 32: np.array([0.3, -1.9, 1, 0.7], np.float32)}
    geometry = {"bias": np.zeros(2, np.float32), "strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1)}
    for bits, last in ((8, ()), (32, (Workload("quantize", 8, 2, 2, 4, 4),))):
        conv = {"weight": weight[bits].reshape(2, 2, 1, 1), "groups": 1, **geometry}
        nodes = (
            FloatOp("relu", "r", ("x",), "r"),
            FloatOp("quantize", "q", ("r",), "q", steps),
            FloatOp("conv", "c", ("q",), "c", conv),
            FloatOp("relu", "d", ("c",), "d"),
            FloatOp("quantize", "y", ("d",), "y", steps),
        )
        assert graph_workloads(Graph("x", (2, 4, 4), "y", nodes)) == (
            Workload("relu", 32, 2, 2, 4, 4),
            Workload("quantize", 8, 2, 2, 4, 4),
            Workload("conv", bits, 2, 2, 4, 4, epilogue=("relu",)),
            *last,
        )


def test_one_seed_gives_one_file() -> None:
    workload = Workload("binary_conv", 1, 8, 8, 4, 4, 3, epilogue=("residual", "rprelu"))
    assert unit_model(workload).SerializeToString() == unit_model(workload).SerializeToString()
    assert unit_model(workload).SerializeToString() != unit_model(workload, seed=1).SerializeToString()


def test_a_residual_is_the_input_where_the_shapes_are_equal() -> None:
    same = Workload("binary_conv", 1, 8, 8, 4, 4, 3, epilogue=("residual",))
    wider = Workload("binary_conv", 1, 8, 16, 4, 4, 3, epilogue=("residual",))
    assert [name for name, _ in unit_graph(same).inputs] == ["x"]
    assert unit_graph(wider).inputs == (("x", (8, 4, 4)), ("residual", (16, 4, 4)))


@pytest.mark.parametrize(
    "workload",
    [
        Workload("conv", 1, 3, 8, 4, 4, 3),
        Workload("add", 8, 8, 4, 4, 4),
        Workload("add", 32, 8, 8, 4, 4),
        Workload("concat", 32, 1, 1, 4, 4),
        Workload("binary_conv", 1, 8, 8, 4, 4, 3, input_format="bits"),
        Workload("conv", 32, 3, 8, 4, 4, 3, epilogue=("residual",)),
    ],
)
def test_what_no_file_can_hold_is_refused_by_name(workload: Workload) -> None:
    with pytest.raises(InputError, match=workload.key.replace("+", r"\+")):
        unit_graph(workload)
