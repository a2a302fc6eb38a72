"""Small .tflite files with operators of Larq Compute Engine, made with the schema's classes, and what they must give.

What is expected follows from the operators' definition, in float64 and with numpy alone: bit 1 means -1, bits past the
last channel are 0, `LceBconv2d` sums products of signs, clamps the sum, and then multiplies and adds per channel.
"""

import importlib
import importlib.util
import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
TYPES = {"float32": 0, "int32": 2, "bool": 6, "int8": 9}  # of the schema
BUILTINS = {"ADD": 0, "CONV_2D": 3, "RELU": 19, "CUSTOM": 32, "SUB": 41, "PRELU": 54, "CONV_3D": 132}
ACTIVATIONS = {"none": (0, -math.inf, math.inf), "relu": (1, 0, math.inf), "relu1": (2, -1, 1), "relu6": (3, 0, 6)}
SCHEMAS = ("ai_edge_litert.schema_py_generated", "tensorflow.lite.python.schema_py_generated")


@dataclass(frozen=True, eq=False)
class Tensor:
    """data: of a constant. scale, zero_point: of 8 bits. signature: the shape, with -1 for axes that are free."""

    shape: tuple[int, ...]
    type: str = "float32"
    data: Array | None = None
    scale: float | None = None
    zero_point: int = 0
    signature: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Op:
    """A builtin operator, by its name in the schema, or a custom one. options: a map, or bytes as they are."""

    name: str
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    options: Any = None
    activation: str = "none"


