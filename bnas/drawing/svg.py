"""Shapes with places, in pixels, and the SVG file they make. Knows nothing of networks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from xml.sax.saxutils import escape

Point = tuple[float, float]

# Text: (size, how wide a character is as a share of it). Fixed-width fonts differ little, so what is laid out fits.
FONTS = {"title": (17, 0.58), "head": (12, 0.6), "note": (11, 0.55), "name": (10, 0.61), "code": (11, 0.61)}


@dataclass(frozen=True)
class Box:
    """A rectangle with `text` in its middle; style: a class of the style sheet."""

    x: float
    y: float
    width: float
    height: float
    style: str
    text: str = ""
    radius: float = 4

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + self.height

    @property
    def middle(self) -> Point:
        return self.x + self.width / 2, self.y + self.height / 2

    def moved(self, dx: float, dy: float) -> Box:
        return replace(self, x=self.x + dx, y=self.y + dy)


@dataclass(frozen=True)
class Line:
    """Cubic curves one after the other: a point, then two controls and a point for each."""

    points: tuple[Point, ...]
    style: str = "main"
    arrow: bool = True  # at its end

    def moved(self, dx: float, dy: float) -> Line:
        return replace(self, points=tuple((x + dx, y + dy) for x, y in self.points))


@dataclass(frozen=True)
class Text:
    """One line; x is its beginning, middle or end as `anchor` says, y its base line. font: one of FONTS."""

    x: float
    y: float
    text: str
    font: str
    anchor: str = "start"

    @property
    def left(self) -> float:
        return self.x - {"start": 0.0, "middle": 0.5, "end": 1.0}[self.anchor] * text_width(self.text, self.font)

    def moved(self, dx: float, dy: float) -> Text:
        return replace(self, x=self.x + dx, y=self.y + dy)


Shape = Box | Line | Text


def text_width(text: str, font: str) -> float:
    size, share = FONTS[font]
    return size * share * len(text)


def moved(shapes: Iterable[Shape], dx: float, dy: float) -> list[Shape]:
    return [shape.moved(dx, dy) for shape in shapes]


def bounds(shapes: Sequence[Shape]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of all shapes."""
    corners: list[Point] = []
    for shape in shapes:
        if isinstance(shape, Box):
            corners += [(shape.x, shape.y), (shape.right, shape.bottom)]
        elif isinstance(shape, Line):
            corners += shape.points
        else:
            size = FONTS[shape.font][0]
            corners += [
                (shape.left, shape.y - size),
                (shape.left + text_width(shape.text, shape.font), shape.y + size / 4),
            ]
    columns, rows = zip(*corners, strict=True)
    return min(columns), min(rows), max(columns), max(rows)


def polyline(points: Sequence[Point], radius: float = 8) -> tuple[Point, ...]:
    """The points of a `Line` along straight pieces with rounded corners."""
    path = [points[0]]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        start, end = _towards(corner, before, radius), _towards(corner, after, radius)
        path += [path[-1], start, start, corner, corner, end]
    return (*path, path[-1], points[-1], points[-1])


def _towards(a: Point, b: Point, length: float) -> Point:
    """The point `length` away from a, at most halfway to b."""
    distance = abs(b[0] - a[0]) + abs(b[1] - a[1])  # pieces are horizontal or vertical
    share = min(0.5, length / distance) if distance else 0
    return a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])


