"""Networks written in plain torch, as a user may write them; the graph must compute what they compute."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnas.export.capture import capture
from bnas.export.graph import BinaryConv
from bnas.export.lowering import Lowered, binary_weights, lower
from bnas.export.onnx_writer import to_onnx
from bnas.export.units import graph_workloads
from bnas.profiles.errors import InputError
from bnas.profiles.workload import Workload
from bnas.search.spaces import SPACES, make_space


def below(x: Tensor, t: Tensor) -> Tensor:
    return torch.where(x < t, -1.0, 1.0)


def at_least(x: Tensor, t: Tensor) -> Tensor:
    return torch.where(x >= t, torch.tensor(1.0), torch.tensor(-1.0))


def difference(x: Tensor, t: Tensor) -> Tensor:
    return torch.where(x - t < 0, -1.0, 1.0)


class Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return torch.where(x < 0, -1.0, 1.0)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


def straight_through(x: Tensor, t: Tensor) -> Tensor:
    return Through.apply(x - t)


class Unit(nn.Module):
    """sign -> pad(+1) -> 1-bit convolution -> batch-norm [-> + residual] [-> activation]."""

    def __init__(
        self,
        channels: int = 8,
        out: int = 8,
        kernel: int = 3,
        activation: str = "rprelu",
        sign: Callable[[Tensor, Tensor], Tensor] = below,
        pad_value: float = 1.0,
        groups: int = 1,
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(1, channels, 1, 1))
        self.weight = nn.Parameter(torch.randn(out, channels // groups, kernel, kernel))
        self.scale = nn.Parameter(torch.rand(out, 1, 1, 1) + 0.1)
        self.norm = random_norm(out)
        self.a, self.b = nn.Parameter(torch.randn(1, out, 1, 1)), nn.Parameter(torch.randn(1, out, 1, 1))
        self.slope = nn.Parameter(torch.randn(out))
        self.activation, self.sign, self.pad_value = activation, sign, pad_value
        self.groups, self.stride = groups, stride

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        p = self.weight.shape[2] // 2
        signs = F.pad(self.sign(x, self.shift), (p, p, p, p), value=self.pad_value)
        weight = below(self.weight, torch.zeros(())) * self.scale
        y = self.norm(F.conv2d(signs, weight, stride=self.stride, groups=self.groups))
        y = y if residual is None else y + residual
        if self.activation == "rprelu":
            return F.prelu(y - self.a, self.slope) + self.b
        return {"prelu": F.prelu(y, self.slope), "relu": F.relu(y), "none": y}[self.activation]


def random_norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    nn.init.normal_(norm.weight)  # negative for half of the channels
    nn.init.normal_(norm.bias)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


class Network(nn.Module):
    """stem -> body -> head; body maps [N, 8, 6, 7] to any [N, C, H, W]."""

    def __init__(self, body: Callable[[Tensor], Tensor], channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), random_norm(8))
        self.body, self.head = body, nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean(dim=(2, 3)))


class Body(nn.Module):
    """A function of the stem's output that may use modules."""

    def __init__(self, function: Callable[..., Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)


def lowered(module: nn.Module, shape: tuple[int, int, int] = (3, 6, 7)) -> Lowered:
    """The lowered network, after checking in onnxruntime that it computes what the module does."""
    module.eval()
    result = lower(capture(module, torch.randn(2, *shape)))
    x = torch.randn(4, *shape)
    session = onnxruntime.InferenceSession(
        to_onnx(result.graph, {}).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    with torch.no_grad():
        wanted = module(x).numpy()
    (found,) = session.run(None, {"image": x.numpy()})
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
    return result


def kinds(result: Lowered) -> list[str]:
    return ["binary" if isinstance(n, BinaryConv) else n.kind for n in result.graph.nodes]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("sign", "activation"),
    [(below, "rprelu"), (at_least, "prelu"), (difference, "relu"), (straight_through, "none")],
    ids=["below", "at_least", "difference", "straight_through"],
)
def test_a_unit_with_its_residual_becomes_one_node(sign: Callable[[Tensor, Tensor], Tensor], activation: str) -> None:
    result = lowered(Network(Body(lambda x, unit: unit(x, x), Unit(sign=sign, activation=activation))))
    assert kinds(result) == ["conv", "binary", "global_mean", "linear"]
    epilogue = ("residual",) if activation == "none" else ("residual", activation)
    assert graph_workloads(result.graph) == (
        Workload("conv", 32, 3, 8, 6, 7, 3),
        Workload("binary_conv", 1, 8, 8, 6, 7, 3, epilogue=epilogue),
        Workload("head", 32, 8, 5, 6, 7),
    )
    assert [(c.name, c.kind) for c in result.convolutions] == [("stem.0", "float"), ("body.parts.0", "binary")]
    assert result.convolutions[0].reason == "weights take more than two values and input is not a sign"


@pytest.mark.parametrize(
    "unit",
    [
        Unit(kernel=1),
        Unit(kernel=5, activation="prelu"),
        Unit(groups=2, out=4, activation="relu"),
        Unit(stride=2, activation="none"),
        Unit(kernel=7, out=3),
    ],
    ids=["1x1", "5x5", "groups", "stride", "7x7"],
)
def test_a_unit_without_residual_becomes_one_node(unit: Unit) -> None:
    assert kinds(lowered(Network(unit, unit.weight.shape[0]))) == ["conv", "binary", "global_mean", "linear"]


def test_scale_and_batch_norm_are_folded_exactly() -> None:
    unit = Unit(activation="none")
    node = lowered(Network(unit)).graph.binary_convs[0]
    factor = unit.norm.weight.double() / (unit.norm.running_var.double() + unit.norm.eps).sqrt()
    np.testing.assert_allclose(node.scale, (factor * unit.scale.double().flatten()).detach(), rtol=1e-7)
    bias = unit.norm.bias.double() - unit.norm.running_mean.double() * factor
    np.testing.assert_allclose(node.bias, bias.detach(), rtol=1e-7)
    np.testing.assert_array_equal(node.negative, unit.weight.detach() < 0)
    np.testing.assert_array_equal(node.shift, unit.shift.detach().flatten())


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x, u: u(x) + u(x + 1), ["conv", "affine", "binary", "binary", "global_mean", "linear"]),
        (lambda x, u: (y := u(x)) + F.relu(y), ["conv", "binary", "relu", "add", "global_mean", "linear"]),
    ],
    ids=["two units", "value read twice"],
)
def test_only_values_read_once_are_taken_up(function: Callable[..., Tensor], expected: list[str]) -> None:
    assert kinds(lowered(Network(Body(function, Unit(activation="none"))))) == expected


