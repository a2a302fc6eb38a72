"""ProxylessNAS: gradients of binary gates, who learns when, and what a step leaves alone."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnas.search.relaxations import Relaxation
from bnas.search.spaces import make_space
from bnas.search.strategies import proxyless
from bnas.search.strategies.bilevel import Course, make_learner
from bnas.search.strategies.proxyless import METHOD, AllPaths, OnePath, TwoPaths, keep_others
from bnas.search.strategies.task import SearchTask
from bnas.search.supernet import Gate, Supernet

SPACES = ("tiny", "cells")


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def alphas_of(text: str) -> list[Tensor]:
    """Alphas far from equal, in float64."""
    sizes = [len(d.candidates) for d in make_space(text, (1, 8, 8), 10).decisions]
    drawn = torch.randn(sum(sizes), generator=noise(1), dtype=torch.float64)
    return [alpha.clone().requires_grad_() for alpha in drawn.split(sizes)]


def named(gate: Gate) -> dict[int, Tensor]:
    """Candidate -> its gate, of those that run."""
    if isinstance(gate, list):
        return {k: torch.as_tensor(g) for k, g in gate}
    assert isinstance(gate, Tensor)
    return dict(enumerate(gate))


@pytest.mark.parametrize("text", SPACES)
@pytest.mark.parametrize("relaxation", [TwoPaths(), AllPaths()], ids=["two", "all"])
def test_the_gradient_of_alpha_is_that_of_the_gates_through_their_softmax(text: str, relaxation: Relaxation) -> None:
    """dL/dalpha_i = sum_j dL/dg_j q_j (delta_ij - q_i), dL/dg from a pass in which the gates are leaves."""
    torch.manual_seed(0)
    space, alphas = make_space(text, (1, 8, 8), 10), alphas_of(text)
    net = Supernet(space).double()
    x, y = torch.randn(4, 1, 8, 8, dtype=torch.float64), torch.randint(0, 10, (4,))
    gates = [named(gate) for gate in relaxation(alphas, 0.5, noise()).gates]
    found = torch.autograd.grad(
        nn.functional.cross_entropy(net(x, relaxation(alphas, 0.5, noise()).gates), y), alphas, materialize_grads=True
    )
    leaves = [{k: g.detach().clone().requires_grad_() for k, g in gate.items()} for gate in gates]
    loss = nn.functional.cross_entropy(net(x, [list(gate.items()) for gate in leaves]), y)
    flat = [g for gate in leaves for g in gate.values()]
    slopes = iter(torch.autograd.grad(loss, flat, allow_unused=True, materialize_grads=True))
    moved = 0
    for alpha, gate, slope in zip(alphas, gates, found, strict=True):
        assert sorted(g.item() for g in gate.values()) == [0.0] * (len(gate) - 1) + [1.0]
        names = list(gate)
        by_gate = np.array([next(slopes).item() for _ in names])
        q = np.exp(alpha.detach().numpy()[names])
        q /= q.sum()
        want = np.zeros(len(alpha))
        want[names] = q * (by_gate - by_gate @ q)
        np.testing.assert_allclose(slope.numpy(), want, rtol=1e-9, atol=1e-12)
        moved += bool(np.abs(want).max() > 1e-6)
    assert moved > len(alphas) / 2


def test_two_paths_run_for_alphas_and_one_for_weights(task_of: Callable[..., SearchTask]) -> None:
    task = task_of("mobilenet", images=32)
    course = Course(task, METHOD, make_learner(task, METHOD))
    supernet, names = course.learner.supernet, [d.candidates for d in task.space.decisions]
    ran: Counter[str] = Counter()
    for d, candidates in enumerate(names):
        for name in candidates:
            if name != "identity":
                block = supernet.get_submodule(f"layers.{d}.{name}")
                first = next(m for m in block.modules() if not list(m.children()))
                first.register_forward_hook(lambda *_, d=d: ran.update([d]))
    course.weights_learn(0, course.train_batches(0))
    assert len(ran) > 0 and max(ran.values()) == 1
    ran.clear()
    course.alphas_learn(0, course.train_batches(0))
    assert max(ran.values()) == 2


def test_what_is_not_drawn_does_not_learn(task_of: Callable[..., SearchTask]) -> None:
    """Weights off the path keep `grad is None`; the step of alphas gives no weight a gradient."""
    task = task_of("tiny", images=32)
    course = Course(task, METHOD, make_learner(task, METHOD))
    path = course.path(0, list(course.learner.alphas.parameters())).gates
    before = {name: p.detach().clone() for name, p in course.learner.supernet.named_parameters()}
    course.weights_learn(0, course.train_batches(0))
    taken = {
        f"layers.{d}.{decision.candidates[k]}."
        for d, (decision, k) in enumerate(zip(task.space.decisions, path, strict=True))
    }
    for name, parameter in course.learner.supernet.named_parameters():
        selected = not name.startswith("layers.") or any(name.startswith(path) for path in taken)
        assert (parameter.grad is not None) == selected, name
        assert selected or torch.equal(parameter, before[name])
    course.learner.weight_optimizer.zero_grad(set_to_none=True)
    course.alphas_learn(0, course.train_batches(0))
    assert all(parameter.grad is None for parameter in course.learner.supernet.parameters())


def test_a_step_leaves_the_probabilities_of_all_others(task_of: Callable[..., SearchTask]) -> None:
    """Over three steps, so that Adam has a past: what it remembers of the last pair must not move it now."""
    task = task_of("mobilenet", images=32)
    method = replace(METHOD, alpha_recipe=replace(METHOD.alpha_recipe, learning_rate=0.3))
    course = Course(task, method, make_learner(task, method))
    alphas = list(course.learner.alphas.parameters())
    seen = set()
    for number in range(3):
        pairs = [set(named(gate)) for gate in course.relax(number, alphas).gates]
        before = [alpha.detach().clone() for alpha in alphas]
        course.alphas_learn(number, course.train_batches(number))
        for d, (old, new, pair) in enumerate(zip(before, alphas, pairs, strict=True)):
            others = [k for k in range(len(old)) if k not in pair]
            assert torch.equal(old[others], new[others])
            p, q = old.softmax(0), new.detach().softmax(0)
            torch.testing.assert_close(p[others], q[others])
            if not torch.equal(old, new):
                assert (p - q).abs().max() > 0.01
                seen.add(d)
    assert len(seen) == len(alphas)


def test_the_shift_is_none_where_nothing_moved() -> None:
    old = torch.tensor([0.3, -1.0, 2.0])
    new = old.clone()
    keep_others([old], [new])
    assert torch.equal(old, new)
    new = old + torch.tensor([1.0, -0.5, 0.0])
    keep_others([old], [new])
    assert new[2] == 2.0 and new.exp().sum().item() == pytest.approx(old.exp().sum().item())


def test_latency_moves_the_pair_only_and_is_expected_over_it(task_of: Callable[..., SearchTask]) -> None:
    task = task_of("tiny")
    course = Course(task, METHOD, make_learner(task, METHOD))
    alphas = alphas_of("tiny")
    relaxed = TwoPaths()(alphas, 0.5, noise())
    expected = course.expected(relaxed.weights)
    slopes = torch.autograd.grad(expected, alphas)
    want = task.latency.fixed_ms
    for ms, alpha, gate, slope in zip(task.latency.decision_ms, alphas, relaxed.gates, slopes, strict=True):
        pair = list(named(gate))
        q = np.exp(alpha.detach().numpy()[pair])
        q /= q.sum()
        want += q @ ms[pair]
        by_hand = np.zeros(len(alpha))
        by_hand[pair] = q * (ms[pair] - q @ ms[pair])
        np.testing.assert_allclose(slope.numpy(), by_hand, rtol=1e-9, atol=1e-15)
    assert expected.item() == pytest.approx(want)


DRAWS = 4000


def close(counts: Counter, want: dict) -> bool:
    return set(counts) <= set(want) and all(
        abs(counts[key] / DRAWS - p) < 4 * np.sqrt(p * (1 - p) / DRAWS) for key, p in want.items()
    )


def test_draws_are_as_often_as_they_should_be() -> None:
    """One: softmax. A pair: without replacement. The gate of the pair that is 1: by the two renormalised."""
    alpha, generator = torch.tensor([1.5, 0.0, -1.0]), noise()
    p = np.exp([1.5, 0.0, -1.0]) / np.exp([1.5, 0.0, -1.0]).sum()
    assert close(Counter(OnePath()([alpha], 0.0, generator).gates[0] for _ in range(DRAWS)), dict(enumerate(p)))
    pairs, active = Counter(), Counter()  # type: ignore[var-annotated]
    for _ in range(DRAWS):
        gate = named(TwoPaths()([alpha], 0.0, generator).gates[0])
        pairs[frozenset(gate)] += 1
        active[frozenset(gate), next(k for k, g in gate.items() if g == 1)] += 1
    chance = {
        frozenset(c): p[c[0]] * p[c[1]] * (1 / (1 - p[c[0]]) + 1 / (1 - p[c[1]])) for c in ((0, 1), (0, 2), (1, 2))
    }
    assert close(pairs, chance)
    assert close(active, {(pair, k): chance[pair] * p[k] / p[list(pair)].sum() for pair in chance for k in pair})


def test_alphas_learn_in_every_fifth_step_after_the_warm_up_and_weights_first(
    task_of: Callable[..., SearchTask],
) -> None:
    task = task_of("tiny", epochs=4, batch=4, images=32)  # 4 steps an epoch, of which the first warms up
    course = Course(task, METHOD, make_learner(task, METHOD))
    log: list[tuple[int, str]] = []
    course.learner.weight_optimizer.register_step_pre_hook(lambda *_: log.append((number, "weights")))
    course.learner.alpha_optimizer.register_step_pre_hook(lambda *_: log.append((number, "alphas")))
    for number in range(course.steps):
        course.step(number)
    assert course.steps == 16
    want = []
    for step in range(16):
        want.append((step, "weights"))
        want += [(step, "alphas")] if step in (4, 9, 14) else []
    assert log == want


def test_a_search_changes_alphas(task_of: Callable[..., SearchTask]) -> None:
    found = proxyless.run(task_of("cells", images=32))
    assert found.state_hash != found.initial_hash
    assert len(found.curves["architecture loss"]) == 1
