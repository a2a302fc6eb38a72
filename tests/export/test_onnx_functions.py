"""The function bodies of `ai.bnas` against integer loops that are written here and nowhere else."""

import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from bnas.export.onnx_functions import ATTRIBUTES, INPUTS, function

Arrays = dict[str, np.ndarray]
Choose = Callable[[Sequence[Any]], Any]  # one of these
CHANNELS = [1, 3, 31, 32, 33, 63, 64, 65, 127]
TYPES = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int32": TensorProto.INT32}
TYPES |= {"uint32": TensorProto.UINT32, "int8": TensorProto.INT8}


@dataclass(frozen=True, eq=False)
class Case:
    """One node, its inputs, and what it must give to the last bit."""

    operator: str
    attributes: dict[str, Any]
    inputs: Arrays
    expected: np.ndarray

    def model(self) -> onnx.ModelProto:
        def value(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, TYPES[array.dtype.name], array.shape)

        node = helper.make_node(self.operator, INPUTS[self.operator], ["y"], domain="ai.bnas", **self.attributes)
        graph = helper.make_graph(
            [node], "case", [value(*item) for item in self.inputs.items()], [value("y", self.expected)]
        )
        model = helper.make_model(
            graph,
            functions=[function(self.operator)],
            opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("ai.bnas", 1)],
            ir_version=9,
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def words_of(negative: np.ndarray) -> np.ndarray:
    """bool [N, C, H, W] -> uint32 [N, ceil(C / 32), H, W], channel by channel."""
    images, channels, height, width = negative.shape
    words = np.zeros((images, (channels + 31) // 32, height, width), np.uint32)
    for c in range(channels):
        words[:, c // 32] |= negative[:, c].astype(np.uint32) << np.uint32(c % 32)
    return words


def bytes_of(negative: np.ndarray) -> np.ndarray:
    """bool [O, C, kh, kw] -> uint8 [O, kh, kw, ceil(C / 8)], channel by channel."""
    out, channels, kh, kw = negative.shape
    octets = np.zeros((out, kh, kw, (channels + 7) // 8), np.uint8)
    for c in range(channels):
        octets[..., c // 8] |= negative[:, c].astype(np.uint8) << np.uint8(c % 8)
    return octets


def windows(size: int, kernel: int, stride: int, dilation: int, before: int, after: int) -> list[list[int]]:
    """The pixels that each window reads along one axis; those below 0 or past the end are padding."""
    span = dilation * (kernel - 1) + 1
    starts = range(-before, size + after - span + 1, stride)
    return [[start + tap * dilation for tap in range(kernel)] for start in starts]


def sums_of(
    values: np.ndarray, weights: np.ndarray, groups: int, rows: list, columns: list, padding: int = 0
) -> np.ndarray:
    """values: int64 [N, C, H, W]; weights: int64 [O, C / groups, kh, kw]. int64 [N, O, Ho, Wo]."""
    images, _, height, width = values.shape
    out, depth = weights.shape[:2]
    sums = np.zeros((images, out, len(rows), len(columns)), np.int64)
    for o in range(out):
        first = o // (out // groups) * depth
        for i, ys in enumerate(rows):
            for j, xs in enumerate(columns):
                for ky, y in enumerate(ys):
                    for kx, x in enumerate(xs):
                        inside = 0 <= y < height and 0 <= x < width
                        taps = values[:, first : first + depth, y, x] if inside else np.full((images, depth), padding)
                        sums[:, o, i, j] += (taps * weights[o, :, ky, kx]).sum(axis=1)
    return sums


def signs_of(negative: np.ndarray) -> np.ndarray:
    return np.where(negative, -1, 1).astype(np.int64)


def conv_case(operator: str, choose: Choose, rng: np.random.Generator) -> Case:
    groups = choose([1, 1, 2, 3])
    depth, out = choose(CHANNELS), groups * choose([1, 3, 11, 33])
    kernel, strides, dilations = (
        (choose(options), choose(options)) for options in ([1, 2, 3, 5], [1, 2, 3], [1, 1, 2])
    )
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = [choose([0, 1, 2, 4]) for _ in range(4)]
    height, width = (max(choose([1, 2, 3, 5, 6]), span - pads[i] - pads[i + 2]) for i, span in enumerate(spans))
    negative = rng.random((choose([1, 1, 2]), depth * groups, height, width)) < 0.5
    weights = rng.random((out, depth, *kernel)) < 0.5
    rows = windows(height, kernel[0], strides[0], dilations[0], pads[0], pads[2])
    columns = windows(width, kernel[1], strides[1], dilations[1], pads[1], pads[3])
    dots = sums_of(signs_of(negative), signs_of(weights), groups, rows, columns, padding=1)
    attributes = {
        "in_channels": [depth],
        "kernel_shape": list(kernel),
        "strides": list(strides),
        "pads": pads,
        "dilations": list(dilations),
        "group": groups,
        "channels": [depth * groups],
    }
    inputs = {"x": words_of(negative), "w_packed": bytes_of(weights)}
    if operator == "BinaryConv2dBits":
        fan_in = weights[0].size
        extreme = [-(2**31), -fan_in, 1 - fan_in, fan_in, fan_in + 1, 2**31 - 1]
        inputs["threshold"] = rng.integers(-8, 9, (out, 1, 1)).astype(np.int32)
        inputs["threshold"][choose(range(out))] = choose(extreme)
        return Case(operator, attributes, inputs, words_of(dots < inputs["threshold"]))
    affine = epilogue_inputs(choose, rng, dots.shape)
    return Case(operator, attributes, inputs | affine, epilogue(dots, affine))


def epilogue_inputs(choose: Choose, rng: np.random.Generator, shape: tuple[int, ...]) -> Arrays:
    """Each part present, or its neutral constant of one element."""
    neutral = {"scale": 1, "bias": 0, "residual": 0, "slope": 1, "act_shift_in": 0, "act_shift_out": 0}
    inputs = {}
    for name, value in neutral.items():
        full, single = (shape, (1, 1, 1, 1)) if name == "residual" else ((shape[1], 1, 1), (1, 1, 1))
        array = rng.standard_normal(full) if choose([True, False]) else np.full(single, value)
        inputs[name] = array.astype(np.float32)
    return inputs


def epilogue(dots: np.ndarray, inputs: Arrays) -> np.ndarray:
    """float32, rounded after each step."""
    v = dots.astype(np.float32) * inputs["scale"] + inputs["bias"] + inputs["residual"] - inputs["act_shift_in"]
    return np.where(v < 0, v * inputs["slope"], v) + inputs["act_shift_out"]


def pack_case(operator: str, choose: Choose, rng: np.random.Generator) -> Case:
    channels = choose(CHANNELS)
    shape = (choose([1, 2]), channels, choose([1, 3]), choose([1, 5]))
    hard = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-40, -1e-40, 3.4e38], np.float32)
    shift = rng.standard_normal((channels, 1, 1)).astype(np.float32)
    shift = choose([shift, rng.choice(hard, shift.shape), np.zeros((1, 1, 1), np.float32)])
    x = np.where(rng.random(shape) < 0.4, rng.choice(hard, shape), rng.standard_normal(shape)).astype(np.float32)
    x = np.where(rng.random(shape) < 0.2, shift, x).astype(np.float32)
    return Case(operator, {"in_channels": [channels]}, {"x": x, "shift": shift}, words_of(x < shift))


def pool_case(operator: str, choose: Choose, rng: np.random.Generator) -> Case:
    kernel, strides = ((choose([1, 2, 3]), choose([1, 2, 3])) for _ in range(2))
    pads = [choose(range(kernel[i % 2])) for i in range(4)]
    height, width = (max(choose([1, 2, 5, 6]), kernel[i] - pads[i] - pads[i + 2]) for i in range(2))
    negative = rng.random((choose([1, 2]), choose(CHANNELS), height, width)) < 0.7
    rows = windows(height, kernel[0], strides[0], 1, pads[0], pads[2])
    columns = windows(width, kernel[1], strides[1], 1, pads[1], pads[3])
    lowest = np.ones((*negative.shape[:2], len(rows), len(columns)), bool)
    for i, ys in enumerate(rows):
        for j, xs in enumerate(columns):
            for y in ys:
                for x in xs:
                    if 0 <= y < height and 0 <= x < width:
                        lowest[:, :, i, j] &= negative[:, :, y, x]
    attributes = {"kernel_shape": list(kernel), "strides": list(strides), "pads": pads}
    return Case(operator, attributes, {"x": words_of(negative)}, words_of(lowest))


def byte_case(operator: str, choose: Choose, rng: np.random.Generator) -> Case:
    groups, depth = choose([1, 1, 2, 3]), choose([1, 3, 4, 5])
    out, kernel = groups * choose([1, 3, 9]), (choose([1, 3, 7]), choose([1, 2, 7]))
    strides, dilations = ((choose([1, 2, 3]), choose([1, 1, 2])) for _ in range(2))
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = [choose([0, 1, 3]) for _ in range(4)]
    height, width = (max(choose([1, 5, 8]), span - pads[i] - pads[i + 2]) for i, span in enumerate(spans))
    scale, zero = np.float32(choose([0.25, 0.1, 3.0])), choose([0, 7, 128, 255])
    x = (scale * rng.integers(-320, 320, (choose([1, 2]), depth * groups, height, width)) / 1.25).astype(np.float32)
    x = np.where(rng.random(x.shape) < 0.1, rng.choice(np.array([1e8, -1e8, 1e-40, -0.0], np.float32)), x)
    steps = np.clip(np.rint(x / scale), -zero, 255 - zero).astype(np.int64)
    w = rng.integers(-128, 128, (out, depth, *kernel)).astype(np.int8)
    rows = windows(height, kernel[0], strides[0], dilations[0], pads[0], pads[2])
    columns = windows(width, kernel[1], strides[1], dilations[1], pads[1], pads[3])
    inputs = {"x": x.astype(np.float32), "w": w, "x_scale": np.array(scale), "x_zero_point": np.array(zero, np.uint8)}
    for name, neutral in {"scale": 1, "bias": 0, "slope": 1, "act_shift_out": 0}.items():
        array = rng.standard_normal((out, 1, 1)) if choose([True, False]) else np.full((1, 1, 1), neutral)
        inputs[name] = array.astype(np.float32)
    sums = sums_of(steps, w.astype(np.int64), groups, rows, columns)
    v = sums.astype(np.float32) * inputs["scale"] + inputs["bias"]
    v = np.where(v < 0, v * inputs["slope"], v) + inputs["act_shift_out"]
    y_scale, y_zero = np.float32(choose([0.0, 0.5, 300.0])), choose([0, 100, 255])
    if y_scale:
        v = np.clip(np.rint(v * (np.float32(1) / y_scale)), -y_zero, 255 - y_zero).astype(np.float32) * y_scale
    inputs |= {"y_scale": np.array(y_scale), "y_zero_point": np.array(y_zero, np.uint8)}
    attributes = {
        "in_channels": [depth],
        "kernel_shape": list(kernel),
        "strides": list(strides),
        "pads": pads,
        "dilations": list(dilations),
        "group": groups,
    }
    return Case(operator, attributes, inputs, v)


def image_case(operator: str, choose: Choose, rng: np.random.Generator) -> Case:
    """Whole numbers, so that sums are exact; slopes and shifts are short."""
    depth, out, kernel = choose([1, 3, 4]), choose([1, 3, 9]), (choose([1, 3, 7]), choose([1, 2, 7]))
    strides, pads = (choose([1, 2, 3]), choose([1, 2])), [choose([0, 1, 3]) for _ in range(4)]
    height, width = (max(choose([1, 5, 12]), kernel[i] - pads[i] - pads[i + 2]) for i in range(2))
    x = rng.integers(-9, 10, (choose([1, 2]), depth, height, width)).astype(np.float32)
    w = rng.integers(-9, 10, (out, depth, *kernel)).astype(np.float32)
    inputs = {"x": x, "w": w}
    for name, neutral in {"bias": 0, "slope": 1, "act_shift_out": 0}.items():
        array = rng.integers(-8, 9, (out, 1, 1)) / 4 if choose([True, False]) else np.full((1, 1, 1), neutral)
        inputs[name] = array.astype(np.float32)
    rows = windows(height, kernel[0], strides[0], 1, pads[0], pads[2])
    columns = windows(width, kernel[1], strides[1], 1, pads[1], pads[3])
    v = sums_of(x.astype(np.int64), w.astype(np.int64), 1, rows, columns).astype(np.float32) + inputs["bias"]
    v = (np.where(v < 0, v * inputs["slope"], v) + inputs["act_shift_out"]).astype(np.float32)
    spans = [min(choose([1, 2, 3]), size) for size in v.shape[2:]]
    steps, around = [choose([1, 2, 3]) for _ in range(2)], [choose(range(spans[i % 2])) for i in range(4)]
    largest = np.stack(
        [
            np.stack([box_max(v, ys, xs) for xs in windows(v.shape[3], spans[1], steps[1], 1, around[1], around[3])], 2)
            for ys in windows(v.shape[2], spans[0], steps[0], 1, around[0], around[2])
        ],
        2,
    )
    attributes = {"in_channels": [depth], "kernel_shape": list(kernel), "strides": list(strides), "pads": pads}
    attributes |= {"pool_kernel": spans, "pool_strides": steps, "pool_pads": around}
    return Case(operator, attributes, inputs, largest)


def box_max(values: np.ndarray, rows: Sequence[int], columns: Sequence[int]) -> np.ndarray:
    """[N, C, H, W] -> [N, C], the largest at these places that exist."""
    height, width = values.shape[2:]
    inside = [(y, x) for y in rows for x in columns if 0 <= y < height and 0 <= x < width]
    return np.max([values[:, :, y, x] for y, x in inside], axis=0)


MAKERS = {
    "ByteConv2d": byte_case,
    "ImageConv2d": image_case,
    "PackSigns": pack_case,
    "BinaryConv2dBits": conv_case,
    "BinaryConv2dFromBits": conv_case,
    "BinaryMaxPool2d": pool_case,
}
operators = pytest.mark.parametrize("operator", MAKERS)


@st.composite
def cases(draw: st.DrawFn, operator: str) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return MAKERS[operator](operator, lambda options: options[draw(st.integers(0, len(options) - 1))], rng)


def run(case: Case, optimised: bool) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = case.model().SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, case.inputs)[0]


def assert_same(actual: np.ndarray, wanted: np.ndarray) -> None:
    assert actual.dtype == wanted.dtype
    np.testing.assert_array_equal(actual, wanted)


@operators
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_onnxruntime_agrees_to_the_last_bit(operator: str, data: st.DataObject) -> None:
    case = data.draw(cases(operator))
    assert_same(run(case, optimised=False), case.expected)
    if case.expected.dtype == np.uint32:  # folding scales into weights rounds floats differently
        assert_same(run(case, optimised=True), case.expected)


@operators
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_the_reference_evaluator_agrees_to_the_last_bit(operator: str, data: st.DataObject) -> None:
    case = data.draw(cases(operator))
    assert_same(ReferenceEvaluator(case.model()).run(None, case.inputs)[0], case.expected)


@operators
def test_the_oldest_onnxruntime_agrees(operator: str, old_python: str, tmp_path: Path) -> None:
    script = Path(__file__).with_name("old_runtime.py")
    command = [old_python, str(script)]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        case = MAKERS[operator](operator, lambda options, rng=rng: options[rng.integers(len(options))], rng)
        model, arrays = tmp_path / f"{seed}.onnx", tmp_path / f"{seed}.npz"
        onnx.save(case.model(), model)
        np.savez(arrays, expected=case.expected, **case.inputs)
        command += [str(model), str(arrays)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    version, difference = done.stdout.split()
    allowed = 1e-5 if case.expected.dtype == np.float32 else 0
    assert version.startswith("1.17") and float(difference) <= allowed


@operators
def test_bits_past_the_last_channel_are_zero(operator: str) -> None:
    if operator in ("BinaryConv2dFromBits", "ByteConv2d", "ImageConv2d"):  # floats
        return
    for seed in range(5):
        rng = np.random.default_rng(seed)

        def choose(options: Sequence[Any], rng: np.random.Generator = rng) -> Any:
            return 33 if options is CHANNELS else options[rng.integers(len(options))]

        case = MAKERS[operator](operator, choose, rng)
        channels = case.inputs["threshold"].size if "threshold" in case.inputs else 33
        used = np.uint32((1 << (channels - 1) % 32 + 1) - 1)
        assert not (run(case, optimised=True)[:, -1] & ~used).any()


def test_every_operator_names_its_attributes() -> None:
    assert set(INPUTS) == set(ATTRIBUTES) == {*MAKERS, "BinaryConv2d", "BinaryConv2dSkip"}
    for operator in INPUTS:
        assert list(function(operator).attribute) == list(ATTRIBUTES[operator])
