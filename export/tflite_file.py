"""Reading a .tflite back: its operators, its metadata, and the inputs and outputs of its binary convolutions.

Operator facts (Larq Compute Engine 0.16.0): `LceQuantize` makes int32 words of signs, bit 1 for x < 0, least
significant bit first, channels padded to whole words. `LceBconv2d` has inputs (words, filter [O, kh, kw, words],
multiplier [O], bias [O], threshold [O]), the last three -1 if absent; with a threshold it writes words, else float32.
"""

import json
import os
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bnas.profiles.errors import InputError

from .bits import around
from .graph import BinaryConv, FloatOp, Graph, first_alike

if TYPE_CHECKING:
    from .gate import Shown

Source = Path | str | bytes
METADATA_NAME = "bnas"
_WORD_BITS = 32
_IDENTIFIER = b"TFL3"
_DTYPES = {0: np.float32, 2: np.int32}  # of TensorType in the schema
_DAMAGE = (
    struct.error,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
)


def operator_counts(source: Source) -> Counter[str]:
    """How often each operator occurs, by custom name or builtin name, e.g. {"LceBconv2d": 4, "ADD": 2}."""
    return Counter(operator.name for operator in TfliteFile(source).operators)


def count_binary_convs(source: Source) -> int:
    return operator_counts(source)["LceBconv2d"]


def read_metadata(source: Source) -> dict[str, str]:
    """What `to_tflite` embedded; empty for a file of another writer. Raises InputError for a file that is none."""
    return TfliteFile(source).metadata


