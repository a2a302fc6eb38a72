"""The supernet: the choice is an argument, its four kinds mean what they say, and a path is the network alone."""

import copy
import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnas.search.binary.units import make_unit
from bnas.search.evaluate import recalibrate
from bnas.search.spaces import SPACES, SearchSpace, make_space
from bnas.search.spaces.wiring import Choice, Step
from bnas.search.supernet import SHARED, Gate, Supernet

INSTANCES = ("micro", "cifar", "imagenet")
SMALL = "channels=16,layers=4"  # wide cells take a gigabyte; of four, two reduce and two do not
NARROW = {("cells", "cifar"): SMALL, ("cells", "imagenet"): SMALL}


def spaces_of(name: str, instance: str) -> list[SearchSpace]:
    """The instance in 1 bit, float, 8 bits and with mixed bits, as far as the space has them, for small images."""
    stride = SPACES[name].STRIDES[instance]
    side = max(8, 2 * stride)
    shape = (1, side, side + stride) if instance == "micro" else (3, side, side)
    bits = ("bits=1", "bits=32", "bits=8", "bits=1+8,ends=8") if "bits" in SPACES[name].OPTIONS else ("", "ends=8")
    texts = [",".join(filter(None, (b, NARROW.get((name, instance), "")))) for b in bits]
    return [make_space(":".join(filter(None, (name, instance, text))), shape, 10) for text in texts]


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Values in every parameter and buffer that would show if one were used in place of another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2, generator=generator)
            elif tensor.dim() and tensor.is_floating_point():
                fan = tensor[0].numel() if tensor.dim() == 4 and len(tensor) > 1 else 9
                tensor.normal_(1 if name.endswith("norm.weight") else 0, 1 / math.sqrt(fan), generator=generator)


def alone(space: SearchSpace, weights: dict[str, Tensor], indices: tuple[int, ...]) -> nn.Module:
    """The network built for itself, in eval mode, with weights of a supernet by their names."""
    network = space.build(space.architecture(indices))
    network.load_state_dict({name: weights[name] for name in network.state_dict()})
    return network.eval()


@pytest.mark.parametrize("instance", INSTANCES)
@pytest.mark.parametrize("name", SPACES)
def test_a_path_is_the_network_alone(name: str, instance: str, rng: np.random.Generator) -> None:
    """In the large instances with all kinds of units at once, and a few architectures."""
    spaces = spaces_of(name, instance)
    if instance == "micro":
        check_paths(spaces, 24, rng)
    else:
        check_paths(spaces[-1:], 3, rng)


@pytest.mark.slow
@pytest.mark.parametrize("instance", INSTANCES)
@pytest.mark.parametrize("name", SPACES)
def test_fifty_paths_are_networks_alone(name: str, instance: str, rng: np.random.Generator) -> None:
    check_paths(spaces_of(name, instance), 50, rng)


def check_paths(spaces: list[SearchSpace], architectures: int, rng: np.random.Generator) -> None:
    """Bit for bit the same logits, in eval mode."""
    for space in spaces:
        supernet = Supernet(space, affine=True).eval()
        randomise(supernet)
        weights = supernet.state_dict()
        x = torch.randn(1, *space.shape, generator=torch.Generator().manual_seed(1))
        logits = []
        for _ in range(math.ceil(architectures / len(spaces))):
            indices = space.indices(space.random(rng))
            with torch.no_grad():
                logits.append(supernet(x, space.gates(indices)))
                assert torch.equal(logits[-1], alone(space, weights, indices)(x)), space.architecture(indices).name
        assert all(y.shape == (1, 10) and y.isfinite().all() for y in logits)
        assert len({tuple(y.tolist()[0]) for y in logits}) > len(logits) / 2  # paths do differ


MICRO = [f"{name}:micro{bits}" for name in SPACES for bits in ("", ":bits=32", ":bits=1+8,ends=8")
         if not bits or "bits" in SPACES[name].OPTIONS]  # fmt: skip


