"""How a search went: the cells as they form and its curves, in the page of a run and for TensorBoard."""

import base64
import re
import struct
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from bnas import curves
from bnas.drawing.course import forming, moments, section
from bnas.drawing.svg import Text, bounds
from bnas.profiles.errors import InputError
from bnas.runs import Run
from bnas.search.spaces import make_space

CELLS = make_space("cells", (1, 8, 8), 10)
EPOCHS = 12


def document(space=CELLS, epochs: int = EPOCHS) -> dict:
    """A search.json whose architectures drift; one curve began in the third epoch."""
    rng = np.random.default_rng(0)
    course = [space.random(rng)]
    while len(course) < epochs:
        course.append(space.mutate(course[-1], rng, 0.2))
    return {
        "architecture": course[-1].to_dict(),
        "course": [list(architecture.choices) for architecture in course],
        "supernet_losses": [2.0 / (i + 1) for i in range(epochs)],
        "curves": {"alpha entropy": [2.0] * epochs, "psi < 1": [0.25 * i for i in range(epochs - 2)]},
    }


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 50, 1000])
def test_moments_have_the_first_and_the_last_and_are_evenly_spread(count: int) -> None:
    places = moments(count, 5)
    assert len(places) == min(count, 5) and places[0] == 0 and places[-1] == count - 1
    gaps = np.diff(places)
    assert count == 1 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)


def test_every_moment_shows_its_cells_and_how_much_of_them_stayed() -> None:
    course = [CELLS.architecture([0] * 8), CELLS.architecture([0, 1, 0, 1, 0, 1, 1, 1]), CELLS.architecture([1] * 8)]
    shapes = forming(CELLS, course)
    texts = [shape.text for shape in shapes if isinstance(shape, Text)]
    assert [t for t in texts if " of 8 nodes" in t] == [
        f"{i} of 3: {stayed} of 8 nodes as at the end" for i, stayed in ((1, 0), (2, 5), (3, 8))
    ]
    assert texts.count("normal cell") == texts.count("reduction cell") == 3
    boxes = [bounds([shape]) for shape in shapes if getattr(shape, "text", "")]
    for i, a in enumerate(boxes):  # nothing written lies on anything else that is
        for b in boxes[i + 1 :]:
            assert not (min(a[2], b[2]) - max(a[0], b[0]) > 0.01 and min(a[3], b[3]) - max(a[1], b[1]) > 0.01)


def test_the_page_has_the_picture_and_a_plot_for_each_curve() -> None:
    html = section(document())
    (picture,) = re.findall(r"src='data:image/svg\+xml;base64,([^']*)'", html)
    root = ET.fromstring(base64.b64decode(picture))
    assert "12 of 12: 8 of 8 nodes as at the end" in [
        text.text for text in root.iter("{http://www.w3.org/2000/svg}text")
    ]
    assert all(name in html for name in ("loss", "alpha entropy")) and "psi < 1" not in html  # it is escaped
    assert html.count('"mode":"lines"') == 3


def test_chains_have_curves_only_and_what_has_neither_has_no_section() -> None:
    chain = make_space("tiny", (1, 8, 8), 10)
    html = section(document(chain))
    assert "<img" not in html and "Curves" in html
    bare = {"architecture": document(chain)["architecture"], "supernet_losses": [], "curves": {}}
    assert section(bare) == ""
    assert section(document(chain, epochs=1)) == ""  # one point is no curve


def test_tensorboard_reads_every_value_at_its_epoch(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    search = document()
    curves.write(Run(tmp_path, {}), search)
    curves.write(Run(tmp_path, {}), search)  # replaces, does not add
    found: dict[str, dict[int, float]] = {}
    (file,) = tmp_path.iterdir()
    assert "tfevents" in file.name  # what TensorBoard looks for
    for raw in RawEventFileLoader(str(file)).Load():
        event = Event.FromString(raw)
        for value in event.summary.value:
            assert event.step not in found.setdefault(value.tag, {})
            found[value.tag][event.step] = value.simple_value
    expected = {"search/loss": search["supernet_losses"]}
    expected |= {f"search/{name}": values for name, values in search["curves"].items()}
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        steps = range(EPOCHS - len(values) + 1, EPOCHS + 1)
        single = [struct.unpack("f", struct.pack("f", value))[0] for value in values]
        assert found[name] == dict(zip(steps, single, strict=True))


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(InputError, match="pip install tensorboard"):
        curves.check()
