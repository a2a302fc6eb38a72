"""Gradient methods against random search and SPOS: `python benchmarks/gradient_methods.py [--data FOLDER]`.

All methods search the same space of cells with the same budget of epochs, under the same latency limit, and the network
each finds is trained alone; the steps that came of it are in the table. A step of a gradient method runs all candidates
and costs many times that of SPOS; the seconds say how much. Alphas learn faster than published, all at the same rate,
for a search is a few dozen steps here and not thousands.

Beside the accuracy: the latency that the relaxed network expects at the end of the search against that of the network
derived from it, and the share of skips among its operations. The rows "dcp-nas, ..." change one thing of DCP-NAS each.

Every finished row is written at once; the same command goes on with what is missing. With --scale gpu the cifar
instance and whole images are used, and each method keeps its own rate for the alphas.
"""

import inspect
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from types import ModuleType
from typing import Any

from contest import (
    Job,
    Row,
    Scale,
    Setting,
    about,
    command,
    interval,
    of,
    space_of,
    table,
    task_of,
    train_alone,
    verdict,
)

from bnas.search.spaces import Architecture
from bnas.search.strategies import STRATEGIES, dcp_nas
from bnas.search.strategies.task import SearchResult, SearchTask
from bnas.search.training.recipes import Budget, Recipe

SCALES = {
    "small": Scale(
        image_size=16, images=384, validation=800, training_images=6400, test=4000,
        budget=Budget(
            Recipe(4, 16), evaluations=12, population=4, calibration_images=256, training=Recipe(1, 32),
            relaxed=Recipe(4, 16),
        ),
        seeds=3, shared=0, spaces=("cells:micro",),
    ),
    "gpu": Scale(
        image_size=32, images=45_000, validation=5000, training_images=50_000, test=10_000,
        budget=Budget(
            Recipe(25, 128), evaluations=1000, population=20, calibration_images=5000, training=Recipe(60, 256),
            relaxed=Recipe(25, 64),
        ),
        seeds=5, shared=0, spaces=("cells:cifar",),
    ),
}  # fmt: skip
ALPHA_RATE = {"small": 1e-2}
BASELINES = ("random", "spos")
NOT_GRADIENT = ("one-shot", "fairnas", "bn-nas", "di-nas")
DCP = "dcp-nas"
ABLATION = {
    "no discrepancy": {"discrepancy": 0.0},
    "no reconstruction": {"reconstruction": 0.0},
    "neither": {"discrepancy": 0.0, "reconstruction": 0.0},
    "ggn_rank1": {"curvature": "ggn_rank1"},
    "fisher_class": {"curvature": "fisher_class"},
    "exact": {"curvature": "exact"},
    "coupled": {"rates": None},
    "tangent per phase": {"tangent": "phase"},
}


def methods() -> dict[str, Callable[[SearchTask, float | None], SearchResult]]:
    """All rows by name: (task, rate of the alphas, or None for the method's own) -> what it finds."""
    rows = {name: searcher(module) for name, module in STRATEGIES.items() if name not in NOT_GRADIENT}
    return rows | {f"{DCP}, {name}": searcher(dcp_nas, change) for name, change in ABLATION.items()}


def searcher(module: ModuleType, change: dict[str, Any] | None = None) -> Callable[..., SearchResult]:
    def search(task: SearchTask, rate: float | None) -> SearchResult:
        if "method" not in inspect.signature(module.run).parameters:
            return module.run(task)
        method = replace(module.METHOD, **(change or {}))
        return module.run(task, method if rate is None else with_rate(method, rate))

    return search


def with_rate(method: Any, rate: float) -> Any:
    """The method with this rate of its alphas: P-DARTS has it in the slots of its stages, CP-NAS has none."""
    if hasattr(method, "learning"):
        return replace(method, learning=with_rate(method.learning, rate))
    if not hasattr(method, "alpha_recipe"):
        return method
    return replace(method, alpha_recipe=replace(method.alpha_recipe, learning_rate=rate))


