"""Single-path methods against random search: `python benchmarks/search_methods.py [--data FOLDER] [--workers N]`.

Every method trains its supernet for the same number of passes forth and back, selects under the same latency limit,
and the network it finds is trained alone; random search spends the same number of passes on architectures alone. All
methods that score also score one shared set of random architectures, each trained alone once, and Kendall's tau says
how well the order of the scores is that of the accuracies.

Two variants of DI-NAS put its claim to the test, that orthogonal weights score better than Gaussian ones: in 1-bit
spaces, where the default is Hadamard, and in a float one. A last row times one training step of every method, in turns.

Every finished row is written at once; the same command goes on with what is missing. With --scale gpu the cifar
instances and whole images are used.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from contest import (
    Job,
    Row,
    Scale,
    Setting,
    about,
    command,
    device,
    interval,
    of,
    shared_set,
    space_of,
    table,
    task_of,
    train_alone,
    verdict,
)

from bnas.search.evaluate import calibration_batches, score
from bnas.search.indicators import Indicators, gene_scores
from bnas.search.selection.exact import score_of
from bnas.search.spaces import Architecture, SearchSpace
from bnas.search.strategies import bn_nas, di_nas, fairnas, one_shot, random_search, single_path, spos
from bnas.search.strategies.task import SearchTask, Stopwatch
from bnas.search.training.recipes import Budget, Recipe

SCALES = {
    "small": Scale(
        image_size=16, images=1600, validation=800, training_images=6400, test=4000,
        budget=Budget(Recipe(4, 32), evaluations=12, population=4, calibration_images=256, training=Recipe(1, 32)),
        seeds=3, shared=20, spaces=("shufflenet:micro", "tiny:micro", "shufflenet:micro:bits=32"),
    ),
    "gpu": Scale(
        image_size=32, images=45_000, validation=5000, training_images=50_000, test=10_000,
        budget=Budget(
            Recipe(60, 256), evaluations=1000, population=20, calibration_images=5000, training=Recipe(60, 256)
        ),
        seeds=5, shared=50, spaces=("shufflenet:cifar", "mobilenet:cifar", "shufflenet:cifar:bits=32"),
    ),
}  # fmt: skip
METHODS = {
    "one-shot": one_shot.METHOD,
    "spos": spos.METHOD,
    "fairnas": fairnas.METHOD,
    "bn-nas": bn_nas.METHOD,
    "di-nas": di_nas.METHOD,
}
VARIANTS = {f"di-nas {name}": replace(di_nas.METHOD, initialiser=name) for name in ("gaussian", "orthogonal")}
INDICATORS: dict[str, Callable[[Indicators], tuple[np.ndarray, ...]]] = {"bn-nas": Indicators.blocks} | {
    name: di_nas.importance for name in ("di-nas", *VARIANTS)
}
RANDOM = "random"
STEPS = 12  # timed of each method, after 2 that are not


def methods_in(scale: Scale, space: str) -> list[str]:
    """The variants of DI-NAS run in the first 1-bit space and in its float form, where they are all that runs."""
    if "bits=32" in space:
        return list(VARIANTS)
    return [RANDOM, *METHODS, *(VARIANTS if space == scale.spaces[0] else ())]


def jobs(setting: Setting) -> list[Job]:
    """All rows: networks of the shared sets, searches, and the times of steps."""
    scale = setting.scale
    alone = [{"kind": "shared", "space": s, "number": n} for s in scale.spaces for n in range(scale.shared)]
    searches = [
        {"kind": "search", "space": space, "method": method, "seed": seed}
        for seed in range(scale.seeds)
        for space in scale.spaces
        for method in methods_in(scale, space)
    ]
    return [*searches, *alone, *({"kind": "steps", "space": space} for space in scale.spaces)]


def do(setting: Setting, job: Job) -> Row:
    space = space_of(setting, job["space"])
    return {"shared": do_shared, "search": do_search, "steps": do_steps}[job["kind"]](setting, job, space)


def do_shared(setting: Setting, job: Job, space: SearchSpace) -> Row:
    arch = shared_set(space, setting.scale.shared)[job["number"]]
    return {"architecture": arch.name} | train_alone(setting, arch, seed=0)


def do_search(setting: Setting, job: Job, space: SearchSpace) -> Row:
    """One search, the scores of the shared set, and the network found, trained alone (not that of a variant)."""
    method = job["method"]
    with tempfile.TemporaryDirectory() as folder:
        task = task_of(setting, space, job["seed"], Path(folder))
        start = time.perf_counter()
        if method == RANDOM:
            found, scores = random_search.run(task), None
        else:
            chosen = (METHODS | VARIANTS)[method]
            trained = single_path.train(task, chosen, Stopwatch())
            found = chosen.select(task, trained)
        seconds = time.perf_counter() - start
        if method != RANDOM:
            scores = shared_scores(task, trained, method, shared_set(space, setting.scale.shared))
    best = found.best.architecture
    row = {
        "architecture": best.name,
        "predicted_ms": found.best.latency_ms,
        "limit_ms": task.limit_ms,
        "passes": found.steps * (1 if method == RANDOM else len(chosen.passes(space, 0, 0, 1))),
        "search_seconds": round(seconds, 1),
        "state_hash": found.state_hash,
        "scores": scores,
    }
    return row if method in VARIANTS else row | train_alone(setting, best, job["seed"])


def shared_scores(
    task: SearchTask, trained: single_path.Trained, method: str, shared: Sequence[Architecture]
) -> list[float]:
    """What the method thinks of each architecture of the shared set."""
    genomes = [task.space.indices(arch) for arch in shared]
    if method in INDICATORS:
        scores = gene_scores(task.space, INDICATORS[method](trained.indicators()))
        return [score_of(scores, genome) for genome in genomes]
    calibration = calibration_batches(task.train, task.budget.calibration_images)
    return [score(trained.supernet, task.space.gates(genome), calibration, task.validation) for genome in genomes]


def do_steps(setting: Setting, job: Job, space: SearchSpace) -> Row:
    """Median milliseconds of one pass forth and back with its share of the optimizer's step, methods in turns.

    Of processor time where there is no GPU: other rows may be at work.
    """
    now = time.thread_time if device().type == "cpu" else time.perf_counter
    runners = {}
    with tempfile.TemporaryDirectory() as folder:
        task = task_of(setting, space, 0, Path(folder))
        for name, method in (METHODS | VARIANTS).items():
            runners[name] = step_of(task, method)
        times: dict[str, list[float]] = {name: [] for name in runners}
        for number in range(2 + STEPS):
            for name, (passes, step) in runners.items():
                start = now()
                step(number)
                times[name].append((now() - start) / passes * 1e3)
    return {"ms_per_pass": {name: round(median(values[2:]), 2) for name, values in times.items()}}


def step_of(task: SearchTask, method: single_path.Method) -> tuple[int, Callable[[int], None]]:
    """(passes of a step, what does step number n) with the supernet and optimizer that the method trains with."""
    from bnas.search.training.trainer import make_optimizer

    supernet, space = single_path.prepare(task, method)
    recipe = task.budget.supernet
    learn = single_path.passing(supernet, space, method, task.seed, 1000, recipe.label_smoothing)
    optimizer = make_optimizer(supernet, recipe)
    images, labels = task.train.batch(torch.arange(recipe.batch_size))
    supernet.train()

    def step(number: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        learn(images, labels, number)
        optimizer.step()
        if images.is_cuda:
            torch.cuda.synchronize()

    return len(method.passes(space, task.seed, 0, 1)), step


# The tables


def markdown(document: Row) -> str:
    parts = [
        "# Single-path methods against random search\n",
        f"Made by `benchmarks/search_methods.py`. {about(document)}\n",
        "Mean and 95 % interval (Student's t) over seeds. tau: Kendall's rank correlation of a method's scores of\n"
        "the shared set and the accuracies of its networks, trained alone; mean and range over seeds.\n",
    ]
    for space in document["scale"]["spaces"]:
        rows = of(document["rows"], space=space)
        parts.append(f"## {space}\n\n{shared_line(rows)}\n\n{methods_table(rows)}\n")
    return "\n".join(parts)


def shared_line(rows: Sequence[Row]) -> str:
    accuracies = [100 * row["test_accuracy"] for row in of(rows, kind="shared")]
    if not accuracies:
        return "The shared set is not trained yet."
    return (
        f"Shared set: {len(accuracies)} architectures, test accuracy {min(accuracies):.1f} to {max(accuracies):.1f} %, "
        f"mean {mean(accuracies):.1f} %."
    )


def methods_table(rows: Sequence[Row]) -> str:
    searches = of(rows, kind="search")
    steps: dict[str, float] = next((row["ms_per_pass"] for row in of(rows, kind="steps")), {})
    base = [row["test_accuracy"] for row in of(searches, method=RANDOM)]
    lines = []
    for method in (RANDOM, *METHODS, *VARIANTS):
        own = of(searches, method=method)
        if not own:
            continue
        accuracies = [row["test_accuracy"] for row in own if "test_accuracy" in row]
        compared = accuracies and base and method != RANDOM
        lines.append(
            [
                method,
                interval(accuracies).format() if accuracies else "",
                verdict(interval(accuracies), interval(base), RANDOM) if compared else "",
                tau_text([kendall(rows, row["scores"]) for row in own if row["scores"]]),
                interval(row["search_seconds"] for row in own).format(1, 0),
                f"{steps[method]:.1f}" if method in steps else "",
                f"{max(row['predicted_ms'] / row['limit_ms'] for row in own):.3f}",
            ]
        )
    header = ["method", "test accuracy %", "against random", "tau", "search s", "ms a pass", "latency / limit, most"]
    return table(header, lines)


def kendall(rows: Sequence[Row], scores: Sequence[float]) -> float | None:
    """tau-b of scores and accuracies over what is trained of the shared set; None while that is less than 3."""
    from scipy.stats import kendalltau  # type: ignore[import-untyped]

    trained = {row["number"]: row["test_accuracy"] for row in of(rows, kind="shared")}
    if len(trained) < 3:
        return None
    return float(kendalltau([scores[n] for n in trained], list(trained.values())).statistic)


def tau_text(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{mean(known):+.2f} ({min(known):+.2f} to {max(known):+.2f})" if known else ""


def main(arguments: Sequence[str] | None = None) -> None:
    assert __doc__
    command(__doc__, "search_methods", SCALES, jobs, do, markdown, arguments)


if __name__ == "__main__":
    main()
