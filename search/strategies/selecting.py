"""How a trained supernet becomes a result: architectures under the limit, scored, and the best of them."""

from collections.abc import Callable

import numpy as np
import torch

from bnas.profiles.errors import InputError

from ..evaluate import calibration_batches, score
from ..indicators import Indicators, gene_scores
from ..latency import repair
from ..selection.evolution import Trial, evolve, winner
from ..supernet import Supernet
from .single_path import Method, Trained, trained_supernet
from .task import SearchResult, SearchTask, digest

ACCURACY = "validation accuracy"
INDICATOR = "sum of indicators"


def by_evolution(task: SearchTask, trained: Trained) -> SearchResult:
    """NSGA-II on validation accuracy and latency (SPOS, FairNAS)."""
    with trained.stopwatch.phase("search"):
        trials, _ = _evolved(task, trained.supernet)
    return by_accuracy(task, trained, trials)


def join(task: SearchTask, method: Method) -> int:
    """Score candidates of a search by evolution that another process runs in `task.folder`, until it has all of them.

    How many were scored here. Writes nothing but trials. Raises InputError if the method has no evolution or its
    supernet is not trained yet.
    """
    if method.select is not by_evolution:
        raise InputError("a search can be joined only where candidates are scored by evolution")
    supernet = trained_supernet(task, method)
    return _evolved(task, supernet)[1]


def _evolved(task: SearchTask, supernet: Supernet) -> tuple[list[Trial], int]:
    """All trials, and how many of them this process scored."""
    calibration = calibration_batches(task.train, task.budget.calibration_images)
    scored = 0

    def accuracy(genome: tuple[int, ...]) -> float:
        nonlocal scored
        scored += 1
        return score(supernet, task.space.gates(genome), calibration, task.validation)

    trials = evolve(
        task.latency,
        task.limit_ms,
        accuracy,
        evaluations=task.budget.evaluations,
        population=task.budget.population,
        seed=task.seed,
        path=task.folder / "trials.db",
        storage=task.trials,
        progress=task.progress,
    )
    return trials, scored


def by_sampling(task: SearchTask, trained: Trained) -> SearchResult:
    """Random architectures, each moved under the limit, scored by validation accuracy (One-Shot)."""
    calibration = calibration_batches(task.train, task.budget.calibration_images)
    trials: list[Trial] = []
    with trained.stopwatch.phase("search"):
        for genome in sampled(task, task.budget.evaluations):
            accuracy = score(trained.supernet, task.space.gates(genome), calibration, task.validation)
            trials.append(Trial(task.space.architecture(genome), accuracy, task.latency.ms_of(genome)))
            task.progress("search", len(trials), task.budget.evaluations)
    return by_accuracy(task, trained, trials)


def sampled(task: SearchTask, count: int) -> list[tuple[int, ...]]:
    """`count` random genomes under the limit; different ones while a fair number of draws finds any."""
    level = tuple(np.zeros(len(ms)) for ms in task.latency.candidate_ms)
    rng = np.random.default_rng((task.seed, 1))
    found: dict[tuple[int, ...], None] = {}
    for _ in range(20 * count):
        genome = task.space.indices(task.space.random(rng))
        found[repair(task.latency, genome, task.limit_ms, level)] = None
        if len(found) == count:
            break
    return list(found)


def by_accuracy(task: SearchTask, trained: Trained, trials: list[Trial]) -> SearchResult:
    scores = torch.tensor([trial.score for trial in trials], dtype=torch.float64)
    return SearchResult(
        best=winner(trials, len(task.validation)),
        trials=tuple(trials),
        score_name=ACCURACY,
        losses=trained.losses,
        steps=trained.steps,
        initial_hash=trained.initial_hash,
        state_hash=digest({**dict(trained.supernet.named_parameters()), "scores": scores}),
        seconds=trained.stopwatch.seconds,
    )


def by_indicators(
    weigh: Callable[[Indicators], tuple[np.ndarray, ...]],
) -> Callable[[SearchTask, Trained], SearchResult]:
    """The architectures with the largest sum of indicators under the limit, by exact selection; no image is needed.

    weigh: the score of each candidate of each decision. The published methods search for this maximum by evolution.
    """

    def select(task: SearchTask, trained: Trained) -> SearchResult:
        from ..selection.exact import several

        with trained.stopwatch.phase("search"):
            scores = gene_scores(task.space, weigh(trained.indicators()))
            chosen = several(
                task.latency,
                scores,
                task.limit_ms,
                min(task.budget.population, task.space.size),
            )
        trials = tuple(Trial(task.space.architecture(s.indices), s.score, s.latency_ms) for s in chosen)
        return SearchResult(
            best=trials[0],
            trials=trials,
            score_name=INDICATOR,
            losses=trained.losses,
            steps=trained.steps,
            initial_hash=trained.initial_hash,
            state_hash=digest(dict(trained.supernet.named_parameters())),
            certificate=chosen[0].certificate("{profile}"),
            scores=tuple(tuple(values.tolist()) for values in scores),
            seconds=trained.stopwatch.seconds,
        )

    return select