def jobs(setting: Setting) -> list[Job]:
    """All rows: seed by seed the methods, then the ablation."""
    names = [*BASELINES, *(name for name in methods() if name not in BASELINES)]
    return [
        {"space": space, "method": name, "seed": seed}
        for changed in (False, True)
        for seed in range(setting.scale.seeds)
        for space in setting.scale.spaces
        for name in names
        if (", " in name) == changed
    ]


def do(setting: Setting, job: Job) -> Row:
    """One search, and the network found, trained alone."""
    space = space_of(setting, job["space"])
    rate = next((ALPHA_RATE.get(name) for name, scale in SCALES.items() if scale == setting.scale), None)
    with tempfile.TemporaryDirectory() as folder:
        task = task_of(setting, space, job["seed"], Path(folder))
        start = time.perf_counter()
        found = methods()[job["method"]](task, rate)
        seconds = time.perf_counter() - start
    best, expected = found.best, found.curves.get("expected latency ms")
    return {
        "architecture": best.architecture.name,
        "predicted_ms": best.latency_ms,
        "expected_ms": expected[-1] if expected else None,
        "limit_ms": task.limit_ms,
        "skips": skips(best.architecture),
        "steps": found.steps,
        "search_seconds": round(seconds, 1),
        "phases": {phase: round(spent, 1) for phase, spent in found.seconds.items()},
        "state_hash": found.state_hash,
    } | train_alone(setting, best.architecture, job["seed"])


def skips(arch: Architecture) -> float:
    """Share of the operations of a cell architecture that are skips. A choice names two, as skip@0+sep_3@1."""
    operations = [part.split("@")[0] for choice in arch.choices for part in choice.split("+")]
    return sum(name.startswith("skip") for name in operations) / len(operations)


# The tables


def markdown(document: Row) -> str:
    rows = document["rows"]
    base = {name: [row["test_accuracy"] for row in of(rows, method=name)] for name in (*BASELINES, DCP)}
    names = [name for name in methods() if of(rows, method=name)]
    first = [name for name in names if not name.startswith(f"{DCP}, ")]
    ablation = [DCP, *(name for name in names if name.startswith(f"{DCP}, "))]
    budget = document["scale"]["budget"]["relaxed"]
    parts = [
        f"# Gradient methods against random search and SPOS\n\nMade by `benchmarks/gradient_methods.py`. "
        f"{about(document)}\n\nSearches: {budget['epochs']} epochs of batches of {budget['batch_size']}, half of the "
        "images for weights and half for alphas.\nMean and 95 % interval (Student's t) over seeds.\n",
        methods_table(rows, first, BASELINES, base),
    ]
    if of(rows, method=DCP):
        parts.append("\n## DCP-NAS, one factor at a time\n\n" + methods_table(rows, ablation, (DCP,), base))
    return "\n".join(parts) + "\n"


def methods_table(
    rows: Sequence[Row], names: Sequence[str], against: Sequence[str], base: dict[str, list[float]]
) -> str:
    lines = []
    for name in names:
        own = of(rows, method=name)
        accuracies = interval(row["test_accuracy"] for row in own)
        verdicts = [
            "" if name == other or not base[other] else verdict(accuracies, interval(base[other]), other)
            for other in against
        ]
        expected = [row["expected_ms"] / row["predicted_ms"] for row in own if row["expected_ms"] is not None]
        lines.append(
            [
                name,
                accuracies.format(),
                *verdicts,
                f"{max(row['predicted_ms'] / row['limit_ms'] for row in own):.3f}",
                f"{mean(expected):.2f}" if expected else "",
                f"{100 * mean(row['skips'] for row in own):.0f}",
                interval(row["search_seconds"] for row in own).format(1, 0),
                str(own[0]["steps"]),
            ]
        )
    header = ["method", "test accuracy %", *(f"against {other}" for other in against), "latency / limit, most"]
    return table([*header, "expected / true latency", "skips %", "search s", "steps"], lines)


def main(arguments: Sequence[str] | None = None) -> None:
    assert __doc__
    command(__doc__, "gradient_methods", SCALES, jobs, do, markdown, arguments)


if __name__ == "__main__":
    main()
