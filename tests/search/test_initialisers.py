"""Initialisers: what their matrices must satisfy, exactly where they can, and that a name alone decides the weights."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from bnas.search.binary.layers import BinaryConv2d, QuantizedConv2d, Style
from bnas.search.initialisers import INITIALISERS, hadamard_matrix, weight_layers
from bnas.search.spaces import SearchSpace
from bnas.search.supernet import Supernet

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "point, narrowing": lambda: nn.Conv2d(24, 16, 1),
    "point, widening": lambda: nn.Conv2d(16, 24, 1, bias=False),
    "dense": lambda: nn.Conv2d(8, 12, 3),
    "dense, narrowing": lambda: nn.Conv2d(12, 8, 3),
    "depthwise": lambda: nn.Conv2d(10, 10, 5, groups=10),
    "depthwise, twofold": lambda: nn.Conv2d(6, 12, 3, groups=6),
    "grouped": lambda: nn.Conv2d(12, 16, 3, groups=4),
    "linear": lambda: nn.Linear(20, 10),
    "8 bits": lambda: QuantizedConv2d(16, 16, 1),
    "8 bits, depthwise": lambda: QuantizedConv2d(6, 6, 7, groups=6),
    "1 bit": lambda: BinaryConv2d(16, 16, 3),
    "1 bit, widening": lambda: BinaryConv2d(16, 64, 1),
    "1 bit, grouped": lambda: BinaryConv2d(64, 64, 3, groups=2),
}
FLOAT = [name for name in LAYERS if not name.startswith("1 bit")]


def matrices(layer: nn.Module) -> np.ndarray:
    """[groups, out, in * k * k] of the layer's weights, in double precision."""
    weight = layer.weight.detach().double().numpy()
    groups = getattr(layer, "groups", 1)
    return weight.reshape(groups, len(weight) // groups, -1)


def gram(matrix: np.ndarray) -> np.ndarray:
    """The products of rows, or of columns where they are fewer."""
    return matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix


def made(layer: str, initialiser: str, seed: int = 0) -> nn.Module:
    module = LAYERS[layer]()
    INITIALISERS[initialiser](module, seed)
    return module


@pytest.mark.parametrize("initialiser", INITIALISERS)
@pytest.mark.parametrize("layer", LAYERS)
def test_weights_are_a_function_of_seed_and_name(layer: str, initialiser: str) -> None:
    """Not of what was there before, of torch's random numbers, or of what else the model holds, in which order."""
    torch.manual_seed(1)
    first = nn.ModuleDict({"a": LAYERS[layer](), "b": LAYERS[layer]()})
    INITIALISERS[initialiser](first, 3)
    torch.manual_seed(2)
    second = nn.ModuleDict({"b": LAYERS[layer](), "other": nn.Conv2d(3, 5, 3), "a": LAYERS[layer]()})
    INITIALISERS[initialiser](second, 3)
    for name in ("a", "b"):
        assert all(torch.equal(p, q) for p, q in zip(first[name].parameters(), second[name].parameters(), strict=True))
        assert first[name].weight.isfinite().all()
    assert not torch.equal(first["a"].weight, first["b"].weight)
    INITIALISERS[initialiser](second, 4)
    assert not torch.equal(first["a"].weight, second["a"].weight)


@pytest.mark.parametrize("initialiser", INITIALISERS)
def test_biases_are_zero_and_batch_norms_left_alone(initialiser: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.fill_(0.3)
    INITIALISERS[initialiser](model, 0)
    assert (model[0].bias == 0).all() and (model[3].bias == 0).all() and (model[1].weight == 0.3).all()


@pytest.mark.parametrize("initialiser", INITIALISERS)
def test_the_same_unit_gets_the_same_weights_in_supernet_and_network(
    initialiser: str, micro: SearchSpace, rng: np.random.Generator
) -> None:
    supernet, network = Supernet(micro), micro.build(micro.random(rng))
    for model in (supernet, network):
        INITIALISERS[initialiser](model, 5)
    theirs = dict(weight_layers(supernet))
    assert len(dict(weight_layers(network))) > 1
    for name, layer in weight_layers(network):
        assert torch.equal(layer.weight, theirs[name].weight), name


@pytest.mark.parametrize("layer", LAYERS)
def test_gaussian_weights_have_variance_one_over_fan_in(layer: str) -> None:
    """Mean and variance over enough seeds; five standard errors, of n normal values, around what they should be."""
    values = np.concatenate([matrices(made(layer, "gaussian", seed)).ravel() for seed in range(40)])
    values *= np.sqrt(matrices(LAYERS[layer]()).shape[2])
    assert abs(values.mean()) < 5 / np.sqrt(values.size)
    assert abs(values.var() - 1) < 5 * np.sqrt(2 / values.size)
    assert abs((values**4).mean() - 3) < 5 * np.sqrt(96 / values.size)


@pytest.mark.parametrize("initialiser", ["orthogonal", "hadamard"])
@pytest.mark.parametrize("layer", LAYERS)
def test_orthogonal_weights_are_orthogonal_in_each_group(layer: str, initialiser: str) -> None:
    for matrix in matrices(made(layer, initialiser)):
        product = gram(matrix)
        assert np.abs(product - np.eye(len(product))).max() < 1e-5


@pytest.mark.parametrize("initialiser", ["orthogonal", "orthogonal_delta", "hadamard"])
@pytest.mark.parametrize("layer", [name for name in LAYERS if "depthwise" in name and "twofold" not in name])
def test_each_depthwise_channel_has_norm_one(layer: str, initialiser: str) -> None:
    """A QR of all channels together would give them norms of sqrt(k * k / channels)."""
    norms = np.linalg.norm(matrices(made(layer, initialiser)), axis=2)
    assert np.abs(norms - 1).max() < 1e-6


def test_orthogonal_matrices_are_uniform_over_both_determinants() -> None:
    """QR by reflections alone always gives the same determinant; the signs of R's diagonal make both as likely."""
    square = nn.Conv2d(3, 3, 1)
    determinants = []
    for seed in range(100):
        INITIALISERS["orthogonal"](square, seed)
        determinants.append(np.linalg.det(matrices(square)[0]))
    assert np.abs(np.abs(determinants) - 1).max() < 1e-5
    assert 25 < sum(d > 0 for d in determinants) < 75


@pytest.mark.parametrize("layer", [name for name in FLOAT if "narrowing" not in name and name != "linear"])
def test_a_delta_orthogonal_convolution_keeps_every_norm(layer: str) -> None:
    """Of any image, not just of a single window: what `orthogonal` does not do for kernels larger than 1."""
    conv = made(layer, "orthogonal_delta")
    conv.padding = tuple(size // 2 for size in conv.kernel_size)
    weight = conv.weight.detach()
    image = torch.randn(1, conv.in_channels, 9, 7, generator=torch.Generator().manual_seed(0))
    result = nn.functional.conv2d(image, weight, padding=conv.padding, groups=conv.groups)
    assert result.square().sum().item() == pytest.approx(image.square().sum().item(), rel=1e-5)
    centre = conv.kernel_size[0] // 2
    assert (weight != 0).sum() == (weight[..., centre, centre] != 0).sum()


@pytest.mark.parametrize("layer", ["dense, narrowing", "linear", "1 bit", "1 bit, grouped"])
def test_where_delta_is_not_possible_weights_are_flat(layer: str) -> None:
    assert torch.equal(made(layer, "orthogonal_delta").weight, made(layer, "orthogonal").weight)


# Hadamard

ORDERS = {  # fan-in -> by which construction there is a matrix
    1: "itself", 2: "itself", 4: "doubling", 64: "doubling", 12: "Paley I", 20: "Paley I", 36: "Paley II",
    52: "Paley II over 25 elements", 100: "Paley II over 49 elements", 72: "Paley I", 144: "doubled Paley I",
}  # fmt: skip


def is_hadamard(matrix: np.ndarray) -> bool:
    m = matrix.astype(np.int64)
    return bool((np.abs(m) == 1).all() and (m @ m.T == len(m) * np.eye(len(m), dtype=np.int64)).all())


@pytest.mark.parametrize("order", ORDERS)
def test_hadamard_weights_are_exact(order: int) -> None:
    """Entries +-1, products of rows n or 0, in integers; latent values +-1 / sqrt(n)."""
    for out in {1, max(1, order // 2), order}:
        conv = BinaryConv2d(order, out, 1)
        INITIALISERS["hadamard"](conv, 0)
        weight = matrices(conv)[0]
        signs = np.sign(weight).astype(np.int64)
        assert set(np.unique(signs)) <= {-1, 1}
        assert (signs @ signs.T == order * np.eye(out, dtype=np.int64)).all()
        assert np.abs(np.abs(weight) - order**-0.5).max() < 1e-7 and np.abs(weight).max() <= 1


@pytest.mark.parametrize(("channels", "out", "kernel", "groups"), [(16, 16, 3, 1), (64, 64, 3, 2), (32, 64, 5, 4)])
def test_dense_hadamard_kernels_are_rows_in_each_group(channels: int, out: int, kernel: int, groups: int) -> None:
    conv = BinaryConv2d(channels, out, kernel, groups=groups)
    INITIALISERS["hadamard"](conv, 0)
    fan_in = channels // groups * kernel**2
    for matrix in np.sign(matrices(conv)).astype(np.int64):
        assert (matrix @ matrix.T == fan_in * np.eye(out // groups, dtype=np.int64)).all()


def test_a_widening_hadamard_convolution_has_orthogonal_columns() -> None:
    conv = BinaryConv2d(12, 48, 1)
    INITIALISERS["hadamard"](conv, 0)
    signs = np.sign(matrices(conv)[0]).astype(np.int64)
    assert (signs.T @ signs == 48 * np.eye(12, dtype=np.int64)).all()
    assert np.abs(np.abs(matrices(conv)[0]) - 48**-0.5).max() < 1e-7


@pytest.mark.parametrize(("out", "channels", "kernel"), [(16, 3, 3), (8, 18, 1), (30, 30, 1), (92, 92, 1)])
def test_without_a_matrix_of_the_order_weights_are_nearly_orthogonal(out: int, channels: int, kernel: int) -> None:
    """Next orders: 28, 20, 32 and 96; the products of different rows are at most as large as what was cut off."""
    conv = BinaryConv2d(channels, out, kernel)
    INITIALISERS["hadamard"](conv, 0)
    fan_in = channels * kernel**2
    following = {27: 28, 18: 20, 30: 32, 92: 96}[fan_in]
    signs = np.sign(matrices(conv)[0]).astype(np.int64)
    product = gram(signs)
    assert (np.diag(product) == max(fan_in, out)).all()
    assert 0 < np.abs(product - np.diag(np.diag(product))).max() <= following - max(fan_in, out)


@pytest.mark.parametrize("layer", FLOAT)
def test_float_weights_beside_hadamard_ones_are_orthogonal(layer: str) -> None:
    assert torch.equal(made(layer, "hadamard").weight, made(layer, "orthogonal").weight)


def test_hadamard_matrices_of_every_order_that_is_reached() -> None:
    known = {order: hadamard_matrix(order) for order in range(1, 201)}
    missing = [order for order in range(4, 201, 4) if known[order] is None]
    assert missing == [92, 116, 156, 172, 184, 188]  # the orders below 200 that neither Sylvester nor Paley reach
    for order, matrix in known.items():
        assert (matrix is None) if order > 2 and order % 4 else (order in missing or is_hadamard(matrix))


def test_every_1_bit_layer_of_the_spaces_has_a_matrix(plain: SearchSpace) -> None:
    for w in plain.all_workloads():
        if w.kind == "binary_conv":
            fan_in, out = w.in_channels // w.groups * w.kernel**2, w.out_channels // w.groups
            assert hadamard_matrix(max(fan_in, out)) is not None, w.key


def test_hadamard_signs_are_random_in_both_directions() -> None:
    """No constant row or column, as a matrix as constructed has one of; they are too unlikely to appear by chance."""
    conv = BinaryConv2d(64, 64, 1)
    constant = 0
    for seed in range(20):
        INITIALISERS["hadamard"](conv, seed)
        signs = np.sign(matrices(conv)[0])
        constant += int((np.abs(signs.sum(0)) == 64).any() or (np.abs(signs.sum(1)) == 64).any())
    assert constant == 0


def test_learned_scales_follow_the_weights() -> None:
    """1 / sqrt(fan-in) for +-1 / sqrt(fan-in) weights."""
    conv = BinaryConv2d(16, 8, 3, style=Style(scale="learned"))
    INITIALISERS["hadamard"](conv, 0)
    assert conv.beta is not None
    assert torch.allclose(conv.beta, torch.tensor(1 / 12.0))
