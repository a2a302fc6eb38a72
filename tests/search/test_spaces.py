"""Spaces: every operation stays inside, architectures round-trip, and the description says what the network does."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bnas.profiles import cost
from bnas.profiles.errors import InputError
from bnas.profiles.schema import load_profile
from bnas.profiles.table import LatencyTable
from bnas.profiles.workload import Workload
from bnas.search.binary.layers import BinaryConv2d
from bnas.search.latency import latency_model
from bnas.search.spaces import Architecture, ChainSpace, make_space, space_of


def test_every_operation_stays_in_the_space(space: ChainSpace, rng: np.random.Generator) -> None:
    a, b = space.random(rng), space.random(rng)
    for arch in (a, space.mutate(a, rng, 0.5), space.crossover(a, b, rng)):
        assert space.contains(arch)
        assert space.architecture(space.indices(arch)) == arch
    child = space.crossover(a, b, rng)
    assert all(c in pair for c, *pair in zip(child.choices, a.choices, b.choices, strict=True))


def test_size_is_the_product_of_the_candidates(space: ChainSpace) -> None:
    size = 1
    for decision in space.decisions:
        size *= len(decision.candidates)
    assert space.size == size


def test_architecture_round_trips_through_yaml(space: ChainSpace, rng: np.random.Generator) -> None:
    arch = space.random(rng)
    assert Architecture.from_yaml(arch.to_yaml()) == arch
    assert space_of(arch.space) == space


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "not valid YAML"),
        ("[]", "exactly the keys"),
        ("{format: 2, space: s, choices: []}", "format 2"),
        ("{format: 1, space: s, choices: [], more: 1}", "exactly the keys"),
        ("{format: 1, space: 3, choices: []}", "space must be"),
        ("{format: 1, space: s, choices: 3}", "choices"),
    ],
)
def test_bad_architecture_files_say_why(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        Architecture.from_yaml(text, "a.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "space_id", ["tiny", "tiny:1x8:10", "tiny:1x8x8:x", "tyni:1x8x8:10", "tiny:1x9x9:10", "tiny:2x8x8:3"]
)
def test_bad_space_ids_say_why(space_id: str) -> None:
    with pytest.raises(InputError):
        space_of(space_id)


def test_workloads_are_what_the_network_runs(space: ChainSpace, rng: np.random.Generator) -> None:
    """The convolutions and the classifier, seen by hooks on the real network, in order and with their real shapes."""
    arch = space.random(rng)
    network = space.build(arch).eval()
    seen: list[tuple] = []

    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        x = inputs[0]
        if isinstance(module, nn.Linear):
            seen.append(("head", module.in_features, module.out_features))
        elif isinstance(module, BinaryConv2d):
            kernel = module.weight.shape[-1]
            seen.append(("binary_conv", *x.shape[1:], module.weight.shape[0], kernel, module.stride, *output.shape[2:]))
        else:
            seen.append(
                ("conv", *x.shape[1:], module.out_channels, module.kernel_size[0], module.stride[0], *output.shape[2:])
            )

    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | BinaryConv2d):
            module.register_forward_hook(hook)
    network(torch.zeros(2, *space.shape))

    def fields(w: Workload) -> tuple:
        if w.kind == "head":
            return ("head", w.in_channels, w.out_channels)
        shape = (w.in_channels, w.height, w.width)
        return (w.kind, *shape, w.out_channels, w.kernel, w.stride, w.out_height, w.out_width)

    assert [fields(w) for w in space.workloads(arch) if cost.macs(w)] == seen


def test_costs_follow_from_the_network_itself(space: ChainSpace, rng: np.random.Generator) -> None:
    arch = space.random(rng)
    network = space.build(arch)
    binary_weights = sum(m.weight.numel() for m in network.modules() if isinstance(m, BinaryConv2d))
    weights = [w for w in space.workloads(arch) if w.bits == 1]
    assert sum(w.out_channels * w.in_channels * w.kernel**2 for w in weights) == binary_weights


def test_all_workloads_covers_every_architecture(space: ChainSpace, rng: np.random.Generator) -> None:
    rows = set(space.all_workloads())
    for _ in range(20):
        assert rows.issuperset(space.workloads(space.random(rng)))


@pytest.mark.parametrize("profile", ["rtx3080", "rpi4b"])
def test_slowest_is_at_least_four_times_the_fastest(space: ChainSpace, profile: str) -> None:
    model = latency_model(space, LatencyTable(load_profile(profile)))
    slowest = space.architecture([int(ms.argmax()) for ms in model.candidate_ms])
    ratio = model.ms(slowest) / model.ms(model.fastest())
    # On the Raspberry Pi the float stem of a 32-pixel colour image outweighs the 1-bit units: fewer times.
    assert ratio >= (4 if profile == "rtx3080" or max(space.shape[1:]) <= 16 else 1.5)


@given(st.integers(1, 40), st.integers(1, 40))
def test_tiny_takes_sizes_its_strides_divide(height: int, width: int) -> None:
    fits = all(8 <= side <= 32 for side in (height, width))
    multiple = 2 if max(height, width) <= 16 else 8
    if fits and height % multiple == 0 and width % multiple == 0:
        network = make_space("tiny", (1, height, width), 3)
        assert network.head.in_channels == (64 if multiple == 2 else 256)
    else:
        with pytest.raises(InputError, match="--image-size"):
            make_space("tiny", (1, height, width), 3)