@dataclass(frozen=True)
class Operator:
    """One operator of the file. inputs, outputs: tensor indices, -1 for an absent one."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: dict[str, Any]  # of a custom operator


@dataclass(frozen=True, eq=False)
class LceBconv2d:
    """A binary convolution as the file holds it. negative: bool [O, I/groups, kh, kw]; float ones [O] or None."""

    operator: Operator
    negative: np.ndarray
    groups: int
    multiplier: np.ndarray | None
    bias: np.ndarray | None

    @property
    def writes_bits(self) -> bool:
        return self.multiplier is None


class TfliteFile:
    """A parsed .tflite. Raises InputError if the bytes are no TensorFlow Lite model, or an incomplete one.

    The generated schema classes follow any offset, so everything that is read later is read once here.
    """

    def __init__(self, source: Source) -> None:
        data, name = _read(source)
        schema = _schema()
        try:
            if data[4:8] != _IDENTIFIER:
                raise ValueError("another format")
            self.model = schema.ModelT.InitFromPackedBuf(data, 0)
            self.subgraph = self.model.subgraphs[0]
            self.operators = tuple(self._operator(operator) for operator in self.subgraph.operators)
            self.binary_convs = tuple(self._binary_conv(o) for o in self.operators if o.name == "LceBconv2d")
            self.metadata = self._metadata()
        except _DAMAGE:
            raise InputError(f"{name} is not a complete TensorFlow Lite model; export it again") from None
        self.producers = {index: operator for operator in self.operators for index in operator.outputs}

    def constant(self, index: int) -> np.ndarray | None:
        """The value of a float32 or int32 tensor that is stored in the file; None for one that is computed."""
        if index < 0:
            return None
        tensor = self.subgraph.tensors[index]
        data = self.model.buffers[tensor.buffer].data
        if data is None or tensor.type not in _DTYPES:
            return None
        return np.frombuffer(bytes(data), _DTYPES[tensor.type]).reshape(tensor.shape)

    def pack(self) -> bytes:
        """The file's bytes; constants stay aligned to 16 bytes, as the schema asks and its Python classes forget."""
        import flatbuffers

        schema = _schema()

        class AlignedBuffer(schema.BufferT):  # type: ignore[name-defined]
            def Pack(self, builder: Any) -> Any:
                if self.data is not None:
                    builder.Prep(16, len(self.data))
                return super().Pack(builder)

        buffers = []
        for buffer in self.model.buffers:
            aligned = AlignedBuffer()
            aligned.__dict__.update(buffer.__dict__)
            buffers.append(aligned)
        self.model.buffers = buffers
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(self.model.Pack(builder), _IDENTIFIER)
        return bytes(builder.Output())

    def _operator(self, operator: Any) -> Operator:
        from flatbuffers import flexbuffers

        code = self.model.operatorCodes[operator.opcodeIndex]
        custom = code.customCode is not None
        name = code.customCode.decode() if custom else _builtin_names()[code.builtinCode]
        options = operator.customOptions
        known = flexbuffers.Loads(bytes(options)) if custom and options is not None and len(options) else {}
        return Operator(name, tuple(map(int, operator.inputs)), tuple(map(int, operator.outputs)), known)

    def _binary_conv(self, operator: Operator) -> LceBconv2d:
        words, channels = self.constant(operator.inputs[1]), operator.options["channels_in"]
        if words is None:
            raise ValueError("a binary convolution without a filter")
        groups = 1 if words.shape[3] == -(-channels // _WORD_BITS) else channels // (_WORD_BITS * words.shape[3])
        negative = unpack_words(words, channels // groups)
        multiplier, bias = (self.constant(index) for index in operator.inputs[2:4])
        return LceBconv2d(operator, negative.transpose(0, 3, 1, 2), groups, multiplier, bias)

    def _metadata(self) -> dict[str, str]:
        for entry in self.model.metadata or ():
            if entry.name.decode() == METADATA_NAME:
                return dict(json.loads(bytes(self.model.buffers[entry.buffer].data)))
        return {}


def unpack_words(words: np.ndarray, channels: int) -> np.ndarray:
    """int32 words [..., ceil(channels / 32)] -> bool [..., channels], True where the bit says -1."""
    octets = np.ascontiguousarray(words).astype("<i4").view(np.uint8)
    return np.unpackbits(octets, axis=-1, count=channels, bitorder="little").astype(bool)


def finish(data: bytes, input_names: list[str], metadata: dict[str, str]) -> bytes:
    """A fresh conversion with its inputs in the order of `input_names` (the converter has its own) and `metadata`."""
    file = TfliteFile(data)
    signature = {entry.name.decode(): entry.tensorIndex for entry in file.model.signatureDefs[0].inputs}
    file.subgraph.inputs = [signature[name] for name in input_names]
    schema = _schema()
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(json.dumps(metadata, sort_keys=True).encode(), np.uint8)
    entry.name, entry.buffer = METADATA_NAME, len(file.model.buffers)
    file.model.buffers.append(buffer)
    file.model.metadata = [*(file.model.metadata or ()), entry]
    return file.pack()


def unmatched(source: Source, graph: Graph) -> list[str]:
    """Names of the graph's binary convolutions that the file does not hold as `LceBconv2d` with their weights."""
    pairs = match(TfliteFile(source), graph)
    return [unit.name for unit in graph.binary_convs if unit.name not in pairs]


def match(file: TfliteFile, graph: Graph) -> dict[str, LceBconv2d]:
    """The file's operator of each unit, by weights; equal ones are told apart by scale and bias, then by order."""
    free, pairs = list(file.binary_convs), {}
    for unit in graph.binary_convs:
        alike = [conv for conv in free if _same_weights(conv, unit)]
        if alike:
            pairs[unit.name] = next((conv for conv in alike if _fold_of(conv, unit, graph) is not None), alike[0])
            free.remove(pairs[unit.name])
    return pairs


def _same_weights(conv: LceBconv2d, unit: BinaryConv) -> bool:
    if conv.groups != unit.groups or conv.negative.shape != unit.negative.shape:
        return False
    equal = (conv.negative == unit.negative).all(axis=(1, 2, 3))
    if conv.writes_bits:  # channels whose scale is negative are stored with inverted weights
        equal |= (conv.negative != unit.negative).all(axis=(1, 2, 3))
    return bool(equal.all())


def _folds(unit: BinaryConv, graph: Graph) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(multiplier, bias) that the converter may give the unit: its own, or with the constants behind it folded in."""
    multiplier, bias = unit.scale, unit.bias
    yield multiplier, bias
    if unit.residual is not None:
        return
    if unit.act_shift_in is not None:
        bias = bias - unit.act_shift_in
        yield multiplier, bias
    if unit.slope is not None:
        return
    if unit.act_shift_out is not None:
        bias = bias + unit.act_shift_out
        yield multiplier, bias
    for reader in (node for node in graph.nodes if unit.output in node.inputs):
        if isinstance(reader, BinaryConv) and reader.shift is not None:
            yield multiplier, bias - reader.shift
        if isinstance(reader, FloatOp) and reader.kind == "affine":
            scale = reader.attributes["scale"]
            yield multiplier * scale, bias * scale + reader.attributes["bias"]


def _fold_of(conv: LceBconv2d, unit: BinaryConv, graph: Graph) -> tuple[np.ndarray, np.ndarray] | None:
    """The entry of `_folds` that the file's constants show; None if they show none."""
    if conv.multiplier is None or conv.bias is None:
        return None
    for multiplier, bias in _folds(unit, graph):
        if _close(conv.multiplier, multiplier) and _close(conv.bias, bias):
            return multiplier, bias
    return None


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal up to a few roundings, relative to the largest constant."""
    return bool(np.allclose(a, b, rtol=1e-6, atol=1e-6 * max(float(np.abs(b).max()), 1e-30)))


@dataclass(frozen=True, eq=False)
class _Tap:
    """Where the file shows a unit: tensor indices, and how their values become the unit's own input and output."""

    x: int
    to_x: Callable[[np.ndarray], np.ndarray]
    y: int
    to_y: Callable[[np.ndarray], np.ndarray]
    stage: str


class ExposedTflite:
    """A copy of a .tflite that also returns what goes into and comes out of each binary convolution, and the values
    that it rounds to 8 bits. predict: from its inputs [N, ...] to its outputs [N, ...]."""

    def __init__(
        self,
        file: TfliteFile,
        taps: dict[str, _Tap],
        values: dict[str, tuple[int, Callable[[np.ndarray], np.ndarray]]],
        predict: Callable[[list[np.ndarray]], list[np.ndarray]],
    ) -> None:
        self.taps, self.values = taps, values
        self.outputs = [int(index) for index in file.subgraph.outputs]
        self._predict = predict

    def run(self, *images: np.ndarray) -> "Shown":
        """images: float32 [N, C, H, W], one array per input of the graph."""
        from .gate import Shown, UnitValues

        values = dict(zip(self.outputs, self._predict([_nhwc(array) for array in images]), strict=True))
        units = {
            name: UnitValues(tap.to_x(values[tap.x]), None, tap.to_y(values[tap.y]), tap.stage)
            for name, tap in self.taps.items()
        }
        shown = {name: convert(values[index]) for name, (index, convert) in self.values.items()}
        return Shown(_nchw(values[self.outputs[0]]), units, shown)


def expose(path: Source, graph: Graph) -> ExposedTflite:
    """A copy of the file at `path`, for Larq Compute Engine, that shows the graph's binary convolutions, their inputs
    and 8-bit values.

    A unit's x is its float input, before the shift; its y is `conv * scale + bias`, stage "core". Where the file keeps
    only signs between two convolutions, x is `shift` plus or minus something, and y is +-1, stage "sign": what the next
    unit's sign function gives. Raises RuntimeError naming a unit that the file does not hold.
    """

    def interpreter(data: bytes, file: TfliteFile) -> Callable[[list[np.ndarray]], list[np.ndarray]]:
        grouped = any(conv.groups > 1 for conv in file.binary_convs)  # the default kernels refuse groups
        predict = libraries()[1].testing.Interpreter(data, use_indirect_bgemm=grouped).predict

        def run(inputs: list[np.ndarray]) -> list[np.ndarray]:
            found = predict(inputs)
            return found if isinstance(found, list) else [found]

        return run

    return _expose(path, graph, interpreter)


def expose_kernels(path: Path, graph: Graph) -> ExposedTflite | None:
    """The same for stock LiteRT with our kernels; None where there is no LiteRT, or they were not built.

    What it shows is computed operator by operator, for every value in between is wanted; but its output is that of the
    file at `path` itself, where each unit is computed in one go.
    Raises InputError if BNAS_ISA names a path that this processor does not have.
    """
    from bnas.runtime_bench import native_library
    from bnas.runtime_bench.litert_engine import LiteRtEngine, find_host

    if find_host() is None or native_library.litert_library() is None or not count_binary_convs(path):
        return None
    whole = LiteRtEngine(path.read_bytes(), str(path), threads=1)

    def interpreter(data: bytes, file: TfliteFile) -> Callable[[list[np.ndarray]], list[np.ndarray]]:
        exposed = LiteRtEngine(data, str(path), threads=1)
        return lambda inputs: [*whole.predict(inputs), *exposed.predict(inputs)[len(whole.outputs) :]]

    return _expose(path, graph, interpreter)


def _expose(
    path: Source,
    graph: Graph,
    interpreter: Callable[[bytes, TfliteFile], Callable[[list[np.ndarray]], list[np.ndarray]]],
) -> ExposedTflite:
    file = TfliteFile(path)
    pairs = match(file, graph)
    if missing := [unit.name for unit in graph.binary_convs if unit.name not in pairs]:
        raise RuntimeError(f"the .tflite does not hold these binary convolutions: {', '.join(missing)}")
    taps = {unit.name: _tap(file, pairs[unit.name], unit, graph) for unit in graph.binary_convs}
    graph_inputs = [name for name, _ in graph.inputs]
    values = {
        unit.x: (taps[unit.name].x, taps[unit.name].to_x)
        for unit in graph.binary_convs
        if unit.x not in graph_inputs and file.producers[pairs[unit.name].operator.inputs[0]].name == "LceQuantize"
    } | _roundings(file, graph)
    shown = [index for tap in taps.values() for index in (tap.x, tap.y)] + [index for index, _ in values.values()]
    file.subgraph.outputs = list(dict.fromkeys([*map(int, file.subgraph.outputs), *shown]))
    return ExposedTflite(file, taps, values, interpreter(file.pack(), file))


def _tap(file: TfliteFile, conv: LceBconv2d, unit: BinaryConv, graph: Graph) -> _Tap:
    x, to_x = _input_tap(file, conv.operator.inputs[0], unit)
    y = conv.operator.outputs[0]
    if conv.writes_bits:
        return _Tap(x, to_x, y, lambda words: _signs(words, len(unit.scale)), "sign")
    return _Tap(x, to_x, y, _unfold(unit, _fold_of(conv, unit, graph)), "core")


def rounding_name(value: str) -> str:
    """How the operator is called that rounds to the graph's `value` of 8 bits."""
    return "round_" + re.sub(r"[^A-Za-z0-9_.]", "_", value)


def _roundings(file: TfliteFile, graph: Graph) -> dict[str, tuple[int, Callable[[np.ndarray], np.ndarray]]]:
    """The tensor that holds each 8-bit value of the graph in steps from its zero point, and how it becomes the value.

    Raises RuntimeError naming a value that the file does not round.
    """
    made: dict[str, int] = {}
    for operator in file.operators:
        if operator.name == "ROUND":
            parts = file.subgraph.tensors[operator.outputs[0]].name.decode().split(";")
            made |= {part.rpartition("/")[2]: operator.outputs[0] for part in parts}
    alike = first_alike(graph)
    found = {}
    for op in graph.nodes:
        if isinstance(op, FloatOp) and op.kind == "quantize":
            index = made.get(rounding_name(alike[op.output]))
            if index is None:
                raise RuntimeError(f"the .tflite does not round {op.name} to 8 bits")
            found[op.output] = (index, _clipped(op))
    return found


def _clipped(op: FloatOp) -> Callable[[np.ndarray], np.ndarray]:
    scale, zero_point = np.float32(op.attributes["scale"]), op.attributes["zero_point"]
    return lambda steps: _nchw(np.clip(steps, -zero_point, 255 - zero_point).astype(np.float32) * scale)


def _signs(words: np.ndarray, channels: int) -> np.ndarray:
    return np.where(_nchw(unpack_words(words, channels)), np.float32(-1), np.float32(1))


def _input_tap(file: TfliteFile, words: int, unit: BinaryConv) -> tuple[int, Callable[[np.ndarray], np.ndarray]]:
    """The tensor nearest to the unit's x, walking up from the packed input, and how it becomes x."""
    channels = unit.negative.shape[1] * unit.groups
    shift = np.zeros(channels, np.float32) if unit.shift is None else unit.shift
    producer = file.producers[words]
    if producer.name != "LceQuantize":
        return words, lambda bits: around(shift, _nchw(unpack_words(bits, channels)))
    tensor = producer.inputs[0]
    above = file.producers.get(tensor)
    if above is not None and above.name == "PADV2" and any(unit.pads):
        tensor = above.inputs[0]
        above = file.producers.get(tensor)
    if not shift.any():
        return tensor, _nchw
    if above is not None and above.name == "SUB" and _equals(file.constant(above.inputs[1]), shift):
        return above.inputs[0], _nchw
    return tensor, lambda shifted: _unshift(shift, shifted)


def _equals(constant: np.ndarray | None, wanted: np.ndarray) -> bool:
    return constant is not None and constant.size in (1, wanted.size) and bool((constant == wanted).all())


def _unshift(shift: np.ndarray, shifted: np.ndarray) -> np.ndarray:
    """x [N, C, H, W] of x - shift [N, H, W, C], never rounded to the other side of the shift."""
    x = (shifted + shift).astype(np.float32)
    x = np.where(shifted < 0, np.minimum(x, np.nextafter(shift, np.float32(-np.inf))), np.maximum(x, shift))
    return _nchw(x)


def _unfold(unit: BinaryConv, fold: tuple[np.ndarray, np.ndarray] | None) -> Callable[[np.ndarray], np.ndarray]:
    """Undo what was folded behind scale and bias. Constants that no fold explains stay, for the gate to see."""
    if fold is None or (fold[0] is unit.scale and fold[1] is unit.bias):
        return _nchw
    multiplier, bias = fold
    back = np.divide(unit.scale, multiplier, out=np.zeros_like(unit.scale), where=multiplier != 0)
    return lambda y: _nchw(((y - bias) * back + unit.bias).astype(np.float32))


def _nhwc(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image.transpose(0, 2, 3, 1), dtype=np.float32)


def _nchw(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value.transpose(0, 3, 1, 2)) if value.ndim == 4 else value


def libraries() -> tuple[Any, Any]:
    """tensorflow and larq_compute_engine, without their greetings. Raises InputError if one cannot be used."""
    if int(np.__version__.partition(".")[0]) >= 2:
        raise InputError(f"TFLite files need numpy < 2, found {np.__version__}: pip install 'bnas[tflite]'")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import larq_compute_engine
        import tensorflow
    except ImportError as error:
        raise InputError(f"TFLite files need {error.name or error}: pip install 'bnas[tflite]'") from error
    return tensorflow, larq_compute_engine


def _schema() -> Any:
    libraries()
    from tensorflow.lite.python import schema_py_generated

    return schema_py_generated


@cache
def _builtin_names() -> dict[int, str]:
    return {code: name for name, code in vars(_schema().BuiltinOperator).items() if isinstance(code, int)}


def _read(source: Source) -> tuple[bytes, str]:
    """The bytes and how to call them in an error."""
    if isinstance(source, bytes):
        return source, "the model"
    try:
        return Path(source).read_bytes(), repr(str(source))
    except OSError as error:
        raise InputError(f"cannot read {str(source)!r} ({error.strerror}); give a .tflite file") from None
