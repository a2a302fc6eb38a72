"""From a trained module to a checked file: capture, lower, write, gate, twins. What fails leaves no file behind."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from bnas.profiles.errors import InputError, unknown

from .capture import Captured, capture
from .eight_bit import eight_bit_units
from .gate import ExposedFile, GateError, check, expose_onnx, expose_onnx_kernels
from .graph import Graph
from .lowering import Lowered, lower

FORMATS = ("onnx", "tflite")
MIN_IMAGES = 300  # fewer cannot show an arg-max agreement of 0.997
Progress = Callable[[str, int, int], None]


def export_network(
    module: nn.Module,
    images: np.ndarray,
    path: Path | str,
    format: Literal["onnx", "tflite"] | str,
    metadata: dict[str, str],
    *,
    require_binary: bool = False,
    twins: bool = True,
    progress: Progress | None = None,
) -> dict:
    """Write `module` to `path` with real binary operators, and check the file on `images`. Returns a report for JSON.

    images: float32 [N, C, H, W], normalised as the module expects, at least 300; they also calibrate the int8 twin.
    metadata: text stored in the file. twins: also write `NAME.fp32.onnx` and `NAME.int8.onnx` next to it.
    progress(stage, done, total) is called with the stages "capture", "write", "check" (in images) and "twins".
    The report's "kernels" is what a second check found with our kernels, None if the file does not run on them;
    "eight_bit" how many 8-bit convolutions and linear layers there are, and how many of them are computed in float
    nevertheless: in TFLite all, in ONNX those that are no `ByteConv2d` and that onnxruntime, on this processor, does
    not fuse with the roundings.
    Raises InputError for what cannot be exported, GateError if the written file computes something else.
    """
    report = progress or (lambda stage, done, total: None)
    path = Path(path)
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if images.ndim != 4 or len(images) < MIN_IMAGES:
        raise InputError(f"export is checked on at least {MIN_IMAGES} images [N, C, H, W], got {list(images.shape)}")
    report("capture", 0, 1)
    captured = capture(module, torch.from_numpy(np.asarray(images[:2], np.float32)))
    lowered = lower(captured)
    if require_binary:
        _require_binary(lowered)
    report("capture", 1, 1)
    report("write", 0, 1)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=f".partial{path.suffix}", dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        expose, expose_kernels, count = _write(lowered.graph, partial, format, metadata)
        binary_convs, wanted = count(partial), len(lowered.graph.binary_convs)
        if binary_convs != wanted:
            raise GateError(f"{path.name} holds {binary_convs} of {wanted} binary convolutions")
        eight_bit = _eight_bit(lowered.graph, partial, format)
        report("write", 1, 1)
        kernels = expose_kernels(partial, lowered.graph)
        rounds = 1 if kernels is None else 2

        def checked(done: int, total: int) -> None:
            report("check", done, rounds * total)

        def checked_kernels(done: int, total: int) -> None:
            report("check", total + done, rounds * total)

        gate = check(captured, lowered, expose(partial, lowered.graph), images, progress=checked)
        on_kernels = None
        if kernels is not None:
            on_kernels = _check_kernels(captured, lowered, kernels, images, format, checked_kernels)
        written_twins = _write_twins(lowered.graph, images, path.with_suffix(""), metadata, report) if twins else {}
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return {
        "path": str(path),
        "format": format,
        "bytes": path.stat().st_size,
        "binary_convs": binary_convs,
        "float_convs": len(lowered.graph.float_convs) - eight_bit["convolutions"],
        "eight_bit": eight_bit,
        "convolutions": [vars(convolution) for convolution in lowered.convolutions],
        **vars(gate),
        "kernels": on_kernels,
        "twins": written_twins,
    }


def _require_binary(lowered: Lowered) -> None:
    """The first convolution reads the image and may be float; any other must be binary, or meant to have 8 bits."""
    for convolution in lowered.convolutions[1:]:
        if convolution.kind == "float":
            raise InputError(
                f"--require-binary: convolution {convolution.name} stays float ({convolution.reason}); "
                "make it binary, or export without --require-binary"
            )


def _write(
    graph: Graph, path: Path, format: str, metadata: dict[str, str]
) -> tuple[Callable[[Path, Graph], ExposedFile], Callable[[Path, Graph], ExposedFile | None], Callable[[Path], int]]:
    """Write the file; returns how to expose it, how to do so on our kernels, and how to count binary convolutions."""
    if format == "onnx":
        from .onnx_writer import count_binary_convs as count_onnx
        from .onnx_writer import write_onnx
        from .packing import pack_bits

        write_onnx(pack_bits(graph), path, metadata)
        return expose_onnx, expose_onnx_kernels, count_onnx
    from .tflite_file import count_binary_convs, expose, expose_kernels
    from .tflite_writer import write_tflite

    write_tflite(graph, path, metadata)
    return expose, expose_kernels, count_binary_convs


def _eight_bit(graph: Graph, path: Path, format: str) -> dict[str, int]:
    """How many units of `graph` have 8 bits, by kind, and how many of these the file at `path` computes in float."""
    kinds = [unit.op.kind for unit in eight_bit_units(graph).values()]
    integer = 0
    if kinds and format == "onnx":
        import onnx

        from .onnx_functions import BYTE_CONV
        from .twins import INTEGER_CONVS, INTEGER_LINEARS, optimised_nodes

        model = onnx.load(path)
        operators = [node.op_type for node in model.graph.node] + [operator for operator, _ in optimised_nodes(model)]
        integer = sum(operator in (BYTE_CONV, *INTEGER_CONVS, *INTEGER_LINEARS) for operator in operators)
    return {
        "convolutions": kinds.count("conv"),
        "linear_layers": kinds.count("linear"),
        "kept_in_float": len(kinds) - integer,
    }


def _check_kernels(
    captured: Captured,
    lowered: Lowered,
    file: ExposedFile,
    images: np.ndarray,
    format: str,
    progress: Callable[[int, int], None],
) -> dict:
    """The gate once more, for the file on our kernels: in place of function bodies, or of Larq's interpreter."""
    from bnas.runtime_bench import native_library

    engine = native_library.engine_name() if format == "onnx" else native_library.litert_engine_name()
    try:
        found = check(captured, lowered, file, images, progress=progress)
    except GateError as error:
        raise GateError(f"on {engine}: {error}") from None
    return {"engine": engine, **vars(found)}


def _write_twins(graph: Graph, images: np.ndarray, stem: Path, metadata: dict[str, str], report: Progress) -> dict:
    from .twins import write_twins

    report("twins", 0, 1)
    written = write_twins(graph, images, stem, metadata)
    report("twins", 1, 1)
    return written
