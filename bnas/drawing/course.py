"""How a search went, for the page of a run: the cells as they form, and its curves beside each other."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

from bnas.search.spaces import Architecture, SearchSpace, space_of

from .. import curves
from .cells import edges_of, graph
from .svg import Shape, Text, bounds, moved, to_svg

MOMENTS = 5
COLUMNS = 3  # of curves
BESIDE, HEAD = 50, 36  # room between two moments, and above a graph


def section(search: Mapping[str, Any]) -> str:
    """HTML of a search.json: the cells at some moments, and each curve of two epochs or more. Empty without either.

    The page has loaded plotly before.
    """
    space = space_of(search["architecture"]["space"])
    course = [Architecture(space.id, tuple(choices)) for choices in search.get("course", ())]
    text = ""
    if course and any(decision.group for decision in space.decisions):
        picture = base64.b64encode(to_svg(forming(space, course), "cells as they form").encode()).decode()
        text += (
            "<h2>The cells as they form</h2><div style='overflow-x:auto'>"
            f"<img alt='cells as they form' src='data:image/svg+xml;base64,{picture}'></div>"
        )
    series = {name: values for name, values in curves.series(search).items() if len(values) > 1}
    return text + (f"<h2>Curves</h2>{small_multiples(series)}" if series else "")


def moments(count: int, most: int = MOMENTS) -> list[int]:
    """At most `most` places in a sequence of `count`, evenly spread, with its first and its last."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def forming(space: SearchSpace, course: Sequence[Architecture]) -> list[Shape]:
    """A column of graphs, one for each cell type, at each of some moments; above it, how much is as at the end."""
    groups = list(dict.fromkeys(decision.group for decision in space.decisions))
    chosen = moments(len(course))
    graphs = [[graph(edges_of(space, course[n], group)) for group in groups] for n in chosen]
    heights = [max(_height(column[row]) for column in graphs) for row in range(len(groups))]
    shapes: list[Shape] = []
    left = 0.0
    for n, column in zip(chosen, graphs, strict=True):
        stayed = sum(a == b for a, b in zip(course[n].choices, course[-1].choices, strict=True))
        title = f"{n + 1} of {len(course)}: {stayed} of {len(space.genes)} nodes as at the end"
        own: list[Shape] = [Text(0, 0, title, "note")]
        y = 2.0 * HEAD
        for group, height, drawn in zip(groups, heights, column, strict=True):
            x, top, *_ = bounds(drawn)
            own += [Text(0, y - 10, f"{group} cell", "head"), *moved(drawn, -x, y - top)]
            y += height + HEAD
        shapes += moved(own, left, 0)
        left = bounds(shapes)[2] + BESIDE
    return shapes


def _height(shapes: Sequence[Shape]) -> float:
    _, top, _, bottom = bounds(shapes)
    return bottom - top


def small_multiples(series: Mapping[str, Sequence[float]]) -> str:
    """HTML of a plot for each series, over the epochs in which it was seen: the last of all series is their last."""
    from plotly.subplots import make_subplots

    rows = -(-len(series) // COLUMNS)
    figure = make_subplots(
        cols=COLUMNS, rows=rows, subplot_titles=[html.escape(name) for name in series], vertical_spacing=0.25 / rows
    )
    epochs = max(map(len, series.values()))
    for number, values in enumerate(series.values()):
        x = list(range(epochs - len(values) + 1, epochs + 1))
        row, column = divmod(number, COLUMNS)
        figure.add_scatter(x=x, y=list(values), mode="lines", line={"width": 1.5}, row=row + 1, col=column + 1)
    figure.update_layout(template="plotly_white", height=230 * rows, showlegend=False, margin={"t": 40})
    return figure.to_html(full_html=False, include_plotlyjs=False)
