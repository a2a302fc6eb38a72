"""Cells as graphs, one for each type, and beside them how they are stacked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from bnas.search.spaces import Architecture, SearchSpace
from bnas.search.spaces.space import NONE

from .layered import place
from .parts import Part
from .svg import Box, Line, Shape, Text, bounds, moved, polyline, text_width

INPUTS = {0: "input 0: two cells before", 1: "input 1: the cell before"}
RESULT = "result"
HEIGHT, NODE = 22, 28  # of all boxes; width of a node's
GAP, BETWEEN, STACKED = 14, 28, 14  # between boxes of a row, between rows, between the boxes of the stack
CROWD = 2  # nodes in a row: more would make the picture wider than a page
WIDEST = 120  # box of the stack

Edge = tuple[int, int, str, int]  # from, to, operation, bits


@dataclass(frozen=True)
class Stop:
    """What a line visits in a row: a box, or without a style the way that is kept free for it."""

    row: int
    text: str = ""
    style: str = ""
    width: float = 0

    @property
    def y(self) -> float:
        return self.row * (HEIGHT + BETWEEN)

    @property
    def room(self) -> float:
        return self.width or text_width(self.text, "code") + (18 if self.style else 6)

    def box(self, x: float) -> Box:
        radius = HEIGHT / 2 if self.style == "node" else 6
        return Box(x - self.room / 2, self.y, self.room, HEIGHT, self.style, self.text, radius)


def cells(space: SearchSpace, arch: Architecture, network: Sequence[Part]) -> list[Shape]:
    """The stack of cells at the left, then the graph of each type."""
    shapes: list[Shape] = _stack(network)
    for group in dict.fromkeys(part.group for part in network if part.group):
        left = bounds(shapes)[2] + 50
        drawn = graph(edges_of(space, arch, group))
        drawn.append(Text(bounds(drawn)[0], -22, f"{group} cell", "head"))
        shapes += moved(drawn, left - bounds(drawn)[0], 0)
    return shapes


def edges_of(space: SearchSpace, arch: Architecture, group: str) -> list[Edge]:
    """What is taken on each edge of a cell type; edges without an operation are left out. Bits 0: no weights."""
    edges = []
    for d, k in enumerate(space.gates(space.indices(arch))):
        decision = space.decisions[d]
        if decision.group == group and decision.candidates[k] != NONE:
            source, _, target = decision.id.rpartition(".")[2].partition("_")
            bits = [w.bits for w in space.candidate_workloads(d, k) if w.kind in ("conv", "binary_conv")]
            edges.append((int(source), int(target), decision.candidates[k], min(bits, default=0)))
    return edges


def graph(edges: Sequence[Edge]) -> list[Shape]:
    """Inputs above, then the nodes with the operations on their incoming edges, then the result of all nodes."""
    nodes = sorted({target for _, target, *_ in edges})
    depth = _depths(nodes, edges)
    stops = {f"{i}": Stop(0, text, "plain") for i, text in INPUTS.items()}
    stops |= {f"{j}": Stop(2 * depth[j], f"{j}", "node", NODE) for j in nodes}
    stops[RESULT] = Stop(2 * max(depth.values()) + 1, f"result: nodes {nodes[0]} to {nodes[-1]}", "plain")
    lines = [(f"{j}", RESULT) for j in nodes]
    for i, j, operation, bits in edges:
        name = f"{i} to {j}"
        stops[name] = Stop(2 * depth[j] - 1, operation, f"bits{bits}" if bits else "plain")
        lines += [(f"{i}", name), (name, f"{j}")]

    paths = []
    for source, target in lines:
        between = {f"{source}, {target}, {row}": Stop(row) for row in range(stops[source].row + 1, stops[target].row)}
        stops |= between
        paths.append([source, *between, target])
    rows = [[name for name in stops if stops[name].row == row] for row in range(stops[RESULT].row + 1)]
    x = place(rows, paths, {name: stop.room for name, stop in stops.items()}, GAP)
    if x["0"] > x["1"]:
        x = {name: -middle for name, middle in x.items()}
    shapes: list[Shape] = [stop.box(x[name]) for name, stop in stops.items() if stop.style]
    return shapes + [_curve([(x[name], stops[name]) for name in path]) for path in paths]


def _depths(nodes: Sequence[int], edges: Sequence[Edge]) -> dict[int, int]:
    """In which row of nodes each stands: below what it reads, and not too many beside each other."""
    depth = dict.fromkeys(INPUTS, 0)
    for j in nodes:
        depth[j] = 1 + max(depth[i] for i, target, *_ in edges if target == j)
        while sum(depth[k] == depth[j] for k in nodes if k in depth) > CROWD:
            depth[j] += 1
    return depth


def _curve(stops: Sequence[tuple[float, Stop]]) -> Line:
    """Down from box to box; straight through the rows in which it only passes."""
    (x, start), *rest = stops
    y = start.y + HEIGHT
    points = [(x, y)]
    for to_x, stop in rest:
        half = (y + stop.y) / 2
        points += [(x, half), (to_x, half), (to_x, stop.y)]
        x, y = to_x, stop.y + HEIGHT
        if not stop.style:
            points += [(x, stop.y), (x, y), (x, y)]
    return Line(tuple(points))


def _stack(network: Sequence[Part]) -> list[Shape]:
    """From the image to the classes; equal cells that follow one another are one box, the wider the more channels."""
    most = max(part.steps[-1].unit.out_channels for part in network if part.group)
    shapes: list[Shape] = [Text(0, -22, "network", "head")]
    y = 0.0
    for (group, shape), equal in groupby(network, key=_kind):
        members = list(equal)
        text = f"{len(members)} × {group}" if group else members[0].name.rstrip("0123456789")
        share = math.sqrt(shape[0] / most) if group else 0
        width = max(WIDEST * share, text_width(text, "code") + 16)
        height = HEIGHT + 5 * (min(len(members), 8) - 1)
        if y:
            shapes.append(Line(polyline(((WIDEST / 2, y - STACKED), (WIDEST / 2, y)))))
        shapes.append(Box((WIDEST - width) / 2, y, width, height, "part" if group else "plain", text, 6))
        shapes.append(Text(WIDEST + 8, y + height / 2 + 4, " × ".join(map(str, shape)), "name"))
        y += height + STACKED
    return shapes


def _kind(part: Part) -> tuple[str, tuple[int, int, int]]:
    """Type of a cell, and channels, height and width of the result. Of parts without choices, cells have dots."""
    unit = part.steps[-1].unit
    return part.group or ("fixed" if "." in part.name else ""), (unit.out_channels, unit.out_height, unit.out_width)
