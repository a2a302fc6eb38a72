"""The gate must pass a good file, and stop every kind of wrong one, naming the layer."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from bnas.export.capture import Captured, capture
from bnas.export.gate import ExposedFile, GateError, Shown, UnitValues, check, expose_onnx
from bnas.export.lowering import Lowered, lower
from bnas.export.onnx_functions import CONV, CONVS, function
from bnas.export.onnx_writer import write_onnx
from bnas.export.packing import pack_bits

Run = tuple[np.ndarray, dict[str, UnitValues]]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(1, 4, 1, 1) / 4)
        self.weight, self.norm = nn.Parameter(torch.randn(4, 4, 3, 3)), nn.BatchNorm2d(4)
        self.norm.running_var.fill_(36)

    def forward(self, x: Tensor) -> Tensor:
        signs = F.pad(torch.where(x < self.shift, -1.0, 1.0), (1, 1, 1, 1), value=1.0)
        return F.relu(self.norm(F.conv2d(signs, torch.where(self.weight < 0, -1.0, 1.0))) + x)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second, self.head = nn.Conv2d(1, 4, 3), Block(), Block(), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.stem(x))).mean(dim=(2, 3)))


Case = tuple[Captured, Lowered, np.ndarray, Path]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.manual_seed(0)
    images = np.random.default_rng(0).standard_normal((300, 1, 8, 8)).astype(np.float32)
    captured = capture(Network(), torch.from_numpy(images[:2]))
    lowered = lower(captured)
    path = tmp_path_factory.mktemp("gate") / "network.onnx"
    write_onnx(lowered.graph, path, {})
    return captured, lowered, images, path


def test_a_good_file_passes(case: Case) -> None:
    captured, lowered, images, path = case
    steps: list[tuple[int, int]] = []
    report = check(
        captured, lowered, expose_onnx(path, lowered.graph), images, progress=lambda *step: steps.append(step)
    )
    assert report.images == 300 and report.argmax_agreement >= 0.997 and report.max_abs_diff < 1e-4
    assert steps[-1] == (300, 300) and len(steps) > 1


def test_the_onnx_copy_shows_input_residual_and_output(case: Case) -> None:
    _, lowered, images, path = case
    logits, units, _ = expose_onnx(path, lowered.graph).run(images[:3])
    assert logits.shape == (3, 6) and list(units) == ["first", "second"]
    for values in units.values():
        assert values.stage == "unit" and values.x.shape == values.y.shape == (3, 4, 6, 6)
        np.testing.assert_array_equal(values.residual, values.x)


def flip_one_weight(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == node.input[1])
    packed = numpy_helper.to_array(tensor).copy()
    packed[0, 0, 0, 0] ^= 1
    tensor.CopyFrom(numpy_helper.from_array(packed, tensor.name))


def shift_padding(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    pads = next(a for a in node.attribute if a.name == "pads")
    pads.ints[:] = [0, 0, 2, 2]


def negate_scale(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == node.input[2])
    tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))


def forget_residual(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    zero = numpy_helper.from_array(np.zeros((1, 1, 1, 1), np.float32), "zero")
    model.graph.initializer.append(zero)
    model.functions.append(function(CONV))
    node.op_type = CONV  # with a residual of its own in front of the slope
    node.input[:] = [*node.input[:5], "zero", *node.input[5:]]


def move_threshold(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == node.input[4])
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(1e-3), tensor.name))


@pytest.mark.parametrize("spoil", [flip_one_weight, shift_padding, negate_scale, forget_residual, move_threshold])
def test_a_wrong_unit_is_named(
    case: Case, tmp_path: Path, spoil: Callable[[onnx.ModelProto, onnx.NodeProto], None]
) -> None:
    captured, lowered, images, path = case
    model = onnx.load(path)
    spoil(model, [node for node in model.graph.node if node.op_type in CONVS][1])
    onnx.save(model, tmp_path / "wrong.onnx")
    with pytest.raises(GateError, match=r"^second: fed the same input"):
        check(captured, lowered, expose_onnx(tmp_path / "wrong.onnx", lowered.graph), images)


def test_a_missing_unit_is_named(case: Case, tmp_path: Path) -> None:
    captured, lowered, images, path = case
    model = onnx.load(path)
    next(node for node in model.graph.node if node.op_type in CONVS).output[0] = "renamed"
    for node in model.graph.node:
        node.input[:] = ["renamed" if n == lowered.graph.binary_convs[0].output else n for n in node.input]
    onnx.save(model, tmp_path / "wrong.onnx")
    with pytest.raises(GateError, match=r"^first: the file does not hold"):
        check(captured, lowered, expose_onnx(tmp_path / "wrong.onnx", lowered.graph), images)


class Altered:
    """A good file whose results are changed on the way out."""

    def __init__(self, file: ExposedFile, change: Callable[[np.ndarray, dict[str, UnitValues]], Run]) -> None:
        self.file, self.change = file, change

    def run(self, images: np.ndarray, /) -> Shown:
        logits, units, values = self.file.run(images)
        return Shown(*self.change(logits, units), values)


def altered(case: Case, change: Callable[[np.ndarray, dict[str, UnitValues]], Run]) -> None:
    captured, lowered, images, path = case
    check(captured, lowered, Altered(expose_onnx(path, lowered.graph), change), images)


def other_class(logits: np.ndarray, images: int) -> np.ndarray:
    logits = logits.copy()
    logits[:images] = -logits[:images]
    return logits


def test_another_class_without_any_flipped_sign_is_the_heads_fault(case: Case) -> None:
    with pytest.raises(GateError, match="head"):
        altered(case, lambda logits, units: (other_class(logits, 1), units))


def test_another_class_after_a_sign_far_from_its_threshold_names_the_layer(case: Case) -> None:
    captured, lowered, _, _ = case

    def stem_differs(logits: np.ndarray, units: dict[str, UnitValues]) -> Run:
        """The file's stem gave -x for the first image, and its units computed with that faithfully."""
        unit, values = lowered.graph.binary_convs[0], units["first"]
        x = torch.from_numpy(np.concatenate([-values.x[:1], values.x[1:]]))
        y = captured.run({unit.x: x}, [unit.output])[unit.output].numpy()
        return other_class(logits, 1), {**units, "first": UnitValues(x.numpy(), x.numpy(), y)}

    with pytest.raises(GateError, match=r"^first: image 0 gets another class, and its first differing sign is"):
        altered(case, stem_differs)


