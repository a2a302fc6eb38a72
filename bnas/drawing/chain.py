"""A chain as columns of blocks, by image size: bars that are wider the more channels they have, and shortcuts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

from bnas.profiles.workload import Workload
from bnas.search.spaces.wiring import IMAGE, Step

from .parts import Part
from .svg import Box, Line, Point, Shape, Text, moved, polyline, text_width

BAR, ROW, PAD = 18, 31, 13  # height of a bar, of a row with the space below it, space inside of a block
NARROWEST, WIDEST = 98, 196  # bars with no and with most channels; what is written in them has room
HIGHEST = 950  # a column; what is higher is cut into several
APART, BESIDE, LANE, GUTTER = 8, 24, 9, 44  # between blocks, bars of a row, shortcuts, columns
TAP = 5  # below a bar, where a shortcut leaves the line
JOINS = {"add": "+", "concat": "join"}
POOLS = {"max_pool": "max", "avg_pool": "mean"}
DRAWN = {"conv", "binary_conv", "head", *POOLS, *JOINS}


@dataclass(frozen=True)
class Link:
    """A value that a drawn step reads. source: the drawn step that it comes from, or None: it enters the block."""

    source: str | None
    target: str
    shortcut: bool


@dataclass(frozen=True)
class Seat:
    """Where a step is: its row and its bar."""

    row: int
    bar: Box


@dataclass(frozen=True)
class Block:
    """A laid out part; its axis is at x = 0, its top at y = 0. end: where its result leaves."""

    shapes: tuple[Shape, ...]
    left: float
    right: float
    height: float
    end: Point


def chain(network: Sequence[Part]) -> list[Shape]:
    """Columns from left to right, blocks from above; the last unit of a column leads to the top of the next."""
    most = max(step.unit.out_channels for part in network for step in part.steps if step.unit.kind != "head")
    sources = _sources(network)
    shapes: list[Shape] = []
    left, leaving = 0.0, None
    laid = {part.name: _block(part, sources, most) for part in network}
    for size, members in _columns(network, laid):
        blocks = [laid[part.name] for part in members]
        axis = left + PAD - min(b.left for b in blocks)
        names = axis + max(b.right for b in blocks) + PAD
        right = names + max(text_width(text, "code") for part in members for text in (part.name, part.choice)) + PAD
        shapes.append(Text(axis, -30, size, "head", "middle"))
        if leaving is None:
            shapes.append(Line(polyline(((axis, -18), (axis, 0))), arrow=False))
        else:
            x, y = leaving
            way = left - GUTTER / 2
            bends = ((x, y), (x, y + PAD + APART), (way, y + PAD + APART), (way, -18), (axis, -18), (axis, 0))
            shapes.append(Line(polyline(bends), arrow=False))
        y = 0.0
        for part, block in zip(members, blocks, strict=True):
            shapes.append(Box(left, y, right - left, block.height, "part" if part.steps else "skipped", radius=8))
            shapes += moved(block.shapes, axis, y)
            shapes += _names(part, names, y + block.height / 2)
            leaving = (axis + block.end[0], y + block.end[1])
            if part is not members[-1]:
                shapes.append(_down(leaving, (axis, y + block.height + APART), arrow=False))
            y += block.height + APART
        left = right + GUTTER
    return shapes


def _names(part: Part, x: float, middle: float) -> list[Shape]:
    if not part.choice:
        return [Text(x, middle + 3.5, part.name, "name")]
    return [Text(x, middle - 2, part.choice, "code"), Text(x, middle + 11, part.name, "name")]


def _columns(network: Sequence[Part], laid: dict[str, Block]) -> list[tuple[str, list[Part]]]:
    """Parts that follow one another at one image size; the head stays with those before."""
    sized: list[tuple[str, Part]] = []
    for part in network:
        size = sized[-1][0] if sized else ""
        if part.steps and (unit := part.steps[-1].unit).kind != "head":
            size = f"{unit.out_height} × {unit.out_width}"
        sized.append((size, part))
    return [
        (size, members)
        for size, pairs in groupby(sized, key=lambda pair: pair[0])
        for members in _cut([part for _, part in pairs], laid)
    ]


def _cut(column: Sequence[Part], laid: dict[str, Block]) -> list[list[Part]]:
    """Pieces of about the same height, none of them much above HIGHEST."""
    heights = [laid[part.name].height + APART for part in column]
    pieces = math.ceil(sum(heights) / HIGHEST)
    middles = [before - height / 2 for before, height in zip(accumulate(heights), heights, strict=True)]
    numbers = [int(pieces * middle / sum(heights)) for middle in middles]
    return [[part for part, own in zip(column, numbers, strict=True) if own == n] for n in sorted(set(numbers))]


def _sources(network: Sequence[Part]) -> dict[str, str | None]:
    """For each value the drawn step that it comes from: pools of shortcuts, repetitions and the like are not drawn."""
    sources: dict[str, str | None] = {IMAGE: None}
    for part in network:
        for step in part.steps:
            sources[step.name] = step.name if step.unit.kind in DRAWN else sources[step.inputs[0]]
    return sources


def _links(part: Part, sources: dict[str, str | None]) -> list[Link]:
    """What the drawn steps read. Of a sum or a join, what was made last is the branch, the rest are shortcuts."""
    inside = {step.name: number for number, step in enumerate(part.steps)}
    links = []
    for step in part.steps:
        if step.unit.kind in DRAWN:
            read = [source if (source := sources[name]) in inside else None for name in step.inputs]
            ages = [-1 if source is None else inside[source] for source in read]
            main = ages.index(max(ages)) if step.unit.kind in JOINS else 0
            links += [Link(source, step.name, number != main) for number, source in enumerate(read)]
    return links


def _rows(part: Part, links: Sequence[Link]) -> list[list[Step]]:
    """Steps below what they read; what comes to a unit by a shortcut may stand beside it."""
    row: dict[str | None, int] = {None: -1}
    rows: list[list[Step]] = []
    for step in part.steps:
        if step.unit.kind in DRAWN:
            joins = step.unit.kind in JOINS
            above = [row[link.source] for link in links if link.target == step.name and (joins or not link.shortcut)]
            row[step.name] = max(above) + 1
            rows += [[] for _ in range(row[step.name] + 1 - len(rows))]
            rows[row[step.name]].append(step)
    return rows


def _block(part: Part, sources: dict[str, str | None], most: int) -> Block:
    links = _links(part, sources)
    rows = _rows(part, links)
    seats = _seats(rows, most)
    left = min((seat.bar.x for seat in seats.values()), default=-NARROWEST / 2)
    right = max((seat.bar.right for seat in seats.values()), default=NARROWEST / 2)
    height = PAD + len(rows) * ROW - (ROW - BAR) + PAD if rows else PAD + 24
    if not rows:
        return Block((_down((0, 0), (0, height), arrow=False),), left, right, height, (0, height))
    shapes: list[Shape] = [seat.bar for seat in seats.values()]
    taken: dict[bool, list[list[tuple[int, int]]]] = {True: [], False: []}  # side -> lanes -> rows they are used in
    for link in sorted(links, key=lambda link: _span(link, seats)):
        target = seats[link.target]
        if not link.shortcut:
            start = (0.0, 0.0) if link.source is None else _below(seats[link.source].bar)
            shapes.append(_down(start, (target.bar.middle[0], target.bar.y)))
            continue
        if link.source is not None and seats[link.source].row == target.row:
            beside = seats[link.source].bar
            ends = ((beside.right, beside.middle[1]), (target.bar.x, target.bar.middle[1]))
            shapes.append(Line(polyline(ends), "shortcut"))
            continue
        on_right = target.bar.middle[0] > 1
        lane = _lane(taken[on_right], (-1 if link.source is None else seats[link.source].row, target.row))
        x = right + LANE * (lane + 1) if on_right else left - LANE * (lane + 1)
        shapes.append(_around(link, seats, x, target.bar.right if on_right else target.bar.x))
    left -= LANE * len(taken[False])
    right += LANE * len(taken[True])
    return Block(tuple(shapes), left, right, height, _below(seats[rows[-1][-1].name].bar))


def _span(link: Link, seats: dict[str, Seat]) -> int:
    """Over how many rows it goes; shorter shortcuts lie inside of longer ones."""
    return seats[link.target].row - (-1 if link.source is None else seats[link.source].row)


def _lane(lanes: list[list[tuple[int, int]]], rows: tuple[int, int]) -> int:
    """The innermost lane that is free between two rows; it is taken."""
    for number, used in enumerate(lanes):
        if all(rows[1] <= first or last <= rows[0] for first, last in used):
            used.append(rows)
            return number
    lanes.append([rows])
    return len(lanes) - 1


def _below(bar: Box) -> Point:
    return bar.middle[0], bar.bottom


def _down(start: Point, end: Point, arrow: bool = True) -> Line:
    half = (start[1] + end[1]) / 2
    return Line((start, (start[0], half), (end[0], half), end), arrow=arrow)


def _around(link: Link, seats: dict[str, Seat], lane: float, end: float) -> Line:
    """From the line below the source, or the one that enters the block, along a lane to the side of the target."""
    x, y = (0.0, 0.0) if link.source is None else _below(seats[link.source].bar)
    y_end = seats[link.target].bar.middle[1]
    return Line(polyline(((x, y), (x, y + TAP), (lane, y + TAP), (lane, y_end), (end, y_end)), 5), "shortcut")


def _seats(rows: Sequence[Sequence[Step]], most: int) -> dict[str, Seat]:
    """Rows around the axis; where there are branches, each is straight."""
    bars = {step.name: _bar(step.unit, most) for row in rows for step in row}
    branch = BESIDE + max((bars[step.name].width for row in rows if len(row) > 1 for step in row), default=0)
    seats = {}
    for number, row in enumerate(rows):
        for place, step in enumerate(row):
            bar, middle = bars[step.name], branch * (place - (len(row) - 1) / 2)
            y = PAD + number * ROW + (BAR - bar.height) / 2
            seats[step.name] = Seat(number, bar.moved(middle - bar.width / 2, y))
    return seats


def _bar(unit: Workload, most: int) -> Box:
    if unit.kind in JOINS:
        text = JOINS[unit.kind]
        return Box(0, 0, text_width(text, "code") + 14, 16, "node", text, 8)
    width = NARROWEST + (WIDEST - NARROWEST) * math.sqrt(min(unit.out_channels, most) / most)
    style = "plain" if unit.kind in POOLS else f"bits{unit.bits}"
    return Box(0, 0, width, BAR, style, _text(unit), 4)


def _text(unit: Workload) -> str:
    """3×3 /2 → 128: kernel, stride, channels of the result."""
    if unit.kind == "head":
        return f"head → {unit.out_channels}"
    depthwise = unit.kind == "conv" and unit.groups == unit.in_channels > 1
    words = [
        POOLS.get(unit.kind, "dw" if depthwise else ""),
        f"{unit.kernel}×{unit.kernel}",
        f"/{unit.stride}" if unit.stride > 1 else "",
        f"g{unit.groups}" if unit.groups > 1 and not depthwise else "",
        f"d{unit.dilation}" if unit.dilation > 1 else "",
        f"→ {unit.out_channels}",
    ]
    return " ".join(word for word in words if word)
