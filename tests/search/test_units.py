"""Units: every kind of workload has a module, of the shape it says, that computes what its kind says and exports."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnas.profiles.workload import KINDS, Workload
from bnas.search.binary.layers import Style
from bnas.search.binary.units import UNITS, make_unit

Reduce = Callable[[np.ndarray, tuple[int, int]], np.ndarray]
SIZES = ((8, 8), (7, 9), (6, 10), (1, 1))
ACTS = ((), ("relu",), ("prelu",), ("rprelu",))


def convolutions(
    kind: str, bits: int, channels: int, out: int, *, groups: tuple[int, ...] = (1,)
) -> Iterator[Workload]:
    """Every kernel, stride, dilation and number of groups on even, odd, long and small images."""
    residual = ("residual",) if kind == "binary_conv" else ()
    for number, size in enumerate(SIZES):
        epilogue = (*residual, *ACTS[number])
        for kernel, stride, dilation in (
            (1, 1, 1),
            (1, 2, 1),
            (3, 1, 1),
            (3, 2, 1),
            (5, 2, 1),
            (7, 1, 1),
            (3, 1, 2),
            (5, 2, 2),
        ):
            for g in groups:
                yield Workload(kind, bits, channels, out, *size, kernel, stride, dilation, g, epilogue)


EXAMPLES: dict[str, list[Workload]] = {
    "binary_conv": [*convolutions("binary_conv", 1, 32, 64), *convolutions("binary_conv", 1, 64, 64, groups=(2,))],
    "conv": [
        *convolutions("conv", 32, 6, 10, groups=(1, 2)),
        *convolutions("conv", 8, 6, 10),
        *convolutions("conv", 32, 8, 8, groups=(8,)),
        *convolutions("conv", 8, 8, 8, groups=(8,)),
    ],
    "downsample": [Workload("downsample", 32, 4, out, 8, 6, 2, 2) for out in (4, 8, 12)],
    "duplicate": [Workload("duplicate", 32, 4, out, 5, 6) for out in (8, 24)],
    "average": [Workload("average", 32, channels, 4, 5, 6) for channels in (8, 12, 24)],
    "max_pool": [Workload("max_pool", 32, 4, 4, *size, 3, stride) for size in SIZES for stride in (1, 2)],
    "avg_pool": [Workload("avg_pool", 32, 4, 4, *size, 3, stride) for size in SIZES for stride in (1, 2)],
    "relu": [Workload("relu", 32, 4, 4, 5, 6)],
    "norm": [Workload("norm", 32, 4, 4, 5, 6)],
    "quantize": [Workload("quantize", 8, 4, 4, 5, 6)],
    "add": [Workload("add", 32, 8, 4, 5, 6)],
    "concat": [Workload("concat", 32, 9, 9, 5, 6)],
    "even_channels": [Workload("even_channels", 32, 8, 4, 5, 6)],
    "odd_channels": [Workload("odd_channels", 32, 8, 4, 5, 6)],
    "head": [Workload("head", bits, 4, 10, 5, 6) for bits in (32, 8)],
}
ALL = [w for workloads in EXAMPLES.values() for w in workloads]


def test_every_kind_has_a_module_and_examples() -> None:
    assert set(UNITS) == set(EXAMPLES) == set(KINDS) - {"fixed"}


def inputs_of(w: Workload, batch: int = 2) -> list[Tensor]:
    """What the unit reads: one value, or the parts of a sum or a concatenation, and a residual."""
    parts = {"add": [w.in_channels // 2] * 2, "concat": [2, 3, w.in_channels - 5]}.get(w.kind, [w.in_channels])
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(batch, channels, w.height, w.width, generator=generator) for channels in parts]
    if "residual" in w.epilogue:
        values.append(torch.randn(batch, w.out_channels, w.out_height, w.out_width, generator=generator))
    return values


def unit_of(w: Workload) -> nn.Module:
    """With values in every parameter and buffer, in eval mode."""
    torch.manual_seed(0)
    unit = make_unit(w)
    with torch.no_grad():
        for name, tensor in unit.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.dim():
                tensor.normal_(0, 0.5)
    return unit.eval()


@pytest.mark.parametrize("w", ALL, ids=lambda w: w.key)
def test_the_result_has_the_shape_of_the_workload(w: Workload) -> None:
    y = unit_of(w)(*inputs_of(w))
    shape = (w.out_channels,) if w.kind == "head" else (w.out_channels, w.out_height, w.out_width)
    assert y.shape == (2, *shape) and y.dtype == torch.float32 and y.isfinite().all()


def same(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """TensorFlow's SAME: ceil(size / stride) windows, what is missing is split, the larger half behind."""
    windows = -(-size // stride)
    missing = max(0, (windows - 1) * stride + dilation * (kernel - 1) + 1 - size)
    return missing // 2, missing - missing // 2


def pooled(x: np.ndarray, stride: int, reduce: Reduce) -> np.ndarray:
    """reduce over the pixels of each 3x3 window that are inside; x: [N, C, H, W]."""
    height, width = x.shape[2:]
    top, left = same(height, 3, stride)[0], same(width, 3, stride)[0]
    rows = [slice(max(0, i - top), i - top + 3) for i in range(0, height, stride)]
    columns = [slice(max(0, j - left), j - left + 3) for j in range(0, width, stride)]
    return np.stack([np.stack([reduce(x[:, :, r, c], (2, 3)) for c in columns], 2) for r in rows], 2)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (7, 7), (8, 10), (5, 9), (2, 2), (1, 1)])
