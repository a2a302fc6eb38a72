"""A .tflite file read from its bytes alone: what an engine has to know of it, and more outputs for it.

The format is a flatbuffer. A table begins with the distance back to its vtable, which says for each field how far
behind the table's begin it lies (0: absent); strings, vectors and other tables are reached by the distance forward that
stands in the field; a vector begins with its length. Field numbers are those of TensorFlow Lite's schema.
"""

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from . import network_file

METADATA_NAME = "bnas"
_SUBGRAPHS, _OPERATOR_CODES, _BUFFERS, _METADATA = 2, 1, 4, 6  # of the model
_TENSORS, _INPUTS, _OUTPUTS, _OPERATORS = 0, 1, 2, 3  # of a subgraph
_SHAPE, _BUFFER, _NAME = 0, 2, 3  # of a tensor
_SHORT_CODE, _CUSTOM_CODE, _BUILTIN_CODE = 0, 1, 3  # of an operator code; the first is one byte
_OPCODE, _OPERATOR_INPUTS, _OPERATOR_OUTPUTS, _CUSTOM_OPTIONS = 0, 1, 2, 5  # of an operator
_CUSTOM = 32  # the code of operators that have a name in place of a number
# The first input that may be absent (-1), for each builtin operator that has such inputs: its bias, or a part of a
# recurrent cell. Runtimes crash where another one is absent.
_FIRST_OPTIONAL = {
    3: 2,  # CONV_2D
    4: 2,  # DEPTHWISE_CONV_2D
    9: 2,  # FULLY_CONNECTED
    16: 1,  # LSTM
    27: 3,  # SVDF
    44: 1,  # UNIDIRECTIONAL_SEQUENCE_LSTM
    46: 9,  # BIDIRECTIONAL_SEQUENCE_RNN
    52: 1,  # BIDIRECTIONAL_SEQUENCE_LSTM
    67: 3,  # TRANSPOSE_CONV
    132: 2,  # CONV_3D
    141: 3,  # CONV_3D_TRANSPOSE
    _CUSTOM: 0,  # they look for themselves
}
_ENTRY_NAME, _ENTRY_BUFFER = 0, 1  # of an entry of the metadata


@dataclass(frozen=True, eq=False)
class TfliteContent:
    """What a file says of itself. tensors: names of the first subgraph's; outputs: those of its outputs.

    operators: custom names of the operators that are no builtin ones. metadata: what this project's exporter wrote.
    """

    data: bytes
    tensors: tuple[str, ...]
    outputs: tuple[str, ...]
    operators: frozenset[str]
    metadata: dict[str, Any]
    output_field: int  # where the offset to the outputs stands
    output_indices: tuple[int, ...]

    def with_outputs(self, names: Sequence[str]) -> bytes:
        """The file's bytes with the tensors `names` as further outputs: a new list of outputs behind all else."""
        indices = [*self.output_indices, *(self.tensors.index(name) for name in names)]
        data = bytearray(self.data)
        data += b"\0" * (-len(data) % 4)
        struct.pack_into("<I", data, self.output_field, len(data) - self.output_field)
        return bytes(data + struct.pack(f"<I{len(indices)}i", len(indices), *indices))


def parse(data: bytes, where: str) -> TfliteContent:
    """Raises InputError naming `where` if something that the file points to lies outside of it.

    Runtimes follow any offset, and end with a crash where a file was cut off.
    """
    try:
        if data[4:8] != network_file.TFLITE_IDENTIFIER:
            raise ValueError("no TFL3 identifier")
        return _content(data)
    except (struct.error, LookupError, ValueError, TypeError, RecursionError) as error:
        raise network_file.damaged(where, "not a whole TFLite file", error) from None


