"""Single fused units as small files, for measuring: Workload -> Graph with random values, and back.

`graph_workloads(unit_graph(w)) == (w,)`: what a latency table measures is what is found again in an exported network.
"""

from collections.abc import Iterator

import numpy as np
import onnx

from bnas.profiles.errors import InputError
from bnas.profiles.workload import FIXED, Workload

from .graph import BinaryConv, FloatOp, Graph, same_pads
from .onnx_writer import to_onnx

Node = BinaryConv | FloatOp
Shape = tuple[int, ...]


def unit_model(workload: Workload, seed: int = 0) -> onnx.ModelProto:
    """An ONNX model that is this one unit; the random values do not depend on the machine."""
    return to_onnx(unit_graph(workload, seed), {"workload": workload.key}, name=workload.kind)


def unit_graph(workload: Workload, seed: int = 0) -> Graph:
    """A graph that is this one unit, input "x", output "y".

    A residual is the input itself where the shapes are equal (as in a network), else a second input "residual".
    Raises InputError for what no writer can express: packed-bit tensors and 8-bit units.
    """
    w = workload
    if w.bits != (1 if w.kind == "binary_conv" else 32) or (w.input_format, w.output_format) != ("float", "float"):
        raise InputError(f"no file can be written for {w.key}; units have float inputs and outputs and 1 or 32 bits")
    if w.kind == "binary_conv":
        return _binary_conv(w, np.random.default_rng(seed))
    return Graph("x", _input_shape(w), "y", tuple(_BUILDERS[w.kind](w, np.random.default_rng(seed))))


def graph_workloads(graph: Graph) -> tuple[Workload, ...]:
    """The workload of every unit of `graph`, in order; a float operator that is part of no unit is left out."""
    shapes = graph.shapes()
    if [n.kind for n in graph.nodes if isinstance(n, FloatOp)] == ["relu"] and len(graph.nodes) == 1:
        return (FIXED,)
    readers: dict[str, list[Node]] = {}
    producers = {node.output: node for node in graph.nodes}
    for node in graph.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    found = (workload_of(node, shapes, producers, readers) for node in graph.nodes)
    return tuple(w for w in found if w is not None)


def workload_of(
    node: Node, shapes: dict[str, Shape], producers: dict[str, Node], readers: dict[str, list[Node]]
) -> Workload | None:
    """The workload whose unit ends (float convolution: starts) at `node`, or None.

    producers, readers: the node that makes, and the nodes that read, each value.
    """
    if isinstance(node, BinaryConv):
        return _spatial("binary_conv", 1, node.negative.shape, node, shapes, _unit_epilogue(node))
    image = shapes[node.inputs[0]]
    match node.kind:
        case "conv":
            epilogue = _conv_epilogue(node, readers)
            return _spatial("conv", 32, node.attributes["weight"].shape, node, shapes, epilogue)
        case "linear":
            source = producers.get(node.inputs[0])
            if isinstance(source, FloatOp) and source.kind == "global_mean":
                channels, height, width = shapes[source.inputs[0]]
                return Workload("head", 32, channels, node.attributes["weight"].shape[0], height, width)
        case "avg_pool" if node.attributes["kernel"] == node.attributes["strides"] == (2, 2):
            repeat = next((r for r in readers.get(node.output, []) if _is_repeat(r)), None)
            channels = image[0] if repeat is None else shapes[repeat.output][0]
            return Workload("downsample", 32, image[0], channels, image[1], image[2], kernel=2, stride=2)
        case "concat" if _is_repeat(node):
            source = producers.get(node.inputs[0])
            if not (isinstance(source, FloatOp) and source.kind == "avg_pool"):
                return Workload("duplicate", 32, image[0], shapes[node.output][0], image[1], image[2])
        case "affine" if (averaged := _averaged(node, producers)) is not None:
            return Workload("average", 32, shapes[averaged][0], image[0], image[1], image[2])
    return None


def _spatial(
    kind: str, bits: int, weight: Shape, node: Node, shapes: dict[str, Shape], epilogue: tuple[str, ...]
) -> Workload | None:
    """The workload of a convolution; None where it has a form that no workload has (unequal strides, ...)."""
    geometry = node.attributes if isinstance(node, FloatOp) else vars(node)
    vertical, horizontal = zip(weight[2:], geometry["strides"], geometry["dilations"], strict=True)
    if vertical != horizontal:
        return None
    channels, height, width = shapes[node.inputs[0]]
    return Workload(kind, bits, channels, weight[0], height, width, *vertical, geometry["groups"], epilogue)


