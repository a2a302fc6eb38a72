"""The numeric contract of the layers, and their gradients against NumPy and finite differences."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from bnas.search.binary.blocks import average_channels, repeat_channels
from bnas.search.binary.layers import BinaryConv2d, RPReLU, same_padding
from bnas.search.binary.quantizers import ClippedIdentitySign, PolynomialSign, sign

EDGES = [0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-45, -1e-45, 1.0, -1.0, 0.5, -0.5]


@given(
    st.lists(st.sampled_from(EDGES) | st.floats(-3, 3, width=32), min_size=1, max_size=50),
    st.sampled_from([0.0, 0.5, -1.0]),
)
def test_sign_is_minus_one_exactly_where_x_is_below_the_shift(values: list[float], shift: float) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    expected = [-1.0 if np.float32(v) < np.float32(shift) else 1.0 for v in values]
    assert sign(x, shift).tolist() == expected


def test_sign_is_the_same_while_exporting() -> None:
    class Sign(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return sign(x, 0.25)

    x = torch.tensor([*EDGES, 0.25])
    exported = torch.export.export(Sign(), (x,)).module()
    assert exported(x).tolist() == sign(x, 0.25).tolist()
    assert "where" in str(exported.graph)


@pytest.mark.parametrize(
    ("function", "derivative"),
    [
        (ClippedIdentitySign, lambda x: (np.abs(x) <= 1).astype(float)),
        (PolynomialSign, lambda x: np.where(np.abs(x) < 1, 2 - 2 * np.abs(x), 0.0)),
    ],
)
def test_straight_through_gradients(function: type, derivative: object) -> None:
    values = np.array([-2, -1, -0.75, -0.0, 0.0, 0.25, 0.999, 1, 1.5])
    x = torch.tensor(values, requires_grad=True)
    upstream = torch.linspace(1, 2, len(values), dtype=torch.float64)
    y = function.apply(x)
    assert y.tolist() == [-1.0 if v < 0 else 1.0 for v in values]
    y.backward(upstream)
    np.testing.assert_allclose(x.grad.numpy(), derivative(values) * upstream.numpy())  # type: ignore[operator]


def test_double_backward_of_the_activation_sign() -> None:
    """d/dx of sum(g * (2 - 2|x|)) is -2 g sign(x) inside (-1, 1)."""
    x = torch.tensor([-0.5, 0.25, 3.0], requires_grad=True)
    (first,) = torch.autograd.grad(PolynomialSign.apply(x).sum() * 3, x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert second.tolist() == [6.0, -6.0, 0.0]


def test_training_rprelu_equals_the_plain_formula_with_its_gradients() -> None:
    torch.manual_seed(0)
    layer = RPReLU(5).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-1, 1)
    x = torch.randn(3, 5, 4, 4, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(x)
    inputs = (x, *layer.parameters())
    fast = torch.autograd.grad(layer.train()(x), inputs, upstream)
    plain = F.prelu(x - layer.shift_in, layer.slope) + layer.shift_out
    for a, b in zip(fast, torch.autograd.grad(plain, inputs, upstream), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(layer.train()(x), layer.eval()(x))


@given(st.integers(1, 40), st.sampled_from([1, 3, 5, 7]), st.sampled_from([1, 2, 3]), st.sampled_from([1, 2]))
def test_same_padding_gives_the_tensorflow_size_and_order(size: int, kernel: int, stride: int, dilation: int) -> None:
    before, after = same_padding(size, kernel, stride, dilation)
    assert after - before in (0, 1)
    padded, reach = size + before + after, (kernel - 1) * dilation + 1
    if padded >= reach:
        assert (padded - reach) // stride + 1 == -(-size // stride)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "size"), [(33, 3, 2, 8), (1, 5, 1, 7), (64, 1, 1, 4), (3, 7, 2, 9)]
)
def test_binary_conv_is_an_integer_dot_product_of_signs(
    training: bool, channels: int, kernel: int, stride: int, size: int
) -> None:
    """Counted bit by bit in NumPy: K - 2 * (number of places where signs differ), padding +1."""
    torch.manual_seed(1)
    layer = BinaryConv2d(channels, 4, kernel, stride).train(training)
    with torch.no_grad():
        layer.shift.uniform_(-0.5, 0.5)
        layer.weight[0, 0, 0, 0] = 0.0
    x = torch.randn(2, channels, size, size)
    x[0, 0, 0, 0] = layer.shift[0, 0, 0, 0]  # exactly at the threshold: +1
    bits = (x < layer.shift).numpy()
    weights = (layer.weight < 0).detach().numpy()
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    pad = (total // 2, total - total // 2)
    padded = np.pad(bits, ((0, 0), (0, 0), pad, pad), constant_values=False)
    out = -(-size // stride)
    expected = np.empty((2, 4, out, out))
    for n, o, i, j in np.ndindex(expected.shape):
        window = padded[n, :, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
        expected[n, o, i, j] = channels * kernel**2 - 2 * int((window ^ weights[o]).sum())
    np.testing.assert_array_equal(layer(x).detach().numpy(), expected)


def test_channels_repeat_and_average() -> None:
    x = torch.arange(4.0).view(1, 4, 1, 1)
    assert repeat_channels(x, 2).flatten().tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert average_channels(x, 2).flatten().tolist() == [1, 2]
