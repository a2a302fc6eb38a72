"""The evolution finds the exact optimum where it can look at everything, and nowhere anything better."""

from pathlib import Path

import numpy as np
import pytest

from bnas.search.latency import LatencyModel
from bnas.search.selection.evolution import evolve
from bnas.search.selection.exact import Selection, select


def both(model: LatencyModel, limit_ms: float, evaluations: int, seed: int, path: Path) -> tuple[float, Selection]:
    """The best score of an evolution, and the exact one."""
    scores = tuple(np.random.default_rng((seed, g)).random(len(ms)) for g, ms in enumerate(model.candidate_ms))
    trials = evolve(
        model, limit_ms, lambda genome: float(sum(s[i] for s, i in zip(scores, genome, strict=True))),
        evaluations=evaluations, population=10, seed=seed, path=path, progress=lambda *_: None,
    )  # fmt: skip
    return max(t.score for t in trials), select(model, scores, limit_ms)


@pytest.mark.parametrize("seed", range(3))
def test_on_a_small_space_the_evolution_ends_at_the_optimum(make_toy, tmp_path: Path, seed: int) -> None:
    model = make_toy(np.random.default_rng(seed).random((3, 3)).tolist())  # 27 architectures
    evolved, best = both(model, 1.5, 30, seed, tmp_path / "t.db")
    assert evolved == pytest.approx(best.score, abs=1e-12)


@pytest.mark.parametrize("seed", range(2))
def test_the_evolution_never_beats_the_optimum(latency: LatencyModel, tmp_path: Path, seed: int) -> None:
    limit_ms = (latency.ms(latency.fastest()) + latency.fixed_ms + sum(ms.max() for ms in latency.candidate_ms)) / 2
    evolved, best = both(latency, limit_ms, 30, seed, tmp_path / "t.db")
    assert evolved <= best.score + 1e-9
