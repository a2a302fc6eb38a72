"""The selection: the limit holds for every stored trial, a kill changes nothing, and it finds good architectures."""

from pathlib import Path

import numpy as np
import optuna
import pytest

from bnas.profiles.errors import InputError
from bnas.search.latency import LatencyModel
from bnas.search.selection.evolution import Trial, evolve, marginal_scores, winner


def toy_score(latency: LatencyModel):
    """A separable score whose optimum is known, growing with latency like real accuracy does, plus fixed noise."""
    parts = [np.random.default_rng(d).random(len(ms)) for d, ms in enumerate(latency.candidate_ms)]
    return lambda genome: float(np.mean([p[i] for p, i in zip(parts, genome, strict=True)]))


def tight_limit(latency: LatencyModel, share: float) -> float:
    """The minimum plus `share` of (mean - minimum) over random architectures."""
    rng = np.random.default_rng(1)
    times = [latency.ms(latency.space.random(rng)) for _ in range(500)]
    fastest = latency.ms(latency.fastest())
    return fastest + share * (np.mean(times) - fastest)


def run(latency: LatencyModel, path: Path, evaluations: int, share: float = 0.7, score=None) -> list[Trial]:
    return evolve(
        latency, tight_limit(latency, share), score or toy_score(latency), evaluations=evaluations, population=8,
        seed=5, path=path, progress=lambda *_: None,
    )  # fmt: skip


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_no_stored_trial_is_over_the_limit(latency: LatencyModel, tmp_path: Path, share: float) -> None:
    trials = run(latency, tmp_path / "t.db", 30, share)
    limit = tight_limit(latency, share) * (1 + 1e-12)
    assert len(trials) == 30 and all(t.latency_ms <= limit for t in trials)
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path / 't.db'}")
    for trial in study.trials:  # also what the storage itself holds
        choices = tuple(trial.params[g.id] for g in latency.space.genes)
        genome = tuple(g.candidates.index(c) for g, c in zip(latency.space.genes, choices, strict=True))
        assert latency.ms_of(genome) <= limit


@pytest.mark.parametrize("stop", [3, 8, 17])
def test_a_kill_while_scoring_changes_nothing(latency: LatencyModel, tmp_path: Path, stop: int) -> None:
    whole = run(latency, tmp_path / "whole.db", 24)
    asked = 0

    def dies(genome: tuple[int, ...]) -> float:
        nonlocal asked
        asked += 1
        if asked == stop:
            raise KeyboardInterrupt  # leaves the trial RUNNING, as a kill does
        return toy_score(latency)(genome)

    with pytest.raises(KeyboardInterrupt):
        run(latency, tmp_path / "cut.db", 24, score=dies)
    assert run(latency, tmp_path / "cut.db", 24) == whole


def test_evolution_beats_as_many_random_architectures(latency: LatencyModel, tmp_path: Path) -> None:
    score = toy_score(latency)
    found = max(t.score for t in run(latency, tmp_path / "e.db", 80, share=1.0))
    rng = np.random.default_rng(2)
    limit = tight_limit(latency, 1.0)
    genomes = (latency.space.indices(latency.space.random(rng)) for _ in range(10_000))
    feasible = [g for g in genomes if latency.ms_of(g) <= limit][:80]
    assert found > max(score(g) for g in feasible)


def test_a_file_that_is_no_database_is_named(latency: LatencyModel, tmp_path: Path) -> None:
    (tmp_path / "t.db").write_bytes(b"not a database" * 100)
    with pytest.raises(InputError, match=r"t\.db is not a search database"):
        run(latency, tmp_path / "t.db", 3)


def test_marginal_scores_are_means_over_the_trials_that_took_the_candidate(latency: LatencyModel) -> None:
    n = len(latency.candidate_ms)
    done = [((0,) * n, 0.5), ((0,) * (n - 1) + (1,), 0.7)]
    scores = marginal_scores(latency, done)
    assert scores[0][0] == pytest.approx(0.6) and scores[-1][0] == 0.5 and scores[-1][1] == 0.7
    assert scores[0][1] == pytest.approx(0.6)  # never taken: the overall mean


def test_winner(latency: LatencyModel) -> None:
    space = latency.space
    archs = [space.architecture([i] + [0] * (len(space.genes) - 1)) for i in range(4)]
    trials = [
        Trial(a, acc, ms) for a, acc, ms in zip(archs, [0.90, 0.905, 0.7, 0.9], [1.0, 2.0, 3.0, 2.5], strict=True)
    ]
    assert winner(trials, images=400).latency_ms == 2.5  # 0.9 is within one standard error (0.0147) of 0.905
    assert winner(trials, images=10**8).latency_ms == 2.0


def test_any_folder_name_holds_its_own_study(latency: LatencyModel, tmp_path: Path) -> None:
    """A `?` would begin the options of a database address."""
    for name in ("a?b=c", "x y%20", "#1"):
        (tmp_path / name).mkdir()
        run(latency, tmp_path / name / "t.db", 3)
        assert (tmp_path / name / "t.db").is_file()
