"""Expected latency: the true mean over architectures, the latency of one, the published gradient; and its losses."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bnas.profiles.errors import InputError
from bnas.profiles.schema import load_profile
from bnas.profiles.table import LatencyTable
from bnas.search.expected_latency import LATENCY_LOSSES, ExpectedLatency, Hinge, Multiply, survival_shares
from bnas.search.latency import LatencyModel, latency_model
from bnas.search.spaces import SearchSpace, make_space


@pytest.fixture
def model(micro: SearchSpace) -> LatencyModel:
    return latency_model(micro, LatencyTable(load_profile("rtx3080")))


def random_alphas(space: SearchSpace, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(len(d.candidates), generator=generator).requires_grad_() for d in space.decisions]


def test_one_hot_alphas_of_an_architecture_have_its_latency(model: LatencyModel, rng: np.random.Generator) -> None:
    space, expected = model.space, ExpectedLatency(model)
    for _ in range(20):
        arch = space.random(rng)
        alphas = [torch.zeros(len(d.candidates)) for d in space.decisions]
        survival = torch.zeros(len(space.decisions), dtype=torch.float64)
        for gene, i in zip(space.genes, space.indices(arch), strict=True):
            for d, k in gene.settings[i]:
                alphas[d][k] = 1000.0
                survival[d] = 1
        weights = [alpha.softmax(0) for alpha in alphas]
        assert expected(weights, survival).item() == pytest.approx(model.ms(arch), rel=1e-12)


def test_equal_alphas_give_the_mean_over_all_architectures(model: LatencyModel) -> None:
    """Genes are independent, so the mean over all combinations is the sum of the genes' means."""
    weights = [torch.full((len(d.candidates),), 1 / len(d.candidates)) for d in model.space.decisions]
    mean = model.fixed_ms + sum(float(ms.mean()) for ms in model.candidate_ms)
    assert ExpectedLatency(model)(weights).item() == pytest.approx(mean, rel=1e-6)


def test_the_gradient_is_probability_times_difference_to_the_mean(model: LatencyModel) -> None:
    alphas = random_alphas(model.space)
    ExpectedLatency(model)([alpha.softmax(0) for alpha in alphas]).backward()
    for d, (decision, alpha) in enumerate(zip(model.space.decisions, alphas, strict=True)):
        real = np.array([name != "none" for name in decision.candidates])
        q = np.exp(alpha.detach().double().numpy()) * real
        q /= q.sum()
        into = int(decision.id[-1]) if decision.group else None  # the node that a cell's edge leads to
        survival = 2 / into if into else 1.0
        ms = model.decision_ms[d]
        want = survival * q * (ms - q @ ms)
        assert alpha.grad is not None
        np.testing.assert_allclose(alpha.grad.numpy(), want, atol=1e-6 * max(1e-3, np.abs(want).max()), rtol=1e-4)


def test_none_is_no_way_to_look_fast() -> None:
    space = make_space("cells", (1, 8, 8), 10)
    expected = ExpectedLatency(latency_model(space, LatencyTable(load_profile("rtx3080"))))
    alphas = [alpha.detach() for alpha in random_alphas(space)]
    before = expected([alpha.softmax(0) for alpha in alphas]).item()
    for decision, alpha in zip(space.decisions, alphas, strict=True):
        alpha[decision.candidates.index("none")] += 5
    assert expected([alpha.softmax(0) for alpha in alphas]).item() == pytest.approx(before, rel=1e-6)


def test_edges_of_a_node_share_two_places_and_layers_of_a_chain_are_certain(micro: SearchSpace) -> None:
    for decision, share in zip(micro.decisions, survival_shares(micro), strict=True):
        assert share == (2 / int(decision.id[-1]) if decision.group else 1)


LIMIT_MS = 2.0


def slope(loss: object, expected_ms: float, cross_entropy: float = 1.5) -> float:
    at = torch.tensor(expected_ms, dtype=torch.float64, requires_grad=True)
    assert callable(loss)
    loss(torch.tensor(cross_entropy), at, LIMIT_MS).backward()
    assert at.grad is not None
    return at.grad.item()


@pytest.mark.parametrize("name", LATENCY_LOSSES)
def test_over_the_limit_every_loss_asks_for_less_latency_and_less_error(name: str) -> None:
    loss = LATENCY_LOSSES[name]()
    assert slope(loss, 1.5 * LIMIT_MS) > 0
    error = torch.tensor(1.5, requires_grad=True)
    loss(error, torch.tensor(1.5 * LIMIT_MS, dtype=torch.float64), LIMIT_MS).backward()
    assert error.grad is not None and error.grad > 0


@pytest.mark.parametrize(("name", "sign"), [("hinge", 0), ("add", 1), ("mul", 1), ("absolute", -1)])
def test_under_the_limit_losses_differ(name: str, sign: int) -> None:
    assert np.sign(slope(LATENCY_LOSSES[name](), 0.5 * LIMIT_MS)) == sign


def test_losses_by_hand() -> None:
    error, twice = torch.tensor(1.5), torch.tensor(2 * LIMIT_MS, dtype=torch.float64)
    assert Hinge(weight=0.5)(error, twice, LIMIT_MS).item() == pytest.approx(1.5 + 0.5)
    want = 0.2 * 1.5 * (math.log(4000) / math.log(2000)) ** 0.3
    assert Multiply()(error, twice, LIMIT_MS).item() == pytest.approx(want)


def test_a_limit_without_a_logarithm_is_named() -> None:
    with pytest.raises(InputError, match="above 1 us"):
        Multiply()(torch.tensor(1.0), torch.tensor(1.0), 0.001)


@pytest.mark.parametrize("temperature", [1.0, 0.03, 0.001])
def test_a_certain_none_is_neither_fast_nor_without_slope(temperature: float) -> None:
    model = latency_model(make_space("cells", (1, 8, 8), 10), LatencyTable(load_profile("rtx3080")))
    expected = ExpectedLatency(model)
    alphas = [torch.tensor([9.0, *[0.0] * 7], requires_grad=True) for _ in model.space.decisions]
    weights = [(alpha / temperature).softmax(0) for alpha in alphas]
    found = expected(weights)
    found.backward()
    assert all(alpha.grad is not None and alpha.grad.isfinite().all() for alpha in alphas)
    even = [torch.tensor([0.0, *[1 / 7] * 7]) for _ in alphas]
    assert found.item() == pytest.approx(expected(even).item(), rel=1e-5)
