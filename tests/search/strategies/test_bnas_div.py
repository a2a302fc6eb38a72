"""BNAS: the diversity bonus fades and reaches every decision, and zeroise sets edges back."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from bnas.search.relaxations import Alphas
from bnas.search.spaces import SearchSpace, make_space
from bnas.search.strategies import bnas_div, darts
from bnas.search.strategies.bilevel import Course, make_learner, unlimited
from bnas.search.strategies.bnas_div import METHOD, Diversity, Zeroise
from bnas.search.strategies.task import SearchTask

CELLS = make_space("cells", (1, 8, 8), 10)
FLAT, SURE = torch.full((8,), 1 / 8), torch.eye(8)[3]


def test_the_bonus_is_the_mean_entropy_and_fades() -> None:
    bonus = Diversity()
    assert bonus([FLAT], 0.0).item() == pytest.approx(-math.log(8))
    assert bonus([SURE], 0.0).item() == 0
    assert bonus([FLAT, SURE, SURE], 0.0).item() == pytest.approx(-math.log(8) / 3)
    assert bonus([FLAT], 7.7 / 50).item() == pytest.approx(-math.log(8) / math.e)  # epoch 7.7 of 50
    assert Diversity(weight=2.0)([FLAT], 1.0).item() == pytest.approx(-2 * math.log(8) * math.exp(-50 / 7.7))


def test_every_decision_is_pushed_towards_equal_shares() -> None:
    """The released code leaves all edges of the reduction cell out but one. dH/dp-weights, by hand: for p = softmax(a)
    the slope of sum p log p is p_k (log p_k + H)."""
    alphas = [alpha.detach().requires_grad_() for alpha in Alphas(CELLS, 0, deviation=1.0).parameters()]
    slopes = torch.autograd.grad(Diversity()([a.softmax(0) for a in alphas], 0.0), alphas)
    assert len(slopes) == 28
    for alpha, slope in zip(alphas, slopes, strict=True):
        p = np.exp(alpha.detach().double().numpy())
        p /= p.sum()
        want = p * (np.log(p) - p @ np.log(p)) / 28
        np.testing.assert_allclose(slope.numpy(), want, atol=1e-6)


def test_a_certain_choice_has_a_finite_slope() -> None:
    alpha = torch.tensor([200.0, 0.0, 0.0], requires_grad=True)
    (slope,) = torch.autograd.grad(Diversity()([alpha.softmax(0)], 0.0), alpha)
    assert torch.isfinite(slope).all()


def test_it_joins_the_loss_of_the_alphas_only(task_of: Callable[..., SearchTask]) -> None:
    task = task_of("tiny", images=32)
    course = Course(task, METHOD, make_learner(task, METHOD))
    plain = Course(task, darts.METHOD, course.learner)
    alphas, batch, notes = list(course.learner.alphas.parameters()), course.train_batches(0), {}
    course.learner.supernet.train()
    with torch.no_grad():
        bonus = course.objective(0, alphas, batch, notes) - plain.objective(0, alphas, batch, {})
        entropies = [-(a.softmax(0) * a.log_softmax(0)).sum().item() for a in alphas]
        assert bonus.item() == pytest.approx(-np.mean(entropies), rel=1e-4)
        relaxed = course.relax(0, alphas)
        assert torch.equal(course.cross_entropy(batch, relaxed), plain.cross_entropy(batch, relaxed))


def test_a_stronger_bonus_leaves_more_open(task_of: Callable[..., SearchTask]) -> None:
    """From alphas that have decided, so that there is something to open, in steps that are large."""
    entropies = []
    for weight in (0.0, 1e4):
        method = replace(
            METHOD,
            regulariser=Diversity(weight),
            alpha_recipe=replace(METHOD.alpha_recipe, learning_rate=0.3),
            alphas=lambda space, seed: Alphas(space, seed, deviation=2.0),
        )
        found = bnas_div.run(task_of("tiny", epochs=1, folder=f"{weight}"), method)
        entropies.append(found.curves["alpha entropy"][-1])
    assert entropies[1] > entropies[0] + 0.05


def shares(none: dict[int, float]) -> tuple[np.ndarray, ...]:
    """Edges that grow slightly more certain with their number; `none` of some has most."""
    kept = []
    for d in range(28):
        p = np.full(8, 0.05)
        p[4 + d % 4] = 0.3 + 0.001 * d
        p[0] = none.get(d, 0.01)
        kept.append(p)
    return tuple(kept)


def edges_of(kept: tuple[np.ndarray, ...]) -> dict[int, int]:
    gates = CELLS.gates(unlimited(CELLS, kept))
    return {d: k for d, k in enumerate(gates) if k != 0}


def test_an_edge_at_which_zeroise_wins_is_taken_only_in_want_of_others() -> None:
    """The last node of the normal cell has the edges 9 to 13; without zeroise, 12 and 13 win."""
    zeroise = Zeroise()
    assert {d for d in edges_of(shares({})) if 9 <= d < 14} == {12, 13}
    kept = shares({13: 0.9})
    assert {d for d in edges_of(kept) if 9 <= d < 14} == {12, 13}  # DARTS does not look at `none`
    ours = edges_of(zeroise(CELLS, kept))
    assert {d for d in ours if 9 <= d < 14} == {11, 12}
    assert all(k == 4 + d % 4 for d, k in ours.items())  # within an edge nothing changes
    assert {d for d in edges_of(zeroise(CELLS, shares(dict.fromkeys(range(28), 0.9)))) if 9 <= d < 14} == {12, 13}


def test_gamma_weakens_zeroise() -> None:
    """The edge 13 has 0.313 - 0.015 / gamma, 12 and 11 have 0.312 and 0.311, less 0.01 / gamma."""
    kept = shares({13: 0.015})
    assert {d for d in edges_of(Zeroise(gamma=1.0)(CELLS, kept)) if 9 <= d < 14} == {11, 12}
    assert {d for d in edges_of(Zeroise(gamma=3.0)(CELLS, kept)) if 9 <= d < 14} == {12, 13}


def test_a_chain_has_no_zeroise() -> None:
    space = make_space("mobilenet", (1, 8, 8), 10)
    kept = Alphas(space, 0).probabilities()
    assert all(np.array_equal(a, b) for a, b in zip(Zeroise()(space, kept), kept, strict=True))


class Emptied(Alphas):
    """On an edge into each node 3 `none` has a little more than the best operation, and that more than any other."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        super().__init__(space, seed)
        with torch.no_grad():
            for d in (2, 16):
                self.values[d][0] = 5.0
                self.values[d][4] = 4.9


def test_what_is_derived_and_what_it_came_from_know_zeroise(task_of: Callable[..., SearchTask], flat: type) -> None:
    method = replace(METHOD, alphas=Emptied, supernet=flat)
    task = replace(task_of("cells", images=32), limit_ms=1e9)
    found = bnas_div.run(task, method)
    plain = bnas_div.run(
        replace(task_of("cells", images=32, folder="plain"), limit_ms=1e9), replace(method, worth=darts.METHOD.worth)
    )
    for result, empty in ((found, False), (plain, True)):
        for architecture in (result.best.architecture, *result.course):
            assert all(("@0" in architecture.choices[g]) == empty for g in (1, 5))
