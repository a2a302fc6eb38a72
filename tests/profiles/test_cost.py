"""Costs: each count against another way to the same number, for every unit that any space can have."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bnas.profiles import cost
from bnas.profiles.workload import FIXED, KINDS, Workload
from bnas.search.binary.units import make_unit
from bnas.search.spaces import SPACES, make_space
from bnas.search.spaces.wiring import units

BITS = ("1", "8", "32")
WORKLOADS = sorted(
    {
        w
        for name, module in SPACES.items()
        for option in ("ends=8", *(f"bits={bits}" for bits in BITS))
        for shape in ((1, 8, 8), (3, 16, 12))
        if option.partition("=")[0] in module.OPTIONS
        for w in units(make_space(f"{name}:{option}", shape, 10).template)
    }
    | {Workload("norm", 32, 12, 12, 5, 6), Workload("binary_conv", 1, 64, 32, 7, 9, 5, 2, 1, 2, ("prelu",))}
)


def test_every_kind_is_counted() -> None:
    assert {w.kind for w in WORKLOADS} == set(KINDS) - {"fixed"}


def inputs_of(w: Workload) -> list[Tensor]:
    parts = [w.in_channels // 2] * 2 if w.kind in ("add", "concat") else [w.in_channels]
    values = [torch.zeros(1, channels, w.height, w.width) for channels in parts]
    if "residual" in w.epilogue:
        values.append(torch.zeros(1, w.out_channels, w.out_height, w.out_width))
    return values


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"fixed"}))
def test_macs_are_what_pytorch_counts(kind: str) -> None:
    """Half of the floating-point operations that PyTorch's own counter sees in the unit; those of 1 bit are binary."""
    for w in (w for w in WORKLOADS if w.kind == kind):
        with FlopCounterMode(display=False) as counter:
            make_unit(w).eval()(*inputs_of(w))
        assert counter.get_total_flops() == 2 * cost.macs(w), w.key
        assert (cost.binary_macs(w), cost.float_macs(w)) == ((cost.macs(w), 0) if w.bits == 1 else (0, cost.macs(w)))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"fixed"}))
def test_params_are_those_that_train(kind: str) -> None:
    for w in (w for w in WORKLOADS if w.kind == kind):
        unit = make_unit(w)
        assert cost.params(w) == sum(p.numel() for p in unit.parameters()), w.key
        assert cost.weights(w) == sum(p.numel() for name, p in unit.named_parameters() if name.endswith(("conv.weight", "linear.weight"))), w.key  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("name", SPACES)
def test_a_network_costs_what_its_units_cost(name: str) -> None:
    space = make_space(name, (1, 8, 8), 10)
    arch = space.architecture([0] * len(space.genes))
    network, workloads = space.build(arch), space.workloads(arch)
    assert sum(map(cost.params, workloads)) == sum(p.numel() for p in network.parameters())
    with FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, 1, 8, 8))
    assert 2 * sum(map(cost.macs, workloads)) == counter.get_total_flops()


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"fixed"}))
def test_activation_bytes_are_those_of_the_tensors(kind: str) -> None:
    """Float32 in and out; of a channel shuffle only the half that is taken is read."""
    for w in (w for w in WORKLOADS if w.kind == kind):
        values = inputs_of(w)
        y = make_unit(w).eval()(*values)
        read = sum(v.nbytes for v in values) // (2 if w.kind in ("even_channels", "odd_channels") else 1)
        assert cost.activation_bytes(w) == read + y.nbytes, w.key


def test_activations_of_bits_take_whole_bytes() -> None:
    """33 channels are 5 bytes a pixel; 4 x 6 pixels in, 2 x 3 out."""
    w = Workload("binary_conv", 1, 33, 64, 4, 6, 3, stride=2, input_format="bits")
    assert cost.activation_bytes(w) == 5 * 24 + 4 * 64 * 6
    w = Workload("binary_conv", 1, 32, 33, 4, 6, 3, stride=2, input_format="bits", output_format="bits")
    assert cost.activation_bytes(w) == 4 * 24 + 5 * 6


@pytest.mark.parametrize(
    ("w", "expected"),
    [
        # 9 taps of 64 bits for each of 128 channels; scale, bias and three values of RPReLU for each, 64 thresholds
        (
            Workload("binary_conv", 1, 64, 128, 8, 8, 3, epilogue=("residual", "rprelu")),
            128 * 9 * 8 + 4 * (5 * 128 + 64),
        ),
        # 20 channels in a group take 3 bytes; PReLU has one value
        (Workload("binary_conv", 1, 40, 10, 8, 8, 1, groups=2, epilogue=("prelu",)), 10 * 3 + 4 * (3 * 10 + 40)),
        # float: kernel and bias, the batch-norm is folded; ReLU has no values
        (Workload("conv", 32, 3, 16, 8, 8, 3, epilogue=("relu",)), 4 * (16 * 3 * 9 + 16)),
        (Workload("conv", 32, 16, 16, 8, 8, 5, groups=16), 4 * (16 * 25 + 16)),
        # 8 bits: one byte a weight, a scale and a bias for each channel; scale and zero point of the input
        (Workload("conv", 8, 16, 24, 8, 8, 1), 16 * 24 + 4 * 2 * 24 + 4 + 1),
        (Workload("norm", 32, 12, 12, 8, 8), 4 * 2 * 12),
        (Workload("head", 32, 64, 10, 4, 4), 4 * (640 + 10)),
        # the same for a linear layer
        (Workload("head", 8, 64, 10, 4, 4), 64 * 10 + 4 * 2 * 10 + 4 + 1),
        (Workload("quantize", 8, 12, 12, 8, 8), 0),
        (Workload("max_pool", 32, 12, 12, 8, 8, 3), 0),
        (FIXED, 0),
    ],
    ids=lambda value: value.key if isinstance(value, Workload) else "",
)
def test_model_bytes_by_hand(w: Workload, expected: int) -> None:
    assert cost.model_bytes(w) == expected


def test_the_fixed_cost_is_no_work() -> None:
    assert cost.macs(FIXED) == cost.params(FIXED) == 0
