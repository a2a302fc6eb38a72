"""What the parts of a 1-bit network are worth: `python benchmarks/ablation.py [--data FOLDER] [--rows NAME ...]`.

Five families of blocks, each as a baseline and with one part left out at a time, trained on CIFAR-10 with the product's
trainer and recipe, small and short enough for a minute or so on two cores. Pairs of baseline and switch that differ by
less than `CLOSE` are trained with a second seed. Every finished row is written at once; the same command goes on with
the next one. The parts:

- shortcuts: real values that pass by a convolution; without, each unit reads what the one before it made
- scales: mean |w| per output channel (XNOR-Net); without, 1-bit weights are -1 and 1
- rsign: a threshold per input channel that is learned (ReActNet); without, the threshold is 0
- rprelu: PReLU with two shifts per channel that are learned (ReActNet); without, PReLU

Networks are changed as descriptions, step by step, so nothing in the product knows of this. They work at half of the
image's size, behind a stem of stride 2, so that a minute holds more steps.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from bnas.profiles import atomic
from bnas.profiles.errors import InputError, unknown
from bnas.runtime_bench import machine
from bnas.search.augment import DeviceSplit, default_augmentation, on_device
from bnas.search.binary.layers import Style
from bnas.search.data import ImageSet, load_images
from bnas.search.network import Network
from bnas.search.spaces import blocks, cells, make_space, references
from bnas.search.spaces.wiring import IMAGE, Block, Step, Value, Wiring
from bnas.search.training.recipes import Recipe
from bnas.search.training.trainer import accuracy, descend, fit

RESULTS = Path(__file__).parent / "results"
IMAGES = 25_000  # of the training images, which are shuffled: the first of them, so that a row takes less than a minute
CLOSE = 0.02  # of accuracy: pairs nearer than that get a second seed
Shape = tuple[int, int, int]
Row = dict[str, Any]


# Families


def chain(block: Callable[..., Value], stages: Sequence[tuple[int, int]], shape: Shape, classes: int) -> Block:
    """A stem of stride 2, a block of kernel 3 for each (channels, stride) of `stages`, and a head."""
    w = Wiring()
    x = w.conv("stem", Value(IMAGE, *shape), 32, 3, 2)
    for number, (channels, stride) in enumerate(stages):
        x = block(w.at(f"blocks.{number}"), x, out=channels, kernel=3, stride=stride)
    w.step("head", "head", x, out=classes)
    return w.block


def cell_network(shape: Shape, classes: int) -> Block:
    """The genotype DARTS_V2 in 1 bit: a normal cell, two that reduce, a normal one, made for half of the image."""
    channels, height, width = shape
    space = make_space("cells:cifar:layers=4,channels=16", (channels, -(-height // 2), -(-width // 2)), classes)
    stem, *rest = space.steps(cells.from_genotype(space, references.DARTS_V2))
    halving = replace(stem.unit, height=height, width=width, stride=2)
    return (replace(stem, unit=halving), *rest)


@dataclass(frozen=True)
class Family:
    """describe(shape, classes) gives the steps of its baseline. epochs: of `IMAGES`, half a minute to a minute."""

    describe: Callable[[Shape, int], Block]
    epochs: int


SHORT = ((64, 2), (64, 1), (128, 2), (128, 1))
LONG = ((32, 1), (32, 1), *SHORT)
FAMILIES = {
    "bireal": Family(partial(chain, blocks.bireal, LONG), 2),
    "react": Family(partial(chain, blocks.react, SHORT), 2),
    "mobilenet": Family(partial(chain, partial(blocks.mobile, expansion=3, bits=1), SHORT), 1),
    "shufflenet": Family(partial(chain, partial(blocks.shuffle, bits=1), SHORT), 2),
    "cells": Family(cell_network, 1),
}


# Switches


def without_shortcuts(steps: Block) -> Block:
    """1-bit units lose their residual, float depthwise convolutions the sum around them, and what made these goes."""
    kinds = {step.name: step.unit.kind for step in steps}
    stands_for: dict[str, str] = {}
    kept = []
    for step in steps:
        unit, inputs = step.unit, tuple(stands_for.get(name, name) for name in step.inputs)
        if unit.kind == "add" and kinds[inputs[0]] == "conv":
            stands_for[step.name] = inputs[0]
            continue
        if "residual" in unit.epilogue:
            unit = replace(unit, epilogue=tuple(part for part in unit.epilogue if part != "residual"))
            inputs = inputs[:1]
        kept.append(Step(step.name, unit, inputs))
    return _read(kept)


def _read(steps: Sequence[Step]) -> Block:
    """The steps that the last one depends on."""
    needed, kept = {steps[-1].name}, []
    for step in reversed(steps):
        if step.name in needed:
            needed.update(step.inputs)
            kept.append(step)
    return tuple(reversed(kept))


def without_shifts(steps: Block) -> Block:
    """PReLU in place of RPReLU."""

    def plain(step: Step) -> Step:
        epilogue = tuple("prelu" if part == "rprelu" else part for part in step.unit.epilogue)
        return replace(step, unit=replace(step.unit, epilogue=epilogue))

    return tuple(map(plain, steps))


FULL = Style(scale="xnor", shifted=True)


@dataclass(frozen=True)
class Variant:
    """How a network comes from its family's steps: what is done to them, and the style of the 1-bit convolutions."""

    change: Callable[[Block], Block] = tuple
    style: Style = FULL


