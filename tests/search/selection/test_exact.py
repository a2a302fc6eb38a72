"""The exact selection is the brute-force optimum, meets its limit to the last bit and loses nothing at the border."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnas.profiles.errors import InputError
from bnas.profiles.schema import load_profile
from bnas.profiles.table import LatencyTable
from bnas.search.latency import latency_model
from bnas.search.selection import exact
from bnas.search.selection.exact import RESOLUTION, Ceiling, Selection, select, several
from bnas.search.spaces import SPACES, make_space

SCORES = {
    "whole": st.integers(-2, 2).map(float),  # many ties
    "any": st.floats(-5, 5),
    "huge": st.floats(-1e15, 1e15),
    "small": st.floats(-1e-12, 1e-12),
    "mixed": st.sampled_from([0.0, 1.0, -1.0, 1e-3, -1e6, 1e6, 1 / 3]),
}
TIMES = {
    "whole": st.integers(0, 4).map(float),
    "tenths": st.integers(0, 9).map(lambda n: 0.1 * n),  # sums that are off by a rounding: 0.1 + 0.2 > 0.3
    "any": st.floats(0, 3),
    "small": st.floats(0, 1e-9),
    "mixed": st.sampled_from([0.0, 1e-6, 0.1, 0.3, 1.0, 1000.0]),
}
FIXED = st.sampled_from([0.0, 0.1, 7.0])
LIMITS = ("at", "below", "above", "anywhere", "none")


def problem(scores: str, times: str):
    """Strategy of (latencies, scores) with up to 4 genes of up to 5 candidates."""
    gene = st.integers(1, 5).flatmap(
        lambda n: st.tuples(
            st.lists(TIMES[times], min_size=n, max_size=n), st.lists(SCORES[scores], min_size=n, max_size=n)
        )
    )
    return st.lists(gene, min_size=1, max_size=4)


def limit_of(model, data) -> float:
    """A limit that some architecture meets, above all where it matters: at the latency of one, and beside it."""
    fastest = model.ms(model.fastest())
    slowest = model.ms_of(tuple(int(ms.argmax()) for ms in model.candidate_ms))
    where = data.draw(st.sampled_from(LIMITS))
    if where == "none":
        return math.inf
    if where == "anywhere":
        return fastest + data.draw(st.floats(0, 1)) * (slowest - fastest)
    at = model.ms_of(tuple(data.draw(st.integers(0, len(ms) - 1)) for ms in model.candidate_ms))
    beside = {"at": at, "below": math.nextafter(at, -math.inf), "above": math.nextafter(at, math.inf)}
    return max(fastest, beside[where])


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("scores", SCORES)
def test_equal_to_brute_force(make_toy, brute_force, scores: str, times: str) -> None:
    @given(problem(scores, times), FIXED, st.data())
    @settings(deadline=None, max_examples=10)
    def check(genes, fixed_ms: float, data) -> None:
        model = make_toy([ms for ms, _ in genes], fixed_ms)
        values = tuple(np.array(v) for _, v in genes)
        limit_ms = limit_of(model, data)
        ranked = brute_force(model, values, limit_ms)
        found = select(model, values, limit_ms)
        assert found.latency_ms == model.ms_of(found.indices) <= limit_ms == found.limit_ms
        assert found.score == math.fsum(v[i] for v, i in zip(values, found.indices, strict=True))
        assert found.gap == 0 and found.bound == found.score
        equal = RESOLUTION * sum(np.ptp(v) for v in values)
        by_indices = {r.indices: r for r in ranked}
        assert ranked[0].score - by_indices[found.indices].score <= equal
        if scores == "whole" and times == "whole":  # here equals are equal, and the order is known
            assert found.indices == ranked[0].indices
        rest = [r for r in ranked if r.indices != ranked[0].indices]
        if all(ranked[0].score - r.score > 2 * equal for r in rest):
            assert found.indices == ranked[0].indices

    check()


@given(problem("whole", "whole"), st.integers(1, 8), st.data())
@settings(deadline=None, max_examples=40)
def test_several_are_the_best_in_order(make_toy, brute_force, genes, count: int, data) -> None:
    model = make_toy([ms for ms, _ in genes])
    values = tuple(np.array(v) for _, v in genes)
    limit_ms = limit_of(model, data)
    expected = [r.indices for r in brute_force(model, values, limit_ms)[:count]]
    found = several(model, values, limit_ms, count)
    assert [s.indices for s in found] == expected
    assert all(s.gap == 0 for s in found)


@given(problem("whole", "whole"), st.data())
@settings(deadline=None, max_examples=25)
def test_a_ceiling_is_a_second_limit(make_toy, brute_force, genes, data) -> None:
    model = make_toy([ms for ms, _ in genes])
    values = tuple(np.array(v) for _, v in genes)
    costs = tuple(np.array(data.draw(st.lists(st.integers(0, 9), min_size=len(v), max_size=len(v)))) for v in values)
    ceiling = Ceiling(5, costs, 5 + data.draw(st.integers(0, 30)))
    limit_ms = limit_of(model, data)
    ranked = brute_force(model, values, limit_ms)
    met = [r.indices for r in ranked if sum(c[i] for c, i in zip(costs, r.indices, strict=True)) + 5 <= ceiling.most]
    if met:
        found = several(model, values, limit_ms, 3, ceiling)
        assert [s.indices for s in found] == met[:3] and all(s.gap == 0 for s in found)
    else:
        with pytest.raises(InputError, match="together"):
            select(model, values, limit_ms, ceiling)


def test_several_ends_with_the_last_that_meets_the_limit(make_toy, brute_force) -> None:
    model = make_toy([[0.1, 0.2, 0.3]] * 3)
    scores = tuple(np.array([1.5, 1.0, 1.7]) * (g + 1) for g in range(3))  # the second is dominated, but comes
    met = brute_force(model, scores, 0.5)
    found = several(model, scores, 0.5, 27)
    assert 0 < len(met) < 27 and {s.indices for s in found} == {r.indices for r in met}


@pytest.mark.parametrize("name", SPACES)
def test_a_limit_at_the_optimum_keeps_it_and_one_below_loses_it(name: str, rng: np.random.Generator) -> None:
    space = make_space(name, (3, 32, 32), 10)
    model = latency_model(space, LatencyTable(load_profile("rtx3080")))
    scores = tuple(rng.random(len(ms)) for ms in model.candidate_ms)
    slowest = model.ms_of(tuple(int(ms.argmax()) for ms in model.candidate_ms))
    limit_ms = model.ms(model.fastest())
    for share in (0.0, 0.2, 0.5):
        best = select(model, scores, limit_ms + share * (slowest - limit_ms))
        assert best.gap == 0
        again = select(model, scores, best.latency_ms)
        assert again.indices == best.indices
        if share:
            below = select(model, scores, math.nextafter(best.latency_ms, 0))
            assert below.latency_ms < best.latency_ms and below.score < best.score


def test_sums_that_only_rounding_puts_over_the_limit_are_over_it(make_toy) -> None:
    """0.1 + 0.2 is more than 0.3 in floats: with the greatest score, but it must not be taken."""
    model = make_toy([[0.1, 0.0], [0.2, 0.0]])
    scores = (np.array([1.0, 0.0]), np.array([2.0, 0.0]))
    assert select(model, scores, 0.3).indices == (1, 0)
    assert select(model, scores, 0.1 + 0.2).indices == (0, 0)


def test_a_bound_counts_no_millionth_of_a_candidate(make_toy) -> None:
    """HiGHS takes 6e-8 for a whole number: so much of a candidate fits under this limit, and adds 6e-8 to its bound."""
    little = 2.0**-24
    model = make_toy([[1, 1, 0, 0.5, 0], [1, 0, 0, 0, little]])
    scores = (np.array([0.0, 1, -1, 0, -1]), np.array([1.0, 0, 0, 0, 0]))
    found = select(model, scores, model.ms_of((0, 4)))
    assert found.indices == (1, 1) and found.gap == 0 and found.bound == found.score == 1.0


def test_bounds_hold_where_scores_are_nearly_latencies(make_toy, brute_force) -> None:
    """Whatever could be proven: the optimum is between the score and the bound."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        times = rng.random((4, 6))
        model = make_toy(times.tolist())
        scores = tuple(ms + 1e-3 * rng.random(6) for ms in times)
        for nodes in (1, 20, 10_000):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(exact, "NODES", nodes)
                found = select(model, scores, 2.0)
            best = brute_force(model, scores, 2.0)[0]
            slack = RESOLUTION * sum(np.ptp(s) for s in scores)
            assert found.score - slack <= best.score <= found.bound + slack
            if nodes == 10_000:
                assert found.gap == 0 and found.indices == best.indices


