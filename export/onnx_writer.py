"""Graph -> ONNX: each fused binary unit is one node of the domain `ai.bnas`, and the file carries its definition.

The definitions are model-local functions over standard operators (`onnx_functions`), so any runtime reads the file; a
registered native kernel takes the node over. Three rules, learnt by running: every function input is given (an absent
part is its neutral constant of one element), because onnxruntime does not load a body with a missing optional input;
every attribute is written on every node, because onnx's ReferenceEvaluator ignores function defaults; ir_version 9 and
opset 18, because the oldest supported runtime (1.17) refuses newer ones. `onnx.checker` notices none of the three.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from bnas.profiles import atomic

from .bits import pack
from .eight_bit import EightBitUnit, eight_bit_units, image_units
from .graph import BinaryConv, FloatOp, Graph
from .image_conv import ImageUnit, image_convs
from .onnx_functions import (
    BYTE_CONV,
    CONV,
    CONV_BITS,
    CONV_FROM_BITS,
    CONV_SKIP,
    CONVS,
    DOMAIN,
    IMAGE_CONV,
    MAX_POOL,
    OPSET,
    PACK,
    function,
)

IR_VERSION = 9


def write_onnx(graph: Graph, path: Path | str, metadata: dict[str, str], *, name: str = "network") -> None:
    """Write `graph` to `path` in one step. `metadata` becomes the file's metadata_props."""
    atomic.write_bytes(path, to_onnx(graph, metadata, name=name).SerializeToString())


def count_binary_convs(path: Path | str) -> int:
    """How many binary convolutions the file holds, of whatever input and output."""
    return sum(n.domain == DOMAIN and n.op_type in CONVS for n in onnx.load(path).graph.node)


