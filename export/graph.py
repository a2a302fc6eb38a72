"""The small graph between capture and the writers: fused binary units and the few float operators around them.

Plain numpy, no framework: `lowering` makes it from a captured network, `units` from a workload, and the writers
(ONNX, TFLite, twins) read it. Values are named strings; tensors are NCHW float32 unless a node says otherwise. A value
of bits, 32 channels in a word, has the shape of the floats that it stands for.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class BinaryConv:
    """y = act(conv(sign(x - shift), W) * scale + bias + residual), one per binary convolution of the network.

    negative: bool [out, in/groups, kh, kw], True where the weight is -1. Padding is +1 (bit 0), pads = (top, left,
    bottom, right). scale, bias: float32 [out]. shift: float32 [in] or None (0). residual: value name or None.
    act(v) = prelu(v - act_shift_in; slope) + act_shift_out, each float32 [out] or None: slope None is the identity,
    slope 0 is ReLU.

    `packing` makes two further forms. x_bits: x holds bits, not floats, and shift is None. threshold, int32 [out]: the
    output holds bits, 1 where the dot product is below its channel's threshold; x holds bits and residual is None.
    """

    name: str
    x: str
    output: str
    negative: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1
    shift: np.ndarray | None = None
    residual: str | None = None
    slope: np.ndarray | None = None
    act_shift_in: np.ndarray | None = None
    act_shift_out: np.ndarray | None = None
    x_bits: bool = False
    threshold: np.ndarray | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.x,) if self.residual is None else (self.x, self.residual)


@dataclass(frozen=True, eq=False)
class FloatOp:
    """One other operator. `kind` is a key of FLOAT_OPS, `attributes` holds exactly the fields named there."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    output: str
    attributes: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if set(self.attributes) != set(FLOAT_OPS[self.kind]):
            raise ValueError(f"{self.kind} needs {FLOAT_OPS[self.kind]}, got {sorted(self.attributes)}")


# kind -> attribute names. Arrays are float32; spatial tuples are (height, width); pads are (top, left, bottom, right).
FLOAT_OPS: dict[str, tuple[str, ...]] = {
    "conv": ("weight", "bias", "strides", "pads", "dilations", "groups"),  # [out, in/g, kh, kw], [out]; zero pads
    "linear": ("weight", "bias"),  # [N, in] -> [N, out]; weight [out, in]
    "affine": ("scale", "bias"),  # x * scale + bias, each [C] (channel axis 1) or [1]
    "add": (),  # two inputs of one shape
    "prelu": ("slope",),  # [C]
    "relu": (),
    "avg_pool": ("kernel", "strides", "pads"),  # the mean of what is inside of the image; likewise the maximum
    "max_pool": ("kernel", "strides", "pads"),
    "concat": (),  # channels
    "slice": ("start", "stop", "step"),  # channels [start, stop), every step-th
    "global_mean": (),  # [N, C, H, W] -> [N, C]
    "flatten": (),  # [N, C, H, W] -> [N, C*H*W]
    # clip(round(x / scale) + zero_point, 0, 255) - zero_point, times scale: half to even; a float32 value and an int
    "quantize": ("scale", "zero_point"),
    "sign": ("shift",),  # x < shift ? -1 : +1, shift [C]; only in front of a convolution that stays float
    "pad": ("pads", "value"),  # constant, spatial; likewise
    # made by `packing` only
    "pack_signs": ("shift",),  # floats -> bits of (x < shift), shift [C]
    "max_pool_bits": ("kernel", "strides", "pads"),  # bits -> bits: the maximum of signs
}


