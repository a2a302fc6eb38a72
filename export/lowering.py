"""A captured network -> Graph. Binary convolutions are recognised by the values they hold, not by the layers' classes.

`aten.read` gives plain operators; here a convolution of signs with two-valued weights becomes a BinaryConv and takes
up the batch-norm, residual addition and activation behind it, as long as no one else reads a value between. Whether
weights and inputs are binary is decided by `binary_weights` and `_signs_in_front`: further forms of sign join there.
"""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from .aten import Op, read
from .capture import INPUT, Captured
from .eight_bit import eight_bit_units
from .graph import FLOAT_OPS, BinaryConv, FloatOp, Graph, is_shift

WEIGHT_SPREAD = 1e-4  # relative; weights computed as `scale * sign` in float32 were seen to spread by at most 3.8e-6


@dataclass(frozen=True)
class Convolution:
    """How one convolution of the network is written. kind: "binary", "8-bit" or "float"; reason: why float, or None."""

    name: str
    kind: str
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class Lowered:
    """The graph; its convolutions in order; and by unit the name of its value before residual and activation."""

    graph: Graph
    convolutions: tuple[Convolution, ...]
    cores: dict[str, str]


def lower(captured: Captured) -> Lowered:
    """The graph of a captured network. Values keep their captured names. Raises InputError for unknown operators."""
    ops, output = read(captured)
    program = _Program(ops, output)
    program.move_shifts_into_signs()
    units, cores, reasons = {}, {}, {}
    names = _conv_names(ops)
    for conv in [op for op in program.ops if op.kind == "conv"]:
        name = names[conv.output]
        unit = _recognise(program, conv)
        if isinstance(unit, str):
            reasons[name] = unit
            continue
        core, last = program.absorb_epilogue(conv, unit)
        units[last], cores[name] = {"name": name, "output": last, **unit}, core
    names |= {last: names[first] for first, last in program.fold_affines().items() if first in names}
    nodes = tuple(
        _binary_conv(units[op.output]) if op.output in units else _float_op(op, names) for op in program.live()
    )
    graph = Graph(INPUT, captured.input_shape, output, nodes)
    eight_bit = {unit.op.name for unit in eight_bit_units(graph).values()}

    def written(name: str) -> Convolution:
        if name in eight_bit:
            return Convolution(name, "8-bit")
        return Convolution(name, "float", reasons[name]) if name in reasons else Convolution(name, "binary")

    return Lowered(graph, tuple(written(name) for name in dict.fromkeys(names.values())), cores)


def binary_weights(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray] | str:
    """(negative, scale [O]) of a weight [O, Cg, kh, kw] that is +-scale per output channel, or why it is not."""
    size = np.abs(weight).reshape(len(weight), -1)
    if size.shape[1] == 1:
        return "one weight per output, which any value fits"
    if not np.isfinite(size).all() or (size == 0).any():
        return "weights hold zeros or non-finite values"
    if ((size.max(axis=1) - size.min(axis=1)) > WEIGHT_SPREAD * size.max(axis=1)).any():
        return "weights take more than two values"
    return weight < 0, np.median(size, axis=1)


def _recognise(program: "_Program", conv: Op) -> dict | str:
    """The fields of the BinaryConv that `conv` is, without its epilogue, or why it stays float."""
    weights = binary_weights(conv.attributes["weight"])
    source = _signs_in_front(program, conv)
    if isinstance(weights, str) or isinstance(source, str):
        return " and ".join(problem for problem in (weights, source) if isinstance(problem, str))
    negative, scale = weights
    sign, pads = source
    shift = np.broadcast_to(sign.attributes["shift"], negative.shape[1] * conv.attributes["groups"])
    return {
        "x": sign.inputs[0],
        "negative": negative,
        "scale": scale,
        "bias": conv.attributes["bias"],
        "pads": pads,
        "shift": shift if shift.any() else None,
        **{key: conv.attributes[key] for key in ("strides", "dilations", "groups")},
    }


def _signs_in_front(program: "_Program", conv: Op) -> tuple[Op, tuple[int, int, int, int]] | str:
    """The sign operator whose padded result `conv` reads, and the padding; or why there is none."""
    source = program.producer(conv.inputs[0])
    pads = (0, 0, 0, 0)
    pad_value = 1.0
    if source is not None and source.kind == "pad":
        pads, pad_value = source.attributes["pads"], source.attributes["value"]
        source = program.producer(source.inputs[0])
    if source is None or source.kind != "sign":
        return "input is not a sign"
    if any(conv.attributes["pads"]) or pad_value == 0:
        return "zero padding"
    if pad_value != 1:
        return f"padding with {pad_value:g}"
    return source, pads


