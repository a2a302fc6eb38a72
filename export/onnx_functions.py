"""What each operator of the domain `ai.bnas` means, as a model-local function over standard operators of opset 18.

Bits tensor: uint32 [N, ceil(C / 32), H, W]; bit i of word j is channel 32 * j + i, 1 means -1; bits past the last
channel are 0. The bodies compute in float32, where sums of +-1 and of up to 16 different powers of two are exact. The
weights depend on constants only, so a runtime folds them into plain float weights at load.

ByteConv2d is a convolution of integers between floats: `x` is rounded as QuantizeLinear does, `w` holds whole numbers,
and so do the sums, exactly, because an output channel has at most 512 weights: 255 * 128 * 512 is below 2^24. The
result is rounded to levels again, as torch.fake_quantize_per_tensor_affine does, by a product with 1 / y_scale; where
y_scale is 0 it is not.

ImageConv2d is a float convolution of an image with its activation and a max-pool, which may be of 1x1.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from onnx import AttributeProto, FunctionProto, NodeProto, TensorProto, helper, numpy_helper

DOMAIN, OPSET = "ai.bnas", 18
CONV, CONV_SKIP = "BinaryConv2d", "BinaryConv2dSkip"
CONV_BITS, CONV_FROM_BITS = "BinaryConv2dBits", "BinaryConv2dFromBits"
BYTE_CONV, IMAGE_CONV, PACK, MAX_POOL = "ByteConv2d", "ImageConv2d", "PackSigns", "BinaryMaxPool2d"
CONVS = (CONV, CONV_SKIP, CONV_BITS, CONV_FROM_BITS)

_ACTIVATION = ("slope", "act_shift_in", "act_shift_out")  # [O, 1, 1] each
_EPILOGUE = ("residual", *_ACTIVATION)  # residual: [N, O, Ho, Wo]
INPUTS: dict[str, tuple[str, ...]] = {
    # x: float32 [N, C, H, W]. w_packed: uint8 [O, kh, kw, ceil(Cg / 8)], least significant bit first, 1 means -1.
    # scale, bias: float32 [O, 1, 1]; shift: [C, 1, 1]. -> float32 [N, O, Ho, Wo]
    CONV: ("x", "w_packed", "scale", "bias", "shift", *_EPILOGUE),
    # the same with x as its residual too: the output may take the place of x in memory
    CONV_SKIP: ("x", "w_packed", "scale", "bias", "shift", *_ACTIVATION),
    # the same as BinaryConv2d with x: bits
    CONV_FROM_BITS: ("x", "w_packed", "scale", "bias", *_EPILOGUE),
    # x: bits; threshold: int32 [O, 1, 1] -> bits of (dot < threshold)
    CONV_BITS: ("x", "w_packed", "threshold"),
    # x: float32 [N, C, H, W]; w: int8 [O, Cg, kh, kw]; scales and zero points: one element, float32 and uint8; the rest
    # [O, 1, 1] -> float32 [N, O, Ho, Wo]
    BYTE_CONV: (
        *("x", "w", "x_scale", "x_zero_point", "scale", "bias", "slope", "act_shift_out", "y_scale", "y_zero_point"),
    ),
    # x: float32 [N, C, H, W]; w: float32 [O, C, kh, kw]; the rest [O, 1, 1] -> the maxima of the pool's windows
    IMAGE_CONV: ("x", "w", "bias", "slope", "act_shift_out"),
    # x: float32 [N, C, H, W]; shift: [C, 1, 1] -> bits of (x < shift)
    PACK: ("x", "shift"),
    # bits -> bits
    MAX_POOL: ("x",),
}
_CONV_ATTRIBUTES = ("in_channels", "kernel_shape", "strides", "pads", "dilations", "group")
ATTRIBUTES: dict[str, tuple[str, ...]] = {  # in_channels and channels are lists of one number, all lists of integers
    CONV: _CONV_ATTRIBUTES,  # in_channels: of one group
    CONV_SKIP: _CONV_ATTRIBUTES,
    CONV_FROM_BITS: (*_CONV_ATTRIBUTES, "channels"),  # channels: of the whole input
    CONV_BITS: (*_CONV_ATTRIBUTES, "channels"),
    BYTE_CONV: _CONV_ATTRIBUTES,
    IMAGE_CONV: ("in_channels", "kernel_shape", "strides", "pads", "pool_kernel", "pool_strides", "pool_pads"),
    PACK: ("in_channels",),  # of the whole input
    MAX_POOL: ("kernel_shape", "strides", "pads"),
}


def function(operator: str) -> FunctionProto:
    """The body of `operator`, a key of INPUTS."""
    body = _Body()
    _BODIES[operator](body)
    return helper.make_function(
        DOMAIN,
        operator,
        list(INPUTS[operator]),
        ["y"],
        body.nodes,
        opset_imports=[helper.make_opsetid("", OPSET)],
        attributes=list(ATTRIBUTES[operator]),
    )


class _Body:
    """The nodes of a function while it is written. Each step returns the name of its value."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self._constants: dict[tuple[str, bytes, tuple[int, ...]], str] = {}

    def step(
        self,
        operator: str,
        output: str,
        *inputs: str,
        like_caller: tuple[str, ...] = (),
        from_caller: Mapping[str, str] = MappingProxyType({}),
        **given: Any,
    ) -> str:
        """One node. like_caller: attributes taken from the caller's of the same name; from_caller: of another one."""
        node = helper.make_node(operator, inputs, [output], **given)
        for name, target in {**{name: name for name in like_caller}, **from_caller}.items():
            kind = AttributeProto.INT if name == "group" else AttributeProto.INTS
            node.attribute.append(_reference(name, target, kind))
        self.nodes.append(node)
        return output

    def constant(self, value: Any, dtype: type = np.float32) -> str:
        array: np.ndarray = np.asarray(value, dtype)
        key = (array.dtype.name, array.tobytes(), array.shape)
        if key not in self._constants:
            self._constants[key] = f"constant_{len(self._constants)}"
            self.step("Constant", self._constants[key], value=numpy_helper.from_array(array))
        return self._constants[key]

    def integers(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def attribute(self, output: str, name: str) -> str:
        """The caller's list `name` as an int64 tensor."""
        node = helper.make_node("Constant", [], [f"{output}_given"])
        node.attribute.append(_reference("value_ints", name, AttributeProto.INTS))
        self.nodes.append(node)
        return self.step("Cast", output, f"{output}_given", to=TensorProto.INT64)  # else shape inference fails


def _reference(name: str, target: str, kind: AttributeProto.AttributeType) -> AttributeProto:
    """Attribute `name` of a node inside the function, taken from the caller's attribute `target`."""
    attribute = AttributeProto()
    attribute.name, attribute.ref_attr_name, attribute.type = name, target, kind
    return attribute


def _binary_conv(body: _Body, residual: str = "residual") -> None:
    negative = body.step("Less", "negative", "x", "shift")  # so +0, -0 and NaN give +1
    signs = body.step("Where", "signs", negative, body.constant(-1), body.constant(1))
    _epilogue(body, _dots(body, signs), residual)


def _binary_conv_skip(body: _Body) -> None:
    _binary_conv(body, residual="x")


def _binary_conv_from_bits(body: _Body) -> None:
    _epilogue(body, _dots(body, _signs_of_bits(body)))


def _binary_conv_bits(body: _Body) -> None:
    limit = body.step("Cast", "limit", "threshold", to=TensorProto.FLOAT)  # rounds only what no dot product reaches
    negative = body.step("Less", "negative", _dots(body, _signs_of_bits(body)), limit)
    _pack(body, negative, body.step("Shape", "out_channels", "w_packed", start=0, end=1))


def _byte_conv(body: _Body) -> None:
    levels = body.step("QuantizeLinear", "x_levels", "x", "x_scale", "x_zero_point")
    floats, zero, weight = (
        body.step("Cast", f"{name}_floats", value, to=TensorProto.FLOAT)
        for name, value in (("x", levels), ("x_zero", "x_zero_point"), ("w", "w"))
    )
    geometry = ("kernel_shape", "strides", "pads", "dilations", "group")
    sums = body.step("Conv", "sums", body.step("Sub", "steps", floats, zero), weight, like_caller=geometry)
    biased = body.step("Add", "biased", body.step("Mul", "scaled", sums, "scale"), "bias")
    rectified = body.step("PRelu", "rectified", biased, "slope")
    # No Add: onnxruntime takes one of 0 out, and loses the value where its reader has another one that is computed.
    value = body.step("Sum", "value", rectified, "act_shift_out")

    one, y_zero = body.constant(1), body.step("Cast", "y_zero", "y_zero_point", to=TensorProto.FLOAT)
    is_rounded = body.step("Greater", "is_rounded", "y_scale", body.constant(0))
    inverse = body.step("Div", "inverse", one, body.step("Where", "divisor", is_rounded, "y_scale", one))
    whole = body.step("Round", "whole", body.step("Mul", "quotient", value, inverse))
    low, high = body.step("Neg", "low", y_zero), body.step("Sub", "high", body.constant(255), y_zero)
    kept = body.step("Min", "kept", body.step("Max", "raised", whole, low), high)
    body.step("Where", "y", is_rounded, body.step("Mul", "rounded", kept, "y_scale"), value)


def _image_conv(body: _Body) -> None:
    bias = body.step("Reshape", "bias_values", "bias", body.integers(-1))
    channels = body.step("Shape", "out_channels", "w", start=0, end=1)
    biases = body.step("Expand", "biases", bias, channels)  # of one element for all, too
    sums = body.step("Conv", "sums", "x", "w", biases, like_caller=("kernel_shape", "strides", "pads"))
    rectified = body.step("PRelu", "rectified", sums, "slope")
    value = body.step("Sum", "value", rectified, "act_shift_out")  # no Add, as above
    padded = _pad(body, value, "pool_pads", -np.inf)
    windows = {"kernel_shape": "pool_kernel", "strides": "pool_strides"}
    body.step("MaxPool", "y", padded, from_caller=windows)


def _pack_signs(body: _Body) -> None:
    _pack(body, body.step("Less", "negative", "x", "shift"), body.attribute("channels", "in_channels"))


def _binary_max_pool(body: _Body) -> None:
    """The maximum of signs is the minimum of bits. A whole number of words goes in and comes out.

    Padding is done before, with -1, because onnx's ReferenceEvaluator misplaces unequal pads of MaxPool.
    """
    bits = body.step("Transpose", "bits", _bits(body, "x", _words_last(body)), perm=[0, 3, 1, 2])
    negated = body.step("Neg", "negated", _pad(body, bits))
    highest = body.step("MaxPool", "highest", negated, like_caller=("kernel_shape", "strides"))
    _pack(body, body.step("Less", "negative", highest, body.constant(0)), body.integers(0))


def _dots(body: _Body, signs: str) -> str:
    """Whole numbers: signs [N, C, H, W], padded with +1, convolved with the signs of w_packed."""
    weight_bits = _bits(body, "w", "w_packed", channels=body.attribute("group_channels", "in_channels"), dtype=np.uint8)
    weight = body.step("Transpose", "weight", _plus_minus(body, "weight_signs", weight_bits), perm=[0, 3, 1, 2])
    geometry = ("kernel_shape", "strides", "dilations", "group")
    return body.step("Conv", "dots", _pad(body, signs), weight, like_caller=geometry)


def _pad(body: _Body, image: str, attribute: str = "pads", value: float = 1) -> str:
    """[N, C, H, W] with the caller's pads, an attribute of this name, filled with `value`.

    Amounts are given for all axes, because onnxruntime mixes them up when it moves a transpose over a Pad with axes.
    """
    pads, none = body.attribute("spatial_pads", attribute), body.integers(0, 0)
    before = body.step("Slice", "pads_before", pads, body.integers(0), body.integers(2))
    after = body.step("Slice", "pads_after", pads, body.integers(2), body.integers(4))
    amounts = body.step("Concat", "pad_amounts", none, before, none, after, axis=0)
    return body.step("Pad", "padded", image, amounts, body.constant(value))


def _epilogue(body: _Body, dots: str, residual: str = "residual") -> None:
    scaled = body.step("Mul", "scaled", dots, "scale")
    biased = body.step("Add", "biased", scaled, "bias")
    summed = body.step("Add", "summed", biased, residual)
    centred = body.step("Sub", "centred", summed, "act_shift_in")
    body.step("Add", "y", body.step("PRelu", "rectified", centred, "slope"), "act_shift_out")


def _signs_of_bits(body: _Body) -> str:
    """The bits tensor x as +1 and -1, float32 [N, channels, H, W]."""
    bits = _bits(body, "x", _words_last(body), channels=body.attribute("input_channels", "channels"))
    return body.step("Transpose", "signs", _plus_minus(body, "signs_last", bits), perm=[0, 3, 1, 2])


def _words_last(body: _Body) -> str:
    return body.step("Transpose", "x_words", "x", perm=[0, 2, 3, 1])


def _bits(body: _Body, prefix: str, words: str, channels: str | None = None, dtype: type = np.uint32) -> str:
    """Words [a, b, c, n] -> their bits as 0.0 and 1.0, [a, b, c, channels]; all bits where no number is given."""
    word = body.step("Unsqueeze", f"{prefix}_word", words, body.integers(4))
    numbers = body.constant(np.arange(np.dtype(dtype).itemsize * 8), dtype)
    shifted = body.step("BitShift", f"{prefix}_shifted", word, numbers, direction="RIGHT")
    lowest = body.step("BitwiseAnd", f"{prefix}_lowest", shifted, body.constant([1], dtype))
    floats = body.step("Cast", f"{prefix}_floats", lowest, to=TensorProto.FLOAT)
    merged = body.step("Reshape", f"{prefix}_bits", floats, body.integers(0, 0, 0, -1))
    if channels is None:
        return merged
    return body.step("Slice", f"{prefix}_used", merged, body.integers(0), channels, body.integers(3))


def _plus_minus(body: _Body, output: str, bits: str) -> str:
    doubled = body.step("Mul", f"{output}_doubled", bits, body.constant(2))
    return body.step("Sub", output, body.constant(1), doubled)


def _pack(body: _Body, negative: str, channels: str) -> None:
    """y = the bits tensor of bool [N, C, H, W]; channels: int64 [1], C or any number that is C modulo 32."""
    floats = body.step("Cast", "y_floats", negative, to=TensorProto.FLOAT)
    last = body.step("Transpose", "y_last", floats, perm=[0, 2, 3, 1])
    missing = body.step("Mod", "missing", body.step("Neg", "minus_channels", channels), body.integers(32))
    amounts = body.step("Concat", "y_pads", body.integers(*[0] * 7), missing, axis=0)
    whole = body.step("Pad", "y_whole", last, amounts, body.constant(0))
    words = body.step("Reshape", "y_split", whole, body.integers(0, 0, 0, -1, 32))
    powers = np.zeros((32, 2))
    powers[:16, 0] = powers[16:, 1] = 2.0 ** np.arange(16)
    halves = body.step("MatMul", "y_halves", words, body.constant(powers))  # [N, H, W, words, low and high]
    integers = body.step("Cast", "y_integers", halves, to=TensorProto.INT64)
    placed = body.step("Mul", "y_placed", integers, body.integers(1, 1 << 16))
    joined = body.step("ReduceSum", "y_joined", placed, body.integers(4), keepdims=0)
    bits = body.step("Cast", "y_bits", joined, to=TensorProto.UINT32)
    body.step("Transpose", "y", bits, perm=[0, 3, 1, 2])


_BODIES = {
    CONV: _binary_conv,
    CONV_SKIP: _binary_conv_skip,
    CONV_FROM_BITS: _binary_conv_from_bits,
    CONV_BITS: _binary_conv_bits,
    BYTE_CONV: _byte_conv,
    IMAGE_CONV: _image_conv,
    PACK: _pack_signs,
    MAX_POOL: _binary_max_pool,
}
