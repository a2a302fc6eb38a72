"""`bnas spaces`: every space with numbers that are true, and how a space is named in runs and results."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bnas import cli, runs
from bnas.commands.search import _spelled, do_search
from bnas.commands.spaces import IMAGES, do_spaces, params_range
from bnas.profiles import cost
from bnas.search.spaces import SPACES, make_space, references

Fails = Callable[..., str]
DARTS = (180 * 7**8) ** 2  # 1, 3, 6 and 10 pairs of edges for the nodes of a cell, 7 operations on 8 edges, two types

SIZES = {  # counted by hand
    "tiny:micro": 4**5 * 2,  # five blocks with three kinds and identity, one reduction with two kernels
    "tiny:cifar": 4**9 * 2**2,
    "tiny:imagenet": 4**12 * 2**3,
    "cells:micro": DARTS,
    "cells:cifar": DARTS,
    "cells:imagenet": DARTS,
    "shufflenet:micro": 4**8,
    "shufflenet:cifar": 4**20,  # SPOS: four in each of 20 layers
    "shufflenet:imagenet": 4**20,
    # six in each of 20 layers, and identity where a layer neither halves the image nor widens: all but the first of a
    # stage, and the first of the fourth, which 1-bit networks do not widen; cifar does not widen in the first either
    "mobilenet:micro": 6 * 7**5,
    "mobilenet:cifar": 6**3 * 7**17,
    "mobilenet:imagenet": 6**4 * 7**16,
}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def listed() -> dict[str, dict]:
    return {space["name"]: space for space in do_spaces()["spaces"]}


def test_every_space_and_reference_is_listed(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["spaces", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert [space["name"] for space in document["spaces"]] == list(SPACES) and document["left_out"] == {}
    assert [network["name"] for network in document["references"]] == list(references.REFERENCES)
    known = {network["name"]: network for network in document["references"]}
    assert known["mobilenetv2"]["params"] == 3_504_872
    assert known["bireal18"]["binary_macs"] == pytest.approx(1.68e9, rel=0.02)
    for space in document["spaces"]:
        own = space["instances"]["imagenet"]
        assert {key: space[key] for key in own} == own
        assert space["about"] and "\n" not in space["about"]
    assert cli.run(["spaces"]) == 0
    out, err = capfd.readouterr()
    assert all(f"{name}: " in out for name in SPACES) and all(name in out for name in references.REFERENCES)
    assert f"{DARTS:,}" in out and "bnas show" in err


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("instance", IMAGES)
def test_sizes_and_decisions(name: str, instance: str, listed: dict[str, dict]) -> None:
    found = listed[name]["instances"][instance]
    assert found["size"] == SIZES[f"{name}:{instance}"]
    decisions = {"cells": 28, "tiny": {"micro": 6, "cifar": 11, "imagenet": 15}.get(instance)}
    usual = {"micro": {"mobilenet": 6, "shufflenet": 8}.get(name), "cifar": 20, "imagenet": 20}
    assert found["decisions"] == decisions.get(name, usual[instance])
    assert found["id"].startswith(f"{name}:{instance}:")


@pytest.mark.parametrize("name", SPACES)
def test_options_are_those_that_a_space_takes(name: str, listed: dict[str, dict]) -> None:
    """The first value is the default, so naming it changes nothing; every other makes another space."""
    options = listed[name]["options"]
    assert set(options) == set(SPACES[name].OPTIONS)
    usual = make_space(f"{name}:micro", (1, 8, 8), 10)
    for option, values in options.items():
        if values == "a number":
            assert make_space(f"{name}:micro:{option}=12", (1, 8, 8), 10).template != usual.template
            continue
        made = [make_space(f"{name}:micro:{option}={value}", (1, 8, 8), 10) for value in values]
        assert made[0] == usual and len({space.id for space in made}) == len(values)


@pytest.mark.parametrize("text", [*(f"{name}:micro" for name in SPACES), "mobilenet:micro:bits=8+32"])
def test_least_and_most_parameters_are_those_of_networks(text: str, rng: np.random.Generator) -> None:
    """Climbing: one gene at a time takes the candidate that makes the whole network smallest, or largest.

    Of pairs of operations on edges, those are tried that take one operation twice, and a few others.
    """
    space = make_space(text, (1, 8, 8), 10)

    def params(indices: list[int]) -> int:
        return sum(map(cost.params, space.workloads(space.architecture(indices))))

    def tried(candidates: tuple[str, ...]) -> set[int]:
        pairs = [[edge.partition("@")[0] for edge in candidate.split("+")] for candidate in candidates]
        twice = {tuple(operations): k for k, operations in enumerate(pairs) if len(set(operations)) == 1}
        return {*twice.values(), *rng.permutation(len(candidates))[:6].tolist()}

    found = []
    for better in (min, max):
        indices = [0] * len(space.genes)
        for g, gene in enumerate(space.genes):
            ways = [[*indices[:g], k, *indices[g + 1 :]] for k in tried(gene.candidates)]
            indices = better(ways, key=params)
        found.append(params(indices))
    assert params_range(space) == tuple(found)


def test_an_image_chooses_the_instance() -> None:
    for shape, instance in (((1, 8, 8), "micro"), ((3, 32, 32), "cifar"), ((3, 96, 64), "imagenet")):
        document = do_spaces(shape, 7)
        for space in document["spaces"]:
            assert space["id"] == f"{space['name']}:{instance}:{'x'.join(map(str, shape))}:7"
            for found in space["instances"].values():
                assert found["id"].endswith(f":{'x'.join(map(str, shape))}:7")
    document = do_spaces((1, 10, 10))  # divisible by 2 only
    assert set(document["left_out"]) == {"shufflenet"} and "10x10" in document["left_out"]["shufflenet"]
    assert [list(space["instances"]) for space in document["spaces"]] == [["micro"]] * 3


MISTAKES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "image": (("--image", "8x8"), ("'8x8'", "3x32x32")),
    "image text": (("--image", "3x32x-2"), ("'3x32x-2'", "3x32x32")),
    "channels": (("--image", "2x32x32"), ("1 or 3 channels", "got 2")),
    "size": (("--image", "3x7x7"), ("7x7", "divisible", "with --image")),
    "classes": (("--classes", "1"), ("at least 2 classes", "got 1")),
    "classes text": (("--classes", "many"), ("'many'", "--help")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str, fails: Fails) -> None:
    arguments, said = MISTAKES[mistake]
    line = fails("spaces", *arguments)
    assert all(part in line for part in said), line


@pytest.mark.parametrize("space", ["tiny", "cells:micro:bits=1+8,layers=3"])
def test_a_run_of_a_space_has_a_short_plain_name(space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Started(Exception):
        pass

    def start(config: dict, name: str, **_: object) -> runs.Run:
        raise Started(name, config["space"])

    monkeypatch.setattr(runs, "start", start)
    data = {"source": "digits", "image_size": None, "image_column": None, "label_column": None}
    with pytest.raises(Started) as started:
        do_search(profile="rtx3080", data=data, space=space, budget="smoke", report=lambda *_: None)
    name, space_id = started.value.args
    assert name == f"rtx3080-{space.partition(':')[0]}-spos"
    assert (
        space_id == make_space(space, (1, 8, 8), 10).id
    )  # what the name leaves out, the configuration and its hash hold


def test_an_architecture_is_spelled_by_node_or_in_a_line(rng: np.random.Generator) -> None:
    chain = make_space("tiny:micro", (1, 8, 8), 10)
    arch = chain.random(rng)
    assert _spelled(arch.to_dict()) == " ".join(arch.choices)
    cells = make_space("cells:micro", (1, 8, 8), 10)
    choice = "skip_connect@0+bin_conv_3x3@1"
    first = [gene.candidates.index(choice) if choice in gene.candidates else 0 for gene in cells.genes]
    lines = _spelled(cells.architecture(first).to_dict()).splitlines()
    assert len(lines) == 8 and lines[0] == "normal.node2: skip_connect of 0, bin_conv_3x3 of 1"
    assert [line.partition(":")[0] for line in lines] == [gene.id for gene in cells.genes]
