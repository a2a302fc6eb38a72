"""8-bit convolutions, from fake-quantised training modules to files that compute with integers."""

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnas.export.capture import capture
from bnas.export.eight_bit import eight_bit_units, image_units, integer_weights
from bnas.export.gate import ExposedOnnx, GateError, check, expose_onnx
from bnas.export.graph import FloatOp, Graph
from bnas.export.lowering import Lowered, lower
from bnas.export.onnx_functions import CONVS
from bnas.export.onnx_writer import to_onnx, write_onnx
from bnas.export.pipeline import export_network
from bnas.export.twins import optimised_nodes
from bnas.export.units import graph_workloads, unit_model
from bnas.profiles.errors import InputError
from bnas.profiles.workload import Workload

IMAGES = np.random.default_rng(0).standard_normal((300, 3, 8, 8)).astype(np.float32)


class Rounded(nn.Module):
    """torch's fake quantisation with parameters in buffers, or given as numbers."""

    def __init__(self, scale: float, zero_point: int, *, buffers: bool = True, top: int = 255) -> None:
        super().__init__()
        self.numbers, self.top = None if buffers else (scale, zero_point), top
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        scale, zero_point = self.numbers or (self.scale, self.zero_point)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, self.top)


class Unit(nn.Module):
    """conv(x, rounded weight) -> batch-norm -> activation -> rounding to 8 bits."""

    def __init__(self, inputs: int, outputs: int, kernel: int, activation: str = "relu", **geometry: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **geometry)
        self.norm = nn.BatchNorm2d(outputs)
        nn.init.normal_(self.norm.weight)  # negative for half of the channels
        nn.init.normal_(self.norm.bias)
        self.slope, self.shift = nn.Parameter(torch.rand(outputs)), nn.Parameter(torch.randn(1, outputs, 1, 1))
        self.activation = activation
        self.rounded = Rounded(0.03, 0 if activation == "relu" else 90)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.conv.weight.abs().amax((1, 2, 3)) / 127
        zeros = torch.zeros(len(scale), dtype=torch.int32)
        weight = torch.fake_quantize_per_channel_affine(self.conv.weight, scale, zeros, 0, -127, 127)
        y = self.norm(self.conv._conv_forward(x, weight, None))
        y = {
            "none": lambda: y,
            "relu": lambda: F.relu(y),
            "prelu": lambda: F.prelu(y, self.slope),
            "rprelu": lambda: F.prelu(y - self.shift, self.slope) + self.shift,
        }[self.activation]()
        return self.rounded(y)


