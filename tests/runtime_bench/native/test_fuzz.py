"""Models that are wrong in some way: onnxruntime raises an error, or the result is right. Nothing crashes or hangs."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, helper

import bnas
from bnas.export.onnx_functions import ATTRIBUTES, INPUTS

from .cases import MOST_WEIGHTS, REQUIRE_ALL, byte_case, conv_case, image_case, numbers
from .conftest import built, here, missing
from .definition import (
    BYTE_PARTS,
    IMAGE_PARTS,
    NEUTRAL,
    Array,
    Expected,
    Geometry,
    Levels,
    byte_conv,
    dots,
    epilogue,
    image_conv,
    max_pool,
    words_of,
)
from .operators import Node, byte_node, conv_nodes, feeds, image_node, model, pack_node, pool_node

RUN_MODELS = Path(__file__).with_name("run_models.py")
MOST_BYTES = 2 << 30  # that the process may ever need
MOST_AXES = 8  # of any input
Choose = Callable[[Any], Any]

LISTS = [[], [1], [1, 1, 1], [0, 0, 0, 0, 0], [1] * 200]
NUMBERS = [300, 0, -1, 2, 7, 33, (1 << 20) + 1, (1 << 31) - 1, 1 << 31, -(1 << 31), (1 << 63) - 1, -(1 << 63)]
OTHER_TYPES = [np.float16, np.float64, np.int8, np.uint8, np.int32, np.int64, np.uint32, np.bool_, np.float32]


class Invalid(Exception):
    """The definition does not say what such a node means."""


def sound_nodes(rng: np.random.Generator) -> list[Node]:
    """One of each operator, small."""
    groups = int(rng.integers(1, 3))
    geometry = Geometry((3, 2), (1, 2), (1, 0, 1, 1), (1, 2), groups)
    case = conv_case(rng, (2, 33 * groups, 4, 6), 5 * groups, geometry)
    shape = dots(case.negative, case.weights, geometry).shape
    parts = {name: numbers(rng, (shape[1], 1, 1), "quarters") for name in NEUTRAL if name != "residual"}
    if rng.random() < 0.5:
        parts["residual"] = numbers(rng, shape, "quarters")
    threshold = rng.integers(-8, 9, (shape[1], 1, 1)).astype(np.int32)
    x, shift = rng.standard_normal((2, 40, 4, 6), np.float32), numbers(rng, (40, 1, 1), "normal")
    pool = Geometry((2, 3), (1, 2), (1, 0, 0, 1))
    rounding = Levels(float(rng.choice([0.0, 16.0])), 7)
    shared = {name: parts[name] for name in BYTE_PARTS}
    byte = byte_case(rng, (2, 3 * groups, 4, 6), 5 * groups, geometry, parts=shared, rounding=rounding)
    spread = Geometry(geometry.kernel, geometry.strides, geometry.pads)
    shared = {name: parts[name] for name in IMAGE_PARTS}
    image = image_case(rng, (2, 3, 6, 9), shape[1], spread, pool, shared)
    around = conv_case(rng, (2, 3 * groups, 4, 6), 3 * groups, Geometry((3, 1), pads=(2, 0, 0, 0), groups=groups))
    skip = conv_nodes(around, {}, np.zeros((3 * groups, 1, 1), np.int32))[-1]
    return [
        *conv_nodes(case, parts, threshold),
        skip,
        byte_node(byte),
        image_node(image),
        pack_node(x, shift),
        pool_node(words_of(x < shift), pool, words_of(max_pool(x < shift, pool))),
    ]


# --- what is done to them -------------------------------------------------------------------------------------------


def spoil(node: Node, rng: np.random.Generator) -> Node:
    def choose(options: Any) -> Any:
        return options[int(rng.integers(len(options)))]

    return choose([spoil_number, spoil_number, spoil_attribute, spoil_shape, spoil_shape, spoil_type])(node, choose)


def spoil_number(node: Node, choose: Choose) -> Node:
    name = choose(list(node.attributes))
    value = node.attributes[name]
    if not isinstance(value, list):
        return replace(node, attributes=node.attributes | {name: choose(NUMBERS)})
    changed = list(value) or [1]
    changed[choose(range(len(changed)))] = choose(NUMBERS)
    if choose([False, False, True]):
        changed = [choose([*NUMBERS[1:], 1 << 20])] * len(changed)
    return replace(node, attributes=node.attributes | {name: changed})


def spoil_attribute(node: Node, choose: Choose) -> Node:
    name = choose(list(node.attributes))
    wrong = choose([None, 1, 2.5, "text", b"\xff" * 3, [1.0, 2.0], ["text"], *LISTS])
    changed = dict(node.attributes) | {name: wrong}
    if wrong is None:
        del changed[name]
    return replace(node, attributes=changed)


def spoil_shape(node: Node, choose: Choose) -> Node:
    name = choose(list(node.inputs))
    array = node.inputs[name]
    axis = choose(range(array.ndim)) if array.ndim else 0
    size = array.shape[axis] if array.ndim else 1
    changed = choose(
        [
            lambda: array[0] if array.ndim and len(array) else array,
            lambda: array[None],
            lambda: array.reshape(-1),
            lambda: array.reshape(array.shape + (1,) * 9),
            lambda: np.take(array, [], axis) if array.ndim else array,
            lambda: np.take(array, np.arange(size + 1) % max(size, 1), axis) if array.size and array.ndim else array,
            lambda: np.take(array, np.arange(size - 1), axis) if array.ndim and size else array,
            lambda: np.take(array, [0], axis) if array.size and array.ndim else array,
            lambda: np.swapaxes(array, 0, -1) if array.ndim else array,
            lambda: array.reshape(-1)[:1].reshape(()) if array.size else array,
            lambda: np.empty((0,), array.dtype),
        ]
    )()
    return replace(node, inputs=node.inputs | {name: np.ascontiguousarray(changed).reshape(np.shape(changed))})


def spoil_type(node: Node, choose: Choose) -> Node:
    name = choose(list(node.inputs))
    with np.errstate(all="ignore"):
        return replace(node, inputs=node.inputs | {name: node.inputs[name].astype(choose(OTHER_TYPES))})


# --- what they mean -------------------------------------------------------------------------------------------------


def meaning(node: Node) -> Array | Expected:
    """Raises Invalid if the node breaks what is written about the operator's attributes and inputs."""
    from_floats = node.operator in ("BinaryConv2d", "BinaryConv2dSkip", "ByteConv2d", "ImageConv2d", "PackSigns")
    x = typed(node, "x", np.float32 if from_floats else np.uint32, rank=4)
    if node.operator == "PackSigns":
        (channels,) = integers(node, "in_channels", 1, 1)
        demand(x.shape[1] == channels)
        return words_of(x < per_channel(node, "shift", channels))
    kernel, strides = (integers(node, name, 2, 1) for name in ("kernel_shape", "strides"))
    pads = integers(node, "pads", 4, 0)
    if node.operator == "BinaryMaxPool2d":
        demand(all(pad < kernel[i % 2] for i, pad in enumerate(pads)))
        geometry = Geometry(kernel, strides, pads)
        fits(x, geometry)
        return words_of(max_pool(bits_of(x, 32 * x.shape[1]), geometry))
    if node.operator == "ImageConv2d":
        return image_meaning(node, x, Geometry(kernel, strides, pads))
    dilations, (depth,) = integers(node, "dilations", 2, 1), integers(node, "in_channels", 1, 1)
    groups = node.attributes.get("group")
    demand(type(groups) is int and 1 <= groups <= 1 << 20)
    geometry = Geometry(kernel, strides, pads, dilations, groups)
    channels = depth * groups
    if node.operator == "ByteConv2d":
        return byte_meaning(node, x, geometry, depth)
    weights = typed(node, "w_packed", np.uint8, rank=4)
    demand(weights.shape[1:] == (*kernel, -(-depth // 8)) and len(weights) > 0 and len(weights) % groups == 0)
    fits(x, geometry)
    kept_together(x, geometry)
    if from_floats:
        demand(x.shape[1] == channels)
        negative = x < per_channel(node, "shift", channels)
    else:
        demand(integers(node, "channels", 1, 1) == (channels,) and x.shape[1] == -(-channels // 32))
        negative = bits_of(x, channels)
    octets = np.unpackbits(weights, axis=3, count=depth, bitorder="little").transpose(0, 3, 1, 2).astype(bool)
    sums = dots(negative, octets, geometry)
    outputs = (len(weights), 1, 1)
    if node.operator == "BinaryConv2dBits":
        threshold = typed(node, "threshold", np.int32)
        demand(threshold.size == len(weights))
        threshold = per_channel(node, "threshold", len(weights), np.int32)
        return words_of(sums < threshold.reshape(outputs))
    parts = {name: per_channel(node, name, len(weights)) for name in NEUTRAL if name != "residual"}
    skips = node.operator == "BinaryConv2dSkip"
    residual = x if skips else typed(node, "residual", np.float32)
    demand(residual.shape == sums.shape or (residual.size == 1 and not skips))
    whole = residual if residual.shape == sums.shape else residual.reshape(1, 1, 1)
    return epilogue(sums, parts | {"residual": whole})


def byte_meaning(node: Node, x: Array, geometry: Geometry, depth: int) -> Array:
    weights = typed(node, "w", np.int8, rank=4)
    demand(weights.shape[1:] == (depth, *geometry.kernel) and len(weights) > 0 and len(weights) % geometry.groups == 0)
    demand(weights[0].size <= MOST_WEIGHTS and x.shape[1] == depth * geometry.groups)
    fits(x, geometry)
    kept_together(x, geometry)
    levels, rounding = (
        Levels(
            float(one_element(node, f"{name}_scale", np.float32)),
            int(one_element(node, f"{name}_zero_point", np.uint8)),
        )
        for name in ("x", "y")
    )
    least = float(np.finfo(np.float32).tiny)
    demand(levels.scale >= least and (rounding.scale == 0 or rounding.scale >= least))
    parts = {name: per_channel(node, name, len(weights)) for name in BYTE_PARTS}
    return byte_conv(x, levels, weights, geometry, parts, rounding)


def image_meaning(node: Node, x: Array, geometry: Geometry) -> Expected:
    (depth,), weights = integers(node, "in_channels", 1, 1), typed(node, "w", np.float32, rank=4)
    demand(weights.shape[1:] == (depth, *geometry.kernel) and len(weights) > 0 and x.shape[1] == depth)
    fits(x, geometry)
    kept_together(x, geometry)
    kernel, strides = (integers(node, name, 2, 1) for name in ("pool_kernel", "pool_strides"))
    pool = Geometry(kernel, strides, integers(node, "pool_pads", 4, 0))
    demand(all(pad < kernel[i % 2] for i, pad in enumerate(pool.pads)))
    pads, spans = geometry.pads, geometry.kernel
    sizes = [
        (x.shape[2 + axis] + pads[axis] + pads[axis + 2] - spans[axis]) // geometry.strides[axis] + 1
        for axis in range(2)
    ]
    padded = [sizes[axis] + pool.pads[axis] + pool.pads[axis + 2] for axis in range(2)]
    demand(all(size <= 1 << 20 and kernel[axis] <= padded[axis] for axis, size in enumerate(sizes)))
    demand(max(1, len(x)) * len(weights) * padded[0] * padded[1] < 1 << 40)
    parts = {name: per_channel(node, name, len(weights)) for name in IMAGE_PARTS}
    return image_conv(x, weights, geometry, pool, parts)


def one_element(node: Node, name: str, dtype: Any) -> Any:
    array = typed(node, name, dtype)
    demand(array.size == 1)
    return array.reshape(-1)[0]


def demand(condition: bool) -> None:
    if not condition:
        raise Invalid


def integers(node: Node, name: str, count: int, least: int) -> Any:
    value = node.attributes.get(name)
    demand(isinstance(value, list) and len(value) == count)
    demand(all(type(number) is int and least <= number <= 1 << 20 for number in value))
    return tuple(value)


def typed(node: Node, name: str, dtype: Any, rank: int | None = None) -> Array:
    array = node.inputs[name]
    demand(array.dtype == dtype and rank in (None, array.ndim) and array.ndim <= MOST_AXES)
    return array


def per_channel(node: Node, name: str, channels: int, dtype: Any = np.float32) -> Array:
    """[channels, 1, 1], with or without a leading axis of 1, or one element of any rank -> one of these two."""
    array = typed(node, name, dtype)
    if array.size == 1:
        return array.reshape(1, 1, 1)
    demand(array.ndim in (3, 4) and array.size == channels > 0 and array.shape[-3] == channels)
    return array.reshape(-1, 1, 1)


def fits(x: Array, geometry: Geometry) -> None:
    demand(min(x.shape[1:]) > 0)
    padded = [x.shape[2 + axis] + geometry.pads[axis] + geometry.pads[axis + 2] for axis in range(2)]
    for axis in range(2):
        demand(geometry.dilations[axis] * (geometry.kernel[axis] - 1) + 1 <= padded[axis])
    demand(x.shape[0] * x.shape[1] * padded[0] * padded[1] < 1 << 40)


def kept_together(x: Array, geometry: Geometry) -> None:
    """A convolution works on rows and columns rounded up to whole strides."""
    demand(max(1, len(x)) * (x.shape[2] + geometry.strides[0]) * (x.shape[3] + geometry.strides[1]) < 1 << 40)


def bits_of(words: Array, channels: int) -> Array:
    last = np.ascontiguousarray(words.transpose(0, 2, 3, 1)).astype("<u4")
    octets = last.view(np.uint8).reshape(*last.shape[:3], 4 * last.shape[3])
    return np.unpackbits(octets, axis=3, count=channels, bitorder="little").transpose(0, 3, 1, 2).astype(bool)


# --- running them ---------------------------------------------------------------------------------------------------


def spoilt_file(node: Node, constants: set[str]) -> bytes:
    """helper.make_node refuses some attributes, and a file may leave out inputs."""
    made = onnx.load_from_string(model(replace(node, attributes={}), constants=constants))
    for name, value in node.attributes.items():
        if value == []:
            made.graph.node[0].attribute.append(AttributeProto(name=name, type=AttributeProto.INTS))
        else:
            made.graph.node[0].attribute.append(helper.make_attribute(name, value))
    return made.SerializeToString()


def write_models(folder: Path, seed: int, count: int) -> list[Node]:
    rng = np.random.default_rng(seed)
    nodes = []
    for i in range(count):
        sound = sound_nodes(rng)
        node = sound[int(rng.integers(len(sound)))]
        for _ in range(int(rng.choice([1, 1, 2]))):
            node = spoil(node, rng) if node.attributes and set(node.inputs) == set(INPUTS[node.operator]) else node
        constants = {name for name in node.inputs if name != "x" and rng.random() < 0.6}
        file = spoilt_file(node, constants)
        (folder / f"{i:05}.onnx").write_bytes(file)
        np.savez(folder / f"{i:05}.npz", **feeds(file, node))
        nodes.append(node)
    return nodes


def judge(folder: Path, nodes: list[Node]) -> dict[str, int]:
    counts = {"refused": 0, "right": 0}
    for i, node in enumerate(nodes):
        what = f"{folder}/{i:05}.onnx: {node.operator} {node.attributes} " + str(
            {name: (array.dtype.name, array.shape) for name, array in node.inputs.items()}
        )
        output, error = folder / f"{i:05}.out.npz", folder / f"{i:05}.error"
        try:
            expected = meaning(node)
        except Invalid:
            assert error.exists(), f"ran, though it must not: {what}"
            assert error.read_text().split(":")[0] in KNOWN_ERRORS, f"{error.read_text()}: {what}"
            counts["refused"] += 1
            continue
        assert output.exists(), f"{error.read_text()}: {what}"
        replace(node, expected=expected).check(np.load(output)["arr_0"], what)
        counts["right"] += 1
    return counts


KNOWN_ERRORS = {"InvalidArgument", "Fail", "InvalidGraph", "RuntimeException", "NotImplemented", "InvalidProtobuf"}


def run(folder: Path, library: str, nodes: list[Node], environment: dict[str, str], timeout_s: float) -> None:
    command = [sys.executable, str(RUN_MODELS), library, str(folder)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, env=dict(os.environ) | environment
        )
        code, said = done.returncode, done.stderr
    except subprocess.TimeoutExpired:
        code, said = -1, f"not done after {timeout_s} s"
    if code:
        finished = {path.name[:5] for pattern in ("*.error", "*.out.npz") for path in folder.glob(pattern)}
        first = next((i for i in range(len(nodes)) if f"{i:05}" not in finished), None)
        node = None if first is None else nodes[first]
        about = node and (node.operator, node.attributes, {n: (a.dtype, a.shape) for n, a in node.inputs.items()})
        raise AssertionError(f"exit code {code} at {first}: {about}\n{said[-3000:]}")


@pytest.fixture(autouse=True)
def need_kernels() -> None:
    here()


SEED = 1 if REQUIRE_ALL else int.from_bytes(os.urandom(4), "little")


def test_spoilt_models_are_refused_or_right(tmp_path: Path) -> None:
    print("seed", SEED)
    nodes = write_models(tmp_path, SEED, 600)
    run(tmp_path, bnas.ops_library_path(), nodes, {}, 60)
    counts = judge(tmp_path, nodes)
    assert min(counts.values()) > 30, counts
    assert int((tmp_path / "peak_kb").read_text()) * 1024 < MOST_BYTES


@pytest.mark.parametrize("isa", ["reference", "portable", "avx2"])
def test_other_paths_refuse_the_same(isa: str, tmp_path: Path) -> None:
    if isa not in here().paths():
        pytest.skip(f"this processor has no {isa}")
    nodes = write_models(tmp_path, 2, 100)
    run(tmp_path, bnas.ops_library_path(), nodes, {"BNAS_ISA": isa}, 60)
    judge(tmp_path, nodes)


def sanitized() -> dict[str, str]:
    """Environment in which a Python that knows nothing of it can load a library with AddressSanitizer."""
    compiler = shutil.which("g++") or missing("needs g++")
    names = ("libasan.so", "libubsan.so", "libstdc++.so.6")
    found = [
        subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in names
    ]
    return {"LD_PRELOAD": " ".join(found), "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1"}


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_spoilt_models_with_sanitizers(count: int, tmp_path: Path) -> None:
    library = built("sanitize", "libbnas_ort.so")
    print("seed", SEED)
    nodes = write_models(tmp_path, SEED, count)
    run(tmp_path, str(library), nodes, sanitized(), 600)
    judge(tmp_path, nodes)


def test_every_operator_is_spoilt() -> None:
    assert {node.operator for node in sound_nodes(np.random.default_rng(0))} == set(INPUTS)
    for node in sound_nodes(np.random.default_rng(0)):
        assert set(node.attributes) == set(ATTRIBUTES[node.operator])
        expected = meaning(node)
        if isinstance(expected, Expected):
            assert isinstance(node.expected, Expected)
            np.testing.assert_array_equal(expected.y, node.expected.y)
        else:
            np.testing.assert_array_equal(expected, node.expected)


def test_files_that_end_early_or_leave_out_inputs(tmp_path: Path) -> None:
    """What is missing cannot be given at the run either."""
    rng = np.random.default_rng(3)
    nodes = []
    for node in sound_nodes(rng):
        whole = onnx.load_from_string(model(node))
        for count in range(len(node.inputs)):
            file = onnx.ModelProto()
            file.CopyFrom(whole)
            del file.graph.node[0].input[count:]
            nodes.append((file, node))
        for empty in range(len(node.inputs)):
            file = onnx.ModelProto()
            file.CopyFrom(whole)
            file.graph.node[0].input[empty] = ""
            nodes.append((file, node))
    for i, (file, node) in enumerate(nodes):
        (tmp_path / f"{i:05}.onnx").write_bytes(file.SerializeToString())
        np.savez(tmp_path / f"{i:05}.npz", **feeds(model(node), node))
    run(tmp_path, bnas.ops_library_path(), [node for _, node in nodes], {}, 60)
    assert len(list(tmp_path.glob("*.error"))) == len(nodes)