@dataclass(frozen=True, eq=False)
class Network:
    tensors: dict[str, Tensor]
    operators: tuple[Op, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def file(self) -> bytes:
        return _pack(self)


@dataclass(frozen=True, eq=False)
class Case:
    """A network, what it is fed, and what its first output must be. half: of 8 bits, where rounding is a toss-up."""

    network: Network
    feeds: dict[str, Array]
    expected: Array
    tolerance: float = 0.0
    half: Array | None = None

    def check(self, found: Array, about: object = "") -> None:
        assert found.shape == self.expected.shape and found.dtype == self.expected.dtype, (found.shape, about)
        off = np.abs(found.astype(np.float64) - self.expected.astype(np.float64))
        wrong = off > (self.tolerance if self.half is None else self.half)
        assert not wrong.any(), f"{int(wrong.sum())} of {wrong.size} values, by up to {off.max()}: {about}"


def schema() -> Any:
    """The generated classes of the file format, from whichever package has them."""
    for name in SCHEMAS:
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            return importlib.import_module(name)
    raise ModuleNotFoundError("no package with the schema of .tflite files")


def words_of(negative: Array) -> Array:
    """bool [..., channels] -> int32 [..., ceil(channels / 32)]."""
    whole = np.zeros((*negative.shape[:-1], -(-negative.shape[-1] // 32) * 32), bool)
    whole[..., : negative.shape[-1]] = negative
    return np.ascontiguousarray(np.packbits(whole, axis=-1, bitorder="little")).view("<i4")


@dataclass(frozen=True)
class Conv:
    """A binary convolution. padding: valid, one (same, of +1) or zero (same, of 0). output: float32, int8 or int32."""

    channels: int = 64
    outputs: int = 48
    size: tuple[int, int] = (6, 5)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: str = "one"
    groups: int = 1
    activation: str = "none"
    output: str = "float32"
    batch: int = 1

    @property
    def options(self) -> dict[str, int]:
        return {
            "channels_in": self.channels,
            "dilation_height_factor": self.dilation[0],
            "dilation_width_factor": self.dilation[1],
            "fused_activation_function": ACTIVATIONS[self.activation][0],
            "pad_values": int(self.padding == "one"),
            "padding": int(self.padding == "valid"),
            "stride_height": self.stride[0],
            "stride_width": self.stride[1],
        }

    def pads(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """TensorFlow's SAME: as many outputs as strides begin, what is odd goes behind."""
        if self.padding == "valid":
            return ((0, 0), (0, 0))
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        total = [
            max((-(-n // s) - 1) * s + span - n, 0) for n, s, span in zip(self.size, self.stride, spans, strict=True)
        ]
        return ((total[0] // 2, total[0] - total[0] // 2), (total[1] // 2, total[1] - total[1] // 2))

    def sums(self, negative: Array, weights: Array) -> Array:
        """bool [N, H, W, C], bool [O, kh, kw, C / groups] -> sums of products of signs, [N, Ho, Wo, O]."""
        outside = 0.0 if self.padding == "zero" else 1.0
        padded = np.pad(1.0 - 2.0 * negative, ((0, 0), *self.pads(), (0, 0)), constant_values=outside)
        spans = tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))
        windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=(1, 2))  # [N, Ho, Wo, C, kh, kw]
        windows = windows[:, :: self.stride[0], :: self.stride[1], :, :: self.dilation[0], :: self.dilation[1]]
        parts = [
            np.einsum("nhwcij,oijc->nhwo", window, sign)
            for window, sign in zip(
                np.split(windows, self.groups, axis=3), np.split(1.0 - 2.0 * weights, self.groups), strict=True
            )
        ]
        return np.concatenate(parts, axis=3)

    def clamped(self, sums: Array) -> Array:
        _, low, high = ACTIVATIONS[self.activation]
        return np.clip(sums, low, high)


@dataclass(frozen=True, eq=False)
class Parts:
    """Random values for a convolution."""

    negative: Array
    weights: Array
    multiplier: Array
    bias: Array
    limits: Array
    sums: Array = field(repr=False)

    @staticmethod
    def draw(conv: Conv, rng: np.random.Generator, negative: Array | None = None) -> "Parts":
        if negative is None:
            negative = rng.random((conv.batch, *conv.size, conv.channels)) < 0.5
        weights = rng.random((conv.outputs, *conv.kernel, conv.channels // conv.groups)) < 0.5
        fan_in = weights[0].size
        return Parts(
            negative,
            weights,
            (rng.standard_normal(conv.outputs) / math.sqrt(fan_in)).astype(np.float32),
            rng.standard_normal(conv.outputs).astype(np.float32),
            rng.integers(-1, fan_in + 1, conv.outputs).astype(np.int32) // 2
            + rng.integers(0, max(fan_in // 4, 1), conv.outputs).astype(np.int32),
            conv.sums(negative, weights),
        )


def conv_case(conv: Conv, rng: np.random.Generator) -> Case:
    """One LceBconv2d that is fed with bits."""
    p = Parts.draw(conv, rng)
    shape = p.sums.shape
    tensors = {
        "x": Tensor(words_of(p.negative).shape, "int32"),
        "w": _constant(words_of(p.weights)),
        "multiplier": _constant(p.multiplier),
        "bias": _constant(p.bias),
        "limits": _constant(p.limits),
        "y": Tensor(shape, conv.output),
    }
    inputs: tuple[str | None, ...] = ("x", "w", "multiplier", "bias", None)
    values = conv.clamped(p.sums) * p.multiplier.astype(np.float64) + p.bias
    half, tolerance = None, 0.0
    if conv.output == "int32":
        inputs = ("x", "w", None, None, "limits")
        # The count of differing signs is more than the limit; where the sum is odd, it is half a count.
        expected = words_of(p.weights[0].size - p.sums > 2.0 * p.limits)
        tensors["y"] = Tensor(expected.shape, "int32")
    elif conv.output == "int8":
        scale, zero_point = float(np.float32(np.abs(values).max() / 100 + 0.01)), int(rng.integers(-20, 20))
        tensors["y"] = Tensor(shape, "int8", scale=scale, zero_point=zero_point)
        steps = values / scale + zero_point
        expected = np.clip(np.floor(steps + 0.5), -128, 127).astype(np.int8)
        half = (np.abs(steps - np.floor(steps) - 0.5) < 1e-3).astype(np.float64)
    else:
        expected = values.astype(np.float32)
        tolerance = 1e-5 * float(np.abs(values).max())
    used = {name: tensors[name] for name in ("x", "w", *filter(None, inputs[2:]), "y")}
    network = Network(used, (Op("LceBconv2d", inputs, ("y",), conv.options),), ("x",), ("y",))
    return Case(network, {"x": words_of(p.negative)}, expected, tolerance, half)


@dataclass(frozen=True)
class Around:
    """What stands around a convolution: x - shift, + residual, - shift_in, activation (prelu, relu), + shift_out.

    add: written as additions of the negative where subtractions would be meant, and the reverse.
    """

    shift: bool = False
    residual: bool = False
    shift_in: bool = False
    activation: str = ""  # prelu, relu, or add_relu: a ReLU that the residual's addition carries
    shift_out: bool = False
    add: bool = False
    one_value: bool = False  # shifts of one value for all channels


def unit_case(conv: Conv, around: Around, rng: np.random.Generator) -> Case:
    """Float in, float out: signs, LceBconv2d and what stands around it, each as an operator of its own."""
    channels, outputs = conv.channels, conv.outputs
    x = rng.standard_normal((conv.batch, *conv.size, channels)).astype(np.float32)
    x[rng.random(x.shape) < 0.05] = 0.0
    x[rng.random(x.shape) < 0.05] = -0.0
    tensors = {"x": Tensor(x.shape)}
    operators: list[Op] = []
    feeds = {"x": x}

    def constant(name: str, count: int) -> Array:
        values = rng.standard_normal(1 if around.one_value else count).astype(np.float32)
        tensors[name] = _constant(values)
        return values

    def step(op: str, name: str, inputs: tuple[str | None, ...], output: Tensor, options: Any = None) -> str:
        tensors[name] = output
        operators.append(Op(op, inputs, (name,), options))
        return name

    value, signs = "x", x.astype(np.float64)
    if around.shift:
        shift = constant("shift", channels)
        signs = signs + shift if around.add else signs - shift
        value = step("ADD" if around.add else "SUB", "centred", (value, "shift"), Tensor(x.shape))
    negative = signs < 0
    p = Parts.draw(conv, rng, negative)
    for name, values in (("w", words_of(p.weights)), ("multiplier", p.multiplier), ("bias", p.bias)):
        tensors[name] = _constant(values)
    value = step("LceQuantize", "bits", (value,), Tensor(words_of(negative).shape, "int32"))
    shape = p.sums.shape
    y = conv.clamped(p.sums) * p.multiplier + p.bias
    value = step("LceBconv2d", "conv", (value, "w", "multiplier", "bias", None), Tensor(shape), conv.options)
    if around.residual:
        feeds["residual"] = rng.standard_normal(shape).astype(np.float32)
        tensors["residual"] = Tensor(shape)
        y = y + feeds["residual"]
        value = step("ADD", "sum", (value, "residual") if not around.add else ("residual", value), Tensor(shape))
        if around.activation == "add_relu":
            operators[-1] = replace(operators[-1], activation="relu")
            y = np.maximum(y, 0)
    if around.shift_in:
        shift_in = constant("shift_in", outputs)
        y = y + shift_in if around.add else y - shift_in
        value = step("ADD" if around.add else "SUB", "moved", (value, "shift_in"), Tensor(shape))
    if around.activation == "prelu":
        slope = rng.standard_normal(outputs).astype(np.float32)  # XNNPACK reads beyond one value
        tensors["slope"] = _constant(slope.reshape(1, 1, -1))
        y = np.where(y < 0, y * slope, y)
        value = step("PRELU", "rectified", (value, "slope"), Tensor(shape))
    elif around.activation == "relu":
        y = np.maximum(y, 0)
        value = step("RELU", "rectified", (value,), Tensor(shape))
    if around.shift_out:
        shift_out = constant("shift_out", outputs)
        y = y - shift_out if around.add else y + shift_out
        value = step("SUB" if around.add else "ADD", "out", (value, "shift_out"), Tensor(shape))
    network = Network(tensors, tuple(operators), tuple(feeds), (value,))
    return Case(network, feeds, y.astype(np.float32), 1e-5 * float(np.abs(y).max()))


def quantize_case(kind: str, channels: int, rng: np.random.Generator) -> Case:
    """LceQuantize of float32 [N, H, W, channels], int8 (negative below its zero point) or bool (negative if false)."""
    shape = (2, 3, 2, channels)
    if kind == "float32":
        # Nothing denormal: interpreters may flush it to 0.
        hard = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-37, -1e-37, 1.0, -1.0], np.float32)
        x, tensor = rng.choice(hard, shape), Tensor(shape)
        negative = x < 0
    elif kind == "int8":
        x, tensor = rng.integers(-128, 128, shape).astype(np.int8), Tensor(shape, "int8", scale=0.5, zero_point=-3)
        negative = x < -3
    else:
        x, tensor = rng.random(shape) < 0.5, Tensor(shape, "bool")
        negative = ~x
    expected = words_of(negative)
    tensors = {"x": tensor, "y": Tensor(expected.shape, "int32")}
    return Case(Network(tensors, (Op("LceQuantize", ("x",), ("y",)),), ("x",), ("y",)), {"x": x}, expected)


def dequantize_case(kind: str, channels: int, rng: np.random.Generator) -> Case:
    """LceDequantize to +1 and -1, to the 8 bits that stand for them, or to true and false."""
    negative = rng.random((2, 3, 2, channels)) < 0.5
    words = words_of(negative)
    tensor = Tensor(negative.shape, kind)
    if kind == "float32":
        expected: Array = np.where(negative, np.float32(-1), np.float32(1))
    elif kind == "int8":
        tensor = Tensor(negative.shape, "int8", scale=0.25, zero_point=125)
        expected = np.where(negative, 125 - 4, 127).astype(np.int8)  # 125 + 4 is cut off
    else:
        expected = ~negative
    tensors = {"x": Tensor(words.shape, "int32"), "y": tensor}
    return Case(Network(tensors, (Op("LceDequantize", ("x",), ("y",)),), ("x",), ("y",)), {"x": words}, expected)


def pool_case(
    kernel: tuple[int, int], stride: tuple[int, int], padding: str, channels: int, rng: np.random.Generator
) -> Case:
    """LceBMaxPool2d: -1 only where all of a window is."""
    conv = Conv(size=(7, 6), kernel=kernel, stride=stride, padding=padding)
    negative = rng.random((2, *conv.size, channels)) < 0.7
    padded = np.pad(negative, ((0, 0), *conv.pads(), (0, 0)), constant_values=True)
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(1, 2))[:, :: stride[0], :: stride[1]]
    found = words_of(windows.all(axis=(4, 5)))
    options = {
        "filter_height": kernel[0],
        "filter_width": kernel[1],
        "padding": int(padding == "valid"),
        "stride_height": stride[0],
        "stride_width": stride[1],
    }
    words = words_of(negative)
    tensors = {"x": Tensor(words.shape, "int32"), "y": Tensor(found.shape, "int32")}
    return Case(Network(tensors, (Op("LceBMaxPool2d", ("x",), ("y",), options),), ("x",), ("y",)), {"x": words}, found)


def chain_case(rng: np.random.Generator) -> Case:
    """Signs, a convolution to bits, a max-pool on them, another convolution to floats: bits all the way."""
    x = rng.standard_normal((1, 8, 8, 40)).astype(np.float32)
    first = Conv(40, 64, (8, 8), output="int32")
    p = Parts.draw(first, rng, x < 0)
    between = p.weights[0].size - p.sums > 2.0 * p.limits
    pooled = between.reshape(1, 4, 2, 4, 2, 64).all(axis=(2, 4))
    second = Conv(64, 16, (4, 4), padding="zero")
    q = Parts.draw(second, rng, pooled)
    y = q.sums * q.multiplier + q.bias
    pool = {"filter_height": 2, "filter_width": 2, "padding": 1, "stride_height": 2, "stride_width": 2}
    tensors = {
        "x": Tensor(x.shape),
        "bits": Tensor((1, 8, 8, 2), "int32"),
        "w": _constant(words_of(p.weights)),
        "limits": _constant(p.limits),
        "between": Tensor((1, 8, 8, 2), "int32"),
        "pooled": Tensor((1, 4, 4, 2), "int32"),
        "v": _constant(words_of(q.weights)),
        "multiplier": _constant(q.multiplier),
        "bias": _constant(q.bias),
        "y": Tensor(y.shape),
    }
    operators = (
        Op("LceQuantize", ("x",), ("bits",)),
        Op("LceBconv2d", ("bits", "w", None, None, "limits"), ("between",), first.options),
        Op("LceBMaxPool2d", ("between",), ("pooled",), pool),
        Op("LceBconv2d", ("pooled", "v", "multiplier", "bias", None), ("y",), second.options),
    )
    network = Network(tensors, operators, ("x",), ("y",))
    return Case(network, {"x": x}, y.astype(np.float32), 1e-5 * float(np.abs(y).max()))


def _constant(values: Array) -> Tensor:
    return Tensor(values.shape, values.dtype.name, values)


def _pack(network: Network) -> bytes:
    import flatbuffers
    from flatbuffers import flexbuffers

    s = schema()
    model, graph = s.ModelT(), s.SubGraphT()
    model.version, model.subgraphs, model.buffers = 3, [graph], [s.BufferT()]
    names = list(network.tensors)
    graph.tensors, graph.operators, model.operatorCodes = [], [], []
    for name, tensor in network.tensors.items():
        made = s.TensorT()
        made.name, made.shape, made.type = name.encode(), list(tensor.shape), TYPES[tensor.type]
        if tensor.signature is not None:
            made.shapeSignature = list(tensor.signature)
        if tensor.data is not None:
            buffer = s.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(tensor.data).tobytes(), np.uint8)
            made.buffer = len(model.buffers)
            model.buffers.append(buffer)
        if tensor.scale is not None:
            made.quantization = s.QuantizationParametersT()
            made.quantization.scale = np.array([tensor.scale], np.float32)
            made.quantization.zeroPoint = np.array([tensor.zero_point], np.int64)
        graph.tensors.append(made)
    for op in network.operators:
        operator, code = s.OperatorT(), s.OperatorCodeT()
        operator.opcodeIndex = len(model.operatorCodes)
        code.builtinCode = BUILTINS.get(op.name, BUILTINS["CUSTOM"])
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        if op.name not in BUILTINS:
            code.customCode = op.name.encode()
            options = op.options if isinstance(op.options, bytes) else flexbuffers.Dumps(op.options or {})
            operator.customOptions = np.frombuffer(options, np.uint8)
        elif op.name in ("ADD", "SUB"):
            operator.builtinOptions = s.AddOptionsT() if op.name == "ADD" else s.SubOptionsT()
            operator.builtinOptions.fusedActivationFunction = ACTIVATIONS[op.activation][0]
            operator.builtinOptionsType = getattr(s.BuiltinOptions, "AddOptions" if op.name == "ADD" else "SubOptions")
        operator.inputs = [-1 if name is None else names.index(name) for name in op.inputs]
        operator.outputs = [names.index(name) for name in op.outputs]
        model.operatorCodes.append(code)
        graph.operators.append(operator)
    graph.inputs = [names.index(name) for name in network.inputs]
    graph.outputs = [names.index(name) for name in network.outputs]

    class AlignedBuffer(s.BufferT):  # type: ignore[misc, name-defined]
        """Constants begin at multiples of 16 bytes, which the schema asks for and its classes do not do."""

        def Pack(self, builder: Any) -> Any:
            if self.data is not None:
                builder.Prep(16, len(self.data))
            return super().Pack(builder)

    for number, buffer in enumerate(model.buffers):
        model.buffers[number] = AlignedBuffer()
        model.buffers[number].data = buffer.data
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