class Twice(nn.Module):
    """The convolution's value before the batch-norm is read again, so the batch-norm must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.randn(8, 8, 1, 1)), random_norm(8)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(below(x, torch.zeros(())), below(self.weight, torch.zeros(())))
        return self.norm(y) + y


def test_a_value_that_is_read_again_is_not_folded_away() -> None:
    assert kinds(lowered(Network(Twice()))) == ["conv", "binary", "affine", "add", "global_mean", "linear"]


def test_a_fresh_units_shift_is_not_taken_for_the_next_sign() -> None:
    """With a threshold of 0 the sign behind could take up the shift; but it is the end of the unit in front."""
    units = Unit(), Unit()
    for unit in units:
        unit.shift.data.zero_()
    result = lowered(Network(Body(lambda x, first, second: second(y := first(x, x), y), *units)))
    assert kinds(result) == ["conv", "binary", "binary", "global_mean", "linear"]
    assert kinds(lowered(Network(nn.Sequential(*units)))) == ["conv", "binary", "binary", "global_mean", "linear"]
    assert all(unit.act_shift_out is not None for unit in result.graph.binary_convs)


@pytest.mark.parametrize(
    ("unit", "reason"),
    [
        (Unit(pad_value=0.0), "zero padding"),
        (Unit(pad_value=-1.0), "padding with -1"),
        (Unit(groups=8, kernel=1), "one weight per output, which any value fits"),
    ],
    ids=["zero", "minus one", "fan-in 1"],
)
def test_a_binary_convolution_that_cannot_be_written_stays_float_with_its_reason(unit: Unit, reason: str) -> None:
    result = lowered(Network(unit))
    assert [(c.kind, c.reason) for c in result.convolutions[1:]] == [("float", reason)]
    assert "sign" in kinds(result)


def test_padding_inside_the_convolution_is_zero_padding() -> None:
    weight = torch.ones(8, 8, 3, 3)
    result = lowered(Network(lambda x: F.conv2d(below(x, torch.zeros(())), weight, padding=1)))
    assert result.convolutions[1].reason == "zero padding"


@pytest.mark.parametrize(
    ("weight", "problem"),
    [
        (np.array([0.5, -0.5, 0.0]), "zeros"),
        (np.array([0.5, -0.5, 0.4]), "more than two values"),
        (np.array([0.5, -0.5, np.nan]), "non-finite"),
    ],
)
def test_weights_that_are_not_binary(weight: np.ndarray, problem: str) -> None:
    found = binary_weights(np.stack([np.ones(3), weight]).reshape(2, 3, 1, 1))
    assert isinstance(found, str) and problem in found


def test_binary_weights_may_carry_rounding() -> None:
    weight = np.array([[0.5, -0.500001, 0.5], [-3, -3, 3]]).reshape(2, 3, 1, 1)
    found = binary_weights(weight)
    assert not isinstance(found, str)
    np.testing.assert_array_equal(found[0], weight < 0)
    np.testing.assert_array_equal(found[1], [0.5, 3])


FLOAT_BODIES: dict[str, Callable[[Tensor], Tensor]] = {
    "average of halves": lambda x: 0.5 * (x[:, :4] + x[:, 4:]),
    "average of chunks": lambda x: sum(x.chunk(4, dim=1)[1:], x.chunk(4, dim=1)[0]) * 0.25,
    "narrow": lambda x: x.narrow(1, 2, 5),
    "negative slice": lambda x: x[:, -3:],
    "cat": lambda x: torch.cat([x, x * 2, x], dim=1),
    "avg_pool": lambda x: F.avg_pool2d(x, 2),
    "avg_pool ceil": lambda x: F.avg_pool2d(x, 2, ceil_mode=True),
    "max_pool": lambda x: F.max_pool2d(x, 3, 2, padding=1),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (3, 7)),
    "affine": lambda x: (2 - x) / 3 - torch.arange(8.0).reshape(1, 8, 1, 1),
    "difference": lambda x: F.relu(x) - x * 2,
    "leaky": lambda x: F.leaky_relu(x, 0.2).clone().contiguous(),
    "pad": lambda x: F.pad(x, (1, 0, 2, 1), value=0.5),
    "same": lambda x: F.conv2d(x, torch.linspace(-1, 1, 8 * 8 * 4).reshape(8, 8, 2, 2), padding="same"),
    "dilated": lambda x: F.conv2d(x, torch.linspace(-1, 1, 8 * 4 * 9).reshape(8, 4, 3, 3), dilation=2, groups=2),
}


@pytest.mark.parametrize("name", FLOAT_BODIES)
def test_float_operators(name: str) -> None:
    body = FLOAT_BODIES[name]
    channels = body(torch.zeros(1, 8, 6, 7)).shape[1]
    lowered(Network(body, channels))


class Flattening(nn.Module):
    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(), nn.Dropout(0.5))
        self.pool = nn.AdaptiveAvgPool2d(1) if pooled else nn.Identity()
        self.head = nn.Linear(4 if pooled else 4 * 4 * 5, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(self.features(x))
        return self.head(y.view(y.size(0), -1))


@pytest.mark.parametrize("pooled", [True, False])
def test_heads_that_flatten(pooled: bool) -> None:
    assert kinds(lowered(Flattening(pooled))) == ["conv", "prelu", "global_mean" if pooled else "flatten", "linear"]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (torch.sigmoid, r"aten\.sigmoid in .* is not supported"),
        (lambda x: x * x, r"aten\.mul in .* one constant operand"),
        (lambda x: x + torch.arange(7.0), r"aten\.add in .* not one value per channel"),
        (lambda x: torch.where(x < 0, 0.0, 1.0), r"aten\.where in .* as a sign"),
        (lambda x: x.transpose(2, 3), r"aten\.transpose in .* is not supported"),
        (lambda x: x * F.adaptive_avg_pool2d(x, 1), "one constant operand"),
        (lambda x: F.relu(F.adaptive_avg_pool2d(x, 1)) + x, "keeps its spatial axes"),
    ],
)
def test_an_unknown_operator_is_named_with_its_module(body: Callable[[Tensor], Tensor], problem: str) -> None:
    module = Network(Body(body)).eval()
    with pytest.raises(InputError, match=problem) as caught:
        lower(capture(module, torch.randn(2, 3, 6, 7)))
    assert "in body " in str(caught.value) and "\n" not in str(caught.value)


def space_texts() -> list[str]:
    """Every space, with every width of its candidates that it can have alone."""
    return [
        f"{name}:bits={bits}" if bits else name
        for name, module in SPACES.items()
        for bits in module.OPTIONS.get("bits", ("",))
        if "+" not in bits
    ]


def apart(workloads: Iterable[Workload]) -> Iterator[Workload]:
    """A ReLU behind a convolution counts alone: whether the file fuses the two depends on who else reads the values,
    in cells on the edges that were chosen, while the space describes each edge by itself."""
    for w in workloads:
        if w.kind == "conv" and w.epilogue == ("relu",):
            yield replace(w, epilogue=())
            yield Workload("relu", 32, w.out_channels, w.out_channels, w.out_height, w.out_width)
        else:
            yield w


@pytest.mark.parametrize("text", space_texts())
def test_the_workloads_of_a_searched_network_are_those_of_its_file(text: str) -> None:
    space = make_space(text, (1, 8, 8), 10)
    arch = space.random(np.random.default_rng(0))
    result = lower(capture(space.build(arch), torch.randn(2, 1, 8, 8)))
    found, predicted = (Counter(apart(w)) for w in (graph_workloads(result.graph), space.workloads(arch)))
    assert (found - predicted, predicted - found) == (Counter(), Counter())