Node = BinaryConv | FloatOp


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in execution order, one image input [N, C, H, W] and one output [N, classes] (or any shape).

    extra_inputs: (name, (C, H, W)) of further inputs; only the graphs of single units have one: a residual, or the
    second value of a sum.
    """

    input: str
    input_shape: tuple[int, int, int]
    output: str
    nodes: tuple[Node, ...]
    extra_inputs: tuple[tuple[str, tuple[int, int, int]], ...] = ()

    @property
    def inputs(self) -> tuple[tuple[str, tuple[int, int, int]], ...]:
        return ((self.input, self.input_shape), *self.extra_inputs)

    @property
    def binary_convs(self) -> tuple[BinaryConv, ...]:
        return tuple(n for n in self.nodes if isinstance(n, BinaryConv))

    @property
    def float_convs(self) -> tuple[FloatOp, ...]:
        return tuple(n for n in self.nodes if isinstance(n, FloatOp) and n.kind == "conv")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every value without its batch axis: (C, H, W) or (features,)."""
        known: dict[str, tuple[int, ...]] = dict(self.inputs)
        for node in self.nodes:
            known[node.output] = output_shape(node, tuple(known[name] for name in node.inputs))
        return known

    def producers(self) -> dict[str, Node]:
        """The node that makes each value; the inputs have none."""
        return {node.output: node for node in self.nodes}

    def readers(self) -> dict[str, list[Node]]:
        """The nodes that read each value, in order, one as often as it reads it."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                found.setdefault(name, []).append(node)
        return found


def conv_epilogue(conv: FloatOp, readers: dict[str, list[Node]]) -> tuple[FloatOp, ...]:
    """What belongs to a float or 8-bit convolution: [relu, or prelu [and a shift]] [quantize], all read only there.

    readers: of the graph.
    """
    found: list[FloatOp] = []

    def take(wanted: Callable[[FloatOp], bool]) -> bool:
        following = readers.get(found[-1].output if found else conv.output, [])
        if len(following) != 1 or not isinstance(op := following[0], FloatOp) or not wanted(op):
            return False
        found.append(op)
        return True

    if not take(lambda op: op.kind == "relu") and take(lambda op: op.kind == "prelu"):
        take(is_shift)
    take(lambda op: op.kind == "quantize")
    return tuple(found)


def first_alike(graph: Graph) -> dict[str, str]:
    """For each value made by a float operator, the first one made by an equal operator from equal values."""
    first: dict[tuple, str] = {}
    alike: dict[str, str] = {}
    for node in graph.nodes:
        if isinstance(node, FloatOp):
            attributes = tuple((key, _comparable(node.attributes[key])) for key in FLOAT_OPS[node.kind])
            inputs = tuple(alike.get(name, name) for name in node.inputs)
            alike[node.output] = first.setdefault((node.kind, inputs, attributes), node.output)
    return alike


def _comparable(attribute: Any) -> Any:
    return (attribute.shape, attribute.tobytes()) if isinstance(attribute, np.ndarray) else attribute


def is_shift(op: Any) -> bool:
    """Is `op` (of any class with a kind and attributes) an affine that only adds?"""
    return op.kind == "affine" and bool((op.attributes["scale"] == 1).all())


def output_shape(node: Node, inputs: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """Shape of a node's value from its inputs' shapes, all without the batch axis."""
    first = inputs[0]
    if isinstance(node, BinaryConv):
        return _windows(first, node.negative.shape, node.strides, node.pads, node.dilations)
    a = node.attributes
    match node.kind:
        case "conv":
            return _windows(first, a["weight"].shape, a["strides"], a["pads"], a["dilations"])
        case "avg_pool" | "max_pool" | "max_pool_bits":
            return _windows(first, (first[0], 1, *a["kernel"]), a["strides"], a["pads"])
        case "pad":
            top, left, bottom, right = a["pads"]
            return (first[0], first[1] + top + bottom, first[2] + left + right)
        case "linear":
            return (a["weight"].shape[0],)
        case "concat":
            return (sum(shape[0] for shape in inputs), *first[1:])
        case "slice":
            return (len(range(a["start"], a["stop"], a["step"])), *first[1:])
        case "global_mean":
            return first[:1]
        case "flatten":
            return (int(np.prod(first)),)
    return first


def _windows(
    image: tuple[int, ...],
    weight: tuple[int, ...],
    strides: tuple[int, int],
    pads: tuple[int, int, int, int],
    dilations: tuple[int, int] = (1, 1),
) -> tuple[int, int, int]:
    """(C, H, W) after sliding windows of `weight` = (out channels, ., kh, kw) over `image` = (C, H, W)."""

    def along(axis: int) -> int:
        free = image[1 + axis] + pads[axis] + pads[axis + 2] - dilations[axis] * (weight[2 + axis] - 1) - 1
        return free // strides[axis] + 1

    return (weight[0], along(0), along(1))


def same_pads(
    size: tuple[int, int], kernel: tuple[int, int], strides: tuple[int, int], dilations: tuple[int, int] = (1, 1)
) -> tuple[int, int, int, int]:
    """TensorFlow SAME padding (top, left, bottom, right): ceil(size / stride) outputs, the odd pixel goes after."""
    before, after = [], []
    for pixels, taps, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
        total = max((-(-pixels // stride) - 1) * stride + dilation * (taps - 1) + 1 - pixels, 0)
        before.append(total // 2)
        after.append(total - total // 2)
    return (before[0], before[1], after[0], after[1])