def _content(data: bytes) -> TfliteContent:
    model = _Table(data, _follow(data, 0))
    buffers = [table.octets(0) for table in model.tables(_BUFFERS)]
    codes = [_operator_code(code) for code in model.tables(_OPERATOR_CODES)]
    graphs = list(model.tables(_SUBGRAPHS))
    operators = set()
    for graph in graphs:
        tensors = list(graph.tables(_TENSORS))
        for tensor in tensors:
            tensor.integers(_SHAPE)
            buffers[tensor.number(_BUFFER)]
        for operator in graph.tables(_OPERATORS):
            for index in (*operator.integers(_OPERATOR_INPUTS), *operator.integers(_OPERATOR_OUTPUTS)):
                if not -1 <= index < len(tensors):
                    raise ValueError("an operator names a tensor that there is not")
            if any(
                index >= 0 and _is_constant(tensors[index], buffers) for index in operator.integers(_OPERATOR_OUTPUTS)
            ):
                raise ValueError("an operator writes a constant")  # runtimes write there, too
            operator.octets(_CUSTOM_OPTIONS)
            builtin, name = codes[operator.number(_OPCODE)]
            inputs = operator.integers(_OPERATOR_INPUTS)
            if -1 in inputs[: _FIRST_OPTIONAL.get(builtin, len(inputs))]:
                raise ValueError(f"operator {builtin} lacks its input {inputs.index(-1)}")
            if name is not None:
                operators.add(name)
    if not graphs:
        raise ValueError("no network in it")
    graph = graphs[0]
    names = tuple(tensor.text(_NAME) for tensor in graph.tables(_TENSORS))
    outputs, field = tuple(graph.integers(_OUTPUTS)), graph.field(_OUTPUTS)
    if not outputs or field is None or not graph.integers(_INPUTS):
        raise ValueError("no inputs or outputs")
    for index in (*outputs, *graph.integers(_INPUTS)):
        if not 0 <= index < len(names):
            raise ValueError("an input or output that there is not")
    return TfliteContent(
        data=data,
        tensors=names,
        outputs=tuple(names[index] for index in outputs),
        operators=frozenset(operators),
        metadata=_metadata(model, buffers),
        output_field=field,
        output_indices=outputs,
    )


def _is_constant(tensor: "_Table", buffers: Sequence[bytes]) -> bool:
    number = tensor.number(_BUFFER)  # 0: none
    return number != 0 and len(buffers[number]) > 0


def _operator_code(code: "_Table") -> tuple[int, str | None]:
    """The number of a builtin operator, and the name of a custom one. Old files have numbers in one byte."""
    builtin = max(code.byte(_SHORT_CODE), code.number(_BUILTIN_CODE))
    return builtin, code.text(_CUSTOM_CODE) if code.field(_CUSTOM_CODE) is not None else None


def _metadata(model: "_Table", buffers: Sequence[bytes]) -> dict[str, Any]:
    for entry in model.tables(_METADATA):
        if entry.text(_ENTRY_NAME) == METADATA_NAME:
            found = json.loads(buffers[entry.number(_ENTRY_BUFFER)])
            return found if isinstance(found, dict) else {}
    return {}


class _Table:
    """A table at `at`. Absent fields read as 0 and as empty. Raises struct.error or ValueError beyond the data."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._vtable = at - _unpack(data, "<i", at)
        if self._vtable < 0:
            raise ValueError("a table without a vtable")
        self._size = _unpack(data, "<H", self._vtable)

    def field(self, number: int) -> int | None:
        slot = 4 + 2 * number
        offset = _unpack(self._data, "<H", self._vtable + slot) if slot + 2 <= self._size else 0
        return self._at + offset if offset else None

    def number(self, field: int) -> int:
        at = self.field(field)
        return 0 if at is None else _unpack(self._data, "<I", at)

    def byte(self, field: int) -> int:
        at = self.field(field)
        return 0 if at is None else _unpack(self._data, "<B", at)

    def octets(self, field: int) -> bytes:
        first, count = self._vector(field, 1)
        return self._data[first : first + count]

    def text(self, field: int) -> str:
        return self.octets(field).decode()

    def integers(self, field: int) -> tuple[int, ...]:
        first, count = self._vector(field, 4)
        return struct.unpack_from(f"<{count}i", self._data, first)

    def tables(self, field: int) -> Iterator["_Table"]:
        first, count = self._vector(field, 4)
        for i in range(count):
            yield _Table(self._data, _follow(self._data, first + 4 * i))

    def _vector(self, field: int, size: int) -> tuple[int, int]:
        at = self.field(field)
        if at is None:
            return 0, 0
        first = _follow(self._data, at)
        count = _unpack(self._data, "<I", first)
        if first + 4 + count * size > len(self._data):
            raise ValueError(f"ends after {len(self._data)} bytes")
        return first + 4, count


def _follow(data: bytes, at: int) -> int:
    return at + _unpack(data, "<I", at)


def _unpack(data: bytes, form: str, at: int) -> int:
    value: int = struct.unpack_from(form, data, at)[0]
    return value
