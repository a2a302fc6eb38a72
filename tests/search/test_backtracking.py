"""Decoupled optimisation: equations 4.50 to 4.53 recomputed entry by entry, and the Parent without signs."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bnas.search.backtracking import Backtracking, Magnitudes, Rates
from bnas.search.binary.layers import Style
from bnas.search.parent import without_signs
from bnas.search.spaces import SearchSpace, make_space
from bnas.search.spaces.wiring import Choice
from bnas.search.supernet import Supernet

SIZES = (3, 1, 4)
NAN = float("nan")
MAGNITUDES = torch.tensor([NAN, 2.0, 1.0, NAN, 0.3, 0.1, 0.2, 0.4])
SHARES = [0, 1, 1 / 2, 0, 3 / 4, 1 / 4, 2 / 4, 1]  # rank over number, by hand


def owner() -> list[int]:
    return [d for d, size in enumerate(SIZES) for _ in range(size)]


def test_ranks_ascend_in_each_decision_and_leave_out_what_has_no_weights() -> None:
    assert Backtracking(SIZES).ranked(MAGNITUDES).tolist() == pytest.approx(SHARES)


def test_of_equals_the_first_is_the_smaller() -> None:
    assert Backtracking((3,)).ranked(torch.ones(3)).tolist() == pytest.approx([1 / 3, 2 / 3, 1])


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]))
def test_two_steps_entry_by_entry(seed: int, tau: float) -> None:
    rng = np.random.default_rng(seed)
    alphas, gradients = rng.normal(size=(3, 8)), rng.normal(size=(3, 8))
    rates = Rates(eta=0.1, eta_psi=0.7, tau=tau, limit=0.05)
    backtracking = Backtracking(SIZES, rates)
    psi, before, mask = np.zeros(3), np.zeros(8), np.zeros(8)
    for gradient, (now, after) in zip(gradients, itertools.pairwise(alphas), strict=False):
        for e in range(3):
            entries = [i for i, d in enumerate(owner()) if d == e]
            slope = 0.1 * sum(mask[i] * gradient[i] * before[i] for i in entries)
            psi[e] = min(abs(psi[e] - 0.7 * slope), 0.05)
        before, mask = now, np.array([share > tau for share in SHARES])
        expected = [after[i] + 0.1 * psi[d] * now[i] * mask[i] for i, d in enumerate(owner())]
        backtracking.learn(torch.tensor(gradient, dtype=torch.float32))
        moved = backtracking.backtrack(*torch.tensor(np.stack([now, after]), dtype=torch.float32), MAGNITUDES)
        np.testing.assert_allclose(moved.numpy(), expected, rtol=1e-5)
        np.testing.assert_allclose(backtracking.psi.numpy(), psi, rtol=1e-4, atol=1e-8)


def test_the_slope_of_psi_is_that_of_a_loss_at_what_was_backtracked() -> None:
    """4.51 by differences: L(alpha~(psi)) for a known L, alpha~ by 4.50."""
    rng = np.random.default_rng(0)
    before, after, target = rng.normal(size=(3, 8))
    mask = np.array([share > 0.5 for share in SHARES])

    def moved(psi: np.ndarray) -> np.ndarray:
        return after + 0.1 * psi[owner()] * before * mask

    def loss(psi: np.ndarray) -> float:
        return float((np.sin(moved(psi)) * target).sum())

    start, h = np.array([0.5, 0.5, 0.5]), 1e-5
    slope = np.array([(loss(start + h * e) - loss(start - h * e)) / (2 * h) for e in np.eye(3)])
    backtracking = Backtracking(SIZES, Rates(eta=0.1, eta_psi=0.2)).double()
    backtracking.psi.copy_(torch.tensor(start))
    arrived = backtracking.backtrack(torch.tensor(before), torch.tensor(after), MAGNITUDES)
    np.testing.assert_allclose(arrived.numpy(), moved(start), rtol=1e-6)
    backtracking.learn(torch.tensor(np.cos(arrived.numpy()) * target))
    np.testing.assert_allclose(backtracking.psi.numpy(), start - 0.2 * slope, rtol=1e-5)
    assert np.abs(slope).max() > 0.01


@given(st.integers(0, 10_000))
def test_psi_is_never_negative_nor_above_its_limit(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    backtracking = Backtracking(SIZES, Rates(eta=1.0, eta_psi=5.0))
    seen = []
    for _ in range(5):
        gradient, before, after = torch.randn(3, 8, generator=generator)
        backtracking.learn(gradient)
        backtracking.backtrack(before, after, MAGNITUDES)
        assert (backtracking.psi >= 0).all()
        assert (backtracking.psi <= 1).all()
        seen.append(backtracking.psi.clone())
    assert torch.stack(seen).max() > 0


@given(st.integers(0, 10_000))
def test_tau_1_disables_backtracking(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    backtracking = Backtracking(SIZES, Rates(tau=1.0))
    backtracking.psi.fill_(1.0)
    before, after = torch.randn(2, 8, generator=generator)
    assert torch.equal(backtracking.backtrack(before, after, MAGNITUDES), after)


def test_the_first_step_is_an_ordinary_one() -> None:
    backtracking = Backtracking(SIZES)
    backtracking.learn(torch.randn(8))
    after = torch.randn(8)
    assert torch.equal(backtracking.backtrack(torch.randn(8), after, MAGNITUDES), after)


# Magnitudes of the candidates of a supernet


def weights_by_name(supernet: Supernet, space: SearchSpace, decision: int, candidate: str) -> list[Tensor]:
    """The weights that candidate deploys, found by their names in the state dictionary."""
    state = supernet.state_dict()
    found = []
    for item in space.template:
        if isinstance(item, Choice) and item.decision == decision:
            for name in state:
                if name.startswith(f"{item.name}.{candidate}.") and name.endswith("conv.weight"):
                    beta = state.get(name.removesuffix("weight") + "beta")
                    weight = state[name]
                    found.append(weight if beta is None else beta.abs() * torch.where(weight < 0, -1.0, 1.0))
    return found


def test_magnitudes_are_the_squared_norms_of_what_is_deployed(micro: SearchSpace) -> None:
    torch.manual_seed(0)
    supernet = Supernet(micro, Style(scale="learned"))
    with torch.no_grad():
        for name, parameter in supernet.named_parameters():
            if name.endswith("beta"):
                parameter.uniform_(-1, 1)
    for model in (supernet, without_signs(supernet)):  # the second is the first, changed
        sums, counts = [], []
        for d, decision in enumerate(micro.decisions):
            for candidate in decision.candidates:
                weights = weights_by_name(supernet, micro, d, candidate)
                sums.append(sum(float(w.double().square().sum()) for w in weights) if weights else NAN)
                counts.append(sum(w.numel() for w in weights))
        means = [total / max(count, 1) for total, count in zip(sums, counts, strict=True)]
        np.testing.assert_allclose(Magnitudes(model, micro, mean=False)().numpy(), sums, rtol=1e-4)
        np.testing.assert_allclose(Magnitudes(model, micro)().numpy(), means, rtol=1e-4)


def test_magnitudes_follow_the_weights() -> None:
    space = make_space("mobilenet:micro", (1, 8, 8), 4)
    parent = without_signs(Supernet(space))
    magnitudes = Magnitudes(parent, space)
    first = magnitudes()
    with torch.no_grad():
        for parameter in parent.parameters():
            parameter *= 2
    torch.testing.assert_close(magnitudes(), 4 * first, equal_nan=True)
