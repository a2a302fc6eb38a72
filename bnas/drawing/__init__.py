"""A picture of a network: a chain as columns of blocks, cells as graphs. One SVG file, without torch."""

from __future__ import annotations

from collections.abc import Sequence

from bnas.search.spaces import Architecture, SearchSpace

from .cells import cells
from .chain import chain
from .parts import parts
from .svg import Box, Line, Shape, Text, bounds, moved, polyline, text_width, to_svg

MEANINGS = {"bits1": "1 bit", "bits8": "8 bits", "bits32": "float", "plain": "no weights"}

__all__ = ["draw", "layout", "parts"]


def draw(space: SearchSpace, arch: Architecture, title: str, facts: Sequence[str] = ()) -> str:
    """The text of an SVG file; facts: lines below the title. Raises InputError if the space does not hold `arch`."""
    return to_svg(layout(space, arch, title, facts), title)


def layout(space: SearchSpace, arch: Architecture, title: str, facts: Sequence[str] = ()) -> list[Shape]:
    """Title, facts and the meaning of colours above the network; every shape with its place."""
    network = parts(space, arch)
    has_cells = any(part.group for part in network)
    body = cells(space, arch, network) if has_cells else chain(network)
    shapes: list[Shape] = [Text(0, 0, title, "title")]
    shapes += [Text(0, 22 + 17 * number, fact, "note") for number, fact in enumerate(facts)]
    y = 22 + 17 * len(facts)
    shapes += _legend(body, y)
    left, top, *_ = bounds(body)
    return [*shapes, *moved(body, -left, y + 46 - top)]


def _legend(body: Sequence[Shape], y: float) -> list[Shape]:
    """What the colours mean that are used; bars with channels say that they have them."""
    used = {shape.style for shape in body if not isinstance(shape, Text)}
    shapes: list[Shape] = []
    x = 0.0

    def entry(width: float, text: str) -> None:
        nonlocal x
        shapes.append(Text(x + width + 7, y + 10, text, "note"))
        x += width + 7 + text_width(text, "note") + 18

    for style, text in MEANINGS.items():
        if style in used:
            shapes.append(Box(x, y, 22, 13, style, radius=3))
            entry(22, text)
    if "shortcut" in used:
        shapes.append(Line(polyline(((x, y + 6), (x + 24, y + 6))), "shortcut"))
        entry(24, "shortcut, passed channels")
    return shapes