@pytest.mark.parametrize(("kind", "reduce"), [("max_pool", np.max), ("avg_pool", np.mean)])
def test_pools_are_those_of_tensorflow(kind: str, reduce: Reduce, size: tuple[int, int], stride: int) -> None:
    w = Workload(kind, 32, 4, 4, *size, 3, stride)
    (x,) = inputs_of(w)
    x = x - 3  # below zero, so that a padding of 0 would win
    expected = pooled(x.double().numpy(), stride, reduce)
    np.testing.assert_allclose(make_unit(w)(x).numpy(), expected, rtol=0, atol=1e-6)


def test_pools_take_mixed_sizes_where_nothing_is_skipped() -> None:
    for kind, reduce in (("max_pool", np.max), ("avg_pool", np.mean)):
        w = Workload(kind, 32, 4, 4, 5, 8, 3)
        (x,) = inputs_of(w)
        np.testing.assert_allclose(make_unit(w)(x).numpy(), pooled(x.double().numpy(), 1, reduce), atol=1e-6)
        with pytest.raises(ValueError, match="both even or both odd"):
            make_unit(replace(w, stride=2))
        with pytest.raises(ValueError, match="pools are 3x3"):
            make_unit(replace(w, kernel=5))


def numpy_of(w: Workload, *values: Tensor) -> np.ndarray:
    """Units without weights as their kind describes them, in NumPy."""
    x = values[0].numpy()
    times, groups = w.out_channels // w.in_channels, w.in_channels // max(1, w.out_channels)
    match w.kind:
        case "duplicate":
            return np.concatenate([x] * times, 1)
        case "downsample":
            means = (x[:, :, ::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, ::2] + x[:, :, 1::2, 1::2]) / 4
            return np.concatenate([means] * times, 1)
        case "average":
            return x.reshape(len(x), groups, w.out_channels, *x.shape[2:]).mean(1)
        case "relu":
            return np.maximum(x, 0)
        case "add":
            return x + values[1].numpy()
        case "concat":
            return np.concatenate([v.numpy() for v in values], 1)
        case "even_channels":
            return x[:, [0, 2, 4, 6]]
        case "odd_channels":
            return x[:, [1, 3, 5, 7]]
        case "quantize":  # nothing was seen yet: 256 levels from -4 to 4, of which 0 is one
            return np.clip(np.round(x * 255 / 8), -128, 127) * 8 / 255
    raise AssertionError(w.kind)


WITHOUT_WEIGHTS = (
    "duplicate",
    "downsample",
    "average",
    "relu",
    "add",
    "concat",
    "even_channels",
    "odd_channels",
    "quantize",
)


@pytest.mark.parametrize("w", [w for kind in WITHOUT_WEIGHTS for w in EXAMPLES[kind]], ids=lambda w: w.key)
def test_units_without_weights_by_hand(w: Workload) -> None:
    values = inputs_of(w)
    np.testing.assert_allclose(make_unit(w).eval()(*values).numpy(), numpy_of(w, *values), rtol=0, atol=1e-6)


