"""The sign, its stand-in derivatives, and the weights of 1 and 8 bits.

Derivatives are held against finite differences of the soft functions they claim to come from. For whole convolutions a
smooth twin is built: at one point its values are those of the hard convolution and its derivatives those of the soft
functions, so its finite differences are what training must see there, in first and in second order.
"""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from bnas.search.binary.layers import BinaryConv2d, Style, set_progress
from bnas.search.binary.quantizers import (
    SCALES,
    SURROGATES,
    activation_sign,
    clipped,
    int8_weight,
    mean_magnitude,
    sign,
    weight_sign,
)


def sharpness(progress: float) -> float:
    return 0.1 * 10 ** (2 * progress)


# The soft function of each surrogate, and the |x| from which on its derivative is exactly 0 in float64.
SOFT: dict[str, Callable[[Tensor, float], Tensor]] = {
    "polynomial": lambda x, p: torch.where(x.abs() < 1, 2 * x - x * x.abs(), x.clamp(-1, 1)),
    "clipped": lambda x, p: x.clamp(-1, 1),
    "growing": lambda x, p: max(1 / sharpness(p), 1) * torch.tanh(sharpness(p) * x),
}
SUPPORT = {"polynomial": lambda p: 1.0, "clipped": lambda p: 1.0, "growing": lambda p: 20 / sharpness(p)}
KINKS = [0.0, -0.0, 1.0, -1.0]
AT_KINKS = {  # at the end of the training
    "polynomial": [2.0, 2.0, 0.0, 0.0],
    "clipped": [1.0, 1.0, 1.0, 1.0],
    "growing": [10.0, 10.0, *[10 / np.cosh(10) ** 2] * 2],
}
# The scale of each output channel, and the factor in front of the clipped identity of its weights.
SCALE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "none": lambda w, beta: np.ones(len(w)),
    "xnor": lambda w, beta: np.abs(w).reshape(len(w), -1).mean(1),
    "learned": lambda w, beta: np.abs(beta.reshape(-1)),
}
PASSES_SCALED = {"none": False, "xnor": False, "learned": True}

EDGES = [0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-45, -1e-45, 1.0, -1.0, 0.5, -0.5]
PROGRESS = [0.0, 0.3, 0.5, 1.0]
NAMES = pytest.mark.parametrize("name", SURROGATES)


def surrogate_gradient(name: str, x: Tensor, upstream: Tensor, progress: float) -> Tensor:
    """The first gradient of activation_sign at x, differentiable in x and upstream."""
    y = activation_sign(x, None, SURROGATES[name], progress)
    return torch.autograd.grad(y, x, upstream, create_graph=True)[0]


@given(
    st.lists(st.sampled_from(EDGES) | st.floats(-3, 3, width=32), min_size=1, max_size=50),
    st.sampled_from([0.0, 0.5, -1.0]),
)
def test_sign_is_minus_one_exactly_where_x_is_below_the_shift(values: list[float], shift: float) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    expected = [-1.0 if np.float32(v) < np.float32(shift) else 1.0 for v in values]
    assert sign(x, shift).tolist() == expected
    threshold = torch.full((1, 1, 1, 1), shift)
    for tracked in (False, True):
        trained = activation_sign(x.view(-1, 1, 1, 1).requires_grad_(tracked), threshold, clipped, 0.0)
        assert trained.flatten().tolist() == expected


