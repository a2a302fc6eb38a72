"""Nodes of the domain `ai.bnas` with their inputs and what they must give, as ONNX models and in onnxruntime."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

import bnas
from bnas.export.onnx_functions import INPUTS, function

from .cases import ByteCase, ConvCase, ImageCase
from .definition import BYTE_PARTS, IMAGE_PARTS, NEUTRAL, Array, Expected, Geometry, bytes_of, dots, epilogue, words_of

FLOAT_PARTS = ("scale", "bias", "shift", "residual", "slope", "act_shift_in", "act_shift_out")


@dataclass(frozen=True, eq=False)
class Node:
    operator: str
    attributes: dict[str, Any]
    inputs: dict[str, Array]  # in the operator's order
    expected: Array | Expected  # exact, or with a tolerance

    @property
    def element(self) -> int:
        return helper.np_dtype_to_tensor_dtype((self.expected.y if self.rounded else self.expected).dtype)  # type: ignore[union-attr]

    @property
    def rounded(self) -> bool:
        return isinstance(self.expected, Expected)

    def check(self, found: Array, *where: object) -> None:
        if isinstance(self.expected, Expected):
            wrong = self.expected.wrong(found)
            assert not wrong.any(), (self.operator, *where, found[wrong][:5], self.expected.y[wrong][:5])
            return
        assert found.dtype == self.expected.dtype, (self.operator, *where)
        np.testing.assert_array_equal(found, self.expected, err_msg=" ".join(map(str, (self.operator, *where))))


def conv_attributes(case: ConvCase | ByteCase) -> dict[str, Any]:
    g = case.geometry
    return {
        "in_channels": [case.weights.shape[1]],
        "kernel_shape": list(g.kernel),
        "strides": list(g.strides),
        "pads": list(g.pads),
        "dilations": list(g.dilations),
        "group": g.groups,
    }


def conv_nodes(case: ConvCase, parts: dict[str, Array], threshold: Array) -> list[Node]:
    """The convolutions of one case, the skip last if there can be one. threshold: int32 [O, 1, 1]."""
    integers = dots(case.negative, case.weights, case.geometry)
    attributes, packed = conv_attributes(case), bytes_of(case.weights)
    whole = attributes | {"channels": [case.x.shape[1]]}
    words, expected = words_of(case.negative), epilogue(integers, parts)
    given = {name: np.full((1, 1, 1), value, np.float32) for name, value in NEUTRAL.items()} | parts
    given |= {"x": case.x, "w_packed": packed, "shift": case.shift}
    from_bits = given | {"x": words}
    skips = []
    if integers.shape == case.x.shape:
        inputs = {name: given[name] for name in INPUTS["BinaryConv2dSkip"]}
        skips = [Node("BinaryConv2dSkip", attributes, inputs, epilogue(integers, parts | {"residual": case.x}))]
    return [
        Node("BinaryConv2d", attributes, {name: given[name] for name in INPUTS["BinaryConv2d"]}, expected),
        Node("BinaryConv2dFromBits", whole, {n: from_bits[n] for n in INPUTS["BinaryConv2dFromBits"]}, expected),
        Node(
            "BinaryConv2dBits",
            whole,
            {"x": words, "w_packed": packed, "threshold": threshold},
            words_of(integers < threshold),
        ),
        *skips,
    ]


def byte_node(case: ByteCase) -> Node:
    given = {name: np.full((1, 1, 1), value, np.float32) for name, value in BYTE_PARTS.items()} | case.parts
    given |= {"x": case.x, "w": case.weights}
    for name, levels in {"x": case.levels, "y": case.rounding}.items():
        given[f"{name}_scale"] = np.array(levels.scale, np.float32)
        given[f"{name}_zero_point"] = np.array(levels.zero, np.uint8)
    return Node("ByteConv2d", conv_attributes(case), {n: given[n] for n in INPUTS["ByteConv2d"]}, case.expected)


def image_node(case: ImageCase) -> Node:
    given = {name: np.full((1, 1, 1), value, np.float32) for name, value in IMAGE_PARTS.items()} | case.parts
    attributes = {
        "in_channels": [case.weights.shape[1]],
        "kernel_shape": list(case.geometry.kernel),
        "strides": list(case.geometry.strides),
        "pads": list(case.geometry.pads),
        "pool_kernel": list(case.pool.kernel),
        "pool_strides": list(case.pool.strides),
        "pool_pads": list(case.pool.pads),
    }
    given |= {"x": case.x, "w": case.weights}
    return Node("ImageConv2d", attributes, {n: given[n] for n in INPUTS["ImageConv2d"]}, case.expected)


def pack_node(x: Array, shift: Array) -> Node:
    return Node("PackSigns", {"in_channels": [x.shape[1]]}, {"x": x, "shift": shift}, words_of(x < shift))


def pool_node(words: Array, geometry: Geometry, pooled: Array) -> Node:
    attributes = {
        "kernel_shape": list(geometry.kernel),
        "strides": list(geometry.strides),
        "pads": list(geometry.pads),
    }
    return Node("BinaryMaxPool2d", attributes, {"x": words}, pooled)


def model(*nodes: Node, constants: Collection[str] | None = None, body: bool = False) -> bytes:
    """A model with the nodes side by side: inputs and outputs are called x0, y0, x1, y1...

    constants: names of inputs whose values are in the file; without, all but x. body: with the operators' functions.
    Batch, height and width of x are free.
    """
    inputs, outputs, initializers, calls = [], [], [], []
    for i, node in enumerate(nodes):
        for name, value in node.inputs.items():
            element = helper.np_dtype_to_tensor_dtype(value.dtype)
            if (name != "x") if constants is None else (name in constants):
                initializers.append(numpy_helper.from_array(value, f"{name}{i}"))
                continue
            shape: list[Any] = list(value.shape)
            if name == "x" and len(shape) == 4:
                shape = [f"n{i}", shape[1], f"h{i}", f"w{i}"]
            inputs.append(helper.make_tensor_value_info(f"{name}{i}", element, shape))
        outputs.append(helper.make_tensor_value_info(f"y{i}", node.element, None))
        names = [f"{name}{i}" for name in node.inputs]
        calls.append(helper.make_node(node.operator, names, [f"y{i}"], f"node{i}", domain="ai.bnas", **node.attributes))
    made = helper.make_model(
        helper.make_graph(calls, "nodes", inputs, outputs, initializers),
        functions=[function(name) for name in sorted({node.operator for node in nodes})] if body else [],
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("ai.bnas", 1)],
        ir_version=9,
    )
    return made.SerializeToString()


def feeds(data: bytes, *nodes: Node) -> dict[str, Array]:
    """The values of the model's inputs."""
    values = {f"{name}{i}": value for i, node in enumerate(nodes) for name, value in node.inputs.items()}
    return {port.name: values[port.name] for port in onnx.load_from_string(data).graph.input}


def session(
    data: bytes, *, library: bool = True, optimised: bool = True, threads: int = 1
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if library:
        options.register_custom_ops_library(bnas.ops_library_path())
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