def normalised(unit: nn.Module, y: Tensor) -> Tensor:
    norm = unit.norm
    mean, variance, gamma, beta = (
        v.view(1, -1, 1, 1) for v in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (y - mean) / torch.sqrt(variance + norm.eps) * gamma + beta


def activated(unit: nn.Module, w: Workload, y: Tensor) -> Tensor:
    if "relu" in w.epilogue:
        return y.clamp(min=0)
    if "prelu" in w.epilogue:
        return torch.where(y < 0, unit.act.weight.view(1, -1, 1, 1) * y, y)
    if "rprelu" in w.epilogue:
        centred = y - unit.act.shift_in
        return torch.where(centred < 0, unit.act.slope.view(1, -1, 1, 1) * centred, centred) + unit.act.shift_out
    return y


@pytest.mark.parametrize("w", EXAMPLES["binary_conv"], ids=lambda w: w.key)
def test_a_binary_unit_is_the_formula(w: Workload) -> None:
    """act(norm(conv(sign(x - shift), sign(W))) + residual), padded with +1 as TensorFlow pads."""
    unit = unit_of(w)
    x, residual = inputs_of(w)
    signs = torch.where(x < unit.conv.shift, -1.0, 1.0)
    pads = [p for size in (w.width, w.height) for p in same(size, w.kernel, w.stride, w.dilation)]
    weight = torch.where(unit.conv.weight < 0, -1.0, 1.0)
    y = F.conv2d(F.pad(signs, pads, value=1.0), weight, None, w.stride, 0, w.dilation, w.groups)
    expected = activated(unit, w, normalised(unit, y) + residual)
    torch.testing.assert_close(unit(x, residual), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("w", [w for w in EXAMPLES["conv"] if w.bits == 32], ids=lambda w: w.key)
def test_a_float_unit_is_the_formula(w: Workload) -> None:
    """act(norm(conv(x, W))), padded with the same number of zeros on all sides."""
    unit, (x,) = unit_of(w), inputs_of(w)
    border = w.dilation * (w.kernel - 1) // 2
    padded = F.pad(x, [border] * 4)
    y = F.conv2d(padded, unit.conv.weight, None, w.stride, 0, w.dilation, w.groups)
    torch.testing.assert_close(unit(x), activated(unit, w, normalised(unit, y)), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("w", [w for w in EXAMPLES["conv"] if w.bits == 8], ids=lambda w: w.key)
def test_an_eight_bit_unit_gives_at_most_256_levels(w: Workload) -> None:
    """Equally spaced, 0 among them, and fitted to what it saw; between them lies what the weights' integers give."""
    unit = unit_of(w).train()
    (x,) = inputs_of(w, batch=8)
    unit(x)
    y = unit.eval()(x)
    scale, zero_point = float(unit.quantize.scale), int(unit.quantize.zero_point)
    levels = y.double() / scale
    assert float((levels - levels.round()).abs().max()) < 1e-3
    assert levels.min() + zero_point > -0.5 and levels.max() + zero_point < 255.5

    rows = unit.conv.weight.flatten(1)
    steps = rows.abs().amax(1, keepdim=True) / 127
    weight = ((rows / steps).round() * steps).view_as(unit.conv.weight)
    z = F.conv2d(x, weight, None, w.stride, w.dilation * (w.kernel // 2), w.dilation, w.groups)
    exact = activated(unit, w, normalised(unit, z)).clamp(-zero_point * scale, (255 - zero_point) * scale)
    assert float((y - exact).abs().max()) <= 0.5001 * scale


def test_a_head_is_the_mean_and_a_matrix() -> None:
    w = Workload("head", 32, 4, 10, 5, 6)
    unit, (x,) = unit_of(w), inputs_of(w)
    expected = x.flatten(2).sum(2) / 30 @ unit.linear.weight.T + unit.linear.bias
    torch.testing.assert_close(unit(x), expected, rtol=1e-5, atol=1e-5)


def test_an_eight_bit_head_multiplies_integers() -> None:
    """Means in whole steps from 0 to 255, weights in whole steps of the largest of a class / 127; a float bias."""
    w = Workload("head", 8, 4, 10, 5, 6)
    unit = unit_of(w).train()
    (x,) = inputs_of(w, batch=8)
    unit(x)
    means, weight = x.double().mean((2, 3)), unit.linear.weight.double()
    low, high = min(0.0, float(means.min())), max(0.0, float(means.max()))  # of the one batch that was seen
    step = (high - low) / 255
    zero_point = round(-low / step)
    inputs = (means / step).round().clamp(-zero_point, 255 - zero_point)
    steps = weight.abs().amax(1) / 127
    expected = inputs @ (weight / steps[:, None]).round().T * step * steps + unit.linear.bias
    torch.testing.assert_close(unit.eval()(x).double(), expected, rtol=1e-5, atol=1e-5)
    assert float((unit(x) - (x.mean((2, 3)) @ unit.linear.weight.T + unit.linear.bias)).abs().max()) > 1e-4


@pytest.mark.parametrize("kind", EXAMPLES)
def test_units_trace_cleanly(kind: str) -> None:
    """torch.export takes them without a graph break, and what it gives computes the same."""
    w = EXAMPLES[kind][-1 if kind in ("binary_conv", "conv", "head") else 0]
    unit, values = unit_of(replace(w, height=8, width=6)), inputs_of(replace(w, height=8, width=6))
    exported = torch.export.export(unit, tuple(values))
    with torch.no_grad():
        assert torch.equal(exported.module()(*values), unit(*values))


def test_batch_norms_have_gamma_and_beta_only_if_asked() -> None:
    for kind in ("binary_conv", "conv", "norm"):
        w = EXAMPLES[kind][0]
        with_affine = {name for name, _ in make_unit(w).named_parameters()}
        without = {name for name, _ in make_unit(w, affine=False).named_parameters()}
        assert with_affine - without == {"norm.weight", "norm.bias"} and without < with_affine


def test_the_style_reaches_one_bit_units() -> None:
    w = EXAMPLES["binary_conv"][0]
    assert {name for name, _ in make_unit(w, Style(scale="learned")).conv.named_parameters()} == {
        "shift",
        "weight",
        "beta",
    }
    assert {name for name, _ in make_unit(w, Style(shifted=False)).conv.named_parameters()} == {"weight"}