def test_sign_is_the_same_while_exporting() -> None:
    class Sign(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return sign(x, 0.25)

    x = torch.tensor([*EDGES, 0.25])
    exported = torch.export.export(Sign(), (x,)).module()
    assert exported(x).tolist() == sign(x, 0.25).tolist()
    assert "where" in str(exported.graph)


@NAMES
@given(
    values=st.lists(st.sampled_from(KINKS) | st.floats(-4, 4), min_size=1, max_size=30),
    progress=st.sampled_from(PROGRESS) | st.floats(0, 1),
    factor=st.floats(-3, 3),
)
def test_a_gradient_is_the_slope_of_its_soft_function(
    name: str, values: list[float], progress: float, factor: float
) -> None:
    """Between the slopes to the left and to the right, which differ at kinks only."""
    x, step = torch.tensor(values, dtype=torch.float64, requires_grad=True), 1e-7
    found = surrogate_gradient(name, x, torch.full_like(x, factor), progress).detach()
    at, soft = x.detach(), SOFT[name]
    slopes = torch.stack(
        [soft(at, progress) - soft(at - step, progress), soft(at + step, progress) - soft(at, progress)]
    )
    low, high = torch.aminmax(factor * slopes / step, dim=0)
    assert (found >= low - 1e-3).all() and (found <= high + 1e-3).all()


@NAMES
def test_gradients_at_the_kinks(name: str) -> None:
    x = torch.tensor(KINKS, dtype=torch.float64, requires_grad=True)
    found = surrogate_gradient(name, x, torch.ones_like(x), 1.0).tolist()
    assert found == pytest.approx(AT_KINKS[name], rel=1e-6, abs=0)


@NAMES
@pytest.mark.parametrize("progress", PROGRESS)
def test_gradients_are_exactly_zero_outside_of_the_support_and_positive_inside(name: str, progress: float) -> None:
    edge = SUPPORT[name](progress)
    outside = [np.nextafter(edge, np.inf), 1.5 * edge, 1e30, np.inf]
    x = torch.tensor([*outside, *(-v for v in outside)], dtype=torch.float64, requires_grad=True)
    assert surrogate_gradient(name, x, torch.full_like(x, 7.0), progress).tolist() == [0.0] * len(x)
    x = torch.linspace(-0.5 * edge, 0.5 * edge, 101, dtype=torch.float64, requires_grad=True)
    assert (surrogate_gradient(name, x, torch.ones_like(x), progress) > 0).all()


@NAMES
@pytest.mark.parametrize("progress", PROGRESS)
def test_double_backward_is_the_slope_of_the_first_gradient(name: str, progress: float) -> None:
    torch.manual_seed(0)
    x = away_from_kinks(torch.randn(200, dtype=torch.float64)).requires_grad_()
    upstream, weights = torch.randn(2, 200, dtype=torch.float64)
    upstream.requires_grad_()
    first = surrogate_gradient(name, x, upstream, progress)
    to_upstream = torch.autograd.grad(first, upstream, weights, retain_graph=True)[0]
    torch.testing.assert_close(to_upstream * upstream, first * weights)  # the first gradient is linear in it
    (second,) = torch.autograd.grad(first, x, weights, allow_unused=True)
    step = 1e-6
    above, below = (
        surrogate_gradient(name, x.detach() + d, upstream, progress) for d in (tracked(step), tracked(-step))
    )
    slope = weights * (above - below).detach() / (2 * step)
    torch.testing.assert_close(torch.zeros_like(x) if second is None else second, slope, rtol=1e-5, atol=1e-6)


def tracked(value: float) -> Tensor:
    return torch.full((200,), value, dtype=torch.float64, requires_grad=True)


def away_from_kinks(x: Tensor, distance: float = 0.01) -> Tensor:
    """x, moved where it lies near -1, 0 or 1."""
    for kink in (-1.0, 0.0, 1.0):
        x = torch.where((x - kink).abs() < distance, kink + distance, x)
    return x


WEIGHTS = np.array([[0.25, -0.5, 0.0, -0.0], [1.0, -1.0, 1.5, -2.0], [-1e-3, 3e-3, 0.7, -0.1]])
BETA = np.array([0.3, -0.2, 1e-3])


@pytest.mark.parametrize("scale", SCALES)
def test_binary_weights_are_plus_and_minus_one_scale_per_channel(scale: str) -> None:
    weight = torch.tensor(WEIGHTS.reshape(3, 4, 1, 1), dtype=torch.float32)
    beta = torch.tensor(BETA.reshape(3, 1, 1, 1), dtype=torch.float32)
    values = {}
    for tracked_ in (False, True):
        binary = SCALES[scale](weight.clone().requires_grad_(tracked_), beta).detach()
        np.testing.assert_array_equal((binary < 0).numpy(), weight.numpy() < 0)
        sizes = binary.abs().flatten(1)
        assert (sizes == sizes[:, :1]).all()
        np.testing.assert_allclose(sizes[:, 0].numpy(), SCALE[scale](WEIGHTS, BETA), rtol=1e-6)
        values[tracked_] = binary
    assert torch.equal(values[False], values[True])


@pytest.mark.parametrize("scale", SCALES)
def test_gradients_of_binary_weights_are_those_of_the_clipped_identity(scale: str) -> None:
    weight = torch.tensor(WEIGHTS.reshape(3, 4, 1, 1), requires_grad=True)
    beta = torch.tensor(BETA.reshape(3, 1, 1, 1), requires_grad=True)
    upstream = np.random.default_rng(0).normal(size=WEIGHTS.shape)
    SCALES[scale](weight, beta).backward(torch.tensor(upstream.reshape(3, 4, 1, 1)))
    factor = SCALE[scale](WEIGHTS, BETA)[:, None] if PASSES_SCALED[scale] else 1.0
    expected = upstream * (np.abs(WEIGHTS) <= 1) * factor
    np.testing.assert_allclose(weight.grad.numpy().reshape(3, 4), expected)
    if scale == "learned":
        signs = np.where(WEIGHTS < 0, -1.0, 1.0)
        np.testing.assert_allclose(beta.grad.flatten().numpy(), np.sign(BETA) * (upstream * signs).sum(1))
    else:
        assert beta.grad is None


def test_a_channel_of_zeros_has_a_positive_scale() -> None:
    assert (mean_magnitude(torch.zeros(2, 3, 1, 1)) > 0).all()


def smooth_twin(layer: BinaryConv2d, x: Tensor, progress: float) -> Callable[..., Tensor]:
    """The layer as a smooth function of its tensors: equal values at the present ones, derivatives of the soft ones."""
    soft = SOFT[layer.style.surrogate]
    hard = lambda v: torch.where(v < 0, -1.0, 1.0).double()  # noqa: E731
    centred = (x - layer.shift if layer.style.shifted else x).detach()
    weight = layer.weight.detach()
    scale = torch.tensor(SCALE["xnor"](weight.numpy(), None)).view(-1, 1, 1, 1) if layer.style.scale == "xnor" else 1.0
    activation_gap = hard(centred) - soft(centred, progress)
    weight_gap = scale * hard(weight) - weight.clamp(-1, 1)

    def twin(x: Tensor, weight: Tensor, shift: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
        activation = soft(x if shift is None else x - shift, progress) + activation_gap
        binary = weight.clamp(-1, 1) + weight_gap
        binary = binary if beta is None else beta.abs() * binary
        return F.conv2d(F.pad(activation, (1, 1, 1, 1), value=1.0), binary, groups=layer.groups)

    return twin


@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize(("surrogate", "scale"), list(itertools.product(SURROGATES, SCALES)))
def test_first_and_second_derivatives_of_a_convolution_are_those_of_its_smooth_twin(
    surrogate: str, scale: str, shifted: bool
) -> None:
    torch.manual_seed(3)
    progress = 0.4
    layer = BinaryConv2d(4, 6, 3, groups=2, style=Style(surrogate, scale, shifted)).double()
    set_progress(layer, progress)
    x = away_from_kinks(torch.randn(2, 4, 5, 5, dtype=torch.float64)).requires_grad_()
    with torch.no_grad():
        layer.weight.copy_(away_from_kinks(0.8 * torch.randn_like(layer.weight)))
        if shifted:
            layer.shift.uniform_(-1e-3, 1e-3)
        if scale == "learned":
            layer.beta.uniform_(-1, 1)
    upstream = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    named = {"x": x, **dict(layer.named_parameters())}
    assert set(named) == {"x", "weight"} | ({"shift"} if shifted else set()) | (
        {"beta"} if scale == "learned" else set()
    )
    tensors = tuple(named.values())
    left, right = ({n: torch.rand_like(t) - 0.5 for n, t in named.items()} for _ in range(2))
    twin = smooth_twin(layer, x, progress)

    def loss(y: Tensor) -> Tensor:
        return (y * upstream + 0.05 * y**2).sum()

    def shifted_loss(a: float, b: float) -> float:
        return loss(twin(**{n: t.detach() + a * left[n] + b * right[n] for n, t in named.items()})).item()

    torch.testing.assert_close(twin(**named), layer(x), rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(loss(layer(x)), tensors, create_graph=True)
    first = sum((g * left[n]).sum() for g, n in zip(gradients, named, strict=True))
    seconds = torch.autograd.grad(first, tensors)
    second = sum((g * right[n]).sum() for g, n in zip(seconds, named, strict=True))
    h = 1e-4
    assert first.item() == pytest.approx((shifted_loss(h, 0) - shifted_loss(-h, 0)) / (2 * h), rel=1e-5)
    corners = shifted_loss(h, h) - shifted_loss(h, -h) - shifted_loss(-h, h) + shifted_loss(-h, -h)
    assert second.item() == pytest.approx(corners / (4 * h * h), rel=1e-4)


@given(st.integers(0, 10_000), st.sampled_from([1e-20, 1e-3, 1.0, 1e4]))
def test_int8_weights_are_the_nearest_points_of_a_symmetric_grid_per_channel(seed: int, size: float) -> None:
    weight = (size * np.random.default_rng(seed).normal(size=(3, 2, 3, 3))).astype(np.float32)
    rounded = int8_weight(torch.tensor(weight)).numpy().astype(np.float64)
    step = np.abs(weight).max((1, 2, 3), keepdims=True).astype(np.float64) / 127
    steps = rounded / step
    np.testing.assert_allclose(steps, steps.round(), atol=1e-4)
    assert np.abs(steps.round()).max((1, 2, 3)).tolist() == [127, 127, 127]
    assert (np.abs(rounded - weight) <= 0.5001 * step).all()


def test_int8_weights_round_half_to_even_and_keep_zeros() -> None:
    weight = torch.tensor([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -127], [0.0] * 7]).view(2, 7, 1, 1)
    assert int8_weight(weight).flatten(1).tolist() == [[127, 0, 2, 2, 0, -2, -127], [0] * 7]


def test_gradients_pass_the_rounding_of_int8_weights_unchanged_twice() -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(4, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(int8_weight(weight), weight, upstream, create_graph=True)
    assert torch.equal(first, upstream)
    (second,) = torch.autograd.grad((int8_weight(weight) ** 2).sum(), weight, create_graph=True)
    torch.testing.assert_close(torch.autograd.grad(second.sum(), weight)[0], torch.full_like(weight, 2.0))


def test_weights_without_gradient_are_the_same() -> None:
    weight = torch.randn(3, 2, 3, 3)
    scale = mean_magnitude(weight)
    assert torch.equal(weight_sign(weight, scale), weight_sign(weight.clone().requires_grad_(), scale).detach())