def test_signs_at_their_threshold_are_forgiven_unless_they_are_too_many(case: Case) -> None:
    """Thresholds are moved onto an activation of each image, so that rounding upwards or downwards decides."""
    captured, lowered, images, path = case
    first = lowered.graph.binary_convs[0]

    class AtThreshold:
        """Reports, for the first `wrong` images, the other side of a threshold that lies on an activation."""

        def __init__(self, wrong: int) -> None:
            self.wrong, self.seen = wrong, 0

        def run(self, batch: np.ndarray, /) -> Shown:
            logits, units, values = expose_onnx(path, lowered.graph).run(batch)
            wrong = min(max(self.wrong - self.seen, 0), len(batch))
            self.seen += len(batch)
            x = units["first"].x.copy()
            threshold = np.float32(0) if first.shift is None else first.shift[0]
            x[:wrong, 0, 0, 0] = np.nextafter(threshold, np.float32(-np.inf))
            y = captured.run({first.x: torch.from_numpy(x)}, [first.output])[first.output].numpy()
            return Shown(other_class(logits, wrong), {**units, "first": UnitValues(x, x, y)}, values)

    class Shadow(Captured):
        """The PyTorch network, whose value at that place is exactly the threshold."""

        def run(self, values: dict[str, Tensor], wanted: list[str]) -> dict[str, Tensor]:
            found = captured.run(values, wanted)
            if {"logits", first.x} <= set(wanted):
                found[first.x][:, 0, 0, 0] = torch.tensor(0.0 if first.shift is None else first.shift[0])
            return found

    shadow = Shadow(captured.nodes, captured.names, captured.constants, captured.input_shape, captured.output)
    with pytest.raises(GateError, match=r"^first: file and PyTorch agree on 99\.33% of 300 images"):
        check(shadow, lowered, AtThreshold(2), images)
    many = np.concatenate([images, images])
    report = check(shadow, lowered, AtThreshold(1), many)
    assert report.argmax_agreement == pytest.approx(1 - 1 / 600) and report.sign_flips > 0


