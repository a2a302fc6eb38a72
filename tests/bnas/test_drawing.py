"""The drawing: it says what the network is, nothing lies on anything else, and any program can show it."""

import itertools
import re
import xml.etree.ElementTree as ET
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnas.drawing import draw, layout, parts
from bnas.drawing.cells import graph
from bnas.drawing.layered import place
from bnas.drawing.svg import Box, Line, Shape, Text, bounds, polyline, text_width
from bnas.search.spaces import SPACES, Architecture, SearchSpace, make_space, reference, references, space_of

IMAGES = {"micro": (1, 8, 8), "cifar": (3, 32, 32), "imagenet": (3, 224, 224)}
OPTIONS = ("mobilenet:cifar:bits=1+8", "mobilenet:micro:bits=8", "shufflenet:micro:bits=32", "cells:micro:bits=1+8+32",
           "cells:cifar:ops=separable", "shufflenet:cifar:depthwise=grouped", "cells:micro:layers=30",
           "cells:cifar:reduction=fixed")  # fmt: skip
TEXTS = (*(f"{space}:{instance}" for space in SPACES for instance in IMAGES), *OPTIONS)
NETWORKS = (*TEXTS, *references.REFERENCES)


def network(name: str) -> tuple[SearchSpace, Architecture]:
    if name in references.REFERENCES:
        arch = reference(name)
        return space_of(arch.space), arch
    space = make_space(name, IMAGES[name.split(":")[1]], 10)
    return space, space.random(np.random.default_rng(len(name)))


def boxes(shapes: list[Shape]) -> list[Box]:
    """Those with something written in them; the others are frames around blocks, and samples of colours."""
    return [shape for shape in shapes if isinstance(shape, Box) and shape.text]


def overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    """Of rectangles (left, top, right, bottom); edges may touch."""
    return min(a[2], b[2]) - max(a[0], b[0]) > 0.01 and min(a[3], b[3]) - max(a[1], b[1]) > 0.01


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_lies_on_anything_else(name: str) -> None:
    shapes = layout(*network(name), "title", ("fact", "another"))
    solid = [s for s in shapes if isinstance(s, Text) or (isinstance(s, Box) and s.text)]
    places = [bounds([shape]) for shape in solid]
    for (a, here), (b, there) in itertools.combinations(zip(solid, places, strict=True), 2):
        assert not overlap(here, there), (a, b)
    frames = [bounds([s]) for s in shapes if isinstance(s, Box) and not s.text]
    assert not any(overlap(a, b) for a, b in itertools.combinations(frames, 2))
    for box, frame in itertools.product(places, frames):  # in a frame or out of it, not across its edge
        inside = box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
        assert inside or not overlap(box, frame)
    assert all(text_width(box.text, "code") <= box.width for box in boxes(shapes))


def along(line: Line) -> list[tuple[float, float]]:
    """20 points of each of the line's Bézier curves."""
    (start, *rest), points = line.points, []
    for a, b, c in zip(*[iter(rest)] * 3, strict=True):
        for t in np.linspace(0, 1, 20):
            w = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
            points.append(tuple(sum(k * p[i] for k, p in zip(w, (start, a, b, c), strict=True)) for i in (0, 1)))
        start = c
    return points


@pytest.mark.parametrize("name", NETWORKS)
def test_lines_go_around_boxes(name: str) -> None:
    shapes = layout(*network(name), "title")
    rectangles = [bounds([box]) for box in boxes(shapes)]
    for line in (shape for shape in shapes if isinstance(shape, Line)):
        for x, y in along(line):
            assert not any(r[0] + 1 < x < r[2] - 1 and r[1] + 1 < y < r[3] - 1 for r in rectangles), line


@pytest.mark.parametrize("name", NETWORKS)
def test_every_choice_is_written(name: str) -> None:
    space, arch = network(name)
    written = Counter(shape.text for shape in layout(space, arch, "title") if not isinstance(shape, Line))
    taken = Counter(part.partition("@")[0] for choice in arch.choices for part in choice.split("+") if "@" in choice)
    if space.name != "cells":
        taken = Counter(arch.choices)
    assert {choice: written[choice] for choice in taken} == taken


