"""`cells`: DARTS cells (Liu et al. 2019), searched once for all normal and once for all reduction cells.

A cell has two inputs, the results of the two cells before it, and four nodes; node j sums one operation on each of its
incoming edges, and the cell's result is the four nodes behind each other. Decisions are the 14 edges of each type with
8 operations; a gene is a node with two different edges and an operation other than `none` on each, which gives the
(180 * 7^8)^2 genotypes that DARTS can derive.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Callable
from functools import partial

from bnas.profiles.errors import InputError

from .architecture import Architecture, Decision
from .blocks import DEPTHWISE, spatial
from .options import BITS, ENDS, Settings, bit_widths, label
from .space import NONE, Gene, SearchSpace
from .wiring import IMAGE, Value, Wiring

OPTIONS: dict[str, tuple[str, ...]] = {
    "bits": BITS, "ops": ("dense", "separable"), "depthwise": tuple(DEPTHWISE), "layers": (), "channels": (),
    "reduction": ("searched", "fixed"), **ENDS
}  # fmt: skip
STRIDES = {"micro": 2, "cifar": 4, "imagenet": 32}
LAYERS = {"micro": 2, "cifar": 8, "imagenet": 14}
BINARY_CHANNELS, FLOAT_CHANNELS = {"micro": 16, "cifar": 32, "imagenet": 64}, {"micro": 8, "cifar": 16, "imagenet": 48}
TYPES = ("normal", "reduction")
NODES = 4
EDGES = tuple((i, j) for j in range(2, 2 + NODES) for i in range(j))  # i, j: 0 and 1 are the inputs, 2 to 5 the nodes

Operation = Callable[..., Value | None]  # (wiring, input, stride) -> result


def operations(bits: int, ops: str, depthwise: str) -> dict[str, Operation]:
    """The 8 operations of DARTS in its order, in float or 8 bits, or their 1-bit forms.

    dense: one 1-bit convolution with all channels; separable: as DCP-NAS, a spatial part without its activations
    binarised and a binary 1x1 convolution, with a shortcut around each.
    """
    if bits == 1:
        kind = "bin_sep_conv" if ops == "separable" else "bin_conv"
        convolutions = {
            f"{kind}_{k}x{k}": _binary(k, 1, 2 if ops == "separable" else 1, ops, depthwise) for k in (3, 5)
        } | {f"bin_dil_conv_{k}x{k}": _binary(k, 2, 1, ops, depthwise) for k in (3, 5)}
    else:
        convolutions = {f"sep_conv_{k}x{k}": _separable(k, 1, 2, bits) for k in (3, 5)} | {
            f"dil_conv_{k}x{k}": _separable(k, 2, 1, bits) for k in (3, 5)
        }
    return {
        NONE: _none,
        "max_pool_3x3": lambda w, x, stride: w.step("pool", "max_pool", x, kernel=3, stride=stride),
        "avg_pool_3x3": lambda w, x, stride: w.step("pool", "avg_pool", x, kernel=3, stride=stride),
        "skip_connect": lambda w, x, stride: x if stride == 1 else _reduced(w, x, x.channels, bits),
    } | convolutions


def _none(w: Wiring, x: Value, stride: int) -> None:
    return None


def _separable(kernel: int, dilation: int, times: int, bits: int) -> Operation:
    """ReLU, depthwise, 1x1 with batch-norm, `times` times; only the first depthwise convolution has the stride."""

    def describe(w: Wiring, x: Value, stride: int) -> Value:
        for i in range(times):
            x = w.step(f"relu{i}", "relu", x)
            x = w.conv(
                f"depth{i}", x, x.channels, kernel, 1 if i else stride, bits=bits, groups=x.channels, dilation=dilation
            )
            x = w.conv(f"point{i}", x, x.channels, 1, bits=bits)
        return x

    return describe


def _binary(kernel: int, dilation: int, times: int, ops: str, depthwise: str) -> Operation:
    def dense(w: Wiring, x: Value, stride: int) -> Value:
        return w.binary("conv", x, x.channels, kernel, stride, dilation=dilation)

    def separable(w: Wiring, x: Value, stride: int) -> Value:
        for i in range(times):
            x = spatial(w, f"depth{i}", x, kernel, 1 if i else stride, DEPTHWISE[depthwise], dilation=dilation)
            x = w.binary(f"point{i}", x, x.channels, 1)
        return x

    return separable if ops == "separable" else dense


def _reduced(w: Wiring, x: Value, out: int, bits: int) -> Value:
    """Half the size. Float: 2x2 mean and 1x1 convolution, which costs what DARTS's two shifted convolutions cost."""
    if bits == 1:
        return w.shortcut("reduce", x, out, 2)
    x = w.step("relu", "relu", x)
    x = w.step("pool", "downsample", x, out=x.channels, kernel=2, stride=2)
    return w.conv("point", x, out, 1, bits=bits)


