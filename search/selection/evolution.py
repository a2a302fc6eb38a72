"""NSGA-II over accuracy and latency with a limit that holds by construction, and a resume that changes nothing.

Optuna's constraints only order solutions, so instead every genome is repaired under the limit before Optuna stores it:
no stored trial is over the limit. Optuna does not restore a sampler's generator, so the sampler is made anew for every
trial, seeded from (seed, completed trials), after trials that a kill left running are marked failed.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bnas.profiles.errors import InputError

from ..latency import LatencyModel, repair
from ..spaces import Architecture

Progress = Callable[[str, int, int], None]

NEW_TRIES = 20


@dataclass(frozen=True)
class Trial:
    """One scored architecture. score: what the method maximises, such as accuracy, 0 to 1, on the validation slice."""

    architecture: Architecture
    score: float
    latency_ms: float

    def to_dict(self) -> dict:
        return {
            "choices": list(self.architecture.choices),
            "score": self.score,
            "latency_ms": self.latency_ms,
        }


def evolve(
    latency: LatencyModel,
    limit_ms: float,
    score: Callable[[tuple[int, ...]], float],
    *,
    evaluations: int,
    population: int,
    seed: int,
    path: Path,
    progress: Progress,
) -> list[Trial]:
    """Score `evaluations` architectures under the limit; the study lives in and continues from the SQLite file `path`.

    score(indices) -> accuracy; asked once per architecture. Raises InputError if `path` is not such a file.
    """
    import optuna
    from sqlalchemy import URL
    from sqlalchemy.exc import DatabaseError, OperationalError

    logging.getLogger("optuna").setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = latency.space
    names = [g.id for g in space.genes]
    distributions = {g.id: optuna.distributions.CategoricalDistribution(g.candidates) for g in space.genes}

    class Repairing(optuna.samplers.NSGAIISampler):
        """NSGA-II whose every genome, the first random ones too, is repaired before it is stored."""

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict:
            return distributions

        def get_parent_population(self, study: Any, generation: int) -> list:
            # Optuna gives parents in another order the first time than when it reads them back after a kill.
            return sorted(super().get_parent_population(study, generation), key=lambda parent: parent.number)

        def sample_relative(self, study: Any, trial: Any, search_space: dict) -> dict:
            # NSGA-II leaves out what it mutates, and everything in the first generation: those are drawn anew.
            params = super().sample_relative(study, trial, search_space)
            fresh = space.random(generator).choices
            choices = [params.get(name, new) for name, new in zip(names, fresh, strict=True)]
            arch = Architecture(space.id, tuple(choices))
            scores = marginal_scores(latency, done)
            repaired = repair(latency, space.indices(arch), limit_ms, scores)
            for _ in range(NEW_TRIES):  # a child should be new (SPOS); under a tight limit there may be no more
                if repaired not in known:
                    break
                arch = space.mutate(arch, generator, 1 / len(names))
                repaired = repair(latency, space.indices(arch), limit_ms, scores)
            return dict(zip(names, space.architecture(repaired).choices, strict=True))

    try:
        # The path as a value: in a text, a `?` in a folder's name would begin the options.
        address = URL.create("sqlite", database=str(path)).render_as_string()
        storage = optuna.storages.RDBStorage(address)
        study = optuna.create_study(
            storage=storage, study_name="search", directions=["maximize", "minimize"], load_if_exists=True
        )
    except OperationalError:  # the disk is full, not the file bad
        raise
    except DatabaseError as error:
        raise InputError(f"{path} is not a search database ({error.orig}); delete it to search again") from None
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    complete = (optuna.trial.TrialState.COMPLETE,)
    known: dict[tuple[int, ...], float] = {}
    done: list[tuple[tuple[int, ...], float]] = []
    for trial in study.get_trials(deepcopy=False, states=complete):
        genome = tuple(g.candidates.index(trial.params[g.id]) for g in space.genes)
        done.append((genome, trial.values[0]))
        known[genome] = trial.values[0]
    while len(done) < evaluations:
        generator = np.random.default_rng((seed, len(done)))
        study.sampler = Repairing(population_size=population, seed=int(generator.integers(2**31)))
        trial = study.ask(distributions)
        genome = tuple(g.candidates.index(trial.params[g.id]) for g in space.genes)
        if genome not in known:
            known[genome] = score(genome)
        study.tell(trial, [known[genome], latency.ms_of(genome)])
        done.append((genome, known[genome]))
        progress("search", len(done), evaluations)
    storage.engine.dispose()
    return [Trial(space.architecture(g), accuracy, latency.ms_of(g)) for g, accuracy in done[:evaluations]]


def marginal_scores(latency: LatencyModel, done: list[tuple[tuple[int, ...], float]]) -> tuple[np.ndarray, ...]:
    """scores[d][k]: mean accuracy of the architectures that take candidate k at decision d; else the overall mean."""
    genomes = np.array([g for g, _ in done], dtype=int).reshape(len(done), len(latency.candidate_ms))
    accuracies = np.array([a for _, a in done])
    overall = float(accuracies.mean()) if done else 0.0

    def mean(taken: np.ndarray) -> float:
        return float(accuracies[taken].mean()) if taken.any() else overall

    return tuple(
        np.array([mean(genomes[:, d] == k) for k in range(len(ms))]) for d, ms in enumerate(latency.candidate_ms)
    )


def winner(trials: list[Trial], images: int) -> Trial:
    """The slowest architecture within one standard error of the best accuracy.

    Supernet accuracies on `images` validation images that close are the same number; among equals the one that uses
    more of the allowed time has more room to learn when it is trained alone. Remaining ties: more accurate, then name.
    """
    best = max(t.score for t in trials)
    error = (best * (1 - best) / images) ** 0.5
    equals = [t for t in trials if t.score >= best - max(error, 1 / images)]
    return max(equals, key=lambda t: (t.latency_ms, t.score, t.architecture.name))
