"""The float and 8-bit networks of the same topology that a binary network has to beat.

Each binary convolution becomes the plain convolution that a float or 8-bit network would have in its place: zero
padding, no sign; residual and activation stay. The weights follow from the binary ones, so a twin is deterministic. It
is made to be timed, its answers mean nothing.
"""

import logging
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bnas.profiles import atomic

from .graph import BinaryConv, FloatOp, Graph

if TYPE_CHECKING:
    from onnx import ModelProto

INTEGER_CONVS = ("QLinearConv", "ConvInteger")
INTEGER_LINEARS = ("QGemm",)
FLOAT_CONVS = ("Conv", "FusedConv")  # of every domain: onnxruntime's own layouts keep the name
CALIBRATION_BATCH = 16


def write_twins(graph: Graph, images: np.ndarray, stem: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """Write STEM.fp32.onnx and STEM.int8.onnx. images: float32 [N, C, H, W] as the network sees them, to calibrate.

    Returns a JSON-able report: paths, and what onnxruntime really runs in the int8 twin. Raises as `int8_twin` does.
    """
    fp32 = fp32_twin(graph, metadata)
    int8 = int8_twin(fp32, images)
    paths = {"fp32": stem.with_name(f"{stem.name}.fp32.onnx"), "int8": stem.with_name(f"{stem.name}.int8.onnx")}
    atomic.write_bytes(paths["fp32"], fp32.SerializeToString())
    atomic.write_bytes(paths["int8"], int8.SerializeToString())
    nodes = optimised_nodes(int8)
    return {
        **{kind: str(path) for kind, path in paths.items()},
        "int8_integer_convs": sum(operator in INTEGER_CONVS for operator, _ in nodes),
        "int8_float_convs": sum(operator in FLOAT_CONVS for operator, _ in nodes),
        "prelu_in_float": sum(operator == "PRelu" for operator, _ in nodes),
    }


def fp32_twin(graph: Graph, metadata: dict[str, str]) -> "ModelProto":
    """The float twin; its batch axis is dynamic."""
    from .onnx_writer import to_onnx

    return to_onnx(float_graph(graph), metadata, name="fp32 twin", plain_image=True)


def int8_twin(fp32: "ModelProto", images: np.ndarray) -> "ModelProto":
    """The float twin quantised: int8 weights per output channel, uint8 activations (int8: 2-6 times slower on x86).

    images: float32 [N, C, H, W], whose value ranges are measured. Raises RuntimeError naming a convolution that
    onnxruntime would still run in float.
    """
    import onnx
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory(prefix="bnas-") as folder, _quiet():
        source, target = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        onnx.save(fp32, source)
        quantization.quantize_static(
            source,
            target,
            _calibration_reader(fp32.graph.input[0].name, images),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        int8 = onnx.load(target)
    int8.ir_version = fp32.ir_version
    onnx.helper.set_model_props(int8, {entry.key: entry.value for entry in fp32.metadata_props})
    if left := [name for operator, name in optimised_nodes(int8) if operator in FLOAT_CONVS]:
        raise RuntimeError(f"these convolutions of the int8 twin stay in float: {', '.join(left)}")
    return int8


def optimised_nodes(model: "ModelProto") -> list[tuple[str, str]]:
    """(operator, name) of each node that onnxruntime really runs on this processor, after all its optimisations."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory(prefix="bnas-") as folder:
        optimised = Path(folder, "optimised.onnx")
        options.optimized_model_filepath = str(optimised)
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return [(node.op_type, node.name) for node in onnx.load(optimised).graph.node]


def float_graph(graph: Graph) -> Graph:
    """The graph with float operators only: what stands in for each binary unit, no signs, padding with zeros.

    Nothing is rounded to 8 bits either; the int8 twin has ranges of its own.
    """
    renamed: dict[str, str] = {}
    nodes: list[FloatOp] = []
    for node in graph.nodes:
        if isinstance(node, BinaryConv):
            nodes += _float_unit(node, tuple(renamed.get(name, name) for name in node.inputs))
        elif node.kind in ("sign", "quantize"):
            renamed[node.output] = renamed.get(node.inputs[0], node.inputs[0])
        else:
            inputs = tuple(renamed.get(name, name) for name in node.inputs)
            attributes = node.attributes | ({"value": 0.0} if node.kind == "pad" else {})
            nodes.append(replace(node, inputs=inputs, attributes=attributes))
    return replace(graph, output=renamed.get(graph.output, graph.output), nodes=tuple(nodes))


def _float_unit(unit: BinaryConv, inputs: tuple[str, ...]) -> list[FloatOp]:
    """act(conv(x) + residual). Without a residual in between, the shift into the activation is part of the bias."""
    bias, shift_in = unit.bias, unit.act_shift_in
    if shift_in is not None and unit.residual is None:
        bias, shift_in = bias - shift_in, None
    steps: list[tuple[str, dict[str, Any]]] = [
        (
            "conv",
            {
                "weight": _unit_variance(unit),
                "bias": bias,
                "strides": unit.strides,
                "pads": unit.pads,
                "dilations": unit.dilations,
                "groups": unit.groups,
            },
        )
    ]
    if unit.residual is not None:
        steps.append(("add", {}))
    if shift_in is not None:
        steps.append(("affine", {"scale": np.ones_like(shift_in), "bias": -shift_in}))
    if unit.slope is not None:
        steps.append(("prelu", {"slope": unit.slope}) if unit.slope.any() else ("relu", {}))
    if unit.act_shift_out is not None:
        steps.append(("affine", {"scale": np.ones_like(unit.act_shift_out), "bias": unit.act_shift_out}))

    nodes, value = [], inputs[0]
    for i, (kind, attributes) in enumerate(steps):
        output = unit.output if i == len(steps) - 1 else f"{unit.output}.{i}"
        operands = (value, inputs[1]) if kind == "add" else (value,)
        nodes.append(FloatOp(kind, unit.name if kind == "conv" else output, operands, output, attributes))
        value = output
    return nodes


def _unit_variance(unit: BinaryConv) -> np.ndarray:
    """float32 [out, in/groups, kh, kw]: sign times scale, levelled so that variance 1 gives about variance 1."""
    size = math.sqrt(float(np.square(unit.scale, dtype=np.float64).mean()) * unit.negative[0].size)
    scale = unit.scale / size if size > 0 else np.full_like(unit.scale, 1 / math.sqrt(unit.negative[0].size))
    return np.where(unit.negative, -1, 1).astype(np.float32) * scale.astype(np.float32)[:, None, None, None]


def _calibration_reader(input_name: str, images: np.ndarray) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Batches(CalibrationDataReader):
        def __init__(self) -> None:
            self.starts = iter(range(0, len(images), CALIBRATION_BATCH))

        def get_next(self) -> dict[str, np.ndarray] | None:
            start = next(self.starts, None)
            return None if start is None else {input_name: images[start : start + CALIBRATION_BATCH]}

    return Batches()


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser advises on the root logger; what matters is checked here by counting."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