def test_forbidding_scores_leave_the_others_their_weight(make_toy, brute_force) -> None:
    """-1e12 dwarfs the rest: at one part in 1e9 of it, all other scores would be equal."""
    rng = np.random.default_rng(3)
    times = rng.random((5, 4))
    times[:, 2] = 0.0  # else they are dominated, and out before anything is scaled
    model = make_toy(times.tolist())
    scores = tuple(rng.random(4) for _ in range(5))
    for values in scores:
        values[2] = -1e12
    for limit_ms in (1.5, 2.0, 3.0):
        assert select(model, scores, limit_ms).indices == brute_force(model, scores, limit_ms)[0].indices


def test_equals_are_ordered_however_many_there_are() -> None:
    """All scores 1: the fastest. Two values of both: the first genes keep their earlier candidates."""
    space = make_space("mobilenet", (3, 32, 32), 10)
    model = latency_model(space, LatencyTable(load_profile("rtx3080")))
    ones = tuple(np.ones(len(ms)) for ms in model.candidate_ms)
    assert select(model, ones, math.inf).indices == space.indices(model.fastest())


def test_of_equals_the_first_in_order(make_toy) -> None:
    """Ten of twenty genes can take their second candidate: 184,756 equals in score and latency."""
    model = make_toy([[1.0, 2.0]] * 20)
    scores = (np.array([0.0, 1.0]),) * 20
    assert select(model, scores, 30.0).indices == (0,) * 10 + (1,) * 10


