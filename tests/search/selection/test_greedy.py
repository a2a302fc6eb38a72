"""The greedy choice meets the limit, is the per-gene argmax where that does, and never beats the exact one."""

import numpy as np
import pytest

from bnas.profiles.errors import InputError
from bnas.profiles.schema import load_profile
from bnas.profiles.table import LatencyTable
from bnas.search.latency import latency_model
from bnas.search.selection.exact import RESOLUTION, select
from bnas.search.selection.greedy import greedy
from bnas.search.spaces import SPACES, make_space


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("seed", range(3))
def test_never_better_than_the_exact_selection(name: str, seed: int) -> None:
    model = latency_model(make_space(name, (1, 8, 8), 10), LatencyTable(load_profile("rtx3080")))
    rng = np.random.default_rng(seed)
    scores = tuple(rng.normal(size=len(ms)) for ms in model.candidate_ms)
    fastest = model.ms(model.fastest())
    slowest = model.ms_of(tuple(int(ms.argmax()) for ms in model.candidate_ms))
    for share in (0.0, 0.1, 0.3, 0.6):
        limit_ms = fastest + share * (slowest - fastest)
        found, best = greedy(model, scores, limit_ms), select(model, scores, limit_ms)
        assert found.latency_ms == model.ms_of(found.indices) <= limit_ms
        assert found.score <= best.score + RESOLUTION * sum(np.ptp(s) for s in scores)
        assert best.score <= found.bound


def test_is_the_argmax_where_that_meets_the_limit(make_toy) -> None:
    model = make_toy([[1.0, 2.0, 3.0], [4.0, 3.0, 5.0]])
    found = greedy(model, (np.array([0.1, 0.9, 0.2]), np.array([0.7, 0.7, 0.1])), 5.0)
    assert found.indices == (1, 1) and found.gap == 0  # of two equal scores the faster


def test_swaps_what_loses_least_score_per_ms(make_toy) -> None:
    """From 3 + 3 ms to 5: gene 0 would lose 0.3 for 1 ms, gene 1 only 0.4 for 2 ms."""
    model = make_toy([[2.0, 3.0], [1.0, 3.0]])
    found = greedy(model, (np.array([0.7, 1.0]), np.array([0.6, 1.0])), 5.0)
    assert found.indices == (1, 0) and found.score == 1.6
    assert found.bound == 2.0


def test_a_limit_below_the_fastest_is_refused(make_toy) -> None:
    with pytest.raises(InputError, match="no architecture"):
        greedy(make_toy([[1.0, 2.0]]), (np.zeros(2),), 0.9)
