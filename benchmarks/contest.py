"""What the two comparisons of search methods share: the scale, stand-alone training, rows that resume, intervals.

A row is one job: a dictionary of plain values that says what is done, and what came of it. Jobs do not depend on each
other, so several processes of one thread each work on them; each finished row is written at once. A job that is cut off
starts anew, so that its seconds are whole.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch

from bnas.profiles import atomic
from bnas.profiles.errors import InputError
from bnas.profiles.schema import load_profile
from bnas.profiles.table import LatencyTable
from bnas.runtime_bench import machine
from bnas.search import spaces
from bnas.search.augment import DeviceSplit, default_augmentation, on_device
from bnas.search.data import ImageSet, load_images
from bnas.search.latency import LatencyModel, latency_model, median_ms
from bnas.search.spaces import Architecture, SearchSpace, make_space
from bnas.search.strategies.task import SearchTask
from bnas.search.training.recipes import Budget
from bnas.search.training.trainer import accuracy, descend, fit

RESULTS = Path(__file__).parent / "results"
PROFILE = "rpi4b"
SHARED_SEED = 20  # of the shared set of architectures
Row = dict[str, Any]
Job = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """image_size in pixels; how many images searches learn from and are validated on, how many networks are trained and
    tested on; seeds: of each method; shared: architectures of a space that all methods score."""

    image_size: int
    images: int
    validation: int
    training_images: int
    test: int
    budget: Budget
    seeds: int
    shared: int
    spaces: tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """What a process needs for any job of a comparison."""

    data: str
    scale: Scale


@lru_cache(maxsize=1)
def images_of(setting: Setting) -> ImageSet:
    return load_images(setting.data, image_size=setting.scale.image_size)


@cache
def latency_of(space: SearchSpace) -> LatencyModel:
    return latency_model(space, LatencyTable(load_profile(PROFILE)))


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def split(setting: Setting, name: str, count: int) -> DeviceSplit:
    """The first `count` images of a split, which is shuffled; fewer if it has fewer."""
    images = images_of(setting)
    some = getattr(images, name)
    return on_device(some.take(np.arange(min(count, len(some)))), device(), images.mean, images.std)


def space_of(setting: Setting, name: str) -> SearchSpace:
    images = images_of(setting)
    return make_space(name, images.shape, len(images.classes))


def shared_set(space: SearchSpace, count: int) -> list[Architecture]:
    """`count` different architectures, drawn uniformly."""
    rng = np.random.default_rng(SHARED_SEED)
    found: dict[Architecture, None] = {}
    while len(found) < count:
        found[space.random(rng)] = None
    return list(found)


def limit_of(space: SearchSpace) -> float:
    """Milliseconds: the median of random architectures, the same for all methods."""
    return median_ms(latency_of(space))


def task_of(setting: Setting, space: SearchSpace, seed: int, folder: Path) -> SearchTask:
    scale = setting.scale
    return SearchTask(
        latency=latency_of(space),
        limit_ms=limit_of(space),
        train=split(setting, "train", scale.images),
        validation=split(setting, "validation", scale.validation),
        augmentation=default_augmentation(images_of(setting)),
        budget=scale.budget,
        seed=seed,
        device=device(),
        folder=folder,
        progress=silent,
    )


def silent(stage: str, done: int, total: int) -> None:
    """No progress: rows are printed when they are there."""


def train_alone(setting: Setting, arch: Architecture, seed: int) -> Row:
    """The network built and trained for itself with the product's trainer, and its accuracy on test images, 0 to 1."""
    space, recipe = spaces.space_of(arch.space), setting.scale.budget.training
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = space.build(arch).to(device())
    with tempfile.TemporaryDirectory() as folder:
        fit(
            network,
            descend(lambda images, step: network(images), recipe),
            split(setting, "train", setting.scale.training_images),
            recipe,
            seed=seed,
            augmentation=default_augmentation(images_of(setting)),
            path=Path(folder) / "training.safetensors",
            stage="alone",
            progress=silent,
        )
    network.eval()
    right = accuracy(network, split(setting, "test", setting.scale.test))
    return {"test_accuracy": right, "training_seconds": round(time.perf_counter() - start, 1)}


# Rows


def identity(job: Job, row: Row) -> bool:
    return all(row.get(name) == value for name, value in job.items())