def test_what_is_not_proven_says_so(make_toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores that are the latencies ask for the fullest sum, which needs a long search."""
    rng = np.random.default_rng(0)
    times = [rng.random(6).tolist() for _ in range(20)]
    model = make_toy(times)
    scores = model.candidate_ms
    monkeypatch.setattr(exact, "NODES", 1)
    found = select(model, scores, 9.0)
    assert found.latency_ms <= 9.0
    assert found.gap > 0 and found.score < found.bound <= 9.0 + 1e-6
    assert found.certificate("h").startswith("not proven optimal")


LOUD = """
from bnas.profiles.schema import load_profile
from bnas.profiles.table import LatencyTable
from bnas.search.latency import latency_model
from bnas.search.selection import exact
from bnas.search.spaces import make_space
exact.NODES = 5000
model = latency_model(make_space("mobilenet", (3, 32, 32), 10), LatencyTable(load_profile("rtx3080")))
exact.select(model, model.candidate_ms, 0.3087895842105264)
print("done")
"""


def test_nothing_is_printed() -> None:
    """HiGHS of scipy 1.17 prints six lines here though told to be silent, into a pipe only when the process ends."""
    run = subprocess.run([sys.executable, "-c", LOUD], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["done"]


def test_the_certificate() -> None:
    found = Selection((0,), 1.234, 1.234, 4.5, 5.0)
    assert found.certificate("abc") == "optimal under profile abc and limit 5 ms: bound = 1.234, gap 0"


def test_a_limit_below_the_fastest_is_refused(make_toy) -> None:
    model = make_toy([[1.0, 2.0]] * 2)
    with pytest.raises(InputError, match=r"no architecture .* meets 1\.9 ms"):
        select(model, (np.zeros(2),) * 2, 1.9)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e301])
def test_scores_must_be_numbers(make_toy, value: float) -> None:
    with pytest.raises(InputError, match=f"score of 1 at d1 is .*{str(value).lstrip('-')[:3]}"):
        select(make_toy([[1.0, 2.0]] * 2), (np.zeros(2), np.array([0.0, value])), 9.0)
