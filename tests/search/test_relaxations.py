"""Relaxations: what holds for all of them, and GDAS's single path with its gradient."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bnas.search.relaxations import RELAXATIONS, Alphas, Concrete, HardGumbel, Relaxation, Softmax, entropy
from bnas.search.spaces import SearchSpace, make_space
from bnas.search.strategies import gdas, snas
from bnas.search.supernet import Supernet

CELLS = make_space("cells", (1, 8, 8), 10)


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def alphas_of(sizes: tuple[int, ...] = (8, 3, 5)) -> list[Tensor]:
    drawn = torch.randn(sum(sizes), generator=noise(1), dtype=torch.float64)
    return [alpha.clone().requires_grad_() for alpha in drawn.split(list(sizes))]


def total(relaxation: Relaxation, alphas: list[Tensor], progress: float = 0.5) -> Tensor:
    """Some function of all gates: a hard gate counts for its own candidate."""
    gates = relaxation(alphas, progress, noise()).gates
    parts = []
    for d, gate in enumerate(gates):
        if isinstance(gate, tuple):
            parts.append((d + 1) * math.sin(gate[0] + 1) * gate[1])
        else:
            assert isinstance(gate, Tensor)
            parts.append((d + 1) * (gate * torch.sin(torch.arange(1.0, len(gate) + 1))).sum())
    return torch.stack(parts).sum()


@pytest.mark.parametrize("name", RELAXATIONS)
def test_weights_are_a_distribution_and_the_same_noise_gives_the_same_gates(name: str) -> None:
    relaxation, alphas = RELAXATIONS[name](), alphas_of()
    relaxed = relaxation(alphas, 0.5, noise())
    assert [len(w) for w in relaxed.weights] == [8, 3, 5] and len(relaxed.gates) == 3
    for weights in relaxed.weights:
        assert (weights >= 0).all() and weights.sum().item() == pytest.approx(1)
    assert torch.equal(total(relaxation, alphas), total(relaxation, alphas))


@pytest.mark.parametrize("name", RELAXATIONS)
@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_gradients_of_a_decision_sum_to_zero(name: str, progress: float) -> None:
    """A constant added to all alphas of a decision changes nothing, so the loss has no slope in that direction."""
    alphas = alphas_of()
    total(RELAXATIONS[name](), alphas, progress).backward()
    for alpha in alphas:
        assert alpha.grad is not None and alpha.grad.abs().max() > 0
        assert abs(alpha.grad.sum().item()) < 1e-6 * alpha.grad.abs().max().item()


@pytest.mark.parametrize("relaxation", [Softmax(), Concrete()])
def test_smooth_gates_have_the_slope_that_differences_show(relaxation: Relaxation) -> None:
    """With the noise held, the draw of the Concrete distribution is a smooth function of alpha."""
    alphas = alphas_of()
    assert torch.autograd.gradcheck(lambda *a: total(relaxation, list(a), 0.3), alphas, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("relaxation", [Concrete(), HardGumbel()])
@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_at_every_temperature_candidates_win_as_often_as_softmax_says(relaxation: Relaxation, progress: float) -> None:
    alpha, draws, generator = torch.tensor([1.0, 0.0, -1.0]), 4000, noise()
    counts = np.zeros(3)
    for _ in range(draws):
        gate = relaxation([alpha], progress, generator).gates[0]
        counts[gate[0] if isinstance(gate, tuple) else int(torch.as_tensor(gate).argmax())] += 1
    p = np.exp([1.0, 0.0, -1.0])
    p /= p.sum()
    assert np.all(np.abs(counts / draws - p) < 4 * np.sqrt(p * (1 - p) / draws))


@pytest.mark.parametrize(("method", "first", "last"), [(gdas.METHOD, 10.0, 0.1), (snas.METHOD, 1.0, 0.03)])
def test_temperatures_fall_from_the_published_first_to_the_last(method: object, first: float, last: float) -> None:
    relaxation = method.relaxation  # type: ignore[attr-defined]
    steps = [relaxation.temperature(step / 49) for step in range(50)]
    assert steps[0] == first and steps[-1] == pytest.approx(last)
    np.testing.assert_allclose(np.diff(steps), (last - first) / 49)


def test_a_hard_gate_is_one_and_carries_the_gradient_of_the_soft_choice() -> None:
    """d(gate_k)/dalpha_i = ptilde_k (delta_ik - ptilde_i) / tau, with ptilde written out from the same noise."""
    alphas = alphas_of()
    relaxation = HardGumbel(first=10.0, last=0.1)
    relaxed = relaxation(alphas, 0.25, noise())
    tau = 10.0 + 0.25 * (0.1 - 10.0)
    gumbel = -torch.empty(16).exponential_(generator=noise()).log().double()
    for alpha, g, gate in zip(alphas, gumbel.split([8, 3, 5]), relaxed.gates, strict=True):
        assert isinstance(gate, tuple) and gate[1].item() == 1.0
        ptilde = np.exp((alpha.detach() + g).numpy() / tau)
        ptilde /= ptilde.sum()
        assert gate[0] == ptilde.argmax()
        (found,) = torch.autograd.grad(gate[1], alpha)
        k = gate[0]
        np.testing.assert_allclose(found.numpy(), ptilde[k] * ((np.arange(len(g)) == k) - ptilde) / tau, atol=1e-6)


def test_what_gdas_does_not_select_neither_runs_nor_learns() -> None:
    torch.manual_seed(0)
    supernet, alphas = Supernet(CELLS), Alphas(CELLS, 0)
    relaxed = gdas.METHOD.relaxation(list(alphas.parameters()), 0.0, noise())
    taken = [gate[0] for gate in relaxed.gates if isinstance(gate, tuple)]
    x = torch.randn(4, *CELLS.shape)
    logits = supernet(x, relaxed.gates)
    assert torch.equal(logits, supernet(x, taken))
    logits.square().sum().backward()
    learned = set()
    for name, parameter in supernet.named_parameters():
        if ".edges." not in name:
            continue
        cell, edge, operation = name.split(".")[1], name.split(".edges.")[1].split(".")[0], name.split(".")[4]
        d = next(i for i, decision in enumerate(CELLS.decisions) if decision.id == f"{TYPES[int(cell)]}.{edge}")
        selected = CELLS.decisions[d].candidates[taken[d]] == operation
        assert (parameter.grad is not None) == selected, name
        learned |= {d} if selected else set()
    assert learned
    for alpha, k, decision in zip(alphas.parameters(), taken, CELLS.decisions, strict=True):
        if decision.candidates[k] == "none":
            assert alpha.grad is None
        else:
            assert alpha.grad is not None and abs(alpha.grad.sum()) <= 1e-5 * alpha.grad.abs().max()


TYPES = ("normal", "reduction")  # of the two cells of the micro instance


def test_alphas_are_small_noise_of_the_seed(micro: SearchSpace) -> None:
    values = [torch.cat(list(Alphas(micro, seed).parameters())) for seed in (0, 0, 1)]
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])
    spread = torch.cat([torch.cat(list(Alphas(micro, seed).parameters())) for seed in range(50)])
    assert spread.std().item() == pytest.approx(1e-3, rel=0.1) and abs(spread.mean()) < 2e-4
    assert [len(alpha) for alpha in Alphas(micro, 0).parameters()] == [len(d.candidates) for d in micro.decisions]


def test_probabilities_are_what_their_trace_gives_back(micro: SearchSpace) -> None:
    alphas = Alphas(micro, 0, deviation=1.0)
    kept = alphas.probabilities()
    assert all(abs(p.sum() - 1) < 1e-12 for p in kept)
    again = alphas.split(torch.from_numpy(np.concatenate(kept)))
    assert all(np.array_equal(a, b) for a, b in zip(kept, again, strict=True))


def test_entropy_is_that_of_nothing_and_of_everything_decided() -> None:
    assert entropy((np.full(8, 1 / 8), np.full(2, 1 / 2))) == pytest.approx((math.log(8) + math.log(2)) / 2)
    assert entropy((np.array([0.0, 1.0, 0.0]),)) == 0
