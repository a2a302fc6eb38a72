"""Single fused units as small files, for measuring: Workload -> Graph with random values, and back.

`graph_workloads(unit_graph(w)) == (w,)`: what a latency table measures is what is found again in an exported network.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import onnx

from bnas.profiles.errors import InputError
from bnas.profiles.workload import FIXED, Workload

from .eight_bit import LARGEST, eight_bit_units
from .graph import BinaryConv, FloatOp, Graph, Node, conv_epilogue, same_pads
from .onnx_writer import to_onnx

Shape = tuple[int, ...]
BITS = {"binary_conv": (1,), "conv": (8, 32), "head": (8, 32), "quantize": (8,)}  # of the other kinds: 32
FIXED_SHAPE = (FIXED.in_channels, FIXED.out_channels, FIXED.height, FIXED.width)


def unit_model(workload: Workload, seed: int = 0) -> onnx.ModelProto:
    """An ONNX model that is this one unit; the random values do not depend on the machine."""
    return to_onnx(unit_graph(workload, seed), {"workload": workload.key}, name=workload.kind)


def graph_file(graph: Graph, format: Literal["onnx", "tflite"], metadata: dict[str, str]) -> bytes:
    """The content of a .onnx or .tflite file that is `graph`, a unit or a whole network, to be measured.

    Raises InputError for what the format's writer cannot express, and for tflite where tensorflow or
    larq-compute-engine is missing.
    """
    if format == "tflite":
        from .tflite_writer import to_tflite

        return to_tflite(graph, metadata)
    return to_onnx(graph, metadata).SerializeToString()


def unit_graph(workload: Workload, seed: int = 0) -> Graph:
    """A graph that is this one unit, input "x", output "y".

    A residual is the input itself where the shapes are equal (as in a network), else a second input "residual". The
    second value of a sum or a concatenation is an input "other". An 8-bit convolution begins with the rounding of its
    input, which in a network is another unit's. Raises InputError for what no writer can express: packed-bit tensors,
    and other widths than a kind has.
    """
    w = workload
    if w.bits not in BITS.get(w.kind, (32,)) or (w.input_format, w.output_format) != ("float", "float"):
        raise InputError(
            f"no file can be written for {w.key}; units have float inputs and outputs, and 1 bit if they are a "
            "binary_conv, 8 if a quantize, 8 or 32 if a conv or a head, else 32"
        )
    rng = np.random.default_rng(seed)
    if w.kind == "binary_conv":
        return _binary_conv(w, rng)
    if w.kind in ("add", "concat"):
        return _of_two(w)
    return Graph("x", _input_shape(w), "y", tuple(_BUILDERS[w.kind](w, rng)))


def graph_workloads(graph: Graph) -> tuple[Workload, ...]:
    """The workload of every unit of `graph`, in order; a float operator that is part of no unit is left out.

    Two graphs are read as `unit_graph` makes them: a ReLU on 1x1x1 is FIXED, and a graph that is one 8-bit convolution
    holds no rounding of its input besides.
    """
    found = _Finder(graph).find()
    if found == (Workload("relu", 32, *FIXED_SHAPE),):
        return (FIXED,)
    if [(w.kind, w.bits) for w in found] == [("quantize", 8), ("conv", 8)]:
        return found[1:]
    return found


class _Finder:
    """What surrounds each node of a graph, to tell which unit it belongs to."""

    def __init__(self, graph: Graph) -> None:
        self.nodes = graph.nodes
        self.shapes, self.producers, self.readers = graph.shapes(), graph.producers(), graph.readers()
        self.eight_bit = eight_bit_units(graph)
        self.taken: set[str] = set()  # values made inside of a unit that begins or ends at another node
        for conv in graph.float_convs:
            unit = self.eight_bit.get(conv.output)
            self.taken |= {op.output for op in self.epilogue(conv) if unit is not None or op.kind != "quantize"}
        for node in graph.nodes:
            self.taken |= {part.output for part in self.averaged(node)}

    def find(self) -> tuple[Workload, ...]:
        found = (self.workload_of(node) for node in self.nodes if node.output not in self.taken)
        return tuple(w for w in found if w is not None)

    def workload_of(self, node: Node) -> Workload | None:
        """The workload whose unit ends (float convolution: starts) at `node`, or None."""
        if isinstance(node, BinaryConv):
            return self.spatial("binary_conv", 1, node.negative.shape, node, _unit_epilogue(node))
        before, after = self.shapes[node.inputs[0]], self.shapes[node.output]
        if node.kind == "conv":
            bits = 8 if node.output in self.eight_bit else 32
            return self.spatial("conv", bits, node.attributes["weight"].shape, node, self.conv_epilogue(node))
        if node.kind == "linear":
            unit = self.eight_bit.get(node.output)
            source = self.producers.get(node.inputs[0] if unit is None else unit.source.inputs[0])
            if isinstance(source, FloatOp) and source.kind == "global_mean":
                channels, height, width = self.shapes[source.inputs[0]]
                return Workload("head", 32 if unit is None else 8, channels, after[0], height, width)
        if len(before) != 3:
            return None
        if node.kind in ("avg_pool", "max_pool"):
            return self.pool(node)
        channels, size = before[0], before[1:]
        match node.kind:
            case "concat" if len(set(node.inputs)) > 1:
                return Workload("concat", 32, after[0], after[0], *size)
            case "concat" if not self.is_downsample(self.producers.get(node.inputs[0])):
                return Workload("duplicate", 32, channels, after[0], *size)
            case "affine" if parts := self.averaged(node):
                return Workload("average", 32, self.shapes[parts[-1].inputs[0]][0], channels, *size)
            case "affine":
                return Workload("norm", 32, channels, channels, *size)
            case "add":
                return Workload("add", 32, 2 * channels, channels, *size)
            case "relu":
                return Workload("relu", 32, channels, channels, *size)
            case "quantize":
                return Workload("quantize", 8, channels, channels, *size)
            case "slice" if node.attributes["step"] == 2 and channels == 2 * after[0]:
                parity = "even" if node.attributes["start"] == 0 else "odd"
                return Workload(f"{parity}_channels", 32, channels, after[0], *size)
        return None

    def spatial(
        self, kind: str, bits: int, weight: Shape, node: Node, epilogue: tuple[str, ...] = ()
    ) -> Workload | None:
        """The workload of a convolution or pool; None where it has a form that no workload has (unequal strides)."""
        geometry = node.attributes if isinstance(node, FloatOp) else vars(node)
        dilations = geometry.get("dilations", (1, 1))
        vertical, horizontal = zip(weight[2:], geometry["strides"], dilations, strict=True)
        if vertical != horizontal:
            return None
        channels, height, width = self.shapes[node.inputs[0]]
        groups = geometry.get("groups", 1)
        return Workload(kind, bits, channels, weight[0], height, width, *vertical, groups, epilogue)

    def pool(self, node: FloatOp) -> Workload | None:
        channels, height, width = self.shapes[node.inputs[0]]
        kernel, strides = node.attributes["kernel"], node.attributes["strides"]
        if self.is_downsample(node):
            repeat = next((r for r in self.readers.get(node.output, []) if _is_repeat(r)), None)
            out = channels if repeat is None else self.shapes[repeat.output][0]
            return Workload("downsample", 32, channels, out, height, width, kernel=2, stride=2)
        if node.attributes["pads"] != same_pads((height, width), kernel, strides):
            return None
        return self.spatial(node.kind, 32, (channels, 1, *kernel), node)

    def is_downsample(self, node: Node | None) -> bool:
        if not isinstance(node, FloatOp) or node.kind != "avg_pool":
            return False
        a = node.attributes
        _, height, width = self.shapes[node.inputs[0]]
        same = same_pads((height, width), (2, 2), (2, 2))
        return bool(a["kernel"] == a["strides"] == (2, 2) and a["pads"] == same)

    def epilogue(self, conv: FloatOp) -> tuple[FloatOp, ...]:
        return conv_epilogue(conv, self.readers)

    def conv_epilogue(self, conv: FloatOp) -> tuple[str, ...]:
        kinds = [op.kind for op in self.epilogue(conv)]
        if kinds[:2] == ["prelu", "affine"]:
            return ("rprelu",)
        return tuple(kind for kind in kinds[:1] if kind != "quantize")

    def averaged(self, node: Node) -> list[FloatOp]:
        """The sums and channel slices in front of `node`, if it is the mean of groups of channels; slices last."""
        if not isinstance(node, FloatOp) or node.kind != "affine":
            return []
        sums, slices, pending = [], [], [node.inputs[0]]
        while pending:
            source = self.producers.get(pending.pop())
            if not isinstance(source, FloatOp) or source.kind not in ("add", "slice"):
                return []
            if source.kind == "add":
                sums.append(source)
                pending.extend(source.inputs)
            else:
                slices.append(source)
        one_source = len({part.inputs[0] for part in slices}) == 1
        return [*sums, *slices] if one_source and len(slices) > 1 else []


def _unit_epilogue(unit: BinaryConv) -> tuple[str, ...]:
    residual = () if unit.residual is None else ("residual",)
    if unit.act_shift_in is not None or unit.act_shift_out is not None:
        return (*residual, "rprelu")
    if unit.slope is None:
        return residual
    return (*residual, "prelu" if unit.slope.any() else "relu")


def _is_repeat(node: Node) -> bool:
    return isinstance(node, FloatOp) and node.kind == "concat" and len(set(node.inputs)) == 1


def _input_shape(w: Workload) -> tuple[int, int, int]:
    return (w.in_channels, w.height, w.width)


def _floats(rng: np.random.Generator, *shape: int, around: float = 0.0) -> np.ndarray:
    return (around + 0.1 * rng.standard_normal(shape)).astype(np.float32)


def _weight_shape(w: Workload) -> tuple[int, int, int, int]:
    return (w.out_channels, w.in_channels // w.groups, w.kernel, w.kernel)


def _pads(w: Workload) -> tuple[int, int, int, int]:
    return same_pads((w.height, w.width), (w.kernel,) * 2, (w.stride,) * 2, (w.dilation,) * 2)


def _binary_conv(w: Workload, rng: np.random.Generator) -> Graph:
    out = w.out_channels
    output_shape = (out, w.out_height, w.out_width)
    residual = None
    if "residual" in w.epilogue:
        residual = "x" if output_shape == _input_shape(w) else "residual"
    shifted, sloped = "rprelu" in w.epilogue, "rprelu" in w.epilogue or "prelu" in w.epilogue
    slope = _floats(rng, out, around=0.25) if sloped else np.zeros(out, np.float32) if "relu" in w.epilogue else None
    unit = BinaryConv(
        "unit",
        "x",
        "y",
        negative=rng.random(_weight_shape(w)) < 0.5,
        scale=_floats(rng, out, around=0.3),
        bias=_floats(rng, out),
        strides=(w.stride, w.stride),
        pads=_pads(w),
        dilations=(w.dilation, w.dilation),
        groups=w.groups,
        shift=_floats(rng, w.in_channels),
        residual=residual,
        slope=slope,
        act_shift_in=_floats(rng, out) if shifted else None,
        act_shift_out=_floats(rng, out) if shifted else None,
    )
    extra = (("residual", output_shape),) if residual == "residual" else ()
    return Graph("x", _input_shape(w), "y", (unit,), extra)


def _conv(w: Workload, rng: np.random.Generator) -> Iterator[FloatOp]:
    if w.epilogue not in ((), ("relu",), ("prelu",), ("rprelu",)):
        raise InputError(
            f"no file can be written for {w.key}; a float or 8-bit convolution ends in nothing, relu, prelu or rprelu"
        )
    channels, weight = w.out_channels, _floats(rng, *_weight_shape(w))
    attributes = {
        "weight": _on_grid(weight) if w.bits == 8 else weight,
        "bias": _floats(rng, channels),
        "strides": (w.stride, w.stride),
        "pads": _pads(w),
        "dilations": (w.dilation, w.dilation),
        "groups": w.groups,
    }
    steps: list[tuple[str, dict]] = [("conv", attributes)]
    if "relu" in w.epilogue:
        steps.append(("relu", {}))
    elif w.epilogue:
        steps.append(("prelu", {"slope": _floats(rng, channels, around=0.25)}))
    if "rprelu" in w.epilogue:
        steps.append(("affine", {"scale": np.ones(channels, np.float32), "bias": _floats(rng, channels)}))
    if w.bits == 8:
        low = 0 if "relu" in w.epilogue else 128
        steps = [("quantize", _rounding(128)), *steps, ("quantize", _rounding(low))]
    value = "x"
    for i, (kind, step) in enumerate(steps):
        output = "y" if i == len(steps) - 1 else f"{kind}{i}"
        yield FloatOp(kind, output, (value,), output, step)
        value = output


def _on_grid(weight: np.ndarray) -> np.ndarray:
    """The nearest weights that are whole steps of 1/127 of the largest of their output channel."""
    step = np.abs(weight).max(axis=tuple(range(1, weight.ndim)), keepdims=True) / LARGEST
    return (np.rint(weight / step) * step).astype(np.float32)


def _rounding(zero_point: int) -> dict:
    return {"scale": float(np.float32(1 / 32)), "zero_point": zero_point}


def _quantize(w: Workload, rng: np.random.Generator) -> Iterator[FloatOp]:
    yield FloatOp("quantize", "round", ("x",), "y", _rounding(128))


def _pool(w: Workload, rng: np.random.Generator) -> Iterator[FloatOp]:
    attributes = {"kernel": (w.kernel, w.kernel), "strides": (w.stride, w.stride), "pads": _pads(w)}
    yield FloatOp(w.kind, "pool", ("x",), "y", attributes)


def _of_two(w: Workload) -> Graph:
    """A sum or concatenation of "x" and "other"; for its cost it does not matter how many values are set together."""
    channels = (w.in_channels // 2, w.in_channels - w.in_channels // 2)
    if w.out_channels != (channels[0] if w.kind == "add" else w.in_channels) or 0 in channels:
        raise InputError(f"no file can be written for {w.key}; in_channels of add and concat counts both values")
    shapes = [(count, w.height, w.width) for count in channels]
    return Graph("x", shapes[0], "y", (FloatOp(w.kind, w.kind, ("x", "other"), "y"),), (("other", shapes[1]),))


def _every_second(w: Workload, rng: np.random.Generator) -> Iterator[FloatOp]:
    start = ("even_channels", "odd_channels").index(w.kind)
    attributes = {"start": start, "stop": start + 2 * w.out_channels - 1, "step": 2}
    yield FloatOp("slice", "slice", ("x",), "y", attributes)


def _downsample(w: Workload, rng: np.random.Generator) -> Iterator[FloatOp]:
    times = w.out_channels // w.in_channels
    pooled = "pooled" if times > 1 else "y"
    attributes = {"kernel": (2, 2), "strides": (2, 2), "pads": same_pads((w.height, w.width), (2, 2), (2, 2))}
    yield FloatOp("avg_pool", "pool", ("x",), pooled, attributes)
    if times > 1:
        yield FloatOp("concat", "repeat", (pooled,) * times, "y")


def _duplicate(w: Workload, rng: np.random.Generator) -> Iterator[FloatOp]:
    yield FloatOp("concat", "repeat", ("x",) * (w.out_channels // w.in_channels), "y")


def _average(w: Workload, rng: np.random.Generator) -> Iterator[FloatOp]:
    groups, width = w.in_channels // w.out_channels, w.out_channels
    for i in range(groups):
        yield FloatOp("slice", f"part{i}", ("x",), f"part{i}", {"start": i * width, "stop": (i + 1) * width, "step": 1})
    total = "part0"
    for i in range(1, groups):
        yield FloatOp("add", f"sum{i}", (total, f"part{i}"), f"sum{i}")
        total = f"sum{i}"
    mean = {"scale": np.full(1, 1 / groups, np.float32), "bias": np.zeros(1, np.float32)}
    yield FloatOp("affine", "mean", (total,), "y", mean)


def _head(w: Workload, rng: np.random.Generator) -> Iterator[FloatOp]:
    yield FloatOp("global_mean", "pool", ("x",), "features")
    weight, bias = _floats(rng, w.out_channels, w.in_channels), _floats(rng, w.out_channels)
    if w.bits == 8:
        yield FloatOp("quantize", "round", ("features",), "rounded", _rounding(128))
        yield FloatOp("linear", "classifier", ("rounded",), "y", {"weight": _on_grid(weight), "bias": bias})
    else:
        yield FloatOp("linear", "classifier", ("features",), "y", {"weight": weight, "bias": bias})


def _norm(w: Workload, rng: np.random.Generator) -> Iterator[FloatOp]:
    values = {"scale": _floats(rng, w.out_channels, around=1.0), "bias": _floats(rng, w.out_channels)}
    yield FloatOp("affine", "norm", ("x",), "y", values)


def _relu(w: Workload, rng: np.random.Generator) -> Iterator[FloatOp]:
    yield FloatOp("relu", "relu", ("x",), "y")


_BUILDERS = {
    "conv": _conv,
    "downsample": _downsample,
    "duplicate": _duplicate,
    "average": _average,
    "max_pool": _pool,
    "avg_pool": _pool,
    "relu": _relu,
    "norm": _norm,
    "even_channels": _every_second,
    "odd_channels": _every_second,
    "quantize": _quantize,
    "head": _head,
    "fixed": _relu,
}
