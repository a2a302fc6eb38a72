"""Translation of ATen operators: a captured network -> plain operators on named values, nothing fused yet.

The kinds are those of `graph.FLOAT_OPS`; arrays are float64, so that later folding rounds once. One small function per
ATen operator, found through `TRANSLATIONS`; what is not in that table is an InputError that names the operator.
"""

import operator
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from bnas.profiles.errors import InputError

from .capture import Captured


@dataclass(frozen=True, eq=False)
class Op:
    """One plain operator. kind, inputs, output, attributes as `graph.FloatOp`; module: the path of its layer, or ""."""

    kind: str
    module: str
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, Any] = field(default_factory=dict)


def read(captured: Captured) -> tuple[list[Op], str]:
    """The operators in order and the name of the result. Raises InputError for what cannot be translated."""
    reader = _Reader(captured)
    for node in captured.nodes:
        if _is_tensor(node):
            name = _operator_name(node)
            if name not in TRANSLATIONS:
                raise reader.refusal(node, "is not supported")
            TRANSLATIONS[name](reader, node, _arguments(node))
    return reader.ops, reader.value(captured.output)


class _Reader:
    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self.ops: list[Op] = []
        self.aliases: dict[Node, str] = {}  # nodes that hold the value of another name
        self.parts: dict[Node, list[tuple[str, int, int]]] = {}  # split node -> (source, start, stop) of each part
        self.comparisons: dict[
            Node, tuple[str, np.ndarray, bool]
        ] = {}  # node -> (x, t, True for x < t, False for x >= t)
        self.unflattened: set[str] = set()  # values that are [N, C] here and [N, C, 1, 1] in torch

    def value(self, node: Node, *, flat: bool = False) -> str:
        """The name of a node's value. flat: the caller takes [N, C] for [N, C, 1, 1]."""
        if node in self.parts or node in self.comparisons:
            raise self.refusal(node, "is only supported in front of getitem" if node in self.parts else "is not a sign")
        name = self.aliases.get(node, self.captured.names[node])
        if name in self.unflattened and not flat:
            raise self.refusal(node, "keeps its spatial axes, which is only supported in front of a flatten")
        return name

    def constant(self, node: Any) -> np.ndarray | None:
        """The float64 value of a number or constant tensor, None for anything that depends on the image."""
        if isinstance(node, Node):
            node = self.captured.constants.get(node)
        if isinstance(node, Tensor):
            return node.detach().double().numpy()
        return np.array(node, np.float64) if isinstance(node, int | float) else None

    def needed(self, node: Node, source: Any, what: str) -> np.ndarray:
        constant = self.constant(source)
        if constant is None:
            raise self.refusal(node, f"has {what} that depends on the image")
        return constant

    def channels(self, node: Node, constant: np.ndarray) -> np.ndarray:
        """A constant operand of `node` as [C] or [1]. It must not vary over space."""
        rank = len(_shape(node))
        full = constant.reshape((1,) * (rank - constant.ndim) + constant.shape) if constant.ndim <= rank else constant
        if full.ndim != rank or full.size not in (1, full.shape[1]) or full.shape[1] not in (1, _shape(node)[1]):
            raise self.refusal(node, f"has a constant of shape {list(constant.shape)}, not one value per channel")
        return full.reshape(-1)

    def emit(self, kind: str, node: Node, inputs: Sequence[str], **attributes: Any) -> None:
        name = self.captured.names[_result(node)]
        self.ops.append(Op(kind, _module_path(node), tuple(inputs), name, attributes))

    def refusal(self, node: Node, problem: str) -> InputError:
        path = _module_path(node)
        return InputError(
            f"{_operator_name(node).replace('::', '.')} in {path or 'the network'} {problem}; "
            "replace it, or keep it outside of the exported network"
        )


def _is_tensor(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) or (isinstance(value, list | tuple) and isinstance(value[0], Tensor))