class _Program:
    """Operators while they are being fused. A fused operator is dropped; its reader takes its place."""

    def __init__(self, ops: list[Op], output: str) -> None:
        self.ops, self.output = ops, output

    def producer(self, value: str) -> Op | None:
        return next((op for op in self.ops if op.output == value), None)

    def only_reader(self, value: str) -> Op | None:
        """The one operator that reads `value`, if it reads it once and no one else does."""
        readers = [op for op in self.ops for name in op.inputs if name == value]
        return readers[0] if len(readers) == 1 and value != self.output else None

    def live(self) -> list[Op]:
        """The operators that the output needs, in order."""
        needed = {self.output}
        found = []
        for op in reversed(self.ops):
            if op.output in needed:
                found.append(op)
                needed.update(op.inputs)
        return found[::-1]

    def move_shifts_into_signs(self) -> None:
        """sign(x + b) with threshold 0 is sign(x) with threshold -b: in IEEE floats x - t < 0 exactly where x < t.

        A sum that others read too stays, and one behind a PReLU: it ends a unit.
        """
        for i, op in enumerate(self.ops):
            source = self.producer(op.inputs[0]) if op.kind == "sign" and not op.attributes["shift"].any() else None
            if source is None or not is_shift(source) or self.only_reader(source.output) is not op:
                continue
            before = self.producer(source.inputs[0])
            if before is None or before.kind != "prelu":
                self.ops[i] = replace(op, inputs=source.inputs, attributes={"shift": -source.attributes["bias"]})
        self.ops = self.live()

    def absorb_epilogue(self, conv: Op, unit: dict) -> tuple[str, str]:
        """Move what follows `conv` into the fields of `unit`; gives its core and last value.

        conv -> affine* -> [+ residual] -> [- shift] -> [prelu or relu] -> [+ shift], each read once; core is the
        value in front of the residual.
        """
        taken, value = [conv], conv.output

        def advance(op: Op) -> str:
            taken.append(op)
            return op.output

        while (op := self.only_reader(value)) and op.kind == "affine" and not self._starts_activation(op):
            unit["scale"] = unit["scale"] * op.attributes["scale"]
            unit["bias"] = unit["bias"] * op.attributes["scale"] + op.attributes["bias"]
            value = advance(op)
        core = value
        if op is not None and op.kind == "add":
            unit["residual"] = next(name for name in op.inputs if name != value)
            value = advance(op)
            op = self.only_reader(value)
        if op is not None and self._starts_activation(op):
            if op.kind == "affine":
                unit["act_shift_in"] = -op.attributes["bias"]
                value = advance(op)
                op = self.only_reader(value)
            assert op is not None
            unit["slope"] = np.zeros(len(unit["scale"])) if op.kind == "relu" else op.attributes["slope"]
            value = advance(op)
            op = self.only_reader(value)
            if op is not None and is_shift(op):
                unit["act_shift_out"] = op.attributes["bias"]
                value = advance(op)
        inputs = (unit["x"], unit["residual"]) if "residual" in unit else (unit["x"],)
        self._replace(taken, Op("binary_conv", conv.module, inputs, value))
        return core, value

    def _starts_activation(self, op: Op) -> bool:
        """Is `op` a (P)ReLU, or a shift that only a (P)ReLU reads?"""
        if is_shift(op):
            reader = self.only_reader(op.output)
            return reader is not None and reader.kind in ("prelu", "relu")
        return op.kind in ("prelu", "relu")

    def fold_affines(self) -> dict[str, str]:
        """Fold an affine into the float convolution, linear layer or affine whose only reader it is.

        Returns how the value of each such operator was called, and is now.
        """
        renamed = {}
        for op in list(self.ops):
            if op.kind not in ("conv", "linear", "affine") or op not in self.ops:
                continue
            first = op.output
            while (reader := self.only_reader(op.output)) and reader.kind == "affine":
                scale, bias = reader.attributes["scale"], reader.attributes["bias"]
                weight = "scale" if op.kind == "affine" else "weight"
                along = scale.reshape(-1, *(1,) * (op.attributes[weight].ndim - 1))
                folded = {weight: op.attributes[weight] * along, "bias": op.attributes["bias"] * scale + bias}
                fused = replace(op, output=reader.output, attributes={**op.attributes, **folded})
                self._replace([op, reader], fused)
                op = fused
            renamed[first] = op.output
        return renamed

    def _replace(self, taken: list[Op], fused: Op) -> None:
        """`fused` takes the place of the last of `taken`, so that all it reads is there already."""
        last = taken[-1]
        self.ops = [fused if op is last else op for op in self.ops if op is last or op not in taken]


def _conv_names(ops: list[Op]) -> dict[str, str]:
    """A distinct name for each convolution, by its output: the path of its module."""
    seen: Counter[str] = Counter()
    names = {}
    for op in ops:
        if op.kind == "conv":
            name = op.module or op.output
            seen[name] += 1
            names[op.output] = name if seen[name] == 1 else f"{name}#{seen[name]}"
    return names


def _binary_conv(unit: dict) -> BinaryConv:
    channels = len(unit["negative"])
    arrays = {
        key: np.broadcast_to(value, channels).astype(np.float32)
        for key, value in unit.items()
        if key in ("scale", "bias", "slope", "act_shift_in", "act_shift_out")
    }
    shift = None if unit["shift"] is None else unit["shift"].astype(np.float32)
    return BinaryConv(**{**unit, **arrays, "shift": shift})


def _float_op(op: Op, names: dict[str, str]) -> FloatOp:
    attributes = {
        key: value.astype(np.float32) if isinstance(value, np.ndarray) else value
        for key, value in op.attributes.items()
    }
    if op.kind in ("conv", "linear"):
        attributes["bias"] = np.broadcast_to(attributes["bias"], len(attributes["weight"]))
    if op.kind == "affine":
        attributes["scale"], attributes["bias"] = np.broadcast_arrays(attributes["scale"], attributes["bias"])
    assert set(attributes) == set(FLOAT_OPS[op.kind])
    return FloatOp(op.kind, names.get(op.output, op.module or op.output), op.inputs, op.output, attributes)
