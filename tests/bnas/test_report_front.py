"""The picture of the front: every architecture is a dot where it belongs, and the axes have round numbers."""

import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bnas.drawing.front import HEIGHT, WIDTH, Axis, draw_front

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8)


@given(VALUES, st.floats(1e-6, 1e3))
@example([5.0, 5.000000000000001], 1.0)  # sums of the same numbers in another order
@example([2.2e-309], 1e-6)
def test_ticks_are_round_numbers_on_the_axis(values: list[float], scale: float) -> None:
    axis = Axis([value * scale for value in values], 100.0)
    assert all(0 <= axis.at(value * scale) <= 100 for value in values)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 9 and [v for v, _ in ticks] == sorted({v for v, _ in ticks})
    assert all(0 <= axis.at(v) <= 100 + 1e-6 for v, _ in ticks)
    step = ticks[1][0] - ticks[0][0]
    assert re.match(r"[125]\.?0*e", f"{step:.2e}")
    for value, text in ticks:
        assert math.isclose(float(text), value, rel_tol=1e-9, abs_tol=step * 1e-6)


@pytest.mark.parametrize("span", [0.3, 3.0, 30.0, 3e-5, 0.6, 0.15])
def test_an_axis_of_a_round_length_has_ticks(span: float) -> None:
    """0.3 / 3 is a little less than 0.1, but its logarithm is -1."""
    axis = Axis([0.0, 1.0], 100.0)
    axis.low, axis.high = 0.0, span
    assert 3 <= len(axis.ticks()) <= 8


def dots(svg: str, style: str) -> list[tuple[float, float]]:
    """The middles of the dots of a style, in pixels."""
    root = ET.fromstring(svg)
    found = [r for r in root.iter("{http://www.w3.org/2000/svg}rect") if r.get("class") == style]
    boxes = [[float(str(r.get(k))) for k in ("x", "y", "width", "height")] for r in found]
    return [(x + w / 2, y + h / 2) for x, y, w, h in boxes]


def test_dots_lie_where_latency_and_score_put_them() -> None:
    scored = [(1.0, 0.5), (2.0, 0.7), (3.0, 0.6)]
    svg = draw_front(scored, scored[:2], scored[1], 3.5, "accuracy", "a < b")
    places = dots(svg, "plain")
    assert len(places) == 3 and len(dots(svg, "bits8")) == 2 and len(dots(svg, "bits1")) == 1
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and x0 < x1  # equal steps of latency
    assert y0 - y1 == pytest.approx(2 * (y2 - y1), abs=0.3) and y1 < y0  # better is higher
    assert dots(svg, "bits1")[0] == pytest.approx((x1, y1), abs=0.2)
    assert "limit" in svg and "a &lt; b" in svg


@pytest.mark.parametrize("front", [[], [(1.0, 2.0)]])
def test_one_architecture_and_no_limit_are_drawn(front: list[tuple[float, float]]) -> None:
    """A limit far beyond everything is left out: it would press the rest to the edge."""
    svg = draw_front([(1.0, 2.0)], front, (1.0, 2.0), math.inf, "score", "title")
    ((x, y),) = dots(svg, "bits1")
    assert ">limit<" not in svg and 0 < x < 2 * WIDTH and 0 < y < 2 * HEIGHT