def _result(node: Node) -> Node:
    """The node that holds the tensor a node makes: of several results, the getitem that takes the first."""
    if isinstance(node.meta["val"], Tensor):
        return node
    return next(user for user in node.users if user.target is operator.getitem and user.args[1] == 0)


def _operator_name(node: Node) -> str:
    return node.target._schema.name if isinstance(node.target, torch._ops.OpOverload) else str(node.target.__name__)


def _arguments(node: Node) -> dict[str, Any]:
    """Arguments by the names of the operator's schema, defaults filled in."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {}
    schema = node.target._schema.arguments
    given = dict(zip((a.name for a in schema), node.args, strict=False))
    return {a.name: a.default_value for a in schema if a.has_default_value()} | given | node.kwargs


def _module_path(node: Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0] if stack else ""


def _shape(node: Node) -> tuple[int, ...]:
    """The shape of a node's value; its batch size stands as 0."""
    return (0, *(int(size) for size in node.meta["val"].shape[1:]))


def _pair(value: Any) -> tuple[int, int]:
    """(height, width) of torch's "one number or two"."""
    numbers = [value] if isinstance(value, int) else list(value)
    return (int(numbers[0]), int(numbers[-1]))


def _conv(r: _Reader, node: Node, a: dict[str, Any]) -> None:
    weight = r.needed(node, a["weight"], "a weight")
    bias = np.zeros(len(weight)) if a["bias"] is None else r.needed(node, a["bias"], "a bias")
    if weight.ndim != 4 or a.get("transposed"):
        raise r.refusal(node, "is not a plain 2-D convolution")
    dilations = _pair(a["dilation"])
    if a["padding"] == "same":
        totals = [d * (taps - 1) for d, taps in zip(dilations, weight.shape[2:], strict=True)]
        before = [total // 2 for total in totals]
        pads = (*before, *(total - first for total, first in zip(totals, before, strict=True)))
    else:
        pads = _pair(0 if a["padding"] == "valid" else a["padding"]) * 2
    attributes = {"strides": _pair(a["stride"]), "pads": pads, "dilations": dilations, "groups": int(a["groups"])}
    r.emit("conv", node, [r.value(a["input"])], weight=weight, bias=bias, **attributes)


def _linear(r: _Reader, node: Node, a: dict[str, Any]) -> None:
    weight = r.needed(node, a["weight"], "a weight")
    bias = np.zeros(len(weight)) if a["bias"] is None else r.needed(node, a["bias"], "a bias")
    if len(_shape(node)) != 2:
        raise r.refusal(node, "is not applied to [N, features]")
    r.emit("linear", node, [r.value(a["input"])], weight=weight, bias=bias)


def _batch_norm(r: _Reader, node: Node, a: dict[str, Any]) -> None:
    if a.get("training") or a.get("running_mean") is None:
        raise r.refusal(node, "has no running statistics")
    mean, variance = r.needed(node, a["running_mean"], "a mean"), r.needed(node, a["running_var"], "a variance")
    gamma = 1.0 if a["weight"] is None else r.needed(node, a["weight"], "a weight")
    beta = 0.0 if a["bias"] is None else r.needed(node, a["bias"], "a bias")
    scale = gamma / np.sqrt(variance + a["eps"])
    r.emit("affine", node, [r.value(a["input"])], scale=scale, bias=beta - mean * scale)


def _sum(r: _Reader, node: Node, a: dict[str, Any], sign: float) -> None:
    """a + alpha * b, or with sign -1: a - alpha * b. Either may be constant."""
    factor = sign * float(a.get("alpha", 1))
    left, right = a["self"], a["other"]
    constant = r.constant(right)
    if constant is not None:
        r.emit("affine", node, [r.value(left)], scale=np.ones(1), bias=factor * r.channels(node, constant))
        return
    constant = r.constant(left)
    if constant is not None:
        r.emit("affine", node, [r.value(right)], scale=np.full(1, factor), bias=r.channels(node, constant))
        return
    if _shape(left) != _shape(right):
        raise r.refusal(node, f"broadcasts {list(_shape(left)[1:])} with {list(_shape(right)[1:])}")
    operand = r.value(right)
    if factor != 1:
        scaled = f"{r.captured.names[node]}.term"
        parts = {"scale": np.full(1, factor), "bias": np.zeros(1)}
        r.ops.append(Op("affine", _module_path(node), (operand,), scaled, parts))
        operand = scaled
    r.emit("add", node, [r.value(left), operand])


def _reversed_difference(r: _Reader, node: Node, a: dict[str, Any]) -> None:
    _sum(r, node, {**a, "self": a["other"], "other": a["self"]}, -1.0)


def _scale(r: _Reader, node: Node, a: dict[str, Any], invert: bool) -> None:
    left, right = a["self"], a["other"]
    if not invert and r.constant(right) is None:
        left, right = right, left
    constant = r.constant(right)
    if constant is None or a.get("rounding_mode"):
        raise r.refusal(node, "is only supported with one constant operand")
    factors = r.channels(node, constant)
    scale = 1 / factors if invert else factors
    r.emit("affine", node, [r.value(left)], scale=scale, bias=np.zeros(1))


def _prelu(r: _Reader, node: Node, a: dict[str, Any]) -> None:
    slope = r.needed(node, a["weight"], "a slope").reshape(-1)
    r.emit("prelu", node, [r.value(a["self"])], slope=np.broadcast_to(slope, _shape(node)[1:2]))


def _leaky_relu(r: _Reader, node: Node, a: dict[str, Any]) -> None:
    r.emit("prelu", node, [r.value(a["self"])], slope=np.full(_shape(node)[1], float(a["negative_slope"])))


def _relu(r: _Reader, node: Node, a: dict[str, Any]) -> None:
    r.emit("relu", node, [r.value(a["self"])])


def _avg_pool(r: _Reader, node: Node, a: dict[str, Any]) -> None:
    if a["divisor_override"] is not None:
        raise r.refusal(node, "with its own divisor is not supported")
    if any(_pair(a["padding"])) and a["count_include_pad"]:
        raise r.refusal(node, "with padding that counts (count_include_pad=True) is not supported")
    _emit_pool(r, "avg_pool", node, a)


def _emit_pool(r: _Reader, kind: str, node: Node, a: dict[str, Any]) -> None:
    """Pads are what the windows read: torch's own padding before, and what ceil_mode crosses behind."""
    kernel = _pair(a["kernel_size"])
    strides = _pair(a["stride"]) if a["stride"] else kernel
    before = _pair(a["padding"])
    after = [
        max((count - 1) * stride + taps - pixels - pad, 0)
        for count, stride, taps, pixels, pad in zip(
            _shape(_result(node))[2:], strides, kernel, _shape(a["self"])[2:], before, strict=True
        )
    ]
    r.emit(kind, node, [r.value(a["self"])], kernel=kernel, strides=strides, pads=(*before, *after))


def _adaptive_avg_pool(r: _Reader, node: Node, a: dict[str, Any]) -> None:
    size, target = _shape(a["self"])[2:], _pair(a["output_size"])
    if target == (1, 1):
        _emit_global_mean(r, node, a["self"], keeps_axes=True)
        return
    if any(n % t for n, t in zip(size, target, strict=True)):
        raise r.refusal(node, f"from {size[0]}x{size[1]} to {target[0]}x{target[1]} has windows of unequal size")
    kernel = (size[0] // target[0], size[1] // target[1])
    r.emit("avg_pool", node, [r.value(a["self"])], kernel=kernel, strides=kernel, pads=(0, 0, 0, 0))


def _mean(r: _Reader, node: Node, a: dict[str, Any]) -> None:
    rank = len(_shape(a["self"]))
    axes = sorted(axis % rank for axis in a["dim"]) if a.get("dim") else []
    if rank != 4 or axes != [2, 3]:
        raise r.refusal(node, "is only supported over height and width")
    _emit_global_mean(r, node, a["self"], keeps_axes=bool(a["keepdim"]))


def _emit_global_mean(r: _Reader, node: Node, source: Node, *, keeps_axes: bool) -> None:
    r.emit("global_mean", node, [r.value(source)])
    if keeps_axes:
        r.unflattened.add(r.captured.names[node])


def _max_pool(r: _Reader, node: Node, a: dict[str, Any]) -> None:
    if _pair(a["dilation"]) != (1, 1):
        raise r.refusal(node, "with dilation is not supported")
    _emit_pool(r, "max_pool", node, a)


def _concat(r: _Reader, node: Node, a: dict[str, Any]) -> None:
    if a["dim"] % len(_shape(node)) != 1:
        raise r.refusal(node, "is only supported along channels (dim=1)")
    r.emit("concat", node, [r.value(source) for source in a["tensors"]])


def _split(r: _Reader, node: Node, a: dict[str, Any]) -> None:
    if a["dim"] != 1:
        raise r.refusal(node, "is only supported along channels (dim=1)")
    source = a.get("self") or a["tensor"]
    widths = [int(part.shape[1]) for part in node.meta["val"]]
    stops = np.cumsum(widths).tolist()
    r.parts[node] = [(r.value(source), stop - width, stop) for width, stop in zip(widths, stops, strict=True)]


def _getitem(r: _Reader, node: Node, _: dict[str, Any]) -> None:
    source, index = node.args
    assert isinstance(source, Node) and isinstance(index, int)
    if source in r.parts:
        value, start, stop = r.parts[source][index]
        r.emit("slice", node, [value], start=start, stop=stop, step=1)
    elif index != 0:
        raise r.refusal(source, "has a second result that is used")


def _slice(r: _Reader, node: Node, a: dict[str, Any]) -> None:
    source = a["self"]
    if a["start"] in (None, 0) and a["end"] in (None, sys.maxsize) and a["step"] == 1:
        r.aliases[node] = r.value(source)
        return
    if a["dim"] != 1:
        raise r.refusal(node, "is only supported along channels (dim=1)")
    width, start, step = _shape(source)[1], int(a["start"] or 0), int(a["step"])
    start = start + width if start < 0 else start
    stop = start + (_shape(node)[1] - 1) * step + 1
    r.emit("slice", node, [r.value(source)], start=start, stop=stop, step=step)


def _reshape(r: _Reader, node: Node, a: dict[str, Any]) -> None:
    source = a["self"]
    before, after = _shape(source), _shape(node)
    name = r.value(source, flat=True)
    if before == after or (name in r.unflattened and len(after) == 2):
        r.aliases[node] = r.value(source, flat=len(after) == 2)
    elif len(after) == 2 and after[1] == np.prod(before[1:]):
        r.emit("flatten", node, [name])
    else:
        raise r.refusal(node, f"from {list(before[1:])} to {list(after[1:])} is not a flatten")
    if name in r.unflattened and len(after) == 2:
        r.unflattened.discard(name)


def _pad(r: _Reader, node: Node, a: dict[str, Any]) -> None:
    amounts = [int(n) for n in a["pad"]]
    left, right, top, bottom = (amounts + [0] * 4)[:4]
    if a.get("mode", "constant") != "constant" or any(amounts[4:]) or len(_shape(node)) != 4:
        raise r.refusal(node, "is only supported with a constant over height and width")
    value = float(a["value"] or 0)
    r.emit("pad", node, [r.value(a["self"])], pads=(top, left, bottom, right), value=value)


def _fake_quantize(r: _Reader, node: Node, a: dict[str, Any]) -> None:
    if (a["quant_min"], a["quant_max"]) != (0, 255):
        raise r.refusal(node, f"to {a['quant_min']}..{a['quant_max']} is not supported, only to 0..255")
    scale, zero_point = (r.needed(node, a[key], f"a {key}").reshape(-1) for key in ("scale", "zero_point"))
    if scale.size != 1 or zero_point.size != 1 or not 0 < scale[0] < np.inf or not 0 <= zero_point[0] <= 255:
        raise r.refusal(node, f"with scale {scale.tolist()} and zero point {zero_point.tolist()} is not supported")
    r.emit("quantize", node, [r.value(a["self"])], scale=float(np.float32(scale[0])), zero_point=int(zero_point[0]))


def _compare(r: _Reader, node: Node, a: dict[str, Any], below: bool) -> None:
    threshold = r.needed(node, a["other"], "a threshold")
    r.comparisons[node] = (r.value(a["self"]), r.channels(node, threshold), below)


def _where(r: _Reader, node: Node, a: dict[str, Any]) -> None:
    """The two forms of the numeric contract: where(x < t, -1, 1) and where(x >= t, 1, -1)."""
    comparison = r.comparisons.get(a["condition"])
    chosen = [r.constant(a[key]) for key in ("self", "other")]
    wanted = (-1, 1) if comparison and comparison[2] else (1, -1)
    if comparison is None or any(c is None or (c != w).any() for c, w in zip(chosen, wanted, strict=True)):
        raise r.refusal(node, "is only supported as a sign: where(x < t, -1, 1) or where(x >= t, 1, -1)")
    x, threshold, _ = comparison
    r.emit("sign", node, [x], shift=threshold)


def _same(r: _Reader, node: Node, a: dict[str, Any]) -> None:
    source = a["self"] if "self" in a else a["input"]
    if source.meta["val"].dtype != node.meta["val"].dtype:
        raise r.refusal(node, f"to {node.meta['val'].dtype} is not supported")
    r.aliases[node] = r.value(source, flat=True)


def _with(function: Callable[..., None], *extra: Any) -> Callable[[_Reader, Node, dict[str, Any]], None]:
    return lambda r, node, a: function(r, node, a, *extra)


TRANSLATIONS: dict[str, Callable[[_Reader, Node, dict[str, Any]], None]] = {
    "aten::conv2d": _conv,
    "aten::convolution": _conv,
    "aten::linear": _linear,
    "aten::batch_norm": _batch_norm,
    "aten::_native_batch_norm_legit_no_training": _batch_norm,
    "aten::add": _with(_sum, 1.0),
    "aten::sub": _with(_sum, -1.0),
    "aten::rsub": _reversed_difference,
    "aten::mul": _with(_scale, False),
    "aten::div": _with(_scale, True),
    "aten::prelu": _prelu,
    "aten::leaky_relu": _leaky_relu,
    "aten::relu": _relu,
    "aten::avg_pool2d": _avg_pool,
    "aten::adaptive_avg_pool2d": _adaptive_avg_pool,
    "aten::mean": _mean,
    "aten::max_pool2d": _max_pool,
    "aten::max_pool2d_with_indices": _max_pool,
    "aten::cat": _concat,
    "aten::split": _split,
    "aten::split_with_sizes": _split,
    "aten::chunk": _split,
    "aten::slice": _slice,
    "aten::pad": _pad,
    "aten::constant_pad_nd": _pad,
    "aten::fake_quantize_per_tensor_affine": _fake_quantize,
    "aten::fake_quantize_per_tensor_affine_cachemask": _fake_quantize,
    "aten::_fake_quantize_per_tensor_affine_cachemask_tensor_qparams": _fake_quantize,
    "aten::lt": _with(_compare, True),
    "aten::ge": _with(_compare, False),
    "aten::where": _where,
    operator.getitem.__name__: _getitem,
    **dict.fromkeys(("aten::view", "aten::reshape", "aten::flatten", "aten::squeeze", "aten::_unsafe_view"), _reshape),
    **dict.fromkeys(
        ("aten::clone", "aten::contiguous", "aten::detach", "aten::alias", "aten::dropout", "aten::feature_dropout",
         "aten::to", "aten::_to_copy"),
        _same,
    ),
}  # fmt: skip
