"""`bnas export`: write the trained network with real binary operators, and check what was written."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from bnas.profiles.errors import InputError

from .. import __version__, runs
from ..console import Progress, output, progress, result, say
from . import settings

SUFFIXES = {"onnx": ".onnx", "tflite": ".tflite"}
LAYOUTS = {"onnx": "NCHW", "tflite": "NHWC"}
GATE_IMAGES = 512


def export(
    run: str | None = settings.RUN,
    format: str = typer.Option("onnx", "--format", help="onnx or tflite."),
    out: Path | None = typer.Option(None, "--out", help="File to write (default: RUN/model.onnx or RUN/model.tflite)."),
    require_binary: bool = typer.Option(False, "--require-binary", help="Fail if one fell back to float."),
    twins: bool = typer.Option(True, "--twins/--no-twins", help="Also write the fp32 and int8 networks to compare."),
    as_json: bool = settings.JSON,
) -> None:
    """Write the trained network as ONNX or TFLite with real binary operators, and check it against PyTorch.

    Example: bnas export --format tflite
    """
    with result(as_json) as emit, progress() as report:
        document = do_export(runs.find(run), format, out=out, require_binary=require_binary, twins=twins, report=report)
        emit(document, lambda: _show(document))


def do_export(
    run: runs.Run,
    format: str,
    *,
    report: Progress,
    out: Path | None = None,
    require_binary: bool = False,
    twins: bool = True,
) -> dict:
    """Write, gate, and remember the report as export-FORMAT.json in the run."""
    from bnas.profiles.errors import unknown

    if format not in SUFFIXES:
        raise unknown("format", format, SUFFIXES)
    if not run.path("model.safetensors").is_file():
        raise InputError(f"the network in {run.folder} is not trained yet; train it with: bnas train {run.folder}")
    path = out or run.path(f"model{SUFFIXES[format]}")
    if path.suffix != SUFFIXES[format]:
        raise InputError(f"--out {path} must end with {SUFFIXES[format]} for --format {format}")
    if not path.parent.is_dir():
        raise InputError(f"--out {path}: there is no folder {path.parent}; make it first")
    from bnas.export.pipeline import export_network
    from bnas.search.training.from_scratch import load_network

    with runs.locked(run.folder):
        network, arch = load_network(run.path("model.safetensors"))
        images = settings.load_data(run.config["data"], report)
        metadata = {
            "bnas": __version__,
            "architecture": json.dumps(arch.to_dict()),
            "classes": json.dumps(list(images.classes)),
            "normalisation": json.dumps({"scale": 1 / 255, "mean": list(images.mean), "std": list(images.std)}),
            "input": json.dumps(
                {
                    "layout": LAYOUTS[format],
                    "channels": "RGB" if images.shape[0] == 3 else "grey",
                    "formula": "(pixel * scale - mean) / std, pixel 0 to 255",
                    "resize": "central square, then bilinear to the input size",
                }
            ),
            "data": images.name,
        }
        document = export_network(
            network,
            settings.sample(images, GATE_IMAGES),
            path,
            format,
            metadata,
            require_binary=require_binary,
            twins=twins,
            progress=report,
        )
        document = {"run": str(run.folder), **document}
        run.write(f"export-{format}.json", document)
        return document


def _show(document: dict) -> None:
    from rich.table import Table

    table = Table(title=f"{document['path']} ({document['bytes']:,} bytes)")
    for column in ("convolution", "kind", "reason"):
        table.add_column(column)
    for conv in document["convolutions"]:
        table.add_row(conv["name"], conv["kind"], conv["reason"] or "")
    output.print(table)
    eight_bit = document["eight_bit"]
    if eight_bit["convolutions"] or eight_bit["linear_layers"]:
        output.print(
            f"in 8 bits: convolutions: {eight_bit['convolutions']}, linear layers: {eight_bit['linear_layers']}; "
            f"of these computed in float: {eight_bit['kept_in_float']}"
        )
    output.print(f"checked on {document['images']} images: {_checked(document)}")
    if kernels := document.get("kernels"):
        output.print(f"and on {kernels['engine']}: {_checked(kernels)}")
    say(f"next: bnas bench {document['run']}")


def _checked(gate: dict) -> str:
    return (
        f"units differ by at most {gate['max_abs_diff']:.2g}, {gate['argmax_agreement']:.2%} equal arg-max, "
        f"{gate['sign_flips']} flipped signs, {gate['step_flips']} values of 8 bits a step apart"
    )
