"""P-DARTS: what takes part in which stage, how deep, dropout of skips, their limit, and that a stop changes nothing."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch import nn

from bnas.profiles.schema import load_profile
from bnas.profiles.table import LatencyTable
from bnas.search.expected_latency import survival_shares
from bnas.search.latency import LatencyModel, latency_model
from bnas.search.relaxations import Alphas
from bnas.search.spaces import SPACES, SearchSpace, make_space
from bnas.search.spaces.wiring import Choice
from bnas.search.strategies import bilevel, p_darts
from bnas.search.strategies.p_darts import (
    METHOD,
    SkipDropout,
    Stage,
    StageCourse,
    at_depth,
    few_skips,
    restricted_latency,
    spread,
    survivors,
)
from bnas.search.strategies.task import SearchTask, Stopwatch

CELLS = make_space("cells", (1, 8, 8), 10)
EARLY, MIDDLE, LATE = METHOD.stages


@cache
def model(name: str) -> LatencyModel:
    return latency_model(make_space(name, (1, 8, 8), 10), LatencyTable(load_profile("rtx3080")))


def scores_of(space: SearchSpace, seed: int = 0) -> tuple[np.ndarray, ...]:
    return Alphas(space, seed, deviation=1.0).probabilities()


# What takes part


@pytest.mark.parametrize(("candidates", "want"), [(8, (8, 5, 3)), (7, (7, 4, 3)), (4, (4, 3, 2)), (2, (2, 2, 2))])
def test_of_eight_candidates_five_then_three_go_on(candidates: int, want: tuple[int, ...]) -> None:
    """Those are the numbers published; others in proportion, two at least."""
    space = {8: CELLS, 7: model("mobilenet").space, 4: model("shufflenet").space, 2: model("tiny").space}[candidates]
    d = max(i for i, decision in enumerate(space.decisions) if len(decision.candidates) == candidates)
    assert tuple(len(survivors(space, scores_of(space), s.candidates)[d]) for s in METHOD.stages) == want


def test_the_least_probable_are_dropped_and_the_order_stays() -> None:
    scores = scores_of(CELLS)
    for decision, p, kept in zip(CELLS.decisions, scores, survivors(CELLS, scores, 5 / 8), strict=True):
        dropped = sorted(zip(p, decision.candidates, strict=True))[:3]
        assert kept == tuple(name for name in decision.candidates if name not in [name for _, name in dropped])


@pytest.mark.parametrize("name", SPACES)
def test_a_stage_knows_the_latency_of_what_takes_part(name: str) -> None:
    """Its architectures are those of the space without the dropped candidates, with the same latency."""
    whole = model(name)
    names = survivors(whole.space, scores_of(whole.space), 3 / 8)
    part = restricted_latency(whole, names)
    for full, small, ms, fewer in zip(
        whole.space.genes, part.space.genes, whole.candidate_ms, part.candidate_ms, strict=True
    ):
        allowed = [
            all(whole.space.decisions[d].candidates[k] in names[d] for d, k in setting) for setting in full.settings
        ]
        assert small.candidates == tuple(c for c, fits in zip(full.candidates, allowed, strict=True) if fits)
        np.testing.assert_allclose(fewer, ms[allowed])
        for setting, name_of in zip(small.settings, small.candidates, strict=True):
            before = full.settings[full.candidates.index(name_of)]
            assert [(d, part.space.decisions[d].candidates[k]) for d, k in setting] == [
                (d, whole.space.decisions[d].candidates[k]) for d, k in before
            ]
    for item, other in zip(whole.space.template, part.space.template, strict=True):
        if isinstance(item, Choice):
            assert isinstance(other, Choice) and len(other.blocks) == len(names[item.decision])
            blocks = dict(zip(whole.space.decisions[item.decision].candidates, item.blocks, strict=True))
            assert other.blocks == tuple(blocks[kept] for kept in names[item.decision])


def test_what_was_dropped_scores_nothing() -> None:
    names = survivors(CELLS, scores_of(CELLS), 3 / 8)
    for decision, kept, values in zip(
        CELLS.decisions, names, spread(CELLS, names, tuple(np.full(3, 1 / 3) for _ in names)), strict=True
    ):
        assert all((value > 0) == (name in kept) for name, value in zip(decision.candidates, values, strict=True))
        assert values.sum() == pytest.approx(1)


# Depth


@pytest.mark.parametrize(
    ("text", "want"),
    [("cells:cifar:layers=20", [5, 11, 17]), ("cells:cifar", [2, 4, 7]), ("cells:micro:bits=32", [2, 2, 2])],
)
def test_stages_have_a_quarter_half_and_most_of_the_cells(text: str, want: list[int]) -> None:
    space = make_space(text, (1, 8, 8) if "micro" in text else (3, 32, 32), 10)
    for stage, cells in zip(METHOD.stages, want, strict=True):
        shallow = at_depth(space, stage.depth)
        assert len({item.name.split(".")[1] for item in shallow.template if item.name.startswith("cells.")}) == cells
        assert shallow.decisions == space.decisions and dict(shallow.options).get("bits") == dict(space.options).get(
            "bits"
        )


@pytest.mark.parametrize("name", [name for name in SPACES if name != "cells"])
def test_a_chain_keeps_its_depth(name: str) -> None:
    assert at_depth(model(name).space, 0.25) == model(name).space


def course_of(task: SearchTask, stage: Stage) -> StageCourse:
    names = survivors(task.space, scores_of(task.space), stage.candidates)
    return StageCourse(task, METHOD, stage, names, Stopwatch())


def test_an_edge_that_lost_zeroise_is_not_more_likely_for_that() -> None:
    """Only some edges keep `none`, so they differ in how many operations they can give to an architecture."""
    names = survivors(CELLS, scores_of(CELLS), LATE.candidates)
    assert len({"none" in kept for kept in names}) == 2
    found = survival_shares(restricted_latency(model("cells"), names).space)
    assert found == tuple(2 / int(decision.id[-1]) for decision in CELLS.decisions)


def test_latency_is_of_the_depth_that_is_deployed(task_of: Callable[..., SearchTask]) -> None:
    """Two cells are trained, four are deployed: equal shares of all candidates must cost what four cells cost."""
    task = task_of("cells:micro:layers=4,channels=8", images=32)
    course = course_of(task, EARLY)
    trained = {
        name.split(".")[1] for name, _ in course.learner.supernet.named_parameters() if name.startswith("cells.")
    }
    assert trained == {"0", "1"}
    real = [np.array([name != "none" for name in d.candidates]) for d in task.space.decisions]
    edges = [2 / n for _ in ("normal", "reduction") for n in (2, 3, 4, 5) for _ in range(n)]
    by_hand = sum(s * ms[r].mean() for s, ms, r in zip(edges, task.latency.decision_ms, real, strict=True))
    found = course.expected([torch.zeros(len(d.candidates)).softmax(0) for d in task.space.decisions])
    assert found.item() == pytest.approx(task.latency.fixed_ms + by_hand)


# Skips


def test_dropout_takes_the_rate_and_keeps_the_mean() -> None:
    dropout, x = SkipDropout(), torch.ones(1000, 40)
    assert torch.equal(dropout(x), x)
    dropout.rate = 0.7
    y = dropout(x)
    assert y.unique().tolist() == pytest.approx([0, 1 / 0.3])
    assert (y == 0).float().mean().item() == pytest.approx(0.7, abs=0.01)
    assert not torch.equal(y, dropout(x))
    assert torch.equal(dropout.eval()(x), x)


def skips_in(net: nn.Module) -> int:
    return sum(isinstance(module, SkipDropout) for module in net.modules())


def test_only_skips_that_pass_their_input_have_dropout(task_of: Callable[..., SearchTask]) -> None:
    """All 14 of a normal cell, and of a reduction cell the 6 between nodes; in a chain each identity."""
    assert skips_in(course_of(task_of("cells"), EARLY).learner.supernet) == 14 + 6
    chain = task_of("mobilenet")
    assert skips_in(course_of(chain, EARLY).learner.supernet) == sum(
        "identity" in decision.candidates for decision in chain.space.decisions
    )
    assert skips_in(course_of(task_of("shufflenet"), EARLY).learner.supernet) == 0


def test_the_rate_is_the_stages_and_falls_twice(task_of: Callable[..., SearchTask]) -> None:
    """25 epochs a stage, in 10 of which only weights learn. The released code, at the end of the second part's epoch e:
    p0 exp(-0.2 (e - 10)), and before it a line to 0 at epoch 25."""
    course = course_of(task_of("tiny", epochs=50, batch=32), LATE)
    assert (course.per_epoch, course.steps, course.cold) == (1, 25, 10)
    line = [0.7 * (1 - e / 25) for e in range(10)]
    fall = [0.7 * np.exp(-0.2 * (e - 10)) for e in range(10, 25)]
    np.testing.assert_allclose([course.dropout(e) for e in range(25)], line + fall)
    assert course_of(task_of("tiny", epochs=50, batch=32), EARLY).dropout(0) == 0


def test_a_step_sets_the_rate_and_draws_again_what_it_drew(task_of: Callable[..., SearchTask]) -> None:
    drawn = []
    for _ in range(2):
        course = course_of(task_of("tiny", images=16), LATE)
        for number in range(course.steps):
            course.step(number)
        assert {dropout.rate for dropout in course.dropouts} == {course.dropout(course.steps - 1)} != {0.0}
        drawn.append([torch.rand(3, generator=dropout.noise).tolist() for dropout in course.dropouts[:1]])
    assert drawn[0] == drawn[1]


def normal_skips(space: SearchSpace, indices: tuple[int, ...]) -> int:
    gates = space.gates(indices)
    return sum(gates[d] == space.decisions[d].candidates.index("skip_connect") for d in range(14))


def fond_of_skips(seed: int) -> tuple[np.ndarray, ...]:
    """A score for each candidate of each gene; one of the skips of each edge is often ahead."""
    rng, skip = np.random.default_rng(seed), CELLS.decisions[0].candidates.index("skip_connect")
    edges = [rng.random(8) + 0.6 * (np.arange(8) == skip) for _ in CELLS.decisions]
    return tuple(np.array([sum(edges[d][k] for d, k in s) for s in gene.settings]) for gene in CELLS.genes)


@pytest.mark.parametrize("seed", range(4))
def test_no_architecture_with_at_most_two_skips_is_better(seed: int) -> None:
    """Against the best of each number of skips in each node, over all ways to share two out. No limit on latency."""
    scores = fond_of_skips(seed)
    free = tuple(int(values.argmax()) for values in scores)
    assert normal_skips(CELLS, free) > 2
    best = [
        {n: max(v for v, s in zip(values, gene.settings, strict=True)
                if sum(CELLS.decisions[d].candidates[k] == "skip_connect" for d, k in s) == n) for n in range(3)}
        for gene, values in zip(CELLS.genes[:4], scores[:4], strict=True)
    ]  # fmt: skip
    want = max(sum(b[n] for b, n in zip(best, counts, strict=True)) for counts in product(range(3), repeat=4)
               if sum(counts) <= 2)  # fmt: skip
    want += sum(values.max() for values in scores[4:])
    found = few_skips(model("cells"), scores, 1e9, 3, 2)
    assert found[0].score == pytest.approx(want) and found[0].gap == 0
    assert len(found) == 3 and all(normal_skips(CELLS, selection.indices) <= 2 for selection in found)


def test_under_a_limit_that_only_skips_meet_there_are_no_more_than_needed() -> None:
    latency = model("cells")
    fastest = latency.ms(latency.fastest())
    found = few_skips(latency, fond_of_skips(0), fastest, 2, 2)
    assert all(selection.latency_ms <= fastest for selection in found)
    least = normal_skips(CELLS, latency.space.indices(latency.fastest()))
    assert 2 < normal_skips(CELLS, found[0].indices) <= least


def test_a_chain_may_skip_as_it_likes() -> None:
    latency = model("mobilenet")
    scores = tuple(np.array([float(name == "identity") for name in g.candidates]) for g in latency.space.genes)
    assert few_skips(latency, scores, 1e9, 1, 2)[0].score == sum(values.max() for values in scores) > 2


# The whole


def test_cells_keep_five_then_three_then_one_and_two_skips(
    task_of: Callable[..., SearchTask], monkeypatch: pytest.MonkeyPatch, flat: type
) -> None:
    seen: list[tuple[tuple[str, ...], ...]] = []
    starts: list[list[float]] = []

    def supernet(self: StageCourse, space: SearchSpace, names: tuple[tuple[str, ...], ...]) -> nn.Module:
        seen.append(names)
        return flat(space)

    monkeypatch.setattr(StageCourse, "_supernet", supernet)
    follow = p_darts.follow

    def watched(course: StageCourse, stage: str) -> bilevel.Record:
        starts.append([float(alpha.abs().max()) for alpha in course.learner.alphas.parameters()])
        return follow(course, stage)

    monkeypatch.setattr(p_darts, "follow", watched)
    task = replace(task_of("cells", epochs=4, images=32, batch=8), limit_ms=1e9)
    recipe = replace(METHOD.learning.alpha_recipe, learning_rate=0.1)
    method = replace(METHOD, learning=replace(METHOD.learning, alpha_recipe=recipe))
    found = p_darts.run(task, method)
    assert [{len(kept) for kept in names} for names in seen] == [{8}, {5}, {3}]
    for before, after in pairwise(seen):
        assert all(set(few) < set(many) for few, many in zip(after, before, strict=True))
    assert all(max(start) < 0.01 for start in starts)  # alphas begin anew
    gates = task.space.gates(task.space.indices(found.best.architecture))
    taken = [(d, task.space.decisions[d].candidates[k]) for d, k in enumerate(gates)]
    assert sum(name != "none" for _, name in taken) == 16  # an operation on each of two edges of eight nodes
    assert all(name in seen[-1][d] for d, name in taken if name != "none")
    assert all(normal_skips(CELLS, task.space.indices(trial.architecture)) <= 2 for trial in found.trials)
    assert found.curves["candidates"] == [8, 8, 5, 5, 3, 3] and len(found.losses) == len(found.course) == 6
    assert len(found.curves["alpha entropy"]) == 6
    losses = found.curves[
        "architecture loss"
    ]  # from the second epoch of the first stage; a warm-up keeps the last value
    assert len(losses) == 5 and losses[0] == losses[1] != losses[2] == losses[3]


class Stages:
    """Of each step, the stage."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.seen.append(stage)