class RoundedLinear(nn.Linear):
    """Rounding to 8 bits -> x @ rounded weight + bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.rounded = Rounded(0.01, 100)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.abs().amax(1) / 127
        zeros = torch.zeros(len(scale), dtype=torch.int32)
        weight = torch.fake_quantize_per_channel_affine(self.weight, scale, zeros, 0, -127, 127)
        return F.linear(self.rounded(x), weight, self.bias)


class Network(nn.Module):
    """Rounded image -> units -> head."""

    def __init__(self, units: Sequence[nn.Module], channels: int, head: type[nn.Linear] = nn.Linear) -> None:
        super().__init__()
        self.rounded, self.units, self.head = Rounded(0.03, 128), nn.Sequential(*units), head(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.units(self.rounded(x)).mean(dim=(2, 3)))


def every_unit() -> Network:
    torch.manual_seed(0)
    units = [
        Unit(3, 16, 3),
        Unit(16, 16, 5, groups=16),
        Unit(16, 24, 1, "none"),
        Unit(24, 24, 3, stride=2, groups=2),
        Unit(24, 16, 1, "prelu"),
        Unit(16, 16, 3, "rprelu"),
    ]
    return Network(units, 16, RoundedLinear).eval()


WORKLOADS = (
    Workload("quantize", 8, 3, 3, 8, 8),
    Workload("conv", 8, 3, 16, 8, 8, 3, epilogue=("relu",)),
    Workload("conv", 8, 16, 16, 8, 8, 5, groups=16, epilogue=("relu",)),
    Workload("conv", 8, 16, 24, 8, 8),
    Workload("conv", 8, 24, 24, 8, 8, 3, 2, groups=2, epilogue=("relu",)),
    Workload("conv", 8, 24, 16, 4, 4, epilogue=("prelu",)),
    Workload("conv", 8, 16, 16, 4, 4, 3, epilogue=("rprelu",)),
    Workload("head", 8, 16, 5, 4, 4),
)
FUSED = 4  # those that end in nothing or ReLU, of which the first reads the image


@pytest.fixture(scope="module")
def lowered() -> Lowered:
    return lower(capture(every_unit(), torch.from_numpy(IMAGES[:2])))


def test_fake_quantised_units_are_recognised_by_value(lowered: Lowered) -> None:
    assert graph_workloads(lowered.graph) == WORKLOADS
    assert [(c.name, c.kind, c.reason) for c in lowered.convolutions] == [
        (f"units.{i}", "8-bit", None) for i in range(6)
    ]


def test_the_integers_are_those_of_training(lowered: Lowered) -> None:
    network = every_unit()
    *convolutions, head = eight_bit_units(lowered.graph).values()
    for unit, module in zip(convolutions, network.units, strict=True):
        weight = module.conv.weight.detach().double().numpy()
        sign = np.sign(module.norm.weight.detach().numpy()).reshape(-1, 1, 1, 1)
        wanted = np.round(weight * 127 / np.abs(weight).max((1, 2, 3), keepdims=True)) * sign
        np.testing.assert_array_equal(unit.integers, wanted)
        assert unit.integers.dtype == np.int8 and np.abs(unit.integers).max() == 127
    weight = network.head.weight.detach().double().numpy()
    np.testing.assert_array_equal(head.integers, np.round(weight * 127 / np.abs(weight).max(1, keepdims=True)))
    assert head.integers.dtype == np.int8 and head.source.attributes == {
        "scale": float(np.float32(0.01)), "zero_point": 100
    }  # fmt: skip


@pytest.mark.parametrize(
    ("weight", "found"),
    [
        ([127, -5, 0], [127, -5, 0]),
        ([2, -1, 0.5], None),
        ([0, 0, 0], [0, 0, 0]),
        ([np.nan, 0, 1], None),
        ([np.inf, 0, 1], None),
        ([-1e-30, 1e-30, 0], [-127, 127, 0]),
        ([127, 1.01, 0], None),
    ],
)
def test_weights_are_on_the_grid_or_not(weight: list[float], found: list[int] | None) -> None:
    integers = integer_weights(np.array(weight, np.float32).reshape(1, 3, 1, 1))
    assert (None if integers is None else integers.ravel().tolist()) == found


def test_the_file_holds_integers_and_onnxruntime_computes_with_them(lowered: Lowered) -> None:
    model = to_onnx(lowered.graph, {})
    dtypes = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    weights = [node.input[0] for node in model.graph.node if node.name.endswith(".weight")]
    of_image = [node for node in model.graph.node if node.op_type == "ByteConv2d"]
    assert [node.input[0] for node in of_image] == ["image"]
    weights += [node.input[1] for node in of_image]
    assert len(weights) == 7 and {dtypes[name] for name in weights} == {onnx.TensorProto.INT8}
    operators = [operator for operator, _ in optimised_nodes(model)]
    assert (operators.count("QLinearConv"), operators.count("Conv")) == (FUSED - 1, 1 + 6 - FUSED)
    assert (operators.count("QGemm"), operators.count("Gemm")) == (1, 0)


def rounded_values(graph: Graph) -> int:
    """How many values of 8 bits the network has on all images."""
    shapes = graph.shapes()
    rounded = [n.output for n in graph.nodes if isinstance(n, FloatOp) and n.kind == "quantize"]
    return len(IMAGES) * sum(int(np.prod(shapes[name])) for name in rounded)


def integers_of(network: Network, image: np.ndarray) -> np.ndarray:
    """The first two units by exact integer sums: rounded requantisation as in Jacob et al. 2018, in float64. Steps."""
    steps = np.clip(np.round(image.astype(np.float64) / np.float32(0.03)) + 128, 0, 255) - 128
    x_scale = np.float64(np.float32(0.03))
    for module in network.units[:2]:
        weight = module.conv.weight.detach().double()
        largest = weight.abs().amax((1, 2, 3), keepdim=True)
        factor = (module.norm.weight / (module.norm.running_var + module.norm.eps).sqrt()).detach().double()
        sums = F.conv2d(
            torch.from_numpy(steps), (weight * 127 / largest).round(), padding=module.conv.padding,
            groups=module.conv.groups,
        ).numpy()  # fmt: skip
        unit = (largest.flatten() / 127 * factor).numpy().reshape(-1, 1, 1) * x_scale
        value = sums * unit + module.norm.bias.detach().double().numpy().reshape(-1, 1, 1)
        steps, x_scale = np.clip(np.round(value / np.float64(np.float32(0.03))), 0, 255), np.float64(np.float32(0.03))
    return steps


def test_a_unit_is_within_one_step_of_exact_integers() -> None:
    """One step, and that rarely: the file's bias is a whole number of the sums' units, and its scales are float32."""
    network = every_unit()
    graph = lower(capture(network, torch.from_numpy(IMAGES[:2]))).graph
    second = list(eight_bit_units(graph).values())[1].epilogue[-1]
    model = to_onnx(graph, {})
    model.graph.output.append(onnx.helper.make_tensor_value_info(second.output, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run([second.output], {"image": IMAGES})[0] / np.float32(0.03)
    difference = np.abs(found - integers_of(network, IMAGES))
    assert difference.max() < 1.01 and (difference > 0.01).mean() < 0.02


def test_the_gate_passes_integers_and_names_a_wrong_one(lowered: Lowered, tmp_path: Path) -> None:
    captured = capture(every_unit(), torch.from_numpy(IMAGES[:2]))
    write_onnx(lowered.graph, tmp_path / "net.onnx", {})
    report = check(captured, lowered, expose_onnx(tmp_path / "net.onnx", lowered.graph), IMAGES)
    assert report.argmax_agreement >= 0.997 and 0 < report.step_flips < 2e-3 * rounded_values(lowered.graph)

    def spoiled(change: Callable[[onnx.ModelProto], None]) -> ExposedOnnx:
        model = onnx.load(tmp_path / "net.onnx")
        change(model)
        onnx.save(model, tmp_path / "wrong.onnx")
        return expose_onnx(tmp_path / "wrong.onnx", lowered.graph)

    target = list(eight_bit_units(lowered.graph).values())[2].op.output
    for part, index, step in (("weight.integers", 0, 9), ("bias.integers", 0, 400), ("weight.scale", 3, 0.01)):
        name = f"{target}.{part}"

        def change(model: onnx.ModelProto, name: str = name, index: int = index, step: float = step) -> None:
            tensor = next(t for t in model.graph.initializer if t.name == name)
            values = onnx.numpy_helper.to_array(tensor).copy()
            values.flat[index] += np.asarray(step, values.dtype)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))

        with pytest.raises(GateError, match=r"^units\.2\.rounded: fed the same input, \d+ values of 8 bits differ"):
            check(captured, lowered, spoiled(change), IMAGES)


def test_the_gate_sees_a_wrong_integer_of_the_head(lowered: Lowered, tmp_path: Path) -> None:
    model = to_onnx(lowered.graph, {})
    tensor = next(t for t in model.graph.initializer if t.name == f"{lowered.graph.output}.weight.integers")
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0, 0] += 1 if values[0, 0] < 0 else -1
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    captured = capture(every_unit(), torch.from_numpy(IMAGES[:2]))
    with pytest.raises(GateError, match=r"^head: fed the same input"):
        check(captured, lowered, expose_onnx(tmp_path / "wrong.onnx", lowered.graph), IMAGES)


def test_exposing_an_8_bit_network_does_not_change_how_it_runs(lowered: Lowered, tmp_path: Path) -> None:
    write_onnx(lowered.graph, tmp_path / "net.onnx", {})
    model = onnx.load(tmp_path / "net.onnx")
    shown = expose_onnx(tmp_path / "net.onnx", lowered.graph).run(IMAGES[:3])
    ends = [n.output for n in lowered.graph.nodes if isinstance(n, FloatOp) and n.kind == "quantize"]
    assert set(ends) <= set(shown.values)
    for name in shown.values.keys() & {node.output[0] for node in model.graph.node}:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    operators = [operator for operator, _ in optimised_nodes(model)]
    assert (operators.count("QLinearConv"), operators.count("QGemm")) == (FUSED - 1, 1)


def test_an_8_bit_network_is_exported_as_onnx_with_its_twins(tmp_path: Path) -> None:
    report = export_network(every_unit(), IMAGES, tmp_path / "net.onnx", "onnx", {}, require_binary=True)
    assert report["eight_bit"] == {"convolutions": 6, "linear_layers": 1, "kept_in_float": 6 - FUSED}
    assert (report["binary_convs"], report["float_convs"]) == (0, 0)
    assert report["twins"]["int8_integer_convs"] == 6
    fp32 = onnx.load(tmp_path / "net.fp32.onnx")
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in fp32.graph.node}


def test_tflite_rounds_like_torch_in_float(tmp_path: Path, require: Callable[[str], None]) -> None:
    require("tensorflow")
    require("larq_compute_engine")
    report = export_network(every_unit(), IMAGES, tmp_path / "net.tflite", "tflite", {}, twins=False)
    assert report["eight_bit"] == {"convolutions": 6, "linear_layers": 1, "kept_in_float": 7}
    graph = lower(capture(every_unit(), torch.from_numpy(IMAGES[:2]))).graph
    assert report["argmax_agreement"] == 1 and report["step_flips"] < 1e-4 * rounded_values(graph)


class Signs(nn.Module):
    """A binary convolution, which carries a step's difference far."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.randn(16, 16, 3, 3)), nn.BatchNorm2d(16)
        self.norm.running_var.fill_(144)

    def forward(self, x: Tensor) -> Tensor:
        signs = F.pad(torch.where(x < 0.5, -1.0, 1.0), (1, 1, 1, 1), value=1.0)
        return self.norm(F.conv2d(signs, torch.where(self.weight < 0, -1.0, 1.0))) + x