def _preprocess(w: Wiring, x: Value, out: int, reduce: bool, bits: int) -> Value:
    """A cell's input at the cell's channels and, where the cell before halved the image, at half the size."""
    if bits == 1:
        if reduce:
            x = w.step("pool", "downsample", x, out=x.channels, kernel=2, stride=2)
        return w.binary("point", x, out, 1)
    if reduce:
        return _reduced(w, x, out, bits)
    return w.conv("point", w.step("relu", "relu", x), out, 1, bits=bits)


def cells(settings: Settings) -> SearchSpace:
    """A stem, `layers` cells of which those at 1/3 and 2/3 reduce and double the channels, and a head.

    Options: channels of the first cell, layers, ops (dense or separable 1-bit operations), depthwise (of the separable
    ones), reduction (fixed: reduction cells are those of GDAS and only the normal cell is searched). The micro instance
    has one normal and one reduction cell of the same channels. bits=32 with the imagenet instance is the network that
    DARTS trains on ImageNet.
    """
    widths, instance = bit_widths(settings["bits"]), settings.instance
    lowest = min(widths)
    layers = int(settings["layers"] or LAYERS[instance])
    channels = int(settings["channels"] or (BINARY_CHANNELS if lowest == 1 else FLOAT_CHANNELS)[instance])
    if layers < 2:
        raise InputError(f"layers={layers} of space 'cells' must be at least 2: a normal and a reduction cell")
    least = 4 if lowest == 1 else 2  # the first of three stems has half as many
    if channels % least:
        advice = ", better of 32, for 1-bit cells" if lowest == 1 else ""
        raise InputError(f"channels={channels} of space 'cells' must be a multiple of {least}{advice}")
    table: dict[str, Operation] = {}
    for bits in widths:
        for name, describe in operations(bits, settings["ops"], settings["depthwise"]).items():
            convolves = "conv" in name
            table.setdefault(label(name, bits, widths) if convolves else name, describe)
    types = TYPES if settings["reduction"] == "searched" else TYPES[:1]
    decisions = tuple(Decision(f"{type}.{i}_{j}", tuple(table), type) for type in types for i, j in EDGES)

    w = Wiring()
    before, last, shrunk = _stem(w, Value(IMAGE, *settings.shape), channels, instance, lowest, settings.end_bits)
    reductions = {layers // 3, 2 * layers // 3} if layers > 2 else {1}
    for cell in range(layers):
        reduces = cell in reductions
        if reduces and instance != "micro":
            channels *= 2
        part = w.at(f"cells.{cell}")
        inputs = [
            _preprocess(part.at("input0"), before, channels, shrunk, lowest),
            _preprocess(part.at("input1"), last, channels, False, lowest),
        ]
        make = _fixed_nodes if reduces and len(types) == 1 else partial(_nodes, reduces=reduces)
        nodes = make(part, inputs, table=table)
        before, last, shrunk = last, part.step("result", "concat", *nodes), reduces
    w.step("head", "head", last, out=settings.classes, bits=settings.end_bits)
    return SearchSpace(
        "cells", instance, settings.shape, settings.classes, settings.given, decisions, _genes(decisions), w.template
    )


def _stem(w: Wiring, x: Value, channels: int, instance: str, bits: int, ends: int) -> tuple[Value, Value, bool]:
    """The results of the two "cells" in front of the first, and whether the second of them halved the image."""
    if instance == "imagenet":
        # Of the activations, runtimes compute only ReLU in integers.
        x = w.conv("stem0", x, channels // 2, 3, 2, bits=ends, act="rprelu" if bits == 1 and ends == 32 else "relu")
        first = w.conv("stem1", x, 2 * channels if bits == 1 else channels, 3, 2, bits=ends)
        second = first if bits == 1 else w.step("stem2_relu", "relu", first)
        return first, w.conv("stem2", second, first.channels, 3, 2, bits=ends), True
    x = w.conv("stem", x, (4 if bits == 1 else 3) * channels, 3, bits=ends)
    return x, x, False


def _nodes(part: Wiring, inputs: list[Value], reduces: bool, table: dict[str, Operation]) -> list[Value]:
    values = list(inputs)
    for j in range(2, 2 + NODES):
        incoming = []
        for i in range(j):
            decision = reduces * len(EDGES) + EDGES.index((i, j))
            stride = 2 if reduces and i < 2 else 1
            candidates = {name: partial(describe, stride=stride) for name, describe in table.items()}
            incoming.append(part.choice(f"edges.{i}_{j}", decision, values[i], candidates))
        values.append(part.sum(f"node{j}", *incoming))
    return values[2:]


def _fixed_nodes(part: Wiring, inputs: list[Value], table: dict[str, Operation]) -> list[Value]:
    """The reduction cell that GDAS fixes (Dong and Yang 2019): a 3x3 convolution of stride 2 of each input, and a 3x3
    maximum of each result. There the convolution is a pair of 1x3 and 3x1 in 8 groups; here it is the first of the
    table's with a 3x3 kernel."""
    convolution = next(name for name in table if "conv_3x3" in name)
    reduced = [table[convolution](part.at(f"node{2 + i}"), x, 2) for i, x in enumerate(inputs)]
    halves = [x for x in reduced if x is not None]
    return halves + [part.step(f"node{4 + i}", "max_pool", x, kernel=3, stride=1) for i, x in enumerate(halves)]


def _genes(decisions: tuple[Decision, ...]) -> tuple[Gene, ...]:
    """A gene for each node: two of its edges, and an operation other than `none` on each."""
    genes = []
    for t, type in enumerate(dict.fromkeys(decision.group for decision in decisions)):
        names = decisions[t * len(EDGES)].candidates
        real = [k for k, name in enumerate(names) if name != NONE]
        for j in range(2, 2 + NODES):
            candidates, settings = [], []
            for first, second in itertools.combinations(range(j), 2):
                for k, m in itertools.product(real, real):
                    candidates.append(f"{names[k]}@{first}+{names[m]}@{second}")
                    edges = (t * len(EDGES) + EDGES.index((first, j)), t * len(EDGES) + EDGES.index((second, j)))
                    settings.append(((edges[0], k), (edges[1], m)))
            genes.append(Gene(f"{type}.node{j}", tuple(candidates), tuple(settings)))
    return tuple(genes)


# Genotypes as DARTS writes them

_FLOAT_NAMES = {"sep_conv": ("bin_conv", "bin_sep_conv"), "dil_conv": ("bin_dil_conv",)}
_GENOTYPE = re.compile(r"\s*(?:\w+\s*=\s*)?Genotype\((.*)\)\s*", re.DOTALL)


def from_genotype(space: SearchSpace, text: str) -> Architecture:
    """The architecture of a genotype as the published codes print it: Genotype(normal=[('sep_conv_3x3', 0), ...], ...).

    In a 1-bit space, a float operation means the 1-bit form of it. Raises InputError for anything else.
    """
    fields = _fields(text)
    known = set(space.decisions[0].candidates)
    choices = []
    searched = {decision.group for decision in space.decisions}
    for type, field in zip(TYPES, ("normal", "reduce"), strict=True):
        edges = fields[field]
        if type not in searched:
            if edges:
                raise InputError(
                    f"genotype: {field} has {len(edges)} edges, but space {space.id} fixes it; write {field}=[]"
                )
            continue
        if len(edges) != 2 * NODES:
            raise InputError(f"genotype: {field} has {len(edges)} edges, expected {2 * NODES}, two for each node")
        for node in range(NODES):
            pair = sorted(((_translated(name, known), i) for name, i in edges[2 * node : 2 * node + 2]), key=_input)
            (first, i), (second, j) = pair
            candidate = f"{first}@{i}+{second}@{j}"
            gene = next(g for g in space.genes if g.id == f"{type}.node{2 + node}")
            if candidate not in gene.candidates:
                raise InputError(f"genotype: {field} node {2 + node} cannot be {candidate!r} in space {space.id}")
            choices.append(candidate)
    return Architecture(space.id, tuple(choices))


def _input(edge: tuple[str, int]) -> int:
    return edge[1]


def _fields(text: str) -> dict[str, list[tuple[str, int]]]:
    match = _GENOTYPE.fullmatch(text)
    problem = InputError(
        "not a genotype; expected Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=..., reduce=[...], ...)"
    )
    if not match:
        raise problem
    try:
        call = ast.parse(f"f({match[1]})", mode="eval").body
        words = {word.arg: word.value for word in call.keywords} if isinstance(call, ast.Call) else {}
        fields = {name: ast.literal_eval(words[name]) for name in ("normal", "reduce")}
        edges = {name: [(op, i) for op, i in field] for name, field in fields.items()}
        concats = {name: ast.unparse(words[name]) for name in ("normal_concat", "reduce_concat") if name in words}
    except (SyntaxError, ValueError, TypeError, KeyError, RecursionError, MemoryError):
        raise problem from None
    if not all(isinstance(op, str) and type(i) is int for field in edges.values() for op, i in field):
        raise problem
    for name, nodes in concats.items():
        if re.sub(r"\s", "", nodes) not in ("range(2,6)", "[2,3,4,5]", "(2,3,4,5)"):
            value = " ".join(nodes.split())
            raise InputError(f"genotype: {name}={value} is not supported; a cell's result is all of its nodes 2 to 5")
    return edges


def _translated(name: str, known: set[str]) -> str:
    if name in known:
        return name
    stem, _, size = name.rpartition("_")
    for other in _FLOAT_NAMES.get(stem, ()):
        if f"{other}_{size}" in known:
            return f"{other}_{size}"
    return name


def genotype(space: SearchSpace, arch: Architecture) -> str:
    """The architecture as DARTS would print it; `from_genotype` reads it back."""
    space.check(arch)
    lists = []
    for t in range(len(TYPES)):
        pairs = [choice.split("+") for choice in arch.choices[t * NODES : (t + 1) * NODES]]
        lists.append([(op, int(i)) for pair in pairs for op, _, i in (edge.partition("@") for edge in pair)])
    normal, reduce = lists
    return f"Genotype(normal={normal}, normal_concat=range(2, 6), reduce={reduce}, reduce_concat=range(2, 6))"