BASELINE = "baseline"
VARIANTS = {
    BASELINE: Variant(),
    "shortcuts": Variant(change=without_shortcuts),
    "scales": Variant(style=replace(FULL, scale="none")),
    "rsign": Variant(style=replace(FULL, shifted=False)),
    "rprelu": Variant(change=without_shifts),
}


# Rows


def recipe(family: str) -> Recipe:
    return Recipe(FAMILIES[family].epochs)


def run(family: str, variant: str, seed: int, images: ImageSet) -> Row:
    """Train one network on the CPU and test it once. seconds: training, its checkpoints, and the test."""
    some = images.train.take(np.arange(min(IMAGES, len(images.train))))
    train, test = (on_device(split, "cpu", images.mean, images.std) for split in (some, images.test))
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        steps = VARIANTS[variant].change(FAMILIES[family].describe(images.shape, len(images.classes)))
        network = Network(steps, VARIANTS[variant].style)
    losses = _fit(network, train, recipe(family), seed, default_augmentation(images))
    network.eval()
    return {
        "family": family,
        "variant": variant,
        "seed": seed,
        "test_accuracy": accuracy(network, test),
        "losses": losses,
        "steps": recipe(family).epochs * math.ceil(len(train) / recipe(family).batch_size),
        "parameters": sum(p.numel() for p in network.parameters()),
        "seconds": round(time.perf_counter() - start, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": machine.describe(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _fit(network: Network, train: DeviceSplit, plan: Recipe, seed: int, augmentation: dict) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:  # a row that was cut off starts anew, so that its seconds are whole
        return fit(
            network,
            descend(lambda images, step: network(images), plan),
            train,
            plan,
            seed=seed,
            augmentation=augmentation,
            path=Path(folder) / "training.safetensors",
            stage="ablation",
            progress=lambda stage, done, total: None,
        )


def accuracies(rows: Iterable[Row]) -> dict[tuple[str, str], dict[int, float]]:
    """(family, variant) -> seed -> test accuracy, 0 to 1."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        found.setdefault((row["family"], row["variant"]), {})[row["seed"]] = row["test_accuracy"]
    return found


def next_row(rows: Iterable[Row], chosen: Sequence[tuple[str, str]]) -> tuple[str, str, int] | None:
    """(family, variant, seed) that is to be trained next; None when all are there.

    First each of `chosen` with seed 0, then with seed 1 each switch that is close to its baseline, and that baseline.
    """
    found = accuracies(rows)
    for key in chosen:
        if 0 not in found.get(key, {}):
            return *key, 0
    for family, variant in chosen:
        pair = ((family, BASELINE), (family, variant))
        if variant == BASELINE or not all(0 in found.get(key, {}) for key in pair):
            continue
        if abs(found[pair[0]][0] - found[pair[1]][0]) < CLOSE:
            for key in pair:
                if 1 not in found[key]:
                    return *key, 1
    return None


def choose(names: Sequence[str]) -> list[tuple[str, str]]:
    """(family, variant) pairs of names such as "react" (its five) or "react/rsign"; all 25 without names.

    Raises InputError for a name that there is not.
    """
    every = [(family, variant) for family in FAMILIES for variant in VARIANTS]
    for name in names:
        if name not in FAMILIES and tuple(name.split("/")) not in every:
            raise unknown("row", name, [*FAMILIES, *map("/".join, every)])
    return [key for key in every if not names or key[0] in names or "/".join(key) in names]


# Verdicts


def seed_deviation(rows: Iterable[Row]) -> float | None:
    """Standard deviation of the accuracy between seeds, pooled over what was trained with more than one."""
    squares, degrees = 0.0, 0
    for seeds in accuracies(rows).values():
        centre = mean(seeds.values())
        squares += sum((value - centre) ** 2 for value in seeds.values())
        degrees += len(seeds) - 1
    return math.sqrt(squares / degrees) if degrees else None


def gap(rows: Iterable[Row], family: str, variant: str) -> tuple[float, int] | None:
    """Mean accuracy less that of the baseline, over the seeds that both have, and how many these are."""
    found = accuracies(rows)
    own, base = found.get((family, variant), {}), found.get((family, BASELINE), {})
    seeds = own.keys() & base.keys()
    return (mean(own[seed] - base[seed] for seed in seeds), len(seeds)) if seeds else None


def verdict(difference: float, seeds: int, deviation: float | None) -> str:
    """A gap counts if it exceeds twice its standard error, deviation * sqrt(2 / seeds)."""
    if deviation is None:
        return "seed spread unknown"
    if abs(difference) <= 2 * deviation * math.sqrt(2 / seeds):
        return "no difference at this scale"
    return f"{100 * difference:+.1f} points without"


def markdown(document: Row) -> str:
    """The table of all rows, one line for each family and variant."""
    rows, data, deviation = document["rows"], document["data"], seed_deviation(document["rows"])
    images = min(IMAGES, data["images"]["train"])
    spread = "unknown, for no row has a second seed yet"
    if deviation is not None:
        spread = (
            f"{100 * deviation:.2f} points; a gap counts if it exceeds twice its standard error, "
            f"{200 * deviation * math.sqrt(2):.1f} points with one seed and {200 * deviation:.1f} with two"
        )
    machines = {
        f"{row['machine']['processor']}, {row['machine']['cores']} cores, "
        f"{row['threads']} thread{'s' * (row['threads'] > 1)}, torch {row['torch']}"
        for row in rows
    }
    return f"""# What the parts of a 1-bit network are worth

Made by `benchmarks/ablation.py`, which says what is trained. Data: {data["name"]}, {images:,} images to train with;
test accuracy in % of {data["images"]["test"]:,} others. Gap: without the part less with it, mean over the seeds that
both have; pairs less than {100 * CLOSE:.0f} points apart have two. Standard deviation between seeds, pooled over all
that have two: {spread}.

| family | without | seed 0 | seed 1 | gap | verdict | parameters | steps | seconds |
|---|---|--:|--:|--:|---|--:|--:|--:|
{table(rows, deviation)}

Machine: {"; ".join(sorted(machines))}.
"""


def table(rows: Sequence[Row], deviation: float | None) -> str:
    lines = []
    found = accuracies(rows)
    for family, variant in (key for key in choose(()) if key in found):
        own = {row["seed"]: row for row in rows if (row["family"], row["variant"]) == (family, variant)}
        compared = None if variant == BASELINE else gap(rows, family, variant)
        some = next(iter(own.values()))
        entries = [
            family,
            "" if variant == BASELINE else variant,
            *(f"{100 * own[seed]['test_accuracy']:.1f}" if seed in own else "" for seed in (0, 1)),
            *(("", "") if compared is None else (f"{100 * compared[0]:+.1f}", verdict(*compared, deviation))),
            f"{some['parameters']:,}",
            f"{some['steps']:,}",
            ", ".join(f"{own[seed]['seconds']:.0f}" for seed in sorted(own)),
        ]
        lines.append(f"| {' | '.join(entries)} |")
    return "\n".join(lines)


# The command


def opened(path: Path, images: ImageSet) -> Row:
    """The document at `path`, or an empty one. Raises InputError if it holds results of other data or recipes."""
    recipes = {family: recipe(family).to_dict() for family in FAMILIES}
    if not path.is_file():
        return {"data": images.to_dict(), "recipes": recipes, "rows": []}
    document = json.loads(path.read_text())
    if document["data"]["fingerprint"] != images.fingerprint or document["recipes"] != recipes:
        raise InputError(f"{path} holds results of other data or recipes; give another file with --json, or remove it")
    return document


def save(path: Path, document: Row) -> None:
    atomic.write_text(path, json.dumps(document, indent=1) + "\n")
    atomic.write_text(path.with_suffix(".md"), markdown(document))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("BNAS_CIFAR10")
    parser.add_argument("--data", default=data, required=not data, help="CIFAR-10 (default: what BNAS_CIFAR10 names)")
    parser.add_argument("--rows", nargs="+", default=(), metavar="NAME", help="e.g. react or react/rsign; default: all")
    parser.add_argument("--json", type=Path, default=RESULTS / "ablation.json", help="a .md goes beside it")
    options = parser.parse_args(arguments)
    try:
        chosen = choose(options.rows)
        images = load_images(options.data)
        document = opened(options.json, images)
    except InputError as error:
        sys.exit(str(error))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    while key := next_row(document["rows"], chosen):
        row = run(*key, images)
        document["rows"].append(row)
        save(options.json, document)
        family, variant, seed = key
        print(f"{family}/{variant} seed {seed}: {row['test_accuracy']:.1%} in {row['seconds']:.0f} s", flush=True)
    save(options.json, document)
    print(markdown(document))


if __name__ == "__main__":
    main()
