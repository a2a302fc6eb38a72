"""Random search: architectures drawn uniformly under the limit, each trained alone for a share of the supernet's steps.

The baseline every other method has to beat at equal cost (Li and Talwalkar, UAI 2019).
"""

import json
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from bnas.profiles import atomic

from ..latency import check_limit
from ..selection.evolution import Trial, winner
from ..training.trainer import accuracy, descend, fit
from .selecting import ACCURACY, sampled
from .task import SearchResult, SearchTask, Stopwatch, digest

SOURCE = "Random Search and Reproducibility for Neural Architecture Search (Li and Talwalkar, UAI 2019)"


def run(task: SearchTask) -> SearchResult:
    """Raises InputError if the limit cannot be met."""
    check_limit(task.latency, task.limit_ms)
    stopwatch = Stopwatch()
    genomes = sampled(task, task.budget.population)
    recipe = replace(task.budget.supernet, epochs=max(1, task.budget.supernet.epochs // len(genomes)))
    log = task.folder / "trials.json"
    accuracies: list[float] = json.loads(log.read_text()) if log.is_file() else []
    losses: list[float] = []
    with stopwatch.phase("search"):
        for number, genome in enumerate(genomes):
            if number < len(accuracies):
                continue
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(task.seed)
                network = task.space.build(task.space.architecture(genome)).to(task.device)
            state = task.folder / "supernet.safetensors"
            losses += fit(
                network,
                descend(partial(_logits, network), recipe),
                task.train,
                recipe,
                seed=task.seed,
                augmentation=task.augmentation,
                path=state,
                stage=f"candidate {number + 1} of {len(genomes)}",
                progress=task.progress,
            )
            network.eval()
            accuracies.append(accuracy(network, task.validation))
            state.unlink(missing_ok=True)  # first: what lies there must never be taken for the next candidate's
            atomic.write_text(log, json.dumps(accuracies))
    trials = [
        Trial(task.space.architecture(genome), score, task.latency.ms_of(genome))
        for genome, score in zip(genomes, accuracies, strict=True)
    ]
    per_epoch = -(-len(task.train) // recipe.batch_size)
    return SearchResult(
        best=winner(trials, len(task.validation)),
        trials=tuple(trials),
        score_name=ACCURACY,
        losses=(),
        steps=len(genomes) * recipe.epochs * per_epoch,
        initial_hash=digest({}),
        state_hash=digest({"scores": torch.tensor(accuracies, dtype=torch.float64)}),
        seconds=stopwatch.seconds,
    )


def _logits(network: nn.Module, images: Tensor, step: int) -> Tensor:
    return network(images)
