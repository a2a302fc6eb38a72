"""The gate: nothing is handed over that does not compute what the PyTorch network computes.

Two parts. (a) Unit by unit: the PyTorch unit, fed what the file feeds its own, must give what the file's gives; so no
sign can differ by chance, and any wrong bit, padding or order shows. A value of 8 bits may be one step off, and only
where PyTorch's lies half-way between two. (b) End to end on real images: arg-max agreement, where a disagreement is
only forgiven if it started at a sign that rounding could flip. (Runtimes reorder float operations, and one flipped sign
moves a logit by about 1e-2, so a plain tolerance on logits would fail at random. Integer arithmetic moves some 8-bit
values of every image by a step, so where there are any PyTorch goes on from the file's, which (a) found right.)

Formats join with an `ExposedFile`; ONNX's is here.
"""

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np
import torch

from .bits import around, unpack_values
from .capture import INPUT, OUTPUT, Captured
from .eight_bit import eight_bit_units, image_units
from .graph import BinaryConv, FloatOp, Graph, conv_epilogue
from .lowering import Lowered

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

TOLERANCE = 1e-5  # (a) of the largest value, per operator in between; (b) of the deviation of the layer's input
AGREEMENT = 0.997  # share of images whose arg-max must be equal
_BATCH_BYTES = 128 * 2**20
_MAX_BATCH = 64


class GateError(RuntimeError):
    """The file does not compute what the network computes; the message names the layer."""


@dataclass(frozen=True, eq=False)
class UnitValues:
    """What one unit of the file reads and gives, float32 [N, C, H, W].

    stage, what y is: "unit" all of the unit, "core" conv * scale + bias before residual and activation, "sign" the +-1
    that the next unit's sign function gives of this unit's output (files that keep only bits between two units).
    """

    x: np.ndarray
    residual: np.ndarray | None
    y: np.ndarray
    stage: Literal["unit", "core", "sign"] | str = "unit"


class Shown(NamedTuple):
    """What a file shows of a batch: its output, the values of each binary unit by name, and values of the graph.

    values: float32 [N, C, H, W] by the names they have in the graph, among them all that are rounded to 8 bits.
    """

    logits: np.ndarray
    units: dict[str, UnitValues]
    values: dict[str, np.ndarray]


class ExposedFile(Protocol):
    """A written file that also shows values in between."""

    def run(self, images: np.ndarray, /) -> Shown:
        """images: float32 [N, C, H, W]."""
        ...


@dataclass(frozen=True)
class GateReport:
    """max_abs_diff: largest difference of any unit's output, without 8-bit values a step apart.

    argmax_agreement: share of images with the same arg-max, end to end. It is at least AGREEMENT, but for networks with
    8-bit values: there that holds when PyTorch goes on from the file's, and so does sign_flips, the signs that differ.
    step_flips: 8-bit values that differ end to end. Both are over all images.
    """

    max_abs_diff: float
    argmax_agreement: float
    sign_flips: int
    step_flips: int
    images: int