# Every colour is said outright, without variables, which programs other than browsers do not know. The background is
# part of the picture, so that it can be read on a page of any colour.
_SANS = "system-ui,-apple-system,'Segoe UI',Roboto,'Liberation Sans',Arial,sans-serif"
_MONO = "ui-monospace,'SF Mono',Menlo,Consolas,'DejaVu Sans Mono',monospace"
_PAINT = {  # class: (fill, stroke) in the light and in the dark
    "paper": (("#ffffff", "#d8dee6"), ("#14191f", "#303842")),
    "part": (("#f4f6f9", "#dfe4eb"), ("#1c232b", "#2c353f")),
    "skipped": (("#ffffff", "#b3bdc9"), ("#14191f", "#4a5561")),
    "plain": (("#ffffff", "#8b97a5"), ("#14191f", "#8b97a5")),
    "node": (("#e6eaf0", "#8b97a5"), ("#2c353f", "#8b97a5")),
    "bits1": (("#bfe5dc", "#2b9382"), ("#13483f", "#41b8a4")),
    "bits8": (("#fbe2ab", "#c98c12"), ("#523c0b", "#e0aa3a")),
    "bits32": (("#d9dcf8", "#6068c4"), ("#2d3263", "#949bf0")),
    "main": (("none", "#8b97a5"), ("none", "#76828f")),
    "shortcut": (("none", "#cc5a7d"), ("none", "#ea8faa")),
    "main-tip": (("#8b97a5", "none"), ("#76828f", "none")),
    "shortcut-tip": (("#cc5a7d", "none"), ("#ea8faa", "none")),
    "ink": (("#1f2831", "none"), ("#e4e9ef", "none")),
    "dim": (("#66727f", "none"), ("#9aa5b1", "none")),
}
_INK = {"title": "ink", "head": "ink", "note": "dim", "name": "dim", "code": "ink"}


def _rules(dark: bool) -> str:
    return "".join(f".{name}{{fill:{p[dark][0]};stroke:{p[dark][1]}}}" for name, p in _PAINT.items())


def _style_sheet() -> str:
    fonts = "".join(
        f".{font}{{font:{'600 ' if font in ('title', 'head') else ''}{size}px {_MONO if font == 'code' else _SANS}}}"
        for font, (size, _) in FONTS.items()
    )
    lines = ".main,.shortcut{stroke-width:1.4}.skipped{stroke-dasharray:3 3}"
    return f"{fonts}{lines}{_rules(False)}@media(prefers-color-scheme:dark){{{_rules(True)}}}"


def to_svg(shapes: Sequence[Shape], title: str, margin: float = 20) -> str:
    """A file of its own: the shapes moved to the origin, on a background; boxes lie under lines, lines under texts."""
    left, top, right, bottom = bounds(shapes)
    width, height = right - left + 2 * margin, bottom - top + 2 * margin
    paper = Box(0.5, 0.5, width - 1, height - 1, "paper", radius=10)
    placed = [paper, *moved(shapes, margin - left, margin - top)]
    order = (Box, Line, Text)
    body = "\n".join(_element(shape) for kind in order for shape in placed if isinstance(shape, kind))
    tips = "".join(
        f'<marker id="{style}-end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="5.5" markerHeight="5.5" '
        f'orient="auto"><path class="{style}-tip" d="M0 0L8 4L0 8z"/></marker>'
        for style in ("main", "shortcut")
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_number(width)}" height="{_number(height)}" '
        f'viewBox="0 0 {_number(width)} {_number(height)}" role="img">\n'
        f"<title>{_text(title)}</title>\n<style>{_style_sheet()}</style>\n<defs>{tips}</defs>\n{body}\n</svg>\n"
    )


def _element(shape: Shape) -> str:
    if isinstance(shape, Text):
        anchor = "" if shape.anchor == "start" else f' text-anchor="{shape.anchor}"'
        return (
            f'<text class="{_INK[shape.font]} {shape.font}" x="{_number(shape.x)}" y="{_number(shape.y)}"{anchor}>'
            f"{_text(shape.text)}</text>"
        )
    if isinstance(shape, Line):
        (x, y), *rest = shape.points
        curves = "".join(
            "C" + " ".join(f"{_number(x)},{_number(y)}" for x, y in rest[i : i + 3]) for i in range(0, len(rest), 3)
        )
        tip = f' marker-end="url(#{shape.style}-end)"' if shape.arrow else ""
        return f'<path class="{shape.style}" d="M{_number(x)},{_number(y)}{curves}"{tip}/>'
    rect = (
        f'<rect class="{shape.style}" x="{_number(shape.x)}" y="{_number(shape.y)}" width="{_number(shape.width)}" '
        f'height="{_number(shape.height)}" rx="{_number(shape.radius)}"/>'
    )
    if not shape.text:
        return rect
    x, y = shape.middle
    return rect + _element(Text(x, y + 3.8, shape.text, "code", "middle"))


def _text(text: str) -> str:
    """Escaped; characters that XML cannot hold are left out."""
    return escape("".join(c for c in text if c.isprintable()))


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