def test_the_stages_of_other_formats(case: Case) -> None:
    """A .tflite shows a unit before its residual ("core"), or only the signs that the next unit takes ("sign")."""
    captured, lowered, _, _ = case

    def as_core(logits: np.ndarray, units: dict[str, UnitValues]) -> Run:
        for unit in lowered.graph.binary_convs:
            core, x = lowered.cores[unit.name], units[unit.name].x
            y = captured.run({unit.x: torch.from_numpy(x)}, [core])[core].numpy()
            units[unit.name] = UnitValues(x, None, y, "core")
        return logits, units

    def wrong_core(logits: np.ndarray, units: dict[str, UnitValues]) -> Run:
        logits, units = as_core(logits, units)
        return logits, {**units, "second": replace(units["second"], y=units["second"].y * np.float32(1.001))}

    altered(case, as_core)
    with pytest.raises(GateError, match=r"^second"):
        altered(case, wrong_core)

    def as_signs(logits: np.ndarray, units: dict[str, UnitValues], wrong: float = 1) -> Run:
        second = lowered.graph.binary_convs[1]
        shift = np.zeros(1) if second.shift is None else second.shift
        signs = np.where(units["first"].y < shift.reshape(-1, 1, 1), -1, 1).astype(np.float32)
        return logits, {**units, "first": replace(units["first"], y=signs * np.float32(wrong), stage="sign")}

    altered(case, as_signs)
    with pytest.raises(GateError, match=r"^first: fed the same input, \d+ signs differ"):
        altered(case, lambda logits, units: as_signs(logits, units, wrong=-1))


class Plain(nn.Module):
    """A unit without residual, whose output the next one only takes signs of."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(1, inputs, 1, 1) / 4)
        self.weight, self.norm = nn.Parameter(torch.randn(outputs, inputs, 3, 3)), nn.BatchNorm2d(outputs)
        self.norm.weight.data.copy_(torch.linspace(-1, 1, outputs))  # one is 0
        self.norm.running_var.fill_(36)

    def forward(self, x: Tensor) -> Tensor:
        signs = F.pad(torch.where(x < self.shift, -1.0, 1.0), (1, 1, 1, 1), value=1.0)
        return F.prelu(self.norm(F.conv2d(signs, torch.where(self.weight < 0, -1.0, 1.0))), torch.tensor([0.25]))


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 4, 3), nn.Linear(5, 6)
        self.first, self.second, self.third = Plain(4, 33), Plain(33, 40), Plain(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(self.stem(x)))
        return self.head(self.third(F.max_pool2d(x, 3, 2, 1)).mean(dim=(2, 3)))


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.manual_seed(1)
    images = np.random.default_rng(1).standard_normal((300, 1, 8, 8)).astype(np.float32)
    captured = capture(Chain(), torch.from_numpy(images[:2]))
    lowered = lower(captured)
    path = tmp_path_factory.mktemp("gate") / "chain.onnx"
    write_onnx(pack_bits(lowered.graph), path, {})
    return captured, lowered, images, path


def test_a_file_that_keeps_bits_passes_and_shows_signs(chain: Case) -> None:
    captured, lowered, images, path = chain
    assert check(captured, lowered, expose_onnx(path, lowered.graph), images).argmax_agreement >= 0.997
    _, units, _ = expose_onnx(path, lowered.graph).run(images[:3])
    assert {name: values.stage for name, values in units.items()} == {
        "first": "sign", "second": "sign", "third": "unit",
    }  # fmt: skip
    second, third = lowered.graph.binary_convs[1:]
    assert second.shift is not None and third.shift is not None
    np.testing.assert_array_equal(units["second"].x < second.shift.reshape(-1, 1, 1), units["first"].y < 0)
    assert units["second"].y.shape == (3, 40, 6, 6) and units["third"].x.shape == (3, 40, 3, 3)


def move_integer_threshold(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == node.input[2])
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.int32(2), tensor.name))


def flip_all_weights(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == node.input[1])
    tensor.CopyFrom(numpy_helper.from_array(~numpy_helper.to_array(tensor), tensor.name))


@pytest.mark.parametrize("spoil", [move_integer_threshold, flip_all_weights, flip_one_weight])
def test_a_wrong_unit_of_bits_is_named(
    chain: Case, tmp_path: Path, spoil: Callable[[onnx.ModelProto, onnx.NodeProto], None]
) -> None:
    captured, lowered, images, path = chain
    model = onnx.load(path)
    spoil(model, [node for node in model.graph.node if node.op_type == "BinaryConv2dBits"][1])
    onnx.save(model, tmp_path / "wrong.onnx")
    with pytest.raises(GateError, match=r"^second: fed the same input, \d+ signs differ"):
        check(captured, lowered, expose_onnx(tmp_path / "wrong.onnx", lowered.graph), images)
