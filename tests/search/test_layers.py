"""The numeric contract of the layers: their values against NumPy, their gradients, and how they trace."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from bnas.profiles.errors import InputError
from bnas.search.binary.layers import (
    BinaryConv2d,
    Quantize,
    QuantizedConv2d,
    RPReLU,
    Style,
    reconstruction_loss,
    same_padding,
    set_progress,
)
from bnas.search.binary.quantizers import SCALES, SURROGATES

STYLES = [Style(*choice) for choice in itertools.product(SURROGATES, SCALES, (True, False))]
EVERY_STYLE = pytest.mark.parametrize("style", STYLES, ids=lambda s: f"{s.surrogate}-{s.scale}-{s.shifted}")
EVERY_SCALE = pytest.mark.parametrize("scale", SCALES)


def random_layer(style: Style, *shape: int, groups: int = 1, dilation: int = 1) -> BinaryConv2d:
    """Thresholds and scales of both signs; one weight is exactly 0."""
    layer = BinaryConv2d(*shape, dilation=dilation, groups=groups, style=style)
    with torch.no_grad():
        layer.weight[0, 0, 0, 0] = 0.0
        if layer.shift is not None:
            layer.shift.uniform_(-0.5, 0.5)
        if layer.beta is not None:
            layer.beta.uniform_(-1, 1)
    return layer


def numpy_scale(layer: BinaryConv2d) -> np.ndarray:
    """One positive number per output channel, float64."""
    weight = layer.weight.detach().double().numpy()
    return {
        "none": lambda: np.ones(len(weight)),
        "xnor": lambda: np.abs(weight).mean((1, 2, 3)),
        "learned": lambda: np.abs(layer.beta.detach().double().numpy().reshape(-1)),
    }[layer.style.scale]()


def tensorflow_pads(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def windows(padded: np.ndarray, kernel: int, stride: int, dilation: int, group: slice):
    """((n, i, j), the input channels of `group` under the kernel at output pixel i, j)."""
    reach = (kernel - 1) * dilation + 1
    out = (padded.shape[2] - reach) // stride + 1
    for n, i, j in np.ndindex(len(padded), out, out):
        rows = slice(i * stride, i * stride + reach, dilation)
        yield (n, i, j), padded[n, group, rows, slice(j * stride, j * stride + reach, dilation)]


# RPReLU


def random_rprelu(channels: int) -> RPReLU:
    layer = RPReLU(channels).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-1, 1)
    return layer


def test_training_rprelu_equals_the_plain_formula_with_its_gradients() -> None:
    torch.manual_seed(0)
    layer = random_rprelu(5)
    x = torch.randn(3, 5, 4, 4, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(x)
    inputs = (x, *layer.parameters())
    fast = torch.autograd.grad(layer.train()(x), inputs, upstream)
    plain = F.prelu(x - layer.shift_in, layer.slope) + layer.shift_out
    for a, b in zip(fast, torch.autograd.grad(plain, inputs, upstream), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(layer.train()(x), layer.eval()(x))


def test_double_backward_of_the_training_rprelu_against_finite_differences() -> None:
    torch.manual_seed(0)
    layer = random_rprelu(3).train()
    names = [name for name, _ in layer.named_parameters()]
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), x)

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()))
    assert torch.autograd.gradgradcheck(run, (x, *layer.parameters()))


# 1-bit convolutions


@given(st.integers(1, 40), st.sampled_from([1, 3, 5, 7]), st.sampled_from([1, 2, 3]), st.sampled_from([1, 2]))
def test_same_padding_gives_the_tensorflow_size_and_order(size: int, kernel: int, stride: int, dilation: int) -> None:
    before, after = same_padding(size, kernel, stride, dilation)
    assert after - before in (0, 1)
    padded, reach = size + before + after, (kernel - 1) * dilation + 1
    if padded >= reach:
        assert (padded - reach) // stride + 1 == -(-size // stride)


SHAPES = {  # (in, out, kernel, stride), size, groups, dilation
    "words": ((33, 4, 3, 2), 8, 1, 1),
    "one channel": ((1, 4, 5, 1), 7, 1, 1),
    "pointwise": ((64, 4, 1, 1), 4, 1, 1),
    "wide kernel": ((3, 4, 7, 2), 9, 1, 1),
    "groups": ((8, 4, 3, 2), 6, 4, 1),
    "dilated": ((5, 4, 3, 1), 7, 1, 2),
    "dilated stride": ((4, 4, 5, 2), 8, 2, 2),
}


@EVERY_SCALE
@pytest.mark.parametrize("shape", SHAPES)
def test_binary_conv_is_an_integer_dot_product_of_signs(scale: str, shape: str) -> None:
    """Counted bit by bit in NumPy: K - 2 * (number of places where signs differ), padding +1; then scaled."""
    torch.manual_seed(1)
    (channels, outputs, kernel, stride), size, groups, dilation = SHAPES[shape]
    layer = random_layer(Style(scale=scale), channels, outputs, kernel, stride, groups=groups, dilation=dilation)
    x = torch.randn(2, channels, size, size)
    x[0, 0, 0, 0] = layer.shift[0, 0, 0, 0]  # exactly at the threshold: +1
    bits, weights = (x < layer.shift).numpy(), (layer.weight < 0).numpy()
    pads = tensorflow_pads(size, kernel, stride, dilation)
    padded = np.pad(bits, ((0, 0), (0, 0), pads, pads), constant_values=False)
    out, per_group = -(-size // stride), channels // groups
    expected = np.empty((2, outputs, out, out))
    for o in range(outputs):
        group = o // (outputs // groups)
        inputs = slice(group * per_group, (group + 1) * per_group)
        for (n, i, j), window in windows(padded, kernel, stride, dilation, inputs):
            expected[n, o, i, j] = window.size - 2 * int((window ^ weights[o]).sum())
    found = layer(x).detach().numpy()
    if scale == "none":
        np.testing.assert_array_equal(found, expected)
    else:
        scales = numpy_scale(layer).reshape(1, -1, 1, 1)
        np.testing.assert_allclose(found / scales, expected, atol=1e-4)


@EVERY_STYLE
def test_values_depend_neither_on_the_mode_nor_on_gradients_nor_on_progress(style: Style) -> None:
    torch.manual_seed(2)
    layer = random_layer(style, 7, 6, 3, 2)
    x = torch.randn(2, 7, 8, 8)
    values = []
    for training, tracked, progress in itertools.product((True, False), (True, False), (0.0, 1.0)):
        set_progress(layer.train(training), progress)
        with torch.set_grad_enabled(tracked):
            values.append(layer(x).detach())
    assert all(torch.equal(values[0], other) for other in values[1:])


@pytest.mark.parametrize("tracked", [True, False])
@EVERY_STYLE
def test_binary_convs_trace_as_plain_comparisons(style: Style, tracked: bool) -> None:
    torch.manual_seed(4)
    layer = random_layer(style, 4, 6, 3, 2).eval()
    x = torch.randn(2, 4, 8, 8)
    with torch.set_grad_enabled(tracked):
        program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
    nodes = [n for n in program.graph.nodes if n.op == "call_function"]
    image = next(n for n in program.graph.nodes if n.op == "placeholder" and n.name == "x")
    assert [user.target._schema.name for user in image.users if not user.name.startswith("sym")] == ["aten::lt"]
    signs = [n.args[1:] for n in nodes if n.target._schema.name == "aten::where"]
    assert signs == [(-1.0, 1.0)] * 2
    more = torch.randn(3, 4, 8, 8)
    assert torch.equal(program.module()(more), layer(more))


@EVERY_SCALE
def test_deployed_weights_are_two_values_per_channel(scale: str) -> None:
    """What the traced convolution is given: they are recognised by value."""
    layer = random_layer(Style(scale=scale), 4, 6, 3).eval()
    program = torch.export.export(layer, (torch.randn(2, 4, 8, 8),), strict=False)
    conv = next(n for n in program.graph.nodes if n.name.startswith("conv2d"))
    binary = _value(conv.args[1], program)
    sizes = binary.abs().flatten(1)
    assert (sizes == sizes[:, :1]).all() and (sizes > 0).all()
    assert torch.equal(binary < 0, layer.weight < 0)
    np.testing.assert_allclose(sizes[:, 0].numpy(), numpy_scale(layer), rtol=1e-6)


def _value(node: torch.fx.Node, program: torch.export.ExportedProgram) -> Tensor:
    """The value of a node that depends on parameters only."""
    if node.op == "placeholder":
        return program.state_dict[program.graph_signature.inputs_to_parameters[node.name]].detach()
    arguments = torch.fx.node.map_arg((node.args, node.kwargs), lambda source: _value(source, program))
    return node.target(*arguments[0], **arguments[1])


def test_parameters_are_those_the_style_needs() -> None:
    for style in STYLES:
        names = {name for name, _ in BinaryConv2d(4, 6, 3, style=style).named_parameters()}
        optional = {"shift": style.shifted, "beta": style.scale == "learned"}
        assert names == {"weight"} | {name for name, there in optional.items() if there}


@pytest.mark.parametrize(
    ("field", "name", "hint"), [("surrogate", "polinomial", "polynomial"), ("scale", "xnr", "xnor")]
)
def test_an_unknown_style_names_the_value_and_the_choices(field: str, name: str, hint: str) -> None:
    with pytest.raises(InputError, match=f"unknown {field} '{name}'; did you mean '{hint}'"):
        Style(**{field: name})


def test_a_learned_scale_starts_at_the_mean_magnitude() -> None:
    layer = BinaryConv2d(3, 5, 3, style=Style(scale="learned"))
    magnitudes = np.abs(layer.weight.detach().numpy()).reshape(5, -1).mean(1)
    np.testing.assert_allclose(layer.beta.detach().numpy().reshape(-1), magnitudes, rtol=1e-6)


def test_clip_keeps_weights_where_they_learn_and_scales_off_zero() -> None:
    layer = BinaryConv2d(2, 3, 1, style=Style(scale="learned"))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-3.0, 0.5], [1.5, -0.25], [1.0, -1.0]]).view(3, 2, 1, 1))
        layer.beta.copy_(torch.tensor([0.0, -0.5, 2.0]).view(3, 1, 1, 1))
    layer.clip()
    assert layer.weight.flatten(1).tolist() == [[-1.0, 0.5], [1.0, -0.25], [1.0, -1.0]]
    first, *rest = layer.beta.flatten().tolist()
    assert rest == [-0.5, 2.0] and 0 < first < 1e-6


def test_the_growing_surrogate_follows_the_progress_of_the_training() -> None:
    """At 0 its slope is max(1, t) with t from 0.1 to 10; one weight of +1 passes it on."""
    conv = BinaryConv2d(1, 1, 1, style=Style("growing"))
    network = nn.Sequential(nn.Sequential(conv), BinaryConv2d(1, 1, 1))
    with torch.no_grad():
        conv.weight.fill_(0.5)
    slopes = []
    for share in (0.0, 0.5, 0.75, 1.0):
        set_progress(network, share)
        x = torch.zeros(1, 1, 1, 1, requires_grad=True)
        conv(x).sum().backward()
        slopes.append(x.grad.item())
    assert slopes == pytest.approx([1.0, 1.0, 10**0.5, 10.0])


# Reconstruction


@EVERY_SCALE
def test_reconstruction_loss_and_its_gradients_in_closed_form(scale: str) -> None:
    torch.manual_seed(5)
    layer = random_layer(Style(scale=scale), 4, 6, 3).double()
    loss = layer.reconstruction_loss()
    loss.backward()
    weight = layer.weight.detach().numpy()
    signs = np.where(weight < 0, -1.0, 1.0)
    beta = numpy_scale(layer) if scale == "learned" else np.abs(weight).mean((1, 2, 3))
    rest = weight - beta.reshape(-1, 1, 1, 1) * signs
    assert loss.item() == pytest.approx((rest**2).sum())
    np.testing.assert_allclose(layer.weight.grad.numpy(), 2 * rest)
    if scale == "learned":
        turned = np.sign(layer.beta.detach().numpy().reshape(-1))  # the scale is |beta|
        np.testing.assert_allclose(layer.beta.grad.numpy().reshape(-1), turned * -2 * (rest * signs).sum((1, 2, 3)))


@EVERY_SCALE
def test_reconstruction_gradients_against_finite_differences(scale: str) -> None:
    """Of the loss as a function of everything, mean |w| included: its own gradient vanishes where it is optimal."""
    torch.manual_seed(6)
    layer = random_layer(Style(scale=scale), 3, 2, 3).double()
    with torch.no_grad():
        layer.weight.add_(torch.where(layer.weight < 0, -0.05, 0.05))  # away from 0, where the sign jumps
    tensors = [layer.weight] if layer.beta is None else [layer.weight, layer.beta]
    layer.reconstruction_loss().backward()
    for tensor in tensors:
        direction, h = torch.rand_like(tensor), 1e-5
        values = []
        for step in (h, -2 * h):
            tensor.data.add_(step * direction)
            values.append(layer.reconstruction_loss().item())
        tensor.data.add_(h * direction)
        assert (tensor.grad * direction).sum().item() == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-6)


@given(st.integers(0, 1000), st.floats(-0.5, 0.5))
def test_the_mean_magnitude_reconstructs_best(seed: int, change: float) -> None:
    torch.manual_seed(seed)
    layer = BinaryConv2d(3, 4, 3, style=Style(scale="learned")).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn_like(layer.weight))
        layer.beta.copy_(layer.weight.abs().mean((1, 2, 3), keepdim=True))
    best = layer.reconstruction_loss()
    best.backward()
    np.testing.assert_allclose(layer.beta.grad.numpy(), 0, atol=1e-12)
    with torch.no_grad():
        layer.beta[0] += change
    assert layer.reconstruction_loss().item() == pytest.approx(best.item() + 27 * change**2)  # 27 weights a channel


def test_the_reconstruction_loss_of_a_model_is_the_sum_over_its_convolutions() -> None:
    convs = [BinaryConv2d(4, 4, 3, style=Style(scale=scale)) for scale in SCALES]
    model = nn.Sequential(convs[0], nn.Sequential(nn.Conv2d(4, 4, 1), *convs[1:]))
    assert reconstruction_loss(model).item() == pytest.approx(sum(c.reconstruction_loss().item() for c in convs))
    assert reconstruction_loss(nn.Conv2d(1, 1, 1)).item() == 0


# 8 bits


def numpy_quantize(x: np.ndarray, scale: np.ndarray, zero_point: int) -> np.ndarray:
    """In float32 as ATen: the product with 1 / scale, half to even."""
    levels = np.rint(x * (np.float32(1) / scale)) + np.float32(zero_point)
    return (np.clip(levels, 0, 255) - np.float32(zero_point)) * scale


BATCHES = {  # what Quantize is shown, in order
    "both signs": [(-1.0, 3.0), (-4.0, 2.0), (-0.5, 9.0)],
    "behind a ReLU": [(0.0, 3.0), (0.0, 6.0)],
    "above zero": [(2.0, 3.0), (1.0, 4.0)],
    "below zero": [(-3.0, -2.0), (-9.0, -1.0)],
    "all zero": [(0.0, 0.0), (0.0, 0.0)],
    "tiny": [(-1e-7, 1e-7)],
    "large": [(-1e6, 1e6), (0.0, 1e3)],
}


@pytest.mark.parametrize("kind", BATCHES)
def test_quantize_is_numpy_rounding_over_a_moving_range(kind: str) -> None:
    layer, rng = Quantize(), np.random.default_rng(0)
    low, high = None, None
    for bounds in BATCHES[kind]:
        x = rng.uniform(*bounds, size=(4, 3, 5, 5)).astype(np.float32)
        batch_low, batch_high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
        low = batch_low if low is None else 0.9 * low + 0.1 * batch_low
        high = batch_high if high is None else 0.9 * high + 0.1 * batch_high
        found = layer.train()(torch.tensor(x)).numpy()
        scale, zero_point = layer.scale.numpy(), int(layer.zero_point)
        assert layer.scale.dtype == torch.float32 and layer.zero_point.dtype == torch.int32
        assert scale > 0 and scale == pytest.approx(max((high - low) / 255, 1e-8), rel=1e-5)
        assert zero_point == pytest.approx(-low / float(scale), abs=0.51) and 0 <= zero_point <= 255
        np.testing.assert_array_equal(found, numpy_quantize(x, scale, zero_point))
        np.testing.assert_array_equal(layer.eval()(torch.tensor(x)).numpy(), found)
        assert layer(torch.zeros(2)).tolist() == [0, 0]
        inside = (x >= low) & (x <= high)
        assert (np.abs(found - x)[inside] <= 0.501 * scale).all()


def test_quantize_before_any_batch_spans_four_to_either_side_and_eval_moves_nothing() -> None:
    layer = Quantize().eval()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    x = torch.linspace(-4, 4, 1001)
    assert (layer(x) - x).abs().max() <= 0.51 * 8 / 255
    assert layer(torch.tensor([-50.0, 50.0])).abs().max() <= 4.02
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


def test_the_range_is_found_again_without_gradients_and_after_a_reset() -> None:
    layer = Quantize().train()
    with torch.no_grad():
        layer(torch.tensor([-100.0, 100.0]))
        layer(torch.tensor([-1.0, 1.0]))
        assert layer.scale.item() == pytest.approx((0.9 * 200 + 0.1 * 2) / 255)
        layer.reset_range()
        assert layer.scale.item() == pytest.approx(8 / 255)
        layer(torch.tensor([-1.0, 1.0]))
    assert layer.scale.item() == pytest.approx(2 / 255)


@given(st.lists(st.floats(-8, 8), min_size=1, max_size=20))
def test_the_gradient_of_quantize_is_that_of_a_clamp(values: list[float]) -> None:
    """Levels reach from -zero_point to 255 - zero_point steps; half a step beyond still rounds to the last one."""
    layer = Quantize().double().eval()
    scale, zero_point = layer.scale.item(), layer.zero_point.item()
    low, high = -(zero_point + 0.5) * scale, (255.5 - zero_point) * scale
    x = torch.tensor([v for v in values if min(abs(v - low), abs(v - high)) > 1e-3] + [0.0], dtype=torch.float64)
    h = 1e-6
    expected = ((x + h).clamp(low, high) - (x - h).clamp(low, high)) / (2 * h)
    x.requires_grad_()
    y = layer(x)
    (first,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
    torch.testing.assert_close(first, 3 * y**2 * expected)
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(second, 6 * y.detach() * expected)


@pytest.mark.parametrize("shape", ["wide kernel", "groups", "dilated", "pointwise"])
def test_quantized_conv_is_a_convolution_with_the_rounded_weights(shape: str) -> None:
    torch.manual_seed(7)
    (channels, outputs, kernel, stride), size, groups, dilation = SHAPES[shape]
    layer = QuantizedConv2d(channels, outputs, kernel, stride, dilation, groups)
    x = torch.randn(2, channels, size, size)
    weight = layer.weight.detach().numpy().astype(np.float64)
    step = np.abs(weight).max((1, 2, 3), keepdims=True) / 127
    rounded = np.rint(weight / step) * step
    padding = dilation * (kernel - 1) // 2
    padded = np.pad(x.numpy().astype(np.float64), ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    out, per_group = -(-size // stride), channels // groups
    expected = np.empty((2, outputs, out, out))
    for o in range(outputs):
        group = o // (outputs // groups)
        inputs = slice(group * per_group, (group + 1) * per_group)
        for (n, i, j), window in windows(padded, kernel, stride, dilation, inputs):
            expected[n, o, i, j] = (window * rounded[o]).sum()
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=1e-4)
    assert [name for name, _ in layer.named_parameters()] == ["weight"]


def test_eight_bit_units_train_and_trace() -> None:
    torch.manual_seed(8)
    unit = nn.Sequential(Quantize(), QuantizedConv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), Quantize())
    x, wanted = torch.randn(8, 3, 8, 8), torch.rand(8, 8, 4, 4)
    optimizer = torch.optim.SGD(unit.parameters(), 0.3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(F.mse_loss(unit.train()(x), wanted))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    program = torch.export.export(unit.eval(), (x,), strict=False)
    assert torch.equal(program.module()(x), unit(x))
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert names.count("aten.fake_quantize_per_tensor_affine.tensor_qparams") == 2