@pytest.fixture(params=MICRO)
def trained(request: pytest.FixtureRequest) -> tuple[SearchSpace, Supernet, Tensor]:
    """A micro supernet in training mode with random weights, and images."""
    space = make_space(request.param, (1, 8, 8), 10)
    torch.manual_seed(0)
    supernet = Supernet(space).train()
    randomise(supernet)
    return space, supernet, torch.randn(2, *space.shape)


def path(space: SearchSpace, seed: int) -> tuple[int, ...]:
    """The gates of a random architecture."""
    return space.gates(space.indices(space.random(np.random.default_rng(seed))))


def one_hot(space: SearchSpace, gates: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    return [
        torch.eye(len(decision.candidates), dtype=dtype)[k] for decision, k in zip(space.decisions, gates, strict=True)
    ]


def parameters_of(space: SearchSpace, supernet: Supernet, kept: list[set[int]]) -> set[str]:
    """Names of parameters in the units that every network has, and in the candidates `kept` at each decision."""
    prefixes = []
    for item in space.template:
        if isinstance(item, Step):
            prefixes.append(f"{item.name}.")
        elif isinstance(item, Choice):
            blocks = [item.blocks[k] for k in kept[item.decision]]
            prefixes += [f"{step.name}." for block in blocks for step in block or ()]
    return {name for name, _ in supernet.named_parameters() if name.startswith(tuple(prefixes))}


def with_gradient(supernet: Supernet) -> set[str]:
    return {name for name, p in supernet.named_parameters() if p.grad is not None}


def gates_of(kind: str, space: SearchSpace) -> tuple[list[Gate], list[set[int]]]:
    """Gates of one kind, and the candidates that they let run."""
    first, second = path(space, 0), path(space, 1)
    if kind == "index":
        return list(first), [{k} for k in first]
    if kind == "hard":
        return [(k, torch.ones((), requires_grad=True)) for k in first], [{k} for k in first]
    if kind == "soft":
        everything = [set(range(len(d.candidates))) for d in space.decisions]
        return [torch.full((len(all_of),), 1 / len(all_of)) for all_of in everything], everything
    masks = one_hot(space, first, torch.bool)
    return [a | b for a, b in zip(masks, one_hot(space, second, torch.bool), strict=True)], [
        {j, k} for j, k in zip(first, second, strict=True)
    ]


@pytest.mark.parametrize("kind", ["index", "hard", "soft", "mask"])
def test_parameters_off_the_path_keep_no_gradient(trained: tuple[SearchSpace, Supernet, Tensor], kind: str) -> None:
    space, supernet, x = trained
    gates, kept = gates_of(kind, space)
    supernet(x, gates).sum().backward()
    assert with_gradient(supernet) == parameters_of(space, supernet, kept)
    if kind == "index":
        assert with_gradient(supernet) < {name for name, _ in supernet.named_parameters()}


def gradients(supernet: Supernet, y: Tensor) -> dict[str, Tensor]:
    """Of a loss that is not linear in the logits."""
    supernet.zero_grad(set_to_none=True)
    y.square().sum().backward()
    return {name: p.grad for name, p in supernet.named_parameters() if p.grad is not None}


def assert_same_gradients(own: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Up to the order of additions in float64."""
    assert own.keys() == expected.keys()
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-9, atol=1e-9 * scale, msg=name)


def test_gates_that_choose_one_all_mean_that_one(trained: tuple[SearchSpace, Supernet, Tensor]) -> None:
    """index k, hard (k, 1), soft and mask with only k, in training mode: the same logits, the same gradients."""
    space, supernet, x = trained
    supernet, x = supernet.double(), x.double()
    gates = path(space, 3)
    expected = supernet(x, gates)
    on_path = gradients(supernet, expected)
    kinds: dict[str, list[Gate]] = {
        "hard": [(k, torch.ones(())) for k in gates],
        "soft": list(one_hot(space, gates, torch.double)),
        "mask": list(one_hot(space, gates, torch.bool)),
    }
    for kind, others in kinds.items():
        y = supernet(x, others)
        assert torch.equal(y, expected), kind
        own = gradients(supernet, y)
        if kind == "soft":  # the candidates with a share of 0 ran, and learn nothing
            assert not any(own.pop(name).any() for name in own.keys() - on_path.keys())
        assert_same_gradients(own, on_path)


def plain_sum(
    space: SearchSpace, supernet: Supernet, x: Tensor, gates: list[dict[int, Tensor | float]]
) -> tuple[Tensor, list[tuple[int, Tensor, Tensor]]]:
    """What a supernet computes, spelt plainly: every block for itself, nothing shared between blocks.

    gates[d]: candidate -> its weight. Returns the logits, and (d, weighted, unweighted value) of what ran.
    """
    values = {"image": x}
    ran = []

    def run(steps: tuple[Step, ...], source: str) -> Tensor:
        for step in steps:
            values[step.name] = supernet.get_submodule(step.name)(*(values[name] for name in step.inputs))
        return values[steps[-1].name] if steps else values[source]

    for item in space.template:
        if isinstance(item, Step):
            run((item,), "")
        elif isinstance(item, Choice):
            total = torch.zeros(())
            for k, weight in gates[item.decision].items():
                block = item.blocks[k]
                if block is not None:
                    value = run(block, item.input)
                    ran.append((item.decision, weight * value, value))
                    total = total + ran[-1][1]
            values[item.name] = total
        else:
            zero = x.new_zeros(len(x), item.channels, item.height, item.width)
            values[item.name] = sum((values[name] for name in item.inputs), zero)
    return values[space.template[-1].name], ran


def test_soft_and_mask_gates_are_weighted_and_plain_sums(trained: tuple[SearchSpace, Supernet, Tensor]) -> None:
    """Against the plain spelling: what edges of a cell share changes nothing, neither forward nor backward."""
    space, supernet, x = trained
    supernet, x = supernet.double(), x.double()
    rng = np.random.default_rng(0)
    soft = [torch.from_numpy(rng.dirichlet(np.ones(len(d.candidates)))) for d in space.decisions]
    mask, kept = gates_of("mask", space)
    weights = {"soft": [dict(enumerate(gate)) for gate in soft], "mask": [dict.fromkeys(keep, 1.0) for keep in kept]}
    for kind, gates in {"soft": soft, "mask": mask}.items():
        other = copy.deepcopy(supernet)  # 8-bit ranges move with every batch
        y, (expected, _) = supernet(x, gates), plain_sum(space, other, x, weights[kind])
        torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
        assert_same_gradients(gradients(supernet, y), gradients(other, expected))


def test_the_gradient_of_a_hard_gate_is_what_its_candidate_does(trained: tuple[SearchSpace, Supernet, Tensor]) -> None:
    """dL/dg = <dL/dy, o_k(x)> with y = g o_k(x), summed over the cells that share the decision."""
    space, supernet, x = trained
    supernet, x = supernet.double(), x.double()
    indices = path(space, 5)
    scalars = [torch.ones((), dtype=torch.double, requires_grad=True) for _ in indices]
    supernet(x, list(zip(indices, scalars, strict=True))).square().sum().backward()

    logits, ran = plain_sum(space, supernet, x, [{k: torch.ones((), requires_grad=True)} for k in indices])
    slopes = torch.autograd.grad(logits.square().sum(), [y for _, y, _ in ran])
    expected = dict.fromkeys(range(len(indices)), 0.0)
    for (decision, _, value), slope in zip(ran, slopes, strict=True):
        expected[decision] += float((slope * value).sum())
    for decision, scalar in zip(space.decisions, scalars, strict=True):
        d = space.decisions.index(decision)
        if decision.candidates[indices[d]] == "none":
            assert scalar.grad is None
        else:
            assert float(scalar.grad) == pytest.approx(expected[d], rel=1e-9, abs=1e-12)
    assert any(expected.values())


def test_none_everywhere_is_zero() -> None:
    """Every cell then gives zeros, so the logits are the classifier's bias, and only the classifier learns."""
    space = make_space("cells:micro", (1, 8, 8), 10)
    supernet = Supernet(space)
    x = torch.randn(2, *space.shape)
    ones = torch.ones(())
    for gates in ([0] * 28, [(0, ones)] * 28, list(one_hot(space, (0,) * 28, torch.bool))):
        supernet.zero_grad(set_to_none=True)
        y = supernet(x, gates)
        assert torch.equal(y, supernet.head.linear.bias.expand(2, -1))
        y.sum().backward()
        assert with_gradient(supernet) <= {"head.linear.bias", "head.linear.weight"}


def test_only_units_without_state_are_shared(plain: SearchSpace) -> None:
    for w in plain.all_workloads():
        if w.kind in SHARED:
            assert not make_unit(w).state_dict()


def test_pools_and_activations_of_one_value_run_once() -> None:
    """In a normal and a reduction cell 5 values (2 inputs, nodes 2 to 4) are read by 14 edges."""
    space = make_space("cells:micro:bits=32", (1, 8, 8), 10)
    supernet = Supernet(space)
    calls: Counter[str] = Counter()
    for item in space.template:
        for block in item.blocks if isinstance(item, Choice) else ():
            for step in block or ():
                supernet.get_submodule(step.name).register_forward_hook(
                    lambda *_, kind=step.unit.kind: calls.update([kind])
                )
    supernet(torch.randn(2, 1, 8, 8), [torch.full((8,), 1 / 8)] * 28)
    second_relus = 2 * 28  # behind weights: each its own
    assert calls["max_pool"] == calls["avg_pool"] == 2 * 5
    assert calls["relu"] == 2 * 5 + second_relus
    assert calls["conv"] == 28 * (4 + 4 + 2 + 2) + 8  # two separable, two dilated; 8 skips of stride 2


def test_one_argument_one_result(micro: SearchSpace) -> None:
    """No choice is stored: the same gates give the same logits whatever ran between."""
    supernet = Supernet(micro).eval()
    x = torch.randn(2, *micro.shape)
    first, second = path(micro, 0), path(micro, 1)
    y = supernet(x, first)
    supernet(x, second)
    assert torch.equal(supernet(x, first), y)


def test_batch_norms_of_a_supernet_share_scale_unless_told(micro: SearchSpace) -> None:
    def scales(supernet: Supernet) -> int:
        return sum(m.affine for m in supernet.modules() if isinstance(m, nn.BatchNorm2d))

    assert scales(Supernet(micro)) == 0
    assert scales(Supernet(micro, affine=True)) > 0


def test_recalibration_changes_running_statistics_only_and_forgets_what_came_before(micro: SearchSpace) -> None:
    torch.manual_seed(0)
    supernet = Supernet(micro)
    gates = path(micro, 0)
    images = [torch.randn(8, *micro.shape), torch.randn(8, *micro.shape)]
    before = {name: p.clone() for name, p in supernet.named_parameters()}
    recalibrate(supernet, lambda x: supernet(x, gates), images)
    first = supernet(images[0], gates)
    recalibrate(supernet, lambda x: supernet(x, path(micro, 1)), images)
    recalibrate(supernet, lambda x: supernet(x, gates), images)
    assert torch.equal(first, supernet(images[0], gates))
    assert all(torch.equal(before[name], p) for name, p in supernet.named_parameters())
    stem = supernet.get_submodule(micro.template[0].name)
    features = torch.stack([stem.conv(x).mean((0, 2, 3)) for x in images]).mean(0)
    torch.testing.assert_close(stem.norm.running_mean, features)
