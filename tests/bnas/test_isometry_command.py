"""`bnas isometry`: one row for every candidate, initialiser and number of bits; as a table, as JSON, as a page."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bnas import cli
from bnas.search.initialisers import INITIALISERS
from bnas.search.isometry import LARGEST_EXACT
from bnas.search.spaces import SPACES, make_space


def document(capfd: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert cli.run(["isometry", *map(str, arguments), "--json"]) == 0
    return json.loads(capfd.readouterr().out)


def last_decision(space: str) -> str:
    """That of the smallest images."""
    return make_space(space, (1, 8, 8), 10).decisions[-1].id


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["isometry", "--help"]) == 0
    text = re.sub(r"[\s│]+", " ", re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out))
    assert "Example: bnas isometry" in text and "--json" in text


@pytest.mark.parametrize("space", SPACES)
def test_every_candidate_has_every_row(space: str, capfd: pytest.CaptureFixture[str]) -> None:
    decision = last_decision(space)
    found = document(capfd, "--space", space, "--decision", decision)
    rows = found["rows"]
    weighted = {row["candidate"] for row in rows if row["initialiser"]}
    candidates = set(make_space(space, (1, 8, 8), 10).decisions[-1].candidates)
    without_weights = {name for name in candidates if "conv" not in name} if space == "cells" else {"identity"}
    assert weighted == candidates - without_weights
    expected = {(name, init, bits) for name in weighted for init in INITIALISERS for bits in (1, 32)}
    assert {(r["candidate"], r["initialiser"], r["bits"]) for r in rows if r["initialiser"]} == expected
    assert len(rows) == len(expected) + sum(not r["initialiser"] for r in rows)
    for row in rows:
        assert row["decision"] == decision and row["exact"] == (row["outputs"] <= LARGEST_EXACT)
        if row["exact"]:
            assert 0 <= row["min"] <= row["mean"] <= row["max"] and row["mean_error"] == 0
            assert 0 <= row["spread"] <= (row["max"] - row["mean"]) * (row["mean"] - row["min"]) + 1e-9


def test_hadamard_is_what_keeps_1_bit_weights_isometric(capfd: pytest.CaptureFixture[str]) -> None:
    """Of the matrices, as rows of square or narrowing convolutions: 1 and 0 exactly, and for nothing else in 1 bit."""
    rows = document(capfd, "--space", "tiny", "--decision", last_decision("tiny"))["rows"]
    spread = {(r["initialiser"], r["bits"]): r["linear"]["spread"] for r in rows if r["candidate"] == "k3e1"}
    assert spread["hadamard", 1] == pytest.approx(0, abs=1e-9)
    assert spread["orthogonal", 32] == pytest.approx(0, abs=1e-9)
    assert spread["orthogonal", 1] > 0.01 and spread["gaussian", 1] > 0.01 and spread["gaussian", 32] > 0.01


def test_the_seed_decides(capfd: pytest.CaptureFixture[str]) -> None:
    options = ("--space", "cells:bits=32", "--decision", last_decision("cells"), "--init", "orthogonal")
    first, again = document(capfd, *options), document(capfd, *options)
    other = document(capfd, *options, "--seed", 1)
    assert first == again and first["rows"] != other["rows"]
    assert {row["initialiser"] for row in first["rows"]} == {None, "orthogonal"}
    assert {row["bits"] for row in first["rows"]} == {32}


def test_the_image_is_the_instances_own_unless_given(capfd: pytest.CaptureFixture[str]) -> None:
    options = ("--decision", "stage2.block1", "--init", "gaussian")
    assert document(capfd, *options)["space"] == "tiny:micro:1x8x8:10"
    given = document(capfd, *options, "--image", "3x16x12")
    assert given["space"] == "tiny:micro:3x16x12:10" and given["rows"][0]["image"] == "32x8x6"


def test_people_get_a_table_and_what_it_means(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["isometry", "--decision", "stage1.block1", "--init", "hadamard", "--surrogate", "clipped"]) == 0
    out, err = capsys.readouterr()
    assert all(word in out for word in ("stage1.block1", "k3e2", "32x8x8", "hadamard", "±", "weights alone"))
    assert "surrogate gradient (clipped)" in err and "95% interval" in err


def test_the_page_holds_the_distributions(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "isometry.html"
    found = document(capfd, "--decision", "stage2.block1", "--init", "gaussian", "--init", "orthogonal", "--html", page)
    assert found["html"] == str(page)
    text = page.read_text()
    assert text.startswith("<!doctype html>") and not re.search(r"<(script|link)[^>]*(src|href)=", text)
    for words in ("gaussian", "orthogonal", "block, 1 bit", "block, float", "weights, 1 bit", "k3e2", "polynomial"):
        assert words in text
    assert text.count('"mode":"lines"') == text.count('"mode":"markers"') == 2 * len(found["rows"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--init", "orthogonl"), "did you mean 'orthogonal'"),
        (("--decision", "stage9"), "choose from"),
        (("--space", "tyni"), "did you mean 'tiny'"),
        (("--space", "bireal18:imagenet"), "no decisions"),
        (("--image", "8x8"), "--image"),
        (("--surrogate", "exact"), "surrogate"),
        (("--seed", -1), "--seed -1"),
        (("--html", "nowhere/isometry.html"), "no folder nowhere"),
    ],
)
def test_mistakes_are_named(arguments: tuple[object, ...], says: str, fails: Callable[..., str]) -> None:
    assert says in fails("isometry", *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("text", [*SPACES, *(f"{name}:bits=32" for name in SPACES if name != "tiny")])
def test_micro_instances_take_less_than_a_minute(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Of one core's time; all candidates, all initialisers. What is left out is only what does nothing."""
    before = time.process_time()
    rows = document(capfd, "--space", text)["rows"]
    assert time.process_time() - before < 60
    names = {name for d in make_space(text, (1, 8, 8), 10).decisions for name in d.candidates}
    assert {row["candidate"] for row in rows} == names - {"identity", "none"}
    assert all(np.isfinite([row["mean"], row["spread"]]).all() for row in rows)
