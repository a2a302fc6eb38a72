"""Places the boxes of a small graph in rows, so that few lines cross and no two boxes touch.

The steps of Sugiyama, Tagawa and Toda 1981: rows are given, and a line over several rows has a narrow box in each of
those between; boxes are sorted in their rows by the mean place of their neighbours, and then moved towards it as far
as their widths allow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise

Edge = tuple[str, str]  # from a box to one in the next row
STRAIGHT = {0: 8, 1: 2, 2: 1}  # how much a piece of a line should be straight, by how many of its ends are real boxes


def place(
    rows: Sequence[Sequence[str]], paths: Sequence[Sequence[str]], widths: Mapping[str, float], gap: float
) -> dict[str, float]:
    """The middle of each box, across the rows. paths: the boxes that a line visits, one in each row."""
    edges = [edge for path in paths for edge in pairwise(path)]
    ordered = _ordered([list(row) for row in rows], edges)
    near: dict[str, list[tuple[str, int]]] = {name: [] for row in ordered for name in row}
    for path in paths:
        for number, (a, b) in enumerate(pairwise(path)):
            ends = (number == 0) + (number == len(path) - 2)
            near[a].append((b, STRAIGHT[ends]))
            near[b].append((a, STRAIGHT[ends]))
    x: dict[str, float] = {}
    for row in ordered:
        x |= dict(zip(row, _spread([0.0] * len(row), row, widths, gap), strict=True))
    for _ in range(60):
        for row in (*ordered, *reversed(ordered)):
            wished = [_mean([(x[other], weight) for other, weight in near[name]], x[name]) for name in row]
            x |= dict(zip(row, _spread(wished, row, widths, gap), strict=True))
    return x


def _mean(values: Sequence[tuple[float, int]], default: float) -> float:
    total = sum(weight for _, weight in values)
    return sum(value * weight for value, weight in values) / total if total else default


def _ordered(rows: list[list[str]], edges: Sequence[Edge]) -> list[list[str]]:
    best, least = [list(row) for row in rows], _crossings(rows, edges)
    for sweep in range(12):
        down = sweep % 2 == 0
        for i in range(1, len(rows)) if down else range(len(rows) - 2, -1, -1):
            fixed = {name: place for place, name in enumerate(rows[i - 1 if down else i + 1])}
            ends = [(b, a) for a, b in edges] if down else list(edges)
            means = {}
            for place_now, name in enumerate(rows[i]):
                known = [fixed[other] for own, other in ends if own == name and other in fixed]
                means[name] = sum(known) / len(known) if known else place_now
            rows[i].sort(key=means.__getitem__)
        if (count := _crossings(rows, edges)) < least:
            best, least = [list(row) for row in rows], count
    return _swapped(best, edges, least)


def _swapped(rows: list[list[str]], edges: Sequence[Edge], least: int) -> list[list[str]]:
    """Neighbours change places as long as fewer lines cross."""
    better = True
    while better:
        better = False
        for row in rows:
            for i in range(len(row) - 1):
                row[i], row[i + 1] = row[i + 1], row[i]
                if (count := _crossings(rows, edges)) < least:
                    least, better = count, True
                else:
                    row[i], row[i + 1] = row[i + 1], row[i]
    return rows


def _crossings(rows: Sequence[Sequence[str]], edges: Sequence[Edge]) -> int:
    at = {name: (number, place) for number, row in enumerate(rows) for place, name in enumerate(row)}
    lines = [(at[a], at[b]) for a, b in edges]
    return sum(a[0] == c[0] and (a[1] - c[1]) * (b[1] - d[1]) < 0 for (a, b), (c, d) in combinations(lines, 2))


def _spread(wished: Sequence[float], row: Sequence[str], widths: Mapping[str, float], gap: float) -> list[float]:
    """The places nearest to those wished (least squares) at which the boxes keep their order and `gap` between them.

    Without the boxes' widths it is isotonic regression, solved by pooling neighbours that are in each other's way.
    """
    offsets, offset = [0.0], 0.0
    for a, b in pairwise(row):
        offset += (widths[a] + widths[b]) / 2 + gap
        offsets.append(offset)
    pools: list[tuple[float, int]] = []  # (mean, members)
    for wish, shift in zip(wished, offsets, strict=True):
        mean, count = wish - shift, 1
        while pools and pools[-1][0] > mean:
            other, members = pools.pop()
            mean, count = (mean * count + other * members) / (count + members), count + members
        pools.append((mean, count))
    means = [mean for mean, count in pools for _ in range(count)]
    return [mean + shift for mean, shift in zip(means, offsets, strict=True)]
