"""PC-DARTS: which channels a candidate sees, where they go, and what an edge weighs."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import permutations

import numpy as np
import pytest
import torch

from bnas.profiles.errors import InputError
from bnas.search.expected_latency import survival_shares
from bnas.search.relaxations import Alphas
from bnas.search.spaces import SPACES, SearchSpace, make_space
from bnas.search.spaces.architecture import Decision
from bnas.search.spaces.blocks import bireal
from bnas.search.spaces.space import chain_genes
from bnas.search.spaces.wiring import IMAGE, Choice, Describe, Step, Value, Wiring
from bnas.search.strategies import darts, pc_darts
from bnas.search.strategies.bilevel import Course, make_learner, unlimited
from bnas.search.strategies.pc_darts import METHOD, EdgeAlphas, EdgeNormalised, among_two, nodes, supernet
from bnas.search.strategies.pc_darts import with_partial_channels as partly
from bnas.search.strategies.task import SearchTask, digest
from bnas.search.supernet import Supernet

CELLS = make_space("cells", (1, 8, 8), 10)
TEXTS = [
    f"{name}:micro{option}"
    for name, module in SPACES.items()
    for option in ["", *(f":{key}={value}" for key, values in module.OPTIONS.items() for value in values[1:])]
]


def edge(channels: int, candidates: Mapping[str, Describe]) -> SearchSpace:
    """A space that is one choice, so that its supernet gives f(x) itself."""
    w, decision = Wiring(), Decision("edge", tuple(candidates))
    w.choice("edge", 0, Value(IMAGE, channels, 4, 4), candidates)
    return SearchSpace("edge", "micro", (channels, 4, 4), 2, (), (decision,), chain_genes([decision]), w.template)


SKIP: dict[str, Describe] = {"none": lambda w, x: None, "skip": lambda w, x: x}
NOTHING = torch.tensor([1.0, 0.0])  # the gate that takes `none`


@pytest.mark.parametrize("share", [1, 2, 4, 8])
def test_a_share_of_the_channels_is_chosen_for_and_the_rest_passes(share: int) -> None:
    """With a skip all channels come through; with `none` a K-th of them is zero and all others are as they were."""
    net, x = supernet(edge(32, SKIP), share), torch.randn(2, 32, 4, 4)
    for gate, through in ((torch.tensor([0.0, 1.0]), 32), (NOTHING, 32 - 32 // share)):
        y = net(x, [gate, 0])
        assert y.shape == x.shape
        places = [{i for i in range(32) if torch.equal(y[:, o], x[:, i])} for o in range(32)]
        assert sum(map(len, places)) == len(set().union(*places)) == through
        assert sum(bool((y[:, o] == 0).all()) for o in range(32)) == 32 - through


def test_the_next_slice_has_as_much_of_each_part_as_the_shuffle_gives_it() -> None:
    """Published: shuffle K groups, take the first C/K. So a K-th of what was made is in the next slice, and after n
    edges 1 - (1 - 1/K)^n of the channels have been made by one, as long as channels suffice."""
    net, x = supernet(edge(64, SKIP), 4), torch.randn(2, 64, 4, 4)
    made = []
    for _ in range(3):
        x = net(x, [NOTHING, 0])  # what was made is 0 here
        made.append(int((x == 0).all(dim=(0, 2, 3)).sum()))
    assert made == [16, 28, 37]  # 64 (1 - (3/4)^n)


def test_the_weight_of_an_edge_counts_for_all_its_channels() -> None:
    net, x = supernet(edge(16, SKIP), 4), torch.randn(2, 16, 4, 4)
    plain, weighed = (net(x, [torch.tensor([0.3, 0.7]), gate]) for gate in (0, (0, torch.tensor(0.25))))
    torch.testing.assert_close(weighed, 0.25 * plain)
    assert torch.equal(plain[:, 4:].flatten().sort()[0], torch.cat([x[:, 1::2], x[:, 2::4]], 1).flatten().sort()[0])
    torch.testing.assert_close(plain[:, :4], 0.7 * x[:, ::4])


def test_at_stride_two_and_twice_the_channels_the_rest_passes_as_a_shortcut_would() -> None:
    blocks: dict[str, Describe] = {f"k{k}": partial(bireal, out=32, kernel=k, stride=2) for k in (3, 5)}
    x = torch.randn(2, 16, 4, 4)
    y = supernet(edge(16, blocks), 4)(x, [torch.tensor([0.5, 0.5]), 0])
    assert y.shape == (2, 32, 2, 2)
    means = x.reshape(2, 16, 2, 2, 2, 2).mean(dim=(3, 5))
    rest = [c for c in range(16) if c % 4]
    found = sorted(next(c for c in range(16) if torch.allclose(y[:, o], means[:, c])) for o in range(8, 32))
    assert found == sorted(2 * rest)


@pytest.mark.parametrize("text", TEXTS)
def test_every_space_has_a_supernet_whose_candidates_see_a_share(text: str) -> None:
    """Its logits have the right shape; each unit of a candidate has a K-th of its channels, by its name."""
    space = make_space(text, (1, 8, 8), 10)
    part = partly(space, 4)
    gates = EdgeNormalised()(list(EdgeAlphas(space, 0).parameters()), 0.0, torch.Generator()).gates
    assert supernet(space, 4)(torch.randn(2, *space.shape), gates).shape == (2, 10)
    ours = {item.name.removesuffix(".chosen"): item for item in part.template if isinstance(item, Choice)
            if item.decision < len(space.decisions)}  # fmt: skip
    shares = []
    for item in space.template:
        if not isinstance(item, Choice):
            assert item in part.template
            continue
        whole, some = ([step for block in choice.blocks for step in block or ()] for choice in (item, ours[item.name]))
        ratios = {a.unit.out_channels / b.unit.out_channels for a, b in zip(whole, some, strict=True)}
        ratios |= {a.unit.in_channels / b.unit.in_channels for a, b in zip(whole, some, strict=True)}
        assert [a.name for a in whole] == [b.name for b in some] and len(ratios) == 1
        shares += ratios
    # In float, mobilenet goes from 16 to 24 channels once, which no shortcut without weights can.
    odd = text.startswith("mobilenet") and re.search("bits=(8|32|8.32)$", text) is not None
    assert sorted(shares) == [1] * odd + [4] * (len(shares) - odd)


def test_a_share_that_does_not_divide_is_lowered_and_one_that_makes_no_sense_refused() -> None:
    kept = [item for item in partly(edge(6, SKIP), 4).template if isinstance(item, Step) and "kept" in item.name]
    assert [step.unit.out_channels for step in kept] == [3]
    for share in (0, 3, -4):
        with pytest.raises(InputError, match=f"power of two, got {share}"):
            partly(CELLS, share)


def test_with_all_channels_and_without_edge_weights_it_is_darts(task_of: Callable[..., SearchTask]) -> None:
    """After a step of both, weights and alphas are the same, bit for bit."""
    plain = replace(darts.METHOD, relaxation=EdgeNormalised(), supernet=partial(supernet, share=1))
    task, states = task_of("tiny", images=16), []
    for method in (darts.METHOD, plain, replace(plain, supernet=supernet)):
        course = Course(task, method, make_learner(task, method))
        course.step(0)
        states.append(digest(course.learner.pack()))
    assert states[0] == states[1] != states[2]


def test_with_all_channels_cells_have_the_logits_of_darts() -> None:
    x, alphas, logits = torch.randn(2, 1, 8, 8), Alphas(CELLS, 0), []
    for make, relaxation in ((Supernet, darts.METHOD.relaxation), (partial(supernet, share=1), EdgeNormalised())):
        torch.manual_seed(0)
        net = make(CELLS)
        with torch.no_grad():
            logits.append(net(x, relaxation(list(alphas.parameters()), 0.0, torch.Generator()).gates))
    assert torch.equal(*logits)


def edges_into() -> list[list[int]]:
    """The decisions of each node, from the ids alone."""
    found: dict[str, list[int]] = {}
    for d, decision in enumerate(CELLS.decisions):
        type, i_j = decision.id.split(".")
        found.setdefault(f"{type}.{i_j.split('_')[1]}", []).append(d)
    return list(found.values())


def test_weights_of_the_edges_into_a_node_sum_to_one() -> None:
    assert [list(node) for node in nodes(CELLS)] == edges_into()
    alphas = EdgeAlphas(CELLS, 0)
    torch.manual_seed(0)
    for beta in alphas.betas:
        torch.nn.init.normal_(beta)
    relaxed = METHOD.relaxation(list(alphas.parameters()), 0.5, torch.Generator())
    assert len(relaxed.gates) == 2 * 28 and relaxed.survival is not None
    weights = [gate[1].item() for gate in relaxed.gates[28:] if isinstance(gate, tuple)]
    for node, beta in zip(edges_into(), alphas.betas, strict=True):
        assert sum(weights[d] for d in node) == pytest.approx(1)
        want = np.exp(beta.detach().double().numpy()[0])
        np.testing.assert_allclose([weights[d] for d in node], want / want.sum(), rtol=1e-5)
        assert relaxed.survival[node].sum().item() == pytest.approx(2)


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_an_edge_survives_as_often_as_it_is_among_two_drawn(count: int) -> None:
    shares = torch.rand(count, generator=torch.Generator().manual_seed(count)).softmax(0)
    want = np.zeros(count)
    for first, second in permutations(range(count), 2):
        want[[first, second]] += (shares[first] * shares[second] / (1 - shares[first])).item()
    np.testing.assert_allclose(among_two(shares).numpy(), want, rtol=1e-5)
    certain = torch.eye(count)[0]
    assert among_two(certain)[0].item() == pytest.approx(1) and torch.isfinite(among_two(certain)).all()


def test_equal_edges_survive_as_in_darts() -> None:
    alphas = EdgeAlphas(CELLS, 0)
    for beta in alphas.betas:
        torch.nn.init.zeros_(beta)
    relaxed = METHOD.relaxation(list(alphas.parameters()), 0.0, torch.Generator())
    assert relaxed.survival is not None
    np.testing.assert_allclose(relaxed.survival.detach(), survival_shares(CELLS), rtol=1e-6)


def test_a_chain_has_no_edges() -> None:
    chain = make_space("mobilenet", (1, 8, 8), 10)
    assert nodes(chain) == []
    plain, ours = Alphas(chain, 0), EdgeAlphas(chain, 0)
    assert [p.tolist() for p in plain.parameters()] == [p.tolist() for p in ours.parameters()]
    assert all(np.array_equal(a, b) for a, b in zip(plain.probabilities(), ours.probabilities(), strict=True))
    relaxed = METHOD.relaxation(list(ours.parameters()), 0.0, torch.Generator())
    assert relaxed.gates[len(chain.decisions) :] == [0] * len(chain.decisions) and relaxed.survival is None


def test_beta_decides_between_edges_and_alpha_within_one() -> None:
    """The edges from nodes 3 and 4 into the last node have flat alphas, but beta prefers them."""
    alphas = EdgeAlphas(CELLS, 0)
    last = edges_into()[3]
    with torch.no_grad():
        for d in last[:3]:
            alphas.values[d][5] = 2.0
        alphas.values[last[3]][6] = 0.1
        alphas.values[last[4]][7] = 0.1
    before = CELLS.gates(unlimited(CELLS, alphas.probabilities()))
    assert [before[d] != 0 for d in last] != [False, False, False, True, True]
    with torch.no_grad():
        alphas.betas[3][0, 3:] = 3.0
    after = CELLS.gates(unlimited(CELLS, alphas.probabilities()))
    assert [after[d] for d in last] == [0, 0, 0, 6, 7]


def test_betas_learn_from_cross_entropy_and_from_latency(task_of: Callable[..., SearchTask]) -> None:
    task = task_of("cells", images=32)
    course = Course(task, METHOD, make_learner(task, METHOD))
    alphas = course.learner.alphas
    assert isinstance(alphas, EdgeAlphas)
    relaxed = course.relax(0, list(alphas.parameters()))
    expected = course.expected(relaxed.weights, relaxed.survival)
    slopes = torch.autograd.grad(expected, list(alphas.betas), retain_graph=True)
    assert all(slope.abs().max() > 0 for slope, node in zip(slopes, edges_into(), strict=True) if len(node) > 2)
    images, labels = course.train_batches(0)
    loss = torch.nn.functional.cross_entropy(course.logits(images, relaxed), labels)
    assert all(slope.abs().max() > 0 for slope in torch.autograd.grad(loss, list(alphas.betas)))
    before = [beta.detach().clone() for beta in alphas.betas]
    course.alphas_learn(0, (images, labels))
    assert all(not torch.equal(a, b) for a, b in zip(before, alphas.betas, strict=True))


def test_less_is_computed() -> None:
    def numbers(net: Supernet) -> int:
        return sum(p.numel() for name, p in net.named_parameters() if ".edges." in name and "weight" in name)

    whole, part = numbers(Supernet(CELLS)), numbers(supernet(CELLS, 4))
    assert part == whole / 16  # a convolution of a quarter of the channels has a sixteenth of the weights


def test_without_its_own_slots_it_would_be_another_method(task_of: Callable[..., SearchTask]) -> None:
    found = pc_darts.run(task_of("cells", images=32))
    assert found.state_hash != found.initial_hash and len(found.losses) == 1
    assert all(trial.latency_ms <= task_of("cells").limit_ms for trial in found.trials)
