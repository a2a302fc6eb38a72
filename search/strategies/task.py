"""What every search method is given, and what it returns."""

import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..augment import DeviceSplit
from ..latency import LatencyModel
from ..selection.evolution import Trial
from ..spaces import Architecture, SearchSpace
from ..training.recipes import Budget
from ..training.trainer import Progress


@dataclass(frozen=True, eq=False)
class SearchTask:
    """All a strategy is given. folder: where its checkpoints live, so that the same task continues there.

    trials: where an evolution keeps its trials: the address of an Optuna storage and the name of the study in it; None:
    trials.db in the folder.
    """

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
    trials: tuple[str, str] | None = None

    @property
    def space(self) -> SearchSpace:
        return self.latency.space


def relaxed_budget(task: SearchTask) -> SearchTask:
    """The task with the budget's recipe for supernets in which all candidates run at once."""
    recipe = task.budget.relaxed or task.budget.supernet
    return replace(task, budget=replace(task.budget, supernet=recipe))


@dataclass(frozen=True)
class SearchResult:
    """best is one of trials, and no trial is over the limit. score_name says what their scores are.

    losses: of the supernet, per epoch; steps: of its optimizer. initial_hash and state_hash are digests of what the
    method learns about candidates (scores, indicators, relaxed choices), before and after. certificate: the proof of
    a selection, where there is one. curves: what else was seen, per epoch; one that is shorter than losses began later.
    course: what would have been derived without a limit, time after time (gradient methods: after each epoch).
    scores: what each candidate of each gene adds to the score of an architecture, where scores add up.
    seconds: by phase, of this process.
    """

    best: Trial
    trials: tuple[Trial, ...]
    score_name: str
    losses: tuple[float, ...]
    steps: int
    initial_hash: str
    state_hash: str
    certificate: str | None = None
    curves: dict[str, list[float]] = field(default_factory=dict)
    course: tuple[Architecture, ...] = ()
    scores: tuple[tuple[float, ...], ...] = ()
    seconds: dict[str, float] = field(default_factory=dict, compare=False)


def digest(values: Mapping[str, Tensor]) -> str:
    """Twelve hex digits over names, shapes and bits of `values`."""
    sha = hashlib.sha256()
    for name in sorted(values):
        array = values[name].detach().cpu().contiguous().numpy()
        sha.update(f"{name} {array.shape} {array.dtype}".encode() + array.tobytes())
    return sha.hexdigest()[:12]


class Stopwatch:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
