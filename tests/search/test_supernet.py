"""The supernet: the choice is an argument, parameters off the path get no gradient, a path equals the network alone."""

import numpy as np
import torch

from bnas.search.evaluate import recalibrate
from bnas.search.spaces import ChainSpace
from bnas.search.strategies.spos import uniform
from bnas.search.supernet import Supernet


def test_parameters_off_the_path_keep_no_gradient(space: ChainSpace) -> None:
    supernet = Supernet(space)
    gates = uniform(space, 0, 0)
    supernet(torch.randn(2, *space.shape), gates).sum().backward()
    for candidates, gate in zip(supernet.layers, gates, strict=True):
        for index, candidate in enumerate(candidates):
            for parameter in candidate.parameters():
                assert (parameter.grad is not None) == (index == gate)


def test_a_path_computes_what_the_same_network_alone_computes(space: ChainSpace, rng: np.random.Generator) -> None:
    arch = space.random(rng)
    gates = space.indices(arch)
    supernet, network = Supernet(space).eval(), space.build(arch).eval()
    network.stem.load_state_dict(supernet.stem.state_dict(), strict=False)
    network.head.load_state_dict(supernet.head.state_dict())
    parts = [supernet.layers[d][g] for d, g in enumerate(gates)]
    for part, block in zip((p for p in parts if list(p.parameters())), network.blocks, strict=True):
        block.load_state_dict(part.state_dict(), strict=False)
    x = torch.randn(2, *space.shape)
    torch.testing.assert_close(supernet(x, gates), network(x))


def test_recalibration_changes_running_statistics_only_and_forgets_what_came_before(space: ChainSpace) -> None:
    torch.manual_seed(0)
    supernet = Supernet(space)
    gates = uniform(space, 0, 0)
    images = [torch.randn(8, *space.shape), torch.randn(8, *space.shape)]
    before = {name: p.clone() for name, p in supernet.named_parameters()}
    recalibrate(supernet, lambda x: supernet(x, gates), images)
    first = supernet(images[0], gates)
    recalibrate(supernet, lambda x: supernet(x, uniform(space, 0, 1)), images)
    recalibrate(supernet, lambda x: supernet(x, gates), images)
    assert torch.equal(first, supernet(images[0], gates))
    assert all(torch.equal(before[name], p) for name, p in supernet.named_parameters())
    stem = supernet.stem[1]
    features = torch.stack([supernet.stem[0](x).mean((0, 2, 3)) for x in images]).mean(0)
    torch.testing.assert_close(stem.running_mean, features)


def test_uniform_paths_depend_on_seed_and_step_alone_and_cover_every_candidate(space: ChainSpace) -> None:
    paths = [uniform(space, 3, step) for step in range(200)]
    assert paths == [uniform(space, 3, step) for step in range(200)]
    for d, decision in enumerate(space.decisions):
        counts = np.bincount([p[d] for p in paths], minlength=len(decision.candidates))
        assert counts.min() > 200 / len(decision.candidates) / 2
