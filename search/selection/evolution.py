"""NSGA-II over accuracy and latency with a limit that holds by construction, and a resume that changes nothing.

Optuna's constraints only order solutions, so instead every genome is repaired under the limit before Optuna stores it:
no stored trial is over the limit. Optuna does not restore a sampler's generator, so the sampler is made anew for every
trial, seeded from (seed, trials so far).

Several processes may evolve one study. Whoever looks at it or changes it holds a lock beside it, and whoever scores a
trial holds one of that trial. The operating system frees the locks of a process that dies, so a running trial whose
lock is free is one that nobody works on, and it is taken up by the next who looks: none is lost, none is scored twice.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bnas.profiles.errors import InputError

from ..latency import LatencyModel, repair
from ..spaces import Architecture

Progress = Callable[[str, int, int], None]

NEW_TRIES = 20
DIRECTIONS = ("maximize", "minimize")  # score, latency
POLL_S = 0.2  # between two looks at trials that others still score


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
    storage: tuple[str, str] | None = None,
) -> list[Trial]:
    """Score `evaluations` architectures under the limit, together with all processes that do so with the same `path`.

    score(indices) -> accuracy; asked once per architecture. The study lives in and continues from the SQLite file
    `path`, or, with `storage`, under the second of its texts in the Optuna storage that the first is the address of;
    locks are files beside `path` in both cases. Returns when all trials are scored. Raises InputError if `path` is not
    such a file or the storage cannot be used.
    """
    from filelock import FileLock, Timeout
    from optuna.trial import TrialState

    space = latency.space
    names = [g.id for g in space.genes]
    looking = FileLock(path.with_suffix(".lock"))

    def genome_of(trial: Any) -> tuple[int, ...]:
        return tuple(g.candidates.index(trial.params[g.id]) for g in space.genes)

    def lock_of(number: int) -> FileLock:
        return FileLock(path.with_suffix(f".{number}.lock"))

    with opened(path, storage, looking) as study:

        def scored() -> list[Any]:
            return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

        def orphan() -> tuple[int, tuple[int, ...], FileLock] | None:
            """The first trial that a process died of, now ours; one whose genome was not stored yet is given up."""
            for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                lock = lock_of(trial.number)
                try:
                    lock.acquire(timeout=0)
                except Timeout:  # someone is at work
                    continue
                if len(trial.params) == len(names):
                    return trial.number, genome_of(trial), lock
                study.tell(trial.number, state=TrialState.FAIL)
                release(lock)
            return None

        def take() -> tuple[int, tuple[int, ...], FileLock] | None:
            """What to score next: number, genome and the held lock of a trial; None while others score the last."""
            if (found := orphan()) is not None:
                return found
            done = [(genome_of(trial), trial.values[0]) for trial in scored()]
            running = [genome_of(t) for t in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]
            if len(done) + len(running) >= evaluations:
                return None
            generator = np.random.default_rng((seed, len(done) + len(running)))
            study.sampler = _sampler(latency, limit_ms, population, generator, done, running)
            trial = study.ask(_distributions(latency))
            lock = lock_of(trial.number)
            lock.acquire(timeout=0)
            return trial.number, genome_of(trial), lock

        while True:
            with looking:
                done = scored()
                if len(done) >= evaluations:
                    path.with_suffix(".lock").unlink(missing_ok=True)  # from here on, all only read
                    return [
                        Trial(space.architecture(g), trial.values[0], latency.ms_of(g))
                        for trial in done[:evaluations]
                        for g in [genome_of(trial)]
                    ]
                taken = take()
            if taken is None:
                time.sleep(POLL_S)
                continue
            number, genome, lock = taken
            try:
                known = {genome_of(trial): trial.values[0] for trial in done}
                value = known[genome] if genome in known else score(genome)
                with looking:
                    study.tell(number, [value, latency.ms_of(genome)])
                    release(lock)
                    count = len(scored())
            finally:
                lock.release()
            progress("search", count, evaluations)


def release(lock: Any) -> None:
    """Let go of the lock of a trial that is over; nobody else can hold its file now, as they would have to look."""
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


@contextmanager
def opened(path: Path, storage: tuple[str, str] | None, looking: Any) -> Iterator[Any]:
    """The study, made if there is none. Raises InputError if it cannot be."""
    import optuna
    from sqlalchemy import URL
    from sqlalchemy.exc import DatabaseError, OperationalError

    logging.getLogger("optuna").setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if storage is not None:
        with looking:
            study = optuna.create_study(
                storage=connected(storage[0]), study_name=storage[1], directions=DIRECTIONS, load_if_exists=True
            )
        yield study
        return
    try:
        # The path as a value: in a text, a `?` in a folder's name would begin the options.
        address = URL.create("sqlite", database=str(path)).render_as_string()
        with looking:
            database = optuna.storages.RDBStorage(address)
            study = optuna.create_study(
                storage=database, study_name="search", directions=DIRECTIONS, load_if_exists=True
            )
    except OperationalError:  # the disk is full, not the file bad
        raise
    except DatabaseError as error:
        path.with_suffix(".lock").unlink(missing_ok=True)
        raise InputError(f"{path} is not a search database ({error.orig}); delete it to search again") from None
    try:
        yield study
    finally:
        database.engine.dispose()


def connected(address: str) -> Any:
    """The Optuna storage at `address`. Raises InputError, without a password in it, if there is none to be had."""
    import optuna
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    try:
        shown = make_url(address).render_as_string(hide_password=True)
    except ArgumentError:
        raise InputError(f"--storage {address!r} is no address; write for example sqlite:///trials.db") from None
    try:
        return optuna.storages.get_storage(address)
    except (SQLAlchemyError, ImportError, ValueError, OSError) as error:
        why = " ".join(str(getattr(error, "orig", None) or error).split())[:160]
        raise InputError(f"--storage {shown} cannot be used ({why}); check the address and its driver") from None


def _distributions(latency: LatencyModel) -> dict:
    import optuna

    return {g.id: optuna.distributions.CategoricalDistribution(g.candidates) for g in latency.space.genes}


def _sampler(
    latency: LatencyModel,
    limit_ms: float,
    population: int,
    generator: np.random.Generator,
    done: list[tuple[tuple[int, ...], float]],
    running: list[tuple[int, ...]],
) -> Any:
    """NSGA-II whose every genome, the first random ones too, is repaired before it is stored."""
    import optuna

    space = latency.space
    names = [g.id for g in space.genes]
    known = {genome for genome, _ in done} | set(running)

    class Repairing(optuna.samplers.NSGAIISampler):
        def infer_relative_search_space(self, study: Any, trial: Any) -> dict:
            return _distributions(latency)

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

    return Repairing(population_size=population, seed=int(generator.integers(2**31)))


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
