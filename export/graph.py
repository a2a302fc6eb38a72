"""The small graph between capture and the writers: fused binary units and the few float operators around them.

Plain numpy, no framework: `lowering` makes it from a captured network, `units` from a workload, and the writers
(ONNX, TFLite, twins) read it. Values are named strings; tensors are NCHW float32 unless a node says otherwise.
"""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class BinaryConv:
    """y = act(conv(sign(x - shift), W) * scale + bias + residual), one per binary convolution of the network.

    negative: bool [out, in/groups, kh, kw], True where the weight is -1. Padding is +1 (bit 0), pads = (top, left,
    bottom, right). scale, bias: float32 [out]. shift: float32 [in] or None (0). residual: value name or None.
    act(v) = prelu(v - act_shift_in; slope) + act_shift_out, each float32 [out] or None: slope None is the identity,
    slope 0 is ReLU.
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

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.x,) if self.residual is None else (self.x, self.residual)


@dataclass(frozen=True, eq=False)
class FloatOp:
    """One float operator. `kind` is a key of FLOAT_OPS, `attributes` holds exactly the fields named there."""

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
    "conv": ("weight", "bias", "strides", "pads", "dilations", "groups"),  # weight [out, in/g, kh, kw], bias [out], zero pads
    "linear": ("weight", "bias"),  # [N, in] -> [N, out]; weight [out, in]
    "affine": ("scale", "bias"),  # x * scale + bias, each [C] (channel axis 1) or [1]
    "add": (),  # two inputs of one shape
    "prelu": ("slope",),  # [C]
    "relu": (),
    "avg_pool": ("kernel", "strides"),  # no padding, kernel (h, w)
    "max_pool": ("kernel", "strides", "pads"),
    "concat": (),  # channels
    "slice": ("start", "stop"),  # channels [start, stop)
    "global_mean": (),  # [N, C, H, W] -> [N, C]
    "flatten": (),  # [N, C, H, W] -> [N, C*H*W]
}


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in execution order, one image input [N, C, H, W] and one output [N, classes] (or any shape)."""

    input: str
    input_shape: tuple[int, int, int]
    output: str
    nodes: tuple[BinaryConv | FloatOp, ...]

    @property
    def binary_convs(self) -> tuple[BinaryConv, ...]:
        return tuple(n for n in self.nodes if isinstance(n, BinaryConv))

    @property
    def float_convs(self) -> tuple[FloatOp, ...]:
        return tuple(n for n in self.nodes if isinstance(n, FloatOp) and n.kind == "conv")
