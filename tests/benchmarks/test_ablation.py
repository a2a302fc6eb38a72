"""The ablation changes what it says and nothing else, finished rows are kept, and gaps are judged as by hand."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import ablation
import numpy as np
import pytest
import torch
from ablation import BASELINE, FAMILIES, VARIANTS
from PIL import Image

from bnas.profiles.errors import InputError
from bnas.profiles.workload import Workload
from bnas.search.data import load_images
from bnas.search.network import Network
from bnas.search.spaces.wiring import IMAGE, Block

SHAPE, CLASSES = (3, 32, 32), 10
EVERY = [(family, variant) for family in FAMILIES for variant in VARIANTS]
ROWS = ("react/baseline", "react/rsign", "shufflenet/shortcuts")


def steps_of(family: str, variant: str) -> Block:
    return VARIANTS[variant].change(FAMILIES[family].describe(SHAPE, CLASSES))


def network_of(family: str, variant: str) -> Network:
    return Network(steps_of(family, variant), VARIANTS[variant].style)


def convolutions(steps: Block) -> dict[str, Workload]:
    """By name, without what is fused behind them."""
    return {s.name: replace(s.unit, epilogue=()) for s in steps if "conv" in s.unit.kind or s.unit.kind == "head"}


def readers(steps: Block) -> dict[str, list[str]]:
    return {step.name: [other.name for other in steps if step.name in other.inputs] for step in steps}


# Networks


@pytest.mark.parametrize("family", FAMILIES)
def test_a_baseline_has_everything_that_can_be_switched_off(family: str) -> None:
    network = network_of(family, BASELINE)
    binary = [step.unit for step in steps_of(family, BASELINE) if step.unit.kind == "binary_conv"]
    assert len(binary) >= 4 and all(unit.epilogue == ("residual", "rprelu") for unit in binary)
    assert network.get_parameter(next(n for n, _ in network.named_parameters() if n.endswith("conv.shift"))) is not None
    assert VARIANTS[BASELINE].style.scale == "xnor"


@pytest.mark.parametrize(("family", "variant"), EVERY)
def test_a_switch_keeps_all_convolutions_and_leaves_no_dead_unit(family: str, variant: str) -> None:
    steps = steps_of(family, variant)
    assert convolutions(steps) == convolutions(steps_of(family, BASELINE))
    assert [name for name, by in readers(steps).items() if not by] == ["head"]
    network = network_of(family, variant)
    assert network(torch.randn(4, *SHAPE)).shape == (4, CLASSES)
    network(torch.randn(4, *SHAPE)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_differ_by_the_vectors_that_were_left_out(family: str) -> None:
    binary = [step.unit for step in steps_of(family, BASELINE) if step.unit.kind == "binary_conv"]
    fewer = {variant: 0 for variant in VARIANTS}
    fewer["rsign"] = sum(unit.in_channels for unit in binary)
    fewer["rprelu"] = 2 * sum(unit.out_channels for unit in binary)
    counts = {variant: sum(p.numel() for p in network_of(family, variant).parameters()) for variant in VARIANTS}
    assert {variant: counts[BASELINE] - count for variant, count in counts.items()} == fewer


@pytest.mark.parametrize("family", FAMILIES)
def test_without_shortcuts_each_unit_reads_one_value_and_no_sum_is_left_but_those_of_cells(family: str) -> None:
    steps = steps_of(family, "shortcuts")
    assert all(len(step.inputs) == 1 for step in steps if "conv" in step.unit.kind)
    assert not any("residual" in step.unit.epilogue for step in steps)
    sums = [step.name for step in steps if step.unit.kind == "add"]
    nodes = {f"cells.{cell}.node{node}.add0" for cell in range(4) for node in range(2, 6)}
    assert set(sums) == (nodes if family == "cells" else set())


@pytest.mark.parametrize("family", ["bireal", "react", "mobilenet"])
def test_without_shortcuts_what_has_no_branches_is_a_plain_chain(family: str) -> None:
    steps = steps_of(family, "shortcuts")
    assert [step.inputs for step in steps] == [(IMAGE,), *((step.name,) for step in steps[:-1])]


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_style_differs_for_scales_and_rsign(family: str) -> None:
    assert steps_of(family, "scales") == steps_of(family, "rsign") == steps_of(family, BASELINE)
    x = torch.randn(2, *SHAPE)
    torch.manual_seed(0)
    scaled = network_of(family, BASELINE).eval()
    unscaled = network_of(family, "scales").eval()
    unscaled.load_state_dict(scaled.state_dict())
    assert not torch.equal(scaled(x), unscaled(x))
    unshifted = network_of(family, "rsign").eval()
    unshifted.load_state_dict(scaled.state_dict(), strict=False)
    assert torch.equal(scaled(x), unshifted(x))  # thresholds start at 0


# Which row comes next


def trained(accuracies: dict[tuple[str, str, int], float]) -> list[dict]:
    return [
        {"family": family, "variant": variant, "seed": seed, "test_accuracy": value}
        for (family, variant, seed), value in accuracies.items()
    ]


def test_rows_come_in_order_and_close_pairs_get_a_second_seed() -> None:
    first = {"react": (0.6, 0.5, 0.59, 0.619, 0.58), "cells": (0.4, 0.3, 0.3, 0.3, 0.2)}  # as VARIANTS
    table = {(f, v, 0): a for f, values in first.items() for v, a in zip(VARIANTS, values, strict=True)}
    done: dict[tuple[str, str, int], float] = {}
    while key := ablation.next_row(trained(done), ablation.choose(["react", "cells"])):
        assert key not in done
        done[key] = table.get(key, 0.5)
    assert list(done)[:10] == list(table)
    assert set(list(done)[10:]) == {("react", variant, 1) for variant in (BASELINE, "scales", "rsign")}


def test_names_choose_rows_and_unknown_ones_are_named() -> None:
    assert len(ablation.choose(())) == 25
    assert ablation.choose(["react/rsign", "cells"]) == [("react", "rsign"), *(("cells", v) for v in VARIANTS)]
    with pytest.raises(InputError, match="did you mean 'react/rsign'"):
        ablation.choose(["react/rsing"])


# Verdicts


def test_gaps_are_judged_by_the_spread_between_seeds() -> None:
    rows = trained({
        ("react", BASELINE, 0): 0.50, ("react", BASELINE, 1): 0.52,
        ("react", "scales", 0): 0.49, ("react", "scales", 1): 0.53,
        ("react", "rprelu", 0): 0.40,
    })  # fmt: skip
    deviation = ablation.seed_deviation(rows)
    assert deviation == pytest.approx(math.sqrt((2 * 0.01**2 + 2 * 0.02**2) / 2))  # squares over degrees of freedom
    assert ablation.gap(rows, "react", "scales") == (pytest.approx(0.0), 2)
    assert ablation.gap(rows, "react", "rprelu") == (pytest.approx(-0.1), 1)
    assert ablation.gap(rows, "react", "rsign") is None
    assert ablation.seed_deviation(rows[-1:]) is None


@pytest.mark.parametrize(
    ("difference", "seeds", "counts"),
    [(0.0199, 2, False), (-0.0201, 2, True), (0.0282, 1, False), (-0.0284, 1, True), (0.0, 1, False)],
)
def test_a_gap_counts_beyond_two_standard_errors(difference: float, seeds: int, counts: bool) -> None:
    """A mean of n differences of two runs has the variance 2 * 0.01^2 / n."""
    text = ablation.verdict(difference, seeds, 0.01)
    assert text == (f"{100 * difference:+.1f} points without" if counts else "no difference at this scale")


# The command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Random images in two classes: a few steps of training for each epoch."""
    rng = np.random.default_rng(0)
    for name in ("left", "right"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(100):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{index}.png")
    return tmp_path / "images"


def command(folder: Path, result: Path, rows: Iterable[str] = ROWS) -> list[str]:
    return [sys.executable, ablation.__file__, "--data", str(folder), "--json", str(result), "--rows", *rows]


def test_a_killed_ablation_goes_on_and_ends_as_if_it_had_not_been(folder: Path, tmp_path: Path) -> None:
    result = tmp_path / "results" / "ablation.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command(folder, result), stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None and process.stdout.readline().startswith("react/baseline seed 0: ")
        process.kill()
    (first,) = json.loads(result.read_text())["rows"]
    subprocess.run(command(folder, result), check=True, env=environment, capture_output=True)
    rows = json.loads(result.read_text())["rows"]
    assert rows[0] == first
    keys = [(row["family"], row["variant"], row["seed"]) for row in rows]
    assert len(keys) == len(set(keys))
    assert {f"{family}/{variant}" for family, variant, seed in keys if seed == 0} == set(ROWS)
    images = load_images(str(folder))
    timeless = ("losses", "test_accuracy", "parameters", "steps")
    for row in rows[:3]:
        again = ablation.run(row["family"], row["variant"], row["seed"], images)
        assert {name: again[name] for name in timeless} == {name: row[name] for name in timeless}
        per_epoch = math.ceil(len(images.train) / ablation.recipe(row["family"]).batch_size)
        assert row["steps"] == per_epoch * len(row["losses"]) and row["seconds"] > 0
    text = result.with_suffix(".md").read_text()
    assert all(f"| {row['family']} |" in text for row in rows) and rows[0]["machine"]["processor"] in text


def test_rows_of_other_data_are_not_mixed(folder: Path, tmp_path: Path) -> None:
    result = tmp_path / "ablation.json"
    images = load_images(str(folder))
    ablation.save(result, ablation.opened(result, images))
    assert ablation.opened(result, images)["rows"] == []
    (folder / "left" / "0.png").unlink()
    with pytest.raises(InputError, match="results of other data or recipes"):
        ablation.opened(result, load_images(str(folder)))
