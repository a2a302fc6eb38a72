"""What was scored, and the front: latency to the right, score upwards."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import floor, log10

from .svg import Box, Line, Shape, Text, to_svg

Point = tuple[float, float]  # latency in ms, score
WIDTH, HEIGHT, DOT, STAR = 560.0, 300.0, 7.0, 13.0


def draw_front(
    scored: Sequence[Point], front: Sequence[Point], taken: Point, limit_ms: float, score_name: str, title: str
) -> str:
    """An SVG file: dots for what was scored and for the front, steps along it, a large dot for what was taken.

    scored, front, taken: (latency in ms, score), the front from its fastest.
    """
    points = [*scored, *front, taken]
    columns, rows = [x for x, _ in points], [y for _, y in points]
    # A limit far beyond everything would press it to the left edge.
    near = limit_ms <= max(columns) + (max(columns) - min(columns) or max(columns))
    across = Axis([*columns, limit_ms] if near else columns, WIDTH)
    up = Axis(rows, HEIGHT)

    def place(point: Point) -> Point:
        return across.at(point[0]), HEIGHT - up.at(point[1])

    shapes: list[Shape] = [Box(0, 0, WIDTH, HEIGHT, "part")]
    shapes += [dot(place(p), DOT, "plain") for p in scored]
    stairs = [place(front[0])] if front else []
    for x, y in map(place, front[1:]):
        if y < stairs[-1][1]:  # others are there for their few bytes
            stairs += [(x, stairs[-1][1]), (x, y)]
    shapes += [straight(a, b, "shortcut") for a, b in pairwise(stairs)]
    shapes += [dot(place(p), DOT, "bits8") for p in front]
    shapes.append(dot(place(taken), STAR, "bits1"))
    if near:
        x = across.at(limit_ms)
        shapes += [straight((x, 0), (x, HEIGHT), "main"), Text(x - 5, 14, "limit", "note", "end")]
    shapes += [Text(across.at(v), HEIGHT + 17, text, "code", "middle") for v, text in across.ticks()]
    shapes += [Text(-8, HEIGHT - up.at(v) + 4, text, "code", "end") for v, text in up.ticks()]
    shapes += [
        Text(0, -34, title, "title"),
        Text(0, -12, score_name, "note"),
        Text(WIDTH, HEIGHT + 36, "predicted latency, ms", "note", "end"),
    ]
    return to_svg(shapes, title)


class Axis:
    """Values over a length in pixels, with a little room at both ends, and more where all are nearly the same."""

    def __init__(self, values: Sequence[float], length: float) -> None:
        least, most = min(values), max(values)
        largest = max(abs(least), abs(most))
        room = 0.06 * (most - least) if most - least > 1e-6 * largest else 0.05 * largest
        room = room if room > 1e-300 else 1.0  # below, floats lose their digits
        self.low, self.high, self.length = least - room, most + room, length

    def at(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low) * self.length

    def ticks(self) -> list[tuple[float, str]]:
        """Three to eight round values, with their texts."""
        span = self.high - self.low
        power = 10.0 ** floor(log10(span / 3) - 1e-9)  # less a little, so that at least 3 steps fit by any rounding
        step = next(s * power for s in (5, 2, 1) if span / (s * power) >= 3)
        digits = max(0, -floor(log10(step) + 1e-9))
        first = floor(self.low / step) + 1
        values = [n * step for n in range(first, floor(self.high / step) + 1)]
        return [(value, f"{value:.{digits}f}") for value in values]


def dot(center: Point, size: float, style: str) -> Box:
    return Box(center[0] - size / 2, center[1] - size / 2, size, size, style, radius=size / 2)


def straight(a: Point, b: Point, style: str) -> Line:
    return Line((a, a, b, b), style, arrow=False)
