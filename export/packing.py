"""Graph -> Graph: values that only ever feed signs are kept as bits, where that decides every sign exactly alike.

A binary convolution read only by sign functions of one shift need not compute floats: whether its output lies below the
shift depends on its dot product alone, a whole number of known range. So the unit's float32 arithmetic is run once for
every dot product there can be, and if the answers change at most once, that place is an integer threshold. (If they go
from +1 to -1 the channel's weights are flipped, which negates the dot product; scales of any sign, zero and NaN need no
rule of their own.) A maximum commutes with the sign function, so a max-pool between two binary units pools bits; NaN is
taken to win, as in PyTorch.
"""

from dataclasses import replace

import numpy as np

from .graph import BinaryConv, FloatOp, Graph


def pack_bits(graph: Graph) -> Graph:
    """The graph with bits for floats where that is exact; `graph` itself where there is no such place.

    Kept values keep their names. A value that turns into bits is one that is read, directly or through max-pools, by
    the sign functions of binary convolutions only, all of the same shift; it is made by a binary convolution without
    residual, by a max-pool, or by a "pack_signs" put in front of these.
    """
    return _Packing(graph).run()


def integer_thresholds(unit: BinaryConv, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """(flip bool [out], threshold int32 [out]): the output's sign is -1, output < shift, just where dot < threshold.

    shift: float32 [out], of the readers. dot is the unit's dot product, with the weights of the flipped channels
    negated. None if some channel's sign changes more than once over the possible dot products.
    """
    if unit.slope is not None and not np.isfinite(unit.slope).all():
        return None  # what PReLU makes of 0 then differs between runtimes
    fan_in = unit.negative[0].size
    with np.errstate(all="ignore"):
        values = _epilogue(unit, np.arange(-fan_in, fan_in + 1, 2, dtype=np.float32))
        minus = values < _column(shift)
    falling = (minus[:, :-1] >= minus[:, 1:]).all(axis=1)
    rising = (minus[:, :-1] <= minus[:, 1:]).all(axis=1)
    if not (falling | rising).all():
        return None
    return ~falling, (2 * minus.sum(axis=1) - fan_in).astype(np.int32)


def _epilogue(unit: BinaryConv, dots: np.ndarray) -> np.ndarray:
    """What the unit gives for each dot product, float32 [out, len(dots)], in the operator's order and rounding."""
    v = dots * _column(unit.scale) + _column(unit.bias)
    if unit.act_shift_in is not None:
        v = v - _column(unit.act_shift_in)
    if unit.slope is not None:
        v = np.where(v < 0, v * _column(unit.slope), v)
    if unit.act_shift_out is not None:
        v = v + _column(unit.act_shift_out)
    return v


def _column(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).reshape(-1, 1)


class _Packing:
    def __init__(self, graph: Graph) -> None:
        self.graph, self.shapes = graph, graph.shapes()
        self.packed: set[str] = set()  # values that are bits now
        self.signs: dict[tuple[str, bytes], str] = {}  # (float value, shift) -> its bits
        self.nodes: list[BinaryConv | FloatOp] = []

    def run(self) -> Graph:
        for node in self.graph.nodes:
            packed = self.pack_conv(node) if isinstance(node, BinaryConv) else self.pack_pool(node)
            self.nodes.append(packed)
        return replace(self.graph, nodes=tuple(self.nodes)) if self.packed else self.graph

    def pack_conv(self, unit: BinaryConv) -> BinaryConv:
        shift = self.shift_behind(unit.output) if unit.residual is None else None
        found = None if shift is None else integer_thresholds(unit, shift)
        if found is None:
            return replace(unit, x_bits=True, shift=None) if unit.x in self.packed else unit
        flip, threshold = found
        x = self.bits_of(unit.x, self.shift_of(unit))
        self.packed.add(unit.output)
        negative = unit.negative ^ flip.reshape(-1, 1, 1, 1)
        scale = np.where(flip, -unit.scale, unit.scale)
        return replace(unit, x=x, x_bits=True, shift=None, negative=negative, scale=scale, threshold=threshold)

    def pack_pool(self, op: FloatOp) -> FloatOp:
        shift = self.shift_behind(op.output) if op.kind == "max_pool" else None
        if shift is None:
            return op
        bits = self.bits_of(op.inputs[0], shift)
        self.packed.add(op.output)
        return replace(op, kind="max_pool_bits", inputs=(bits,))

    def bits_of(self, value: str, shift: np.ndarray) -> str:
        """The value that holds the bits of (value < shift); a node that makes them is added where there is none."""
        if value in self.packed:
            return value
        key = (value, shift.tobytes())
        if key not in self.signs:
            bits = f"{value}.bits{len(self.signs)}"
            self.signs[key] = bits
            self.nodes.append(FloatOp("pack_signs", bits, (value,), bits, {"shift": shift}))
        return self.signs[key]

    def shift_behind(self, value: str) -> np.ndarray | None:
        """The one shift, float32 [C], of all sign functions that read `value`; None if anything else does."""
        readers = [node for node in self.graph.nodes if value in node.inputs]
        if value == self.graph.output or not readers:
            return None
        shifts: list[np.ndarray] = []
        for reader in readers:
            if isinstance(reader, BinaryConv) and reader.residual != value and not reader.x_bits:
                shifts.append(self.shift_of(reader))
            elif isinstance(reader, FloatOp) and reader.kind == "max_pool":
                behind = self.shift_behind(reader.output)
                if behind is None:
                    return None
                shifts.append(behind)
            else:
                return None
        return shifts[0] if all(np.array_equal(shift, shifts[0]) for shift in shifts) else None

    def shift_of(self, unit: BinaryConv) -> np.ndarray:
        channels = self.shapes[unit.x][0]
        return np.zeros(channels, np.float32) if unit.shift is None else unit.shift.astype(np.float32)