def check(
    captured: Captured,
    lowered: Lowered,
    file: ExposedFile,
    images: np.ndarray,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> GateReport:
    """Run both on `images`, batch by batch. Raises GateError naming the first layer that differs."""
    gate = _Gate(captured, lowered)
    for start, batch in _batches(images, lowered.graph):
        shown = file.run(batch)
        gate.check_units(shown.units)
        gate.check_values(batch, shown)
        gate.compare_images(start, batch, shown)
        progress(start + len(batch), len(images))
    return gate.report(len(images))


class _Gate:
    """What has been seen so far."""

    def __init__(self, captured: Captured, lowered: Lowered) -> None:
        self.captured, self.lowered = captured, lowered
        self.units = lowered.graph.binary_convs
        self.roundings = _roundings(lowered.graph)
        self.producers = lowered.graph.producers()
        self.max_abs_diff = 0.0
        self.flips = self.step_flips = self.other_class = 0
        self.disagreeing: list[tuple[int, str]] = []  # (image, layer where its signs first differ)

    def check_units(self, found: dict[str, UnitValues]) -> None:
        """Part (a) on one batch."""
        for unit in self.units:
            if unit.name not in found:
                raise GateError(f"{unit.name}: the file does not hold this binary convolution")
            values = found[unit.name]
            y, wanted = values.y, self._pytorch_unit(unit, values)
            if y.shape != wanted.shape:
                raise GateError(f"{unit.name}: shape {list(y.shape)} in the file, {list(wanted.shape)} in PyTorch")
            if values.stage == "sign":
                self._check_signs(unit, y, wanted)
                continue
            self._compare(unit.name, y, wanted, TOLERANCE)

    def check_values(self, batch: np.ndarray, shown: Shown) -> None:
        """Part (a) for float and 8-bit operators: each value, from those that the file shows in front of it."""
        given = self._given(batch, shown)
        for name in self.roundings:
            if name not in shown.values:
                raise GateError(f"{self._name(name)}: the file does not show where it rounds to 8 bits")
        for name, value in shown.values.items():
            tensors = {other: tensor for other, tensor in given.items() if other != name}
            rounding = self.roundings.get(name)
            source = name if rounding is None else rounding.op.inputs[0]
            wanted = self.captured.run(tensors, [name, source])
            tolerance = TOLERANCE * self._operators_behind(name, tensors)
            if rounding is None:
                self._compare(self._name(name), value, wanted[name].numpy(), tolerance)
            else:
                rounding.check(self._name(name), value, wanted[name].numpy(), wanted[source].numpy(), tolerance)

    def _given(self, batch: np.ndarray, shown: Shown) -> dict[str, torch.Tensor]:
        """The values that the file shows, by the names they have in PyTorch."""
        given = {INPUT: batch, **shown.values}
        for unit in self.units:
            values = shown.units[unit.name]
            if values.stage != "sign":
                given[unit.output if values.stage == "unit" else self.lowered.cores[unit.name]] = values.y
        return {name: torch.from_numpy(array) for name, array in given.items()}

    def _operators_behind(self, name: str, given: Container[str]) -> int:
        """How many operators PyTorch runs from the `given` values to the value `name`."""
        found, pending = 0, [name]
        while pending:
            node = self.producers.get(pending.pop())
            if node is not None:
                found += 1
                pending += [source for source in node.inputs if source not in given]
        return found

    def _name(self, value: str) -> str:
        return self.producers[value].name if value in self.producers else value

    def _compare(self, name: str, found: np.ndarray, wanted: np.ndarray, tolerance: float) -> None:
        if found.shape != wanted.shape:
            raise GateError(f"{name}: shape {list(found.shape)} in the file, {list(wanted.shape)} in PyTorch")
        difference, size = float(np.abs(found - wanted).max()), float(np.abs(wanted).max())
        self.max_abs_diff = max(self.max_abs_diff, difference)
        if not difference <= tolerance * size:
            raise GateError(
                f"{name}: fed the same input, file and PyTorch differ by {difference:.3g} at values up to "
                f"{size:.3g} (allowed: {tolerance:g} relative)"
            )

    def _pytorch_unit(self, unit: BinaryConv, values: UnitValues) -> np.ndarray:
        given = {unit.x: torch.from_numpy(values.x)}
        wanted = unit.output
        if values.stage == "core":
            wanted = self.lowered.cores[unit.name]
        elif unit.residual is not None and values.residual is not None:
            given[unit.residual] = torch.from_numpy(values.residual)
        return self.captured.run(given, [wanted])[wanted].numpy()

    def _check_signs(self, unit: BinaryConv, signs: np.ndarray, wanted: np.ndarray) -> None:
        threshold = self._threshold_behind(unit.output)
        margin = np.abs(wanted - threshold)
        wrong = (signs < 0) != (wanted < threshold)
        if (margin[wrong] > TOLERANCE * np.abs(wanted).max()).any():
            raise GateError(f"{unit.name}: fed the same input, {int(wrong.sum())} signs differ from PyTorch")

    def _threshold_behind(self, value: str) -> np.ndarray:
        """Of the units that read the signs of `value`, perhaps through max-pools; files keep bits only if all agree."""
        for node in self.lowered.graph.nodes:
            if isinstance(node, BinaryConv) and node.x == value:
                return _threshold(node)
            if isinstance(node, FloatOp) and node.kind == "max_pool" and value in node.inputs:
                return self._threshold_behind(node.output)
        return np.zeros((1, 1, 1), np.float32)

    def compare_images(self, start: int, batch: np.ndarray, shown: Shown) -> None:
        """Part (b) on one batch, whose first image has the number `start`."""
        anchors = {name: torch.from_numpy(shown.values[name]) for name in self.roundings}
        given = {INPUT: torch.from_numpy(batch)} | anchors
        values = self.captured.run(given, [OUTPUT, *(unit.x for unit in self.units)])
        expected = values[OUTPUT].numpy().reshape(len(batch), -1)
        logits = shown.logits.reshape(len(batch), -1)
        if logits.shape != expected.shape:
            raise GateError(f"the file gives {logits.shape[1]} values per image, PyTorch {expected.shape[1]}")
        self.other_class += self._other_class(batch, shown) if anchors else 0
        other = logits.argmax(axis=1) != expected.argmax(axis=1)
        self._check_logits(batch, shown, logits, ~other)
        suspects = set(np.flatnonzero(other).tolist())
        for unit in self.units:
            x = values[unit.x].numpy()
            flipped = _negative(unit, shown.units[unit.name].x) != _negative(unit, x)
            self.flips += int(flipped.sum())
            for image in sorted(i for i in suspects if flipped[i].any()):
                suspects.discard(image)
                self._forgive(start + image, unit, x, flipped[image], image)
        for image in sorted(suspects):
            best = np.sort(expected[image])
            if best[-1] - best[-2] > TOLERANCE * np.abs(best).max():
                raise GateError(f"image {start + image}: equal signs everywhere, yet another class; the head differs")
            self.disagreeing.append((start + image, "the head"))

    def _check_logits(self, batch: np.ndarray, shown: Shown, logits: np.ndarray, images: np.ndarray) -> None:
        """Part (a) for the output of those `images` whose class is equal: that alone would not show a wrong head."""
        given, output = self._given(batch, shown), self.lowered.graph.output
        wanted = self.captured.run(given, [OUTPUT])[OUTPUT].numpy().reshape(len(batch), -1)
        if images.any():
            tolerance = TOLERANCE * self._operators_behind(output, given)
            self._compare(self._name(output), logits[images], wanted[images], tolerance)

    def _forgive(self, number: int, unit: BinaryConv, x: np.ndarray, flipped: np.ndarray, image: int) -> None:
        """A disagreement counts as rounding if a flipped sign of its first differing layer was at its threshold."""
        nearest = float(np.abs(x[image] - _threshold(unit))[flipped].min())
        allowed = TOLERANCE * float(x.std(dtype=np.float64))
        if not nearest <= allowed:
            raise GateError(
                f"{unit.name}: image {number} gets another class, and its first differing sign is {nearest:.3g} from "
                f"its threshold (rounding explains {allowed:.3g})"
            )
        self.disagreeing.append((number, unit.name))

    def _other_class(self, batch: np.ndarray, shown: Shown) -> int:
        """How many images get another class than from PyTorch alone, end to end; counts steps that differ, too."""
        values = self.captured.run({INPUT: torch.from_numpy(batch)}, [OUTPUT, *self.roundings])
        for name, rounding in self.roundings.items():
            self.step_flips += int(np.count_nonzero(rounding.steps(shown.values[name], values[name].numpy())))
        logits, expected = (v.reshape(len(batch), -1).argmax(axis=1) for v in (shown.logits, values[OUTPUT].numpy()))
        return int((logits != expected).sum())

    def report(self, images: int) -> GateReport:
        agreement = 1 - len(self.disagreeing) / images
        if agreement < AGREEMENT:
            raise GateError(
                f"{self.disagreeing[0][1]}: file and PyTorch agree on {agreement:.2%} of {images} images "
                f"(needed: {AGREEMENT:.1%}); signs first differ there, {self.flips} in all"
            )
        if self.roundings:
            agreement = 1 - self.other_class / images
        return GateReport(self.max_abs_diff, agreement, self.flips, self.step_flips, images)


@dataclass(frozen=True, eq=False)
class _Rounding:
    """A place where values are rounded to 8 bits.

    bias_error: float64 [C, 1, 1] or a number, by how many steps a runtime moves the values in front of it when it
    takes the bias of their convolution as a whole number.
    """

    op: FloatOp
    bias_error: np.ndarray

    def steps(self, found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        return np.rint((found - wanted) / self.op.attributes["scale"])

    def gap(self, source: np.ndarray) -> np.ndarray:
        """How far each value before rounding lies from the middle between two steps, in steps, less `bias_error`."""
        steps = source.astype(np.float64) / self.op.attributes["scale"]
        return np.abs(steps - np.floor(steps) - 0.5) - self.bias_error

    def margin(self, source: np.ndarray, tolerance: float) -> float:
        return tolerance * float(np.abs(source).max()) / self.op.attributes["scale"]

    def check(self, name: str, found: np.ndarray, wanted: np.ndarray, source: np.ndarray, tolerance: float) -> None:
        """Equal up to single steps, and these only in the middle."""
        if found.shape != wanted.shape:
            raise GateError(f"{name}: shape {list(found.shape)} in the file, {list(wanted.shape)} in PyTorch")
        steps = self.steps(found, wanted)
        off = (np.abs(steps) > 1) | ((steps != 0) & ~(self.gap(source) <= self.margin(source, tolerance)))
        if off.any() or not np.isfinite(found).all():
            raise GateError(
                f"{name}: fed the same input, {int(off.sum())} values of 8 bits differ from PyTorch, by up to "
                f"{np.abs(steps).max():g} steps (allowed: one, where PyTorch's value is in the middle)"
            )


def _roundings(graph: Graph) -> dict[str, _Rounding]:
    """The places where `graph` rounds to 8 bits, in order, by the names of their values."""
    found = {
        node.output: _Rounding(node, np.zeros(()))
        for node in graph.nodes
        if isinstance(node, FloatOp) and node.kind == "quantize"
    }
    for unit in eight_bit_units(graph).values():
        if (bias := unit.integer_bias()) is not None:
            last = unit.epilogue[-1]
            error = np.abs(bias * unit.bias_scale.astype(np.float64) - unit.op.attributes["bias"])
            found[last.output] = _Rounding(last, (error / last.attributes["scale"]).reshape(-1, 1, 1))
    return found


def _threshold(unit: BinaryConv) -> np.ndarray:
    return np.zeros((1, 1, 1), np.float32) if unit.shift is None else unit.shift.reshape(-1, 1, 1)


def _negative(unit: BinaryConv, x: np.ndarray) -> np.ndarray:
    return x < _threshold(unit)


def _batches(images: np.ndarray, graph: Graph) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first image, images), so small that the exposed values of both networks fit in memory."""
    shapes = graph.shapes()
    values = sum(np.prod(shapes[node.output]) for node in graph.nodes)
    size = int(min(max(_BATCH_BYTES // (2 * 4 * max(values, 1)), 1), _MAX_BATCH))
    for start in range(0, len(images), size):
        yield start, np.ascontiguousarray(images[start : start + size], dtype=np.float32)


@dataclass(frozen=True)
class _Tap:
    """Where a .onnx shows a unit: value names. x_bits, y_bits: these hold bits, which stand for floats or +-1."""

    unit: BinaryConv
    x: str
    x_bits: bool
    residual: str | None
    y: str
    y_bits: bool


class ExposedOnnx:
    """A copy of a .onnx, run by onnxruntime with its default optimisations, that shows its binary units and values.

    A float or 8-bit convolution is shown with what follows it, as runtimes fuse it; any other operator alone.

    Our operators run by their function bodies, or with a `library` on the kernels in it.
    Where the file keeps bits in front of a unit, x is `shift` plus or minus something (or what they were packed from);
    where it keeps them behind, y is +-1, stage "sign".
    """

    def __init__(self, path: Path | str, graph: Graph, library: Path | None = None) -> None:
        import onnx
        import onnxruntime

        from .onnx_functions import BYTE_CONV, IMAGE_CONV

        model = onnx.load(path)
        nodes = {node.output[0]: node for node in model.graph.node}
        constants = {tensor.name for tensor in model.graph.initializer}
        taps = (_onnx_tap(unit, nodes, constants) for unit in graph.binary_convs)
        self._taps = [tap for tap in taps if tap is not None]
        self._input, self._output = model.graph.input[0].name, model.graph.output[0].name
        bits = {tap.x for tap in self._taps if tap.x_bits} | {tap.y for tap in self._taps if tap.y_bits}
        own = (BYTE_CONV, IMAGE_CONV)  # from floats to floats
        shown_alone = {name for name, node in nodes.items() if node.domain == "" or node.op_type in own}
        shown_alone |= _show_levels(model, graph)
        self._values = sorted(_float_ends(graph) & shown_alone)
        shown = {name for tap in self._taps for name in (tap.x, tap.residual, tap.y) if name} | set(self._values)
        for name in sorted(shown - {self._input, self._output}):
            dtype = onnx.TensorProto.UINT32 if name in bits else onnx.TensorProto.FLOAT
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, dtype, None))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if library:
            options.register_custom_ops_library(str(library))
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, images: np.ndarray, /) -> Shown:
        names = [output.name for output in self._session.get_outputs()]
        values = dict(zip(names, self._session.run(names, {self._input: images}), strict=True))
        values[self._input] = images
        units = {tap.unit.name: _unit_values(tap, values) for tap in self._taps}
        return Shown(values[self._output], units, {name: values[name] for name in self._values})


def _show_levels(model: "ModelProto", graph: Graph) -> set[str]:
    """Where a unit of the file rounds its input by itself, round beside it, as it must. Names of what is shown now."""
    from onnx import helper

    from .onnx_functions import BYTE_CONV, INPUTS

    nodes = {node.output[0]: node for node in model.graph.node}
    shown: set[str] = set()
    for unit in image_units(graph).values():
        node, levels = nodes.get(unit.output), unit.source.output
        if node is None or node.op_type != BYTE_CONV or levels in nodes or levels in shown:
            continue
        given = dict(zip(INPUTS[BYTE_CONV], node.input, strict=True))
        rounding = [given["x_scale"], given["x_zero_point"]]
        integers = f"{levels}.integers"
        model.graph.node.append(helper.make_node("QuantizeLinear", [given["x"], *rounding], [integers]))
        model.graph.node.append(helper.make_node("DequantizeLinear", [integers, *rounding], [levels]))
        shown.add(levels)
    return shown


def _float_ends(graph: Graph) -> set[str]:
    """The values, but for the output, that float and 8-bit units end in."""
    readers, inside = graph.readers(), set()
    for conv in graph.float_convs:
        inside |= {op.output for op in (conv, *conv_epilogue(conv, readers))[:-1]}
    made = {node.output for node in graph.nodes if isinstance(node, FloatOp)}
    return made - inside - {graph.output}


def _onnx_tap(unit: BinaryConv, nodes: "dict[str, NodeProto]", constants: set[str]) -> _Tap | None:
    """nodes: of the file, by their output; constants: names. None if no node is the unit."""
    from .onnx_functions import CONV, CONV_BITS, CONV_SKIP, CONVS, INPUTS, PACK

    node = nodes.get(unit.output)
    if node is None or node.op_type not in CONVS:
        return None
    inputs = dict(zip(INPUTS[node.op_type], node.input, strict=True))
    x, x_bits = inputs["x"], node.op_type not in (CONV, CONV_SKIP)
    if x_bits and x in nodes and nodes[x].op_type == PACK:
        x, x_bits = nodes[x].input[0], False
    residual = x if node.op_type == CONV_SKIP else inputs.get("residual")
    return _Tap(
        unit, x, x_bits, None if residual in constants else residual, unit.output, y_bits=node.op_type == CONV_BITS
    )


def _unit_values(tap: _Tap, values: dict[str, np.ndarray]) -> UnitValues:
    unit, x, y = tap.unit, values[tap.x], values[tap.y]
    if tap.x_bits:
        shift = np.zeros(1, np.float32) if unit.shift is None else unit.shift
        x = around(shift, unpack_values(x, unit.negative.shape[1] * unit.groups))
    residual = None if tap.residual is None else values[tap.residual]
    if not tap.y_bits:
        return UnitValues(x, residual, y)
    return UnitValues(x, residual, np.where(unpack_values(y, len(unit.negative)), -1, 1).astype(np.float32), "sign")


def expose_onnx(path: Path | str, graph: Graph) -> ExposedOnnx:
    """The file at `path`, written from `graph`, ready for `check`."""
    return ExposedOnnx(path, graph)


def expose_onnx_kernels(path: Path | str, graph: Graph) -> ExposedOnnx | None:
    """The same on our kernels; None where they were not built or the file has no use for them.

    Raises InputError if BNAS_ISA names a path that this processor does not have.
    """
    import onnx

    from bnas.runtime_bench import native_library

    from .onnx_functions import DOMAIN

    nodes = onnx.load(path, load_external_data=False).graph.node
    library = native_library.library_for({node.op_type for node in nodes if node.domain == DOMAIN})
    if library is None:
        return None
    native_library.engine_name()
    return ExposedOnnx(path, graph, library)