def wires(shapes: list[Shape]) -> list[tuple[int, int]]:
    """Which box leads to which, by their places in `boxes`, read off the two ends of every line."""
    drawn = boxes(shapes)
    below = {(round(box.middle[0], 3), round(box.bottom, 3)): i for i, box in enumerate(drawn)}
    above = {(round(box.middle[0], 3), round(box.y, 3)): i for i, box in enumerate(drawn)}
    ends = [[(round(x, 3), round(y, 3)) for x, y in s.points] for s in shapes if isinstance(s, Line)]
    return [(below[points[0]], above[points[-1]]) for points in ends]


def test_cells_that_are_not_searched_are_called_fixed() -> None:
    shapes = layout(*network("cells:cifar:reduction=fixed"), "title")
    stack = [box.text for box in boxes(shapes) if "×" in box.text]
    assert stack == ["2 × normal", "1 × fixed", "2 × normal", "1 × fixed", "2 × normal"]


@pytest.mark.parametrize("seed", range(10))
def test_a_cell_is_wired_as_its_genotype_says(seed: int) -> None:
    space = make_space("cells:micro", (1, 8, 8), 10)
    choices = space.random(np.random.default_rng(seed)).choices[:4]
    edges = [
        (int(source), node, operation, 1)
        for node, choice in enumerate(choices, start=2)
        for operation, source in (edge.split("@") for edge in choice.split("+"))
    ]
    shapes = graph(edges)
    texts = [box.text for box in boxes(shapes)]
    numbers = {i: int(re.sub(r"\D", "", text)) for i, text in enumerate(texts) if re.fullmatch(r"\d|input \d:.*", text)}
    result = next(i for i, text in enumerate(texts) if text.startswith("result"))
    drawn = wires(shapes)
    target = {a: numbers[b] for a, b in drawn if b in numbers}  # operation -> node
    read = [(numbers[a], target[b], texts[b]) for a, b in drawn if b in target]
    assert Counter(read) == Counter((i, j, operation) for i, j, operation, _ in edges)
    assert [numbers[a] for a, b in drawn if b == result] == [2, 3, 4, 5]
    assert len(drawn) == 2 * len(edges) + 4


@pytest.mark.parametrize("name", [name for name in NETWORKS if "cells" not in name and "darts" not in name])
def test_bars_tell_bits_and_channels(name: str) -> None:
    space, arch = network(name)
    shapes, units = layout(space, arch, "title"), space.workloads(arch)
    styles = Counter(box.style for box in boxes(shapes))
    weighted = Counter(f"bits{u.bits}" for u in units if u.kind in ("conv", "binary_conv", "head"))
    assert {style: styles[style] for style in ("bits1", "bits8", "bits32")} == dict(
        {"bits1": 0, "bits8": 0, "bits32": 0}, **weighted
    )
    bars = sorted(
        (int(b.text.rpartition("→ ")[2]), b.width) for b in boxes(shapes) if "→" in b.text and "head" not in b.text
    )
    assert Counter(c for c, _ in bars) == Counter(
        u.out_channels for u in units if u.kind in ("conv", "binary_conv", "max_pool", "avg_pool")
    )
    assert all((c < d) == (w < v) for (c, w), (d, v) in itertools.pairwise(bars))
    shortcuts = [shape for shape in shapes if isinstance(shape, Line) and shape.style == "shortcut"]
    assert len(shortcuts) - bool(shortcuts) == sum(
        "residual" in u.epilogue or u.kind in ("add", "concat") for u in units
    )  # one in the legend


@pytest.mark.parametrize("name", NETWORKS)
def test_parts_hold_every_unit_once_in_order(name: str) -> None:
    space, arch = network(name)
    network_parts = parts(space, arch)
    assert [step for part in network_parts for step in part.steps] == list(space.steps(arch))
    assert all(step.name.startswith(part.name) for part in network_parts for step in part.steps)
    if space.name != "cells":
        assert tuple(part.choice for part in network_parts if part.choice) == arch.choices


SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", ["tiny:micro", "cells:micro", "mobilenetv2"])
def test_the_file_is_whole_and_stands_alone(name: str) -> None:
    title, fact = "<b>&\"'\x00\x1f🙂</b>", "a < b & c"
    text = draw(*network(name), title, (fact,))
    root = ET.fromstring(text)
    assert root.tag == f"{SVG}svg"
    shown = [element.text for element in root.iter(f"{SVG}text")]
    cleaned = "<b>&\"'🙂</b>"  # XML has no controls
    assert {cleaned, fact} <= set(shown) and [e.text for e in root.iter(f"{SVG}title")] == [cleaned]
    expected = Counter(
        s.text for s in layout(*network(name), "t") if not isinstance(s, Line) and s.text and s.text != "t"
    )
    assert expected - Counter(shown) == Counter()
    assert re.findall(r"(?:href|src|@import|https?:)", text.replace("http://www.w3.org/2000/svg", "")) == []
    used = set(re.findall(r"url\(#([\w-]+)\)", text))
    assert used <= {element.get("id") for element in root.iter()}
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for rect in root.iter(f"{SVG}rect"):
        x, y, w, h = (float(rect.get(key, "nan")) for key in ("x", "y", "width", "height"))
        assert x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= width + 0.1 and y + h <= height + 0.1


def contrast(a: str, b: str) -> float:
    """Of two colours #rrggbb, 1 to 21 (Web Content Accessibility Guidelines 2.1)."""

    def luminance(colour: str) -> float:
        levels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in levels]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_all_text_can_be_read_in_the_light_and_in_the_dark() -> None:
    """4.5 is what the guidelines ask of small text."""
    light, dark = (
        draw(*network("tiny:micro"), "title").partition("</style>")[0].split("@media(prefers-color-scheme:dark)")
    )
    papers = []
    for sheet in (light, dark):
        fills = dict(re.findall(r"\.([\w-]+)\{fill:(#\w{6})", sheet))
        for style in ("paper", "part", "node", "plain", "skipped", "bits1", "bits8", "bits32"):
            assert contrast(fills["ink"], fills[style]) >= 7
        for style in ("paper", "part", "skipped"):
            assert contrast(fills["dim"], fills[style]) >= 4.5
        papers.append(fills["paper"])
    assert contrast(*papers) > 12


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_boxes_of_a_row_keep_their_distance(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=6))
    rows = [[f"{r}.{i}" for i in range(size)] for r, size in enumerate(sizes)]
    pairs = [(a, b) for upper, lower in itertools.pairwise(rows) for a in upper for b in lower]
    paths = [list(p) for p in data.draw(st.lists(st.sampled_from(pairs), max_size=20))] if pairs else []
    widths = {name: data.draw(st.floats(1, 200)) for row in rows for name in row}
    x = place(rows, paths, widths, 10)
    assert set(x) == set(widths)
    for row in rows:
        for a, b in itertools.pairwise(sorted(row, key=x.__getitem__)):
            assert x[b] - x[a] >= (widths[a] + widths[b]) / 2 + 10 - 1e-6


def test_rows_are_sorted_until_no_line_crosses() -> None:
    """Three strands given in mixed order, and a line over two rows: without crossings, each lies straight."""
    rows = [["a", "b", "c"], ["c1", "a1", "b1"], ["b2", "c2", "a2"]]
    paths = [["a", "a1", "a2"], ["b", "b1"], ["b1", "b2"], ["c", "c1", "c2"]]
    x = place(rows, paths, dict.fromkeys(itertools.chain(*rows), 20), 10)
    for strand in "abc":
        assert x[strand] == pytest.approx(x[f"{strand}1"], abs=0.5) == pytest.approx(x[f"{strand}2"], abs=0.5)


def test_a_polyline_keeps_its_ends_and_stays_within_its_corners() -> None:
    corners = ((0.0, 0.0), (0.0, 40.0), (30.0, 40.0), (30.0, 10.0), (31.0, 10.0))
    line = Line(polyline(corners, 8))
    assert (line.points[0], line.points[-1]) == (corners[0], corners[-1])
    on = [any(x in (a[0], b[0]) or y in (a[1], b[1]) for a, b in itertools.pairwise(corners)) for x, y in line.points]
    assert all(on)
    path = np.array(along(line))
    assert path.min() >= -1e-9 and path[:, 0].max() <= 31 + 1e-9 and path[:, 1].max() <= 40 + 1e-9
    away = np.abs(path - (0, 40)).sum(1).min()
    assert 0 < away < 8  # the corner is rounded, and not cut further than told