def to_onnx(graph: Graph, metadata: dict[str, str], *, name: str = "network", plain_image: bool = False) -> ModelProto:
    """The checked model. Its batch axis is dynamic; values keep the names they have in `graph`.

    plain_image: what reads an image stays standard operators if it is float, as in the twins that are to be timed.
    """
    shapes = graph.shapes()
    eight_bit = eight_bit_units(graph)
    of_image = image_units(graph)
    float_image = {} if plain_image else image_convs(graph)
    inside = _inside(graph, of_image) | {op.output for unit in float_image.values() for op in unit.ops}
    body = _Body()
    for node in graph.nodes:
        if isinstance(node, BinaryConv):
            _binary_conv(body, node)
        elif node.output in of_image:
            _byte_conv(body, of_image[node.output])
        elif node.output in float_image:
            _image_conv(body, float_image[node.output])
        elif node.output in inside:
            continue
        elif node.output in eight_bit:
            EIGHT_BIT_WRITERS[node.kind](body, eight_bit[node.output])
        else:
            FLOAT_WRITERS[node.kind](body, node, shapes[node.output])

    def value(value_name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(value_name, TensorProto.FLOAT, ["N", *shapes[value_name]])

    operators = sorted({node.op_type for node in body.nodes if node.domain == DOMAIN})
    model = helper.make_model(
        helper.make_graph(
            body.nodes, name, [value(n) for n, _ in graph.inputs], [value(graph.output)], body.initializers
        ),
        functions=[function(operator) for operator in operators],
        opset_imports=[helper.make_opsetid("", OPSET), *([helper.make_opsetid(DOMAIN, 1)] if operators else [])],
        ir_version=IR_VERSION,
        producer_name="bnas",
    )
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return model


def _inside(graph: Graph, units: dict[str, EightBitUnit]) -> set[str]:
    """The values that are made inside of one of these units and nowhere else, or where it ends."""
    readers = graph.readers()
    inside = {op.output for unit in units.values() for op in unit.epilogue}
    for levels in {unit.source.output for unit in units.values()} - {graph.output}:
        if all(reader.output in units for reader in readers[levels]):
            inside.add(levels)
    return inside


class _Body:
    """Nodes and initializers while a graph is being written."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._known: set[str] = set()

    def constant(self, name: str, value: np.ndarray) -> str:
        if name not in self._known:
            self._known.add(name)
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, operator: str, inputs: list[str], output: str, *, domain: str = "", **attributes: Any) -> None:
        self.nodes.append(
            helper.make_node(operator, inputs, [output], name=output, domain=domain or None, **attributes)
        )


def _binary_conv(body: _Body, unit: BinaryConv) -> None:
    def per_channel(part: str, value: np.ndarray | None, neutral: float) -> str:
        array = np.full(1, neutral) if value is None else value
        return body.constant(f"{unit.output}.{part}", array.astype(np.float32).reshape(-1, 1, 1))

    inputs = [unit.x, body.constant(f"{unit.output}.w_packed", pack(unit.negative))]
    skips = unit.residual == unit.x and not unit.x_bits
    if unit.threshold is not None:
        threshold = unit.threshold.astype(np.int32).reshape(-1, 1, 1)
        inputs.append(body.constant(f"{unit.output}.threshold", threshold))
    else:
        no_residual = np.zeros((1, 1, 1, 1), np.float32)
        inputs += [per_channel("scale", unit.scale, 1), per_channel("bias", unit.bias, 0)]
        if not unit.x_bits:
            inputs.append(per_channel("shift", unit.shift, 0))
        if not skips:
            inputs.append(unit.residual or body.constant(f"{unit.output}.residual", no_residual))
        inputs += [
            per_channel("slope", unit.slope, 1),
            per_channel("act_shift_in", unit.act_shift_in, 0),
            per_channel("act_shift_out", unit.act_shift_out, 0),
        ]
    whole = {"channels": [unit.negative.shape[1] * unit.groups]} if unit.x_bits else {}
    from_floats = CONV_SKIP if skips else CONV
    body.node(
        CONV_BITS if unit.threshold is not None else CONV_FROM_BITS if unit.x_bits else from_floats,
        inputs,
        unit.output,
        domain=DOMAIN,
        in_channels=[unit.negative.shape[1]],
        kernel_shape=list(unit.negative.shape[2:]),
        strides=list(unit.strides),
        pads=list(unit.pads),
        dilations=list(unit.dilations),
        group=unit.groups,
        **whole,
    )


def _conv(body: _Body, op: FloatOp, shape: tuple[int, ...]) -> None:
    weight = body.constant(f"{op.output}.weight", op.attributes["weight"].astype(np.float32))
    _conv_node(body, op, weight, body.constant(f"{op.output}.bias", op.attributes["bias"].astype(np.float32)))


def _eight_bit_conv(body: _Body, unit: EightBitUnit) -> None:
    """A convolution between DequantizeLinear and QuantizeLinear, which runtimes compute in integers.

    They do so only if its bias is given in whole steps of the sums; where they cannot, it keeps its value. An input
    that comes through other operators is rounded to its levels once more, which changes nothing but is looked for.
    """
    op, bias = unit.op, unit.integer_bias()
    if op.inputs[0] != unit.source.output:
        levels = f"{op.output}.levels"
        _quantize(body, replace(unit.source, inputs=op.inputs, output=levels), ())
        op = replace(op, inputs=(levels,))
    weight = _dequantised(body, f"{op.output}.weight", unit.integers, unit.scale)
    if bias is None:
        _conv_node(body, op, weight, body.constant(f"{op.output}.bias", op.attributes["bias"].astype(np.float32)))
    else:
        _conv_node(body, op, weight, _dequantised(body, f"{op.output}.bias", bias, unit.bias_scale))


def _byte_conv(body: _Body, unit: EightBitUnit) -> None:
    """The unit with the rounding of its input, and everything behind it, in one node."""
    op, behind = unit.op, {step.kind: step.attributes for step in unit.epilogue}
    x = unit.source.inputs[0] if op.inputs[0] == unit.source.output else op.inputs[0]
    slope = behind["prelu"]["slope"] if "prelu" in behind else np.array([0.0 if "relu" in behind else 1.0])
    shift = behind["affine"]["bias"] if "affine" in behind else np.zeros(1)
    rounding = behind.get("quantize", {"scale": 0.0, "zero_point": 0})
    a = op.attributes

    def constant(part: str, value: Any, dtype: type = np.float32) -> str:
        return body.constant(f"{unit.output}.{part}", np.asarray(value, dtype))

    def per_channel(part: str, value: np.ndarray) -> str:
        return constant(part, value.reshape(-1, 1, 1))

    body.node(
        BYTE_CONV,
        [
            x,
            constant("w", unit.integers, np.int8),
            constant("x_scale", unit.source.attributes["scale"]),
            constant("x_zero_point", unit.source.attributes["zero_point"], np.uint8),
            per_channel("scale", unit.bias_scale),
            per_channel("bias", a["bias"]),
            per_channel("slope", slope),
            per_channel("act_shift_out", shift),
            constant("y_scale", rounding["scale"]),
            constant("y_zero_point", rounding["zero_point"], np.uint8),
        ],
        unit.output,
        domain=DOMAIN,
        in_channels=[unit.integers.shape[1]],
        kernel_shape=list(unit.integers.shape[2:]),
        strides=list(a["strides"]),
        pads=list(a["pads"]),
        dilations=list(a["dilations"]),
        group=a["groups"],
    )


def _image_conv(body: _Body, unit: ImageUnit) -> None:
    a, output = unit.op.attributes, unit.ops[-1].output
    none = {"kernel": (1, 1), "strides": (1, 1), "pads": (0, 0, 0, 0)}
    pool = none if unit.pool is None else unit.pool.attributes

    def per_channel(part: str, value: np.ndarray) -> str:
        return body.constant(f"{output}.{part}", value.astype(np.float32).reshape(-1, 1, 1))

    body.node(
        IMAGE_CONV,
        [
            unit.op.inputs[0],
            body.constant(f"{output}.w", a["weight"].astype(np.float32)),
            per_channel("bias", a["bias"]),
            per_channel("slope", unit.slope),
            per_channel("act_shift_out", unit.shift),
        ],
        output,
        domain=DOMAIN,
        in_channels=[a["weight"].shape[1]],
        kernel_shape=list(a["weight"].shape[2:]),
        strides=list(a["strides"]),
        pads=list(a["pads"]),
        pool_kernel=list(pool["kernel"]),
        pool_strides=list(pool["strides"]),
        pool_pads=list(pool["pads"]),
    )


def _dequantised(body: _Body, name: str, integers: np.ndarray, scale: np.ndarray) -> str:
    parts = {"integers": integers, "scale": scale, "zero": np.zeros(len(scale), integers.dtype)}
    body.node("DequantizeLinear", [body.constant(f"{name}.{p}", value) for p, value in parts.items()], name, axis=0)
    return name


def _conv_node(body: _Body, op: FloatOp, weight: str, bias: str) -> None:
    a = op.attributes
    body.node(
        "Conv",
        [op.inputs[0], weight, bias],
        op.output,
        kernel_shape=list(a["weight"].shape[2:]),
        strides=list(a["strides"]),
        pads=list(a["pads"]),
        dilations=list(a["dilations"]),
        group=a["groups"],
    )


def _linear(body: _Body, op: FloatOp, shape: tuple[int, ...]) -> None:
    weight = body.constant(f"{op.output}.weight", op.attributes["weight"].astype(np.float32))
    bias = body.constant(f"{op.output}.bias", op.attributes["bias"].astype(np.float32))
    body.node("Gemm", [op.inputs[0], weight, bias], op.output, transB=1)


def _eight_bit_linear(body: _Body, unit: EightBitUnit) -> None:
    """A product of integers, as runtimes compute it between DequantizeLinear and a float result; the bias stays float.

    Inside of the Gemm a runtime would want it in whole steps of the sums.
    """
    op, products = unit.op, f"{unit.op.output}.products"
    weight = _dequantised(body, f"{op.output}.weight", unit.integers, unit.scale)
    bias = body.constant(f"{op.output}.bias", op.attributes["bias"].astype(np.float32))
    body.node("Gemm", [op.inputs[0], weight], products, transB=1)
    body.node("Add", [products, bias], op.output)


def _affine(body: _Body, op: FloatOp, shape: tuple[int, ...]) -> None:
    scale, bias = op.attributes["scale"], op.attributes["bias"]
    multiply, add = bool((scale != 1).any()), bool((bias != 0).any())
    source = op.inputs[0]
    if multiply or not add:
        target = f"{op.output}.scaled" if add else op.output
        body.node("Mul", [source, _along_channels(body, op, "scale", shape)], target)
        source = target
    if add:
        body.node("Add", [source, _along_channels(body, op, "bias", shape)], op.output)


def _prelu(body: _Body, op: FloatOp, shape: tuple[int, ...]) -> None:
    body.node("PRelu", [op.inputs[0], _along_channels(body, op, "slope", shape)], op.output)


def _avg_pool(body: _Body, op: FloatOp, shape: tuple[int, ...]) -> None:
    a = op.attributes
    body.node(
        "AveragePool",
        [op.inputs[0]],
        op.output,
        kernel_shape=list(a["kernel"]),
        strides=list(a["strides"]),
        pads=list(a["pads"]),
        count_include_pad=0,
    )


def _max_pool(body: _Body, op: FloatOp, shape: tuple[int, ...]) -> None:
    a, bits = op.attributes, op.kind == "max_pool_bits"
    body.node(
        MAX_POOL if bits else "MaxPool",
        [op.inputs[0]],
        op.output,
        domain=DOMAIN if bits else "",
        kernel_shape=list(a["kernel"]),
        strides=list(a["strides"]),
        pads=list(a["pads"]),
    )


def _slice(body: _Body, op: FloatOp, shape: tuple[int, ...]) -> None:
    def index(value: int) -> str:
        return body.constant(f"index.{value}", np.array([value], np.int64))

    start, stop, step = (index(op.attributes[part]) for part in ("start", "stop", "step"))
    body.node("Slice", [op.inputs[0], start, stop, index(1), step], op.output)


def _global_mean(body: _Body, op: FloatOp, shape: tuple[int, ...]) -> None:
    pooled = f"{op.output}.pooled"
    body.node("GlobalAveragePool", [op.inputs[0]], pooled)
    body.node("Flatten", [pooled], op.output, axis=1)


def _quantize(body: _Body, op: FloatOp, shape: tuple[int, ...]) -> None:
    integers = f"{op.output}.integers"
    scale = body.constant(f"{op.output}.scale", np.array(op.attributes["scale"], np.float32))
    zero_point = body.constant(f"{op.output}.zero_point", np.array(op.attributes["zero_point"], np.uint8))
    body.node("QuantizeLinear", [op.inputs[0], scale, zero_point], integers)
    body.node("DequantizeLinear", [integers, scale, zero_point], op.output)


def _sign(body: _Body, op: FloatOp, shape: tuple[int, ...]) -> None:
    negative = f"{op.output}.negative"
    ones = [body.constant(f"value.{value}", np.array(value, np.float32)) for value in (-1, 1)]
    body.node("Less", [op.inputs[0], _along_channels(body, op, "shift", shape)], negative)
    body.node("Where", [negative, *ones], op.output)


def _pack_signs(body: _Body, op: FloatOp, shape: tuple[int, ...]) -> None:
    shift = _along_channels(body, op, "shift", shape)
    body.node(PACK, [op.inputs[0], shift], op.output, domain=DOMAIN, in_channels=[shape[0]])


def _pad(body: _Body, op: FloatOp, shape: tuple[int, ...]) -> None:
    top, left, bottom, right = op.attributes["pads"]  # for all axes, see onnx_functions
    pads = body.constant(f"{op.output}.pads", np.array([0, 0, top, left, 0, 0, bottom, right], np.int64))
    value = body.constant(f"{op.output}.value", np.array(op.attributes["value"], np.float32))
    body.node("Pad", [op.inputs[0], pads, value], op.output)


def _along_channels(body: _Body, op: FloatOp, part: str, shape: tuple[int, ...]) -> str:
    """The attribute `part` [C] or [1], shaped to broadcast against a value of `shape` (without its batch axis)."""
    array = op.attributes[part].astype(np.float32)
    return body.constant(f"{op.output}.{part}", array.reshape(-1, *(1,) * (len(shape) - 1)))


def _plain(operator: str, **attributes: Any) -> Callable[[_Body, FloatOp, tuple[int, ...]], None]:
    def write(body: _Body, op: FloatOp, shape: tuple[int, ...]) -> None:
        body.node(operator, list(op.inputs), op.output, **attributes)

    return write


FLOAT_WRITERS: dict[str, Callable[[_Body, FloatOp, tuple[int, ...]], None]] = {
    "conv": _conv,
    "linear": _linear,
    "affine": _affine,
    "add": _plain("Add"),
    "prelu": _prelu,
    "relu": _plain("Relu"),
    "avg_pool": _avg_pool,
    "max_pool": _max_pool,
    "concat": _plain("Concat", axis=1),
    "slice": _slice,
    "global_mean": _global_mean,
    "flatten": _plain("Flatten", axis=1),
    "quantize": _quantize,
    "sign": _sign,
    "pad": _pad,
    "pack_signs": _pack_signs,
    "max_pool_bits": _max_pool,
}
EIGHT_BIT_WRITERS: dict[str, Callable[[_Body, EightBitUnit], None]] = {
    "conv": _eight_bit_conv,
    "linear": _eight_bit_linear,
}