def test_a_stop_in_any_stage_changes_nothing_and_no_stage_is_done_twice(task_of: Callable[..., SearchTask]) -> None:
    whole = p_darts.run(task_of("tiny", images=64, batch=16, folder="whole"))
    assert whole.steps == 3 and whole.state_hash != whole.initial_hash
    for stop in (1, 2, 3):
        folder = f"cut{stop}"
        with pytest.raises(KeyboardInterrupt):
            p_darts.run(task_of("tiny", batch=16, stop=stop, folder=folder))
        stages = Stages()
        assert p_darts.run(replace(task_of("tiny", batch=16, folder=folder), progress=stages)) == whole
        assert stages.seen == [f"stage{n}" for n in range(stop + 1, 4)]


def test_a_stop_in_the_middle_of_a_stage_changes_nothing(
    task_of: Callable[..., SearchTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout: what a step drew before the stop is not drawn again, what it will draw is the same."""
    monkeypatch.setattr(bilevel, "SAVE_EVERY_S", -1.0)
    whole = p_darts.run(task_of("tiny", epochs=2, images=32, batch=4, folder="whole"))
    assert whole.steps == 12
    with pytest.raises(KeyboardInterrupt):
        p_darts.run(task_of("tiny", epochs=2, images=32, batch=4, stop=10, folder="cut"))
    assert p_darts.run(task_of("tiny", epochs=2, images=32, batch=4, folder="cut")) == whole


def test_the_limit_holds(task_of: Callable[..., SearchTask]) -> None:
    """The fastest architecture alone meets it, dropped candidates or not."""
    task = task_of("tiny", images=16)
    fastest = task.latency.fastest()
    found = p_darts.run(replace(task, limit_ms=task.latency.ms(fastest)))
    assert found.best.latency_ms <= task.latency.ms(fastest)