def _unit_epilogue(unit: BinaryConv) -> tuple[str, ...]:
    residual = () if unit.residual is None else ("residual",)
    if unit.act_shift_in is not None or unit.act_shift_out is not None:
        return (*residual, "rprelu")
    if unit.slope is None:
        return residual
    return (*residual, "prelu" if unit.slope.any() else "relu")


def _conv_epilogue(conv: FloatOp, readers: dict[str, list[Node]]) -> tuple[str, ...]:
    following = readers.get(conv.output, [])
    if len(following) == 1 and isinstance(following[0], FloatOp) and following[0].kind in ("relu", "prelu"):
        return (following[0].kind,)
    return ()


def _is_repeat(node: Node) -> bool:
    return isinstance(node, FloatOp) and node.kind == "concat" and len(set(node.inputs)) == 1


def _averaged(node: Node, producers: dict[str, Node]) -> str | None:
    """The value whose channel slices are summed and divided by their number in front of `node`, if that is so."""
    parts, pending = [], [node.inputs[0]]
    while pending:
        source = producers.get(pending.pop())
        if not isinstance(source, FloatOp) or source.kind not in ("add", "slice"):
            return None
        if source.kind == "add":
            pending.extend(source.inputs)
        else:
            parts.append(source)
    return parts[0].inputs[0] if len({part.inputs[0] for part in parts}) == 1 and len(parts) > 1 else None


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
    activation = w.epilogue[0] if w.epilogue else None
    if w.epilogue not in ((), ("relu",), ("prelu",)):
        raise InputError(f"no file can be written for {w.key}; a float convolution ends in nothing, relu or prelu")
    attributes = {
        "weight": _floats(rng, *_weight_shape(w)),
        "bias": _floats(rng, w.out_channels),
        "strides": (w.stride, w.stride),
        "pads": _pads(w),
        "dilations": (w.dilation, w.dilation),
        "groups": w.groups,
    }
    yield FloatOp("conv", "conv", ("x",), "dots" if activation else "y", attributes)
    if activation == "prelu":
        yield FloatOp("prelu", "act", ("dots",), "y", {"slope": _floats(rng, w.out_channels, around=0.25)})
    elif activation == "relu":
        yield FloatOp("relu", "act", ("dots",), "y")


def _downsample(w: Workload, rng: np.random.Generator) -> Iterator[FloatOp]:
    times = w.out_channels // w.in_channels
    pooled = "pooled" if times > 1 else "y"
    attributes = {"kernel": (2, 2), "strides": (2, 2), "ceil": bool(w.height % 2 or w.width % 2)}
    yield FloatOp("avg_pool", "pool", ("x",), pooled, attributes)
    if times > 1:
        yield FloatOp("concat", "repeat", (pooled,) * times, "y")


def _duplicate(w: Workload, rng: np.random.Generator) -> Iterator[FloatOp]:
    yield FloatOp("concat", "repeat", ("x",) * (w.out_channels // w.in_channels), "y")


def _average(w: Workload, rng: np.random.Generator) -> Iterator[FloatOp]:
    groups, width = w.in_channels // w.out_channels, w.out_channels
    for i in range(groups):
        yield FloatOp("slice", f"part{i}", ("x",), f"part{i}", {"start": i * width, "stop": (i + 1) * width})
    total = "part0"
    for i in range(1, groups):
        yield FloatOp("add", f"sum{i}", (total, f"part{i}"), f"sum{i}")
        total = f"sum{i}"
    mean = {"scale": np.full(1, 1 / groups, np.float32), "bias": np.zeros(1, np.float32)}
    yield FloatOp("affine", "mean", (total,), "y", mean)


def _head(w: Workload, rng: np.random.Generator) -> Iterator[FloatOp]:
    yield FloatOp("global_mean", "pool", ("x",), "features")
    values = {"weight": _floats(rng, w.out_channels, w.in_channels), "bias": _floats(rng, w.out_channels)}
    yield FloatOp("linear", "classifier", ("features",), "y", values)


def _fixed(w: Workload, rng: np.random.Generator) -> Iterator[FloatOp]:
    yield FloatOp("relu", "nothing", ("x",), "y")


_BUILDERS = {
    "conv": _conv,
    "downsample": _downsample,
    "duplicate": _duplicate,
    "average": _average,
    "head": _head,
    "fixed": _fixed,
}