def work(do: Callable[[Setting, Job], Row], setting: Setting, job: Job) -> Row:
    """One job in this process, with one thread unless there is a GPU."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    return job | do(setting, job) | {"seconds": round(time.perf_counter() - start, 1)}


def run_jobs(
    do: Callable[[Setting, Job], Row],
    setting: Setting,
    jobs: Sequence[Job],
    document: Row,
    save: Callable[[], None],
    workers: int,
) -> None:
    """Do all jobs of which `document` has no row; a row that fails is reported and left for the next run."""
    waiting = [job for job in jobs if not any(identity(job, row) for row in document["rows"])]
    print(f"{len(jobs) - len(waiting)} of {len(jobs)} rows are there", flush=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        running = {pool.submit(work, do, setting, job): job for job in waiting}
        for done, future in enumerate(as_completed(running), start=1):
            title = " ".join(str(value) for value in running[future].values())
            try:
                document["rows"].append(future.result())
            except Exception as error:  # whatever it is, the rows of all other jobs must not be lost with it
                print(f"{title}: {type(error).__name__}: {error}", flush=True)
                continue
            save()
            print(f"{done}/{len(waiting)} {title}: {document['rows'][-1]['seconds']:.0f} s", flush=True)


def opened(path: Path, setting: Setting) -> Row:
    """The document at `path`, or an empty one. Raises InputError if it holds results of other data or scale."""
    images = images_of(setting)
    frame = {"data": images.to_dict(), "scale": json.loads(json.dumps(asdict(setting.scale))), "profile": PROFILE}
    if not path.is_file():
        return frame | {"machine": machine.describe(), "torch": torch.__version__, "device": str(device()), "rows": []}
    document = json.loads(path.read_text())
    if any(document[name] != value for name, value in frame.items()):
        raise InputError(f"{path} holds results of other data or another scale; give another --json, or remove it")
    return document


def command(
    description: str,
    name: str,
    scales: Mapping[str, Scale],
    jobs: Callable[[Setting], list[Job]],
    do: Callable[[Setting, Job], Row],
    markdown: Callable[[Row], str],
    arguments: Sequence[str] | None,
) -> None:
    """The command line of a comparison: parse, do what is missing, write NAME.json and a table NAME.md beside it."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("BNAS_CIFAR10")
    parser.add_argument("--data", default=data, required=not data, help="CIFAR-10 (default: what BNAS_CIFAR10 names)")
    parser.add_argument("--scale", choices=scales, default="small", help="small: for two cores, gpu: for one GPU")
    parser.add_argument("--rows", nargs="+", metavar="WORD", help="only rows with all of these words, e.g. spos 0")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of one thread each")
    parser.add_argument("--json", type=Path, help="a .md goes beside it (default: benchmarks/results)")
    options = parser.parse_args(arguments)
    suffix = "" if options.scale == "small" else f"_{options.scale}"
    path = options.json or RESULTS / f"{name}{suffix}.json"
    setting = Setting(options.data, scales[options.scale])
    try:
        document = opened(path, setting)
    except InputError as error:
        sys.exit(str(error))
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted = [job for job in jobs(setting) if all(word in map(str, job.values()) for word in options.rows or ())]

    def save() -> None:
        atomic.write_text(path, json.dumps(document, indent=1) + "\n")
        atomic.write_text(path.with_suffix(".md"), markdown(document))

    run_jobs(do, setting, wanted, document, save, options.workers)
    save()
    print(markdown(document))


# Statistics


@dataclass(frozen=True)
class Interval:
    """The mean of `count` values and half the width of its 95 % interval by Student's t; inf for one value."""

    mean: float
    half: float
    count: int

    def overlaps(self, other: "Interval") -> bool:
        return abs(self.mean - other.mean) <= self.half + other.half

    def format(self, unit: float = 100.0, digits: int = 1) -> str:
        if self.count == 1:
            return f"{unit * self.mean:.{digits}f}"
        return f"{unit * self.mean:.{digits}f} ± {unit * self.half:.{digits}f}"


def interval(values: Iterable[float]) -> Interval:
    from scipy.stats import t  # type: ignore[import-untyped]

    values = list(values)
    if len(values) == 1:
        return Interval(values[0], float("inf"), 1)
    return Interval(mean(values), float(t.ppf(0.975, len(values) - 1)) * stdev(values) / sqrt(len(values)), len(values))


def verdict(own: Interval, other: Interval, name: str) -> str:
    """A difference is claimed where the two intervals do not overlap."""
    if own.count < 3 or other.count < 3:
        return "too few seeds"
    if own.overlaps(other):
        return "not separable at this scale"
    return f"{100 * (own.mean - other.mean):+.1f} points against {name}"


def of(rows: Iterable[Row], **values: Any) -> list[Row]:
    """The rows in which these names have these values."""
    return [row for row in rows if all(row.get(name) == value for name, value in values.items())]


def about(document: Row) -> str:
    """What a table's reader must know of data, scale and machine."""
    scale, at = document["scale"], document["machine"]
    budget = scale["budget"]
    epochs = budget["training"]["epochs"]
    return (
        f"Data: {document['data']['name']}, scaled to {scale['image_size']} x {scale['image_size']} pixels. Searches "
        f"learn from {scale['images']:,} images and validate on {scale['validation']:,}; networks found are trained "
        f"alone on {scale['training_images']:,} ({epochs} epoch{'s' * (epochs > 1)}, batch "
        f"{budget['training']['batch_size']}) and tested on {scale['test']:,}. Limit: the median latency of random "
        f"architectures under the profile {document['profile']}. Machine: {at['processor']}, {at['cores']} cores, "
        f"{document['device']}, one thread a process, torch {document['torch']}."
    )


def table(header: Sequence[str], lines: Iterable[Sequence[str]], text: int = 1) -> str:
    """A Markdown table whose first `text` columns are words and whose others are numbers."""
    marks = ["---" if i < text else "--:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, marks, *lines))