def test_steps_that_flip_signs_do_not_fail_the_gate_but_are_reported(tmp_path: Path) -> None:
    """Signs change with the steps in front of them, far more often than rounding in float explains."""
    torch.manual_seed(0)
    units = [Unit(3, 16, 3), Unit(16, 16, 3, groups=16), Signs(), Rounded(0.03, 128), Unit(16, 16, 1), Signs(), Signs()]
    network = Network(units, 16).eval()
    report = export_network(network, IMAGES, tmp_path / "net.onnx", "onnx", {}, twins=False)
    assert report["eight_bit"] == {"convolutions": 3, "linear_layers": 0, "kept_in_float": 0}
    assert report["binary_convs"] == 3
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        wanted = network(torch.from_numpy(IMAGES)).numpy().argmax(1)
    found = session.run(None, {"image": IMAGES})[0].argmax(1)
    assert report["argmax_agreement"] == pytest.approx((found == wanted).mean(), abs=1 / 300)
    assert report["step_flips"] > 0


class Between(nn.Module):
    """Operators between two units that leave 8-bit values among their levels."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(x), 3, 1, 1)[:, 1::2]


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_pools_relus_and_slices_keep_8_bits(format: str, tmp_path: Path, require: Callable[[str], None]) -> None:
    if format == "tflite":
        require("tensorflow")
        require("larq_compute_engine")
    torch.manual_seed(0)
    network = Network([Unit(3, 16, 3, "none"), Between(), Unit(8, 8, 3, groups=8), Unit(8, 8, 1)], 8).eval()
    report = export_network(network, IMAGES, tmp_path / f"net.{format}", format, {}, twins=False)
    kept_in_float = 0 if format == "onnx" else 3
    assert report["eight_bit"] == {"convolutions": 3, "linear_layers": 0, "kept_in_float": kept_in_float}
    found = graph_workloads(lower(capture(network, torch.from_numpy(IMAGES[:2]))).graph)
    assert [(w.kind, w.bits) for w in found] == [
        ("quantize", 8), ("conv", 8), ("relu", 32), ("max_pool", 32), ("odd_channels", 32), ("conv", 8), ("conv", 8),
        ("head", 32),
    ]  # fmt: skip


class Shared(nn.Module):
    """Two equal roundings of one value, which a compiler may compute once, and one that differs."""

    def __init__(self) -> None:
        super().__init__()
        self.rounded = nn.ModuleList([Rounded(0.1, 100, buffers=i == 0) for i in range(2)] + [Rounded(0.2, 100)])
        self.head = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([rounded(F.relu(x)) for rounded in self.rounded], 1).mean(dim=(2, 3)))


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_equal_roundings_are_told_apart(format: str, tmp_path: Path, require: Callable[[str], None]) -> None:
    if format == "tflite":
        require("tensorflow")
        require("larq_compute_engine")
    torch.manual_seed(0)
    report = export_network(Shared(), IMAGES, tmp_path / f"net.{format}", format, {}, twins=False)
    assert report["argmax_agreement"] >= 0.997


@pytest.mark.parametrize("buffers", [True, False])
@pytest.mark.parametrize(("scale", "zero_point"), [(0.25, 128), (0.25, 0), (0.1, 255), (0.0371, 7)])
def test_a_rounding_is_that_of_torch(buffers: bool, scale: float, zero_point: int) -> None:
    """Exactly, half-way values among them, where the scale is a power of two; else where none is half-way."""
    x = (np.random.default_rng(1).integers(-2000, 2000, (2, 3, 9, 9)) / 8).astype(np.float32) * np.float32(scale)
    x += np.float32(0) if scale == 0.25 else np.float32(0.1) * np.float32(scale)
    network = Network([], 3)
    network.rounded = Rounded(scale, zero_point, buffers=buffers)
    graph = lower(capture(network, torch.from_numpy(x))).graph
    rounding = graph.nodes[0]
    assert rounding.attributes == {"scale": float(np.float32(scale)), "zero_point": zero_point}
    model = to_onnx(graph, {})
    model.graph.output.append(onnx.helper.make_tensor_value_info(rounding.output, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    steps = np.clip(np.round(x / np.float64(np.float32(scale))) + zero_point, 0, 255) - zero_point
    np.testing.assert_array_equal(
        session.run([rounding.output], {"image": x})[0], steps.astype(np.float32) * np.float32(scale)
    )


@pytest.mark.parametrize(
    ("rounded", "problem"),
    [
        (Rounded(0.1, 0, top=127), r"fake_quantize_per_tensor_affine in rounded to 0\.\.127 is not supported"),
        (Rounded(0.0, 0), r"with scale \[0\.0\] and zero point \[0\.0\] is not supported"),
    ],
)
def test_other_roundings_are_refused(rounded: Rounded, problem: str) -> None:
    network = Network([], 3)
    network.rounded = rounded
    with pytest.raises(InputError, match=problem):
        lower(capture(network, torch.from_numpy(IMAGES[:2])))


def test_a_channel_without_weights_keeps_its_bias() -> None:
    network = every_unit()
    with torch.no_grad():
        network.units[0].norm.weight[:2] = torch.tensor([0.0, 1e-12])  # the second's bias fits no int32
        network.units[0].norm.bias[:2] = 0.5
    graph = lower(capture(network, torch.from_numpy(IMAGES[:2]))).graph
    unit = next(iter(eight_bit_units(graph).values()))
    assert unit.integer_bias() is None and (unit.integers[0] == 0).all()
    with torch.no_grad():
        network.units[0].norm.weight[1] = 1
    graph = lower(capture(network, torch.from_numpy(IMAGES[:2]))).graph
    unit = next(iter(eight_bit_units(graph).values()))
    bias = unit.integer_bias()
    assert bias is not None
    assert bias[0] * np.float64(unit.bias_scale[0]) == pytest.approx(0.5, rel=1e-6)


def test_the_oldest_supported_onnxruntime_gives_the_same(lowered: Lowered, old_python: str, tmp_path: Path) -> None:
    write_onnx(lowered.graph, tmp_path / "network.onnx", {})
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    np.savez(tmp_path / "arrays.npz", expected=session.run(None, {"image": IMAGES})[0], image=IMAGES)
    script = Path(__file__).with_name("old_runtime.py")
    command = [old_python, str(script), str(tmp_path / "network.onnx"), str(tmp_path / "arrays.npz")]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    version, difference = done.stdout.split()
    assert version.startswith("1.17") and float(difference) <= 2e-3  # a step of the last rounding, in a mean of 16


STEMS = ("none", "relu", "prelu", "rprelu")


@pytest.mark.parametrize("activation", STEMS)
@pytest.mark.parametrize("behind", ["signs", "an 8-bit unit"])
def test_what_reads_the_image_is_one_operator_on_the_kernels(activation: str, behind: str, tmp_path: Path) -> None:
    """From the image to what the next unit reads; but for the rounding, if that unit has 8 bits and looks for it."""
    torch.manual_seed(0)
    follows: nn.Module = Signs() if behind == "signs" else Unit(16, 16, 1)
    network = Network([Unit(3, 16, 7, activation, stride=2), follows], 16).eval()
    report = export_network(network, IMAGES, tmp_path / "net.onnx", "onnx", {}, twins=False)
    nodes = onnx.load(tmp_path / "net.onnx").graph.node
    stem = nodes[0]
    assert (stem.op_type, stem.input[0]) == ("ByteConv2d", "image")
    binary = int(behind == "signs")
    assert [node.op_type for node in nodes].count("QuantizeLinear") == 2 * (1 - binary)
    assert sum(node.op_type in CONVS for node in nodes) == binary
    assert report["eight_bit"] == {"convolutions": 2 - binary, "linear_layers": 0, "kept_in_float": 0}
    if report["kernels"] is not None:
        # Sums are exact on the kernels, and what follows is rounded as PyTorch rounds it: hardly a step differs.
        graph = lower(capture(network, torch.from_numpy(IMAGES[:2]))).graph
        assert report["kernels"]["step_flips"] <= 2e-3 * rounded_values(graph)
        assert report["kernels"]["engine"].startswith("native-")


def test_the_gate_names_a_wrong_operator_of_the_image(lowered: Lowered, tmp_path: Path) -> None:
    captured = capture(every_unit(), torch.from_numpy(IMAGES[:2]))
    stem = next(iter(image_units(lowered.graph).values())).output
    for part, index, factor in (("w", 5, 0.5), ("bias", 2, 1.5), ("scale", 1, 1.1), ("x_zero_point", 0, 0.5)):
        model = to_onnx(lowered.graph, {})
        tensor = next(t for t in model.graph.initializer if t.name == f"{stem}.{part}")
        values = onnx.numpy_helper.to_array(tensor).copy()
        values.flat[index] = (values.flat[index] * factor).astype(values.dtype)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        onnx.save(model, tmp_path / "wrong.onnx")
        with pytest.raises(GateError, match=r"values of 8 bits differ"):
            check(captured, lowered, expose_onnx(tmp_path / "wrong.onnx", lowered.graph), IMAGES)


def test_a_rounding_that_others_read_stays_in_the_file() -> None:
    """Of the image, by a pool; and the operator rounds the values of a level once more, which changes nothing."""

    def op(kind: str, name: str, *inputs: str, **attributes: object) -> FloatOp:
        return FloatOp(kind, name, inputs, name, attributes)

    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (4, 3, 3, 3)).astype(np.float32)
    weight[:, 0, 0, 0] = 127
    window = {"strides": (1, 1), "pads": (1, 1, 1, 1)}
    conv = {"weight": weight, "bias": np.zeros(4, np.float32), "dilations": (1, 1), "groups": 1, **window}
    nodes = (
        op("quantize", "rounded", "x", scale=0.25, zero_point=100),
        op("max_pool", "pooled", "rounded", kernel=(3, 3), **window),
        op("conv", "of_levels", "rounded", **conv),
        op("conv", "of_pooled", "pooled", **conv),
        op("add", "y", "of_levels", "of_pooled"),
    )
    graph = Graph("x", (3, 9, 9), "y", nodes)
    model = to_onnx(graph, {})
    assert [n.op_type for n in model.graph.node if n.op_type != "Add"] == [
        "QuantizeLinear", "DequantizeLinear", "MaxPool", "ByteConv2d", "ByteConv2d",
    ]  # fmt: skip
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = rng.standard_normal((2, 3, 9, 9)).astype(np.float32) * 20
    levels = torch.from_numpy((np.clip(np.rint(x / 0.25), -100, 155) * 0.25).astype(np.float64))
    wanted = sum(
        F.conv2d(v, torch.from_numpy(weight).double(), padding=1) for v in (levels, F.max_pool2d(levels, 3, 1, 1))
    )
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], np.asarray(wanted, np.float32))


@pytest.mark.parametrize(
    ("workload", "is_one"),
    [
        (Workload("conv", 8, 3, 16, 8, 8, 7, 2, epilogue=("relu",)), True),
        (Workload("conv", 8, 1, 16, 8, 8, 3), True),
        (Workload("conv", 8, 4, 4, 8, 8, 3, groups=4), True),
        (Workload("conv", 8, 5, 16, 8, 8, 3), False),
        (Workload("conv", 8, 4, 16, 12, 12, 12), False),  # 576 weights: sums may not fit into a float32
    ],
)
def test_a_unit_by_itself_is_what_it_is_in_a_network(workload: Workload, is_one: bool) -> None:
    nodes = [node.op_type for node in unit_model(workload).graph.node]
    assert ("ByteConv2d" in nodes, "Conv" in nodes) == (is_one, not is_one)
