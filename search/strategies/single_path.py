"""The loop single-path methods share: train a supernet one path a step, then select among paths under a limit."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..augment import DeviceSplit
from ..evaluate import calibration_batches, score
from ..latency import LatencyModel, check_limit
from ..selection.evolution import Trial, evolve, winner
from ..spaces import SearchSpace
from ..supernet import Supernet
from ..training.recipes import Budget
from ..training.trainer import Progress, fit

Sampler = Callable[[SearchSpace, int, int], tuple[int, ...]]  # (space, seed, step) -> genome


@dataclass(frozen=True, eq=False)
class SearchTask:
    """All a strategy is given. folder: where its checkpoints live, so that the same task continues there."""

    latency: LatencyModel
    limit_ms: float
    train: DeviceSplit
    validation: DeviceSplit
    augmentation: dict
    budget: Budget
    seed: int
    device: torch.device
    folder: Path
    progress: Progress


@dataclass(frozen=True)
class SearchResult:
    """best is one of trials; losses: the supernet's mean loss per epoch."""

    best: Trial
    trials: tuple[Trial, ...]
    losses: tuple[float, ...]


def search(task: SearchTask, sampler: Sampler) -> SearchResult:
    """Raises InputError if the limit cannot be met."""
    space = task.latency.space
    check_limit(task.latency, task.limit_ms)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        supernet = Supernet(space).to(task.device)
    losses = fit(
        supernet,
        lambda images, step: supernet(images, space.gates(sampler(space, task.seed, step))),
        task.train,
        task.budget.supernet,
        seed=task.seed,
        augmentation=task.augmentation,
        path=task.folder / "supernet.safetensors",
        stage="supernet",
        progress=task.progress,
    )
    calibration = calibration_batches(task.train, task.budget.calibration_images)
    trials = evolve(
        task.latency,
        task.limit_ms,
        lambda genome: score(supernet, space.gates(genome), calibration, task.validation),
        evaluations=task.budget.evaluations,
        population=task.budget.population,
        seed=task.seed,
        path=task.folder / "trials.db",
        progress=task.progress,
    )
    return SearchResult(winner(trials, len(task.validation)), tuple(trials), tuple(losses))
