"""`bnas bench`: time an exported network on this machine against its fp32 and int8 twins."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from bnas.profiles.errors import InputError

from .. import runs
from ..console import Progress, output, progress, result, say
from . import settings

if TYPE_CHECKING:
    from bnas.profiles.schema import EngineInfo, Profile

TWINS = ("fp32", "int8")


def bench(
    target: str | None = typer.Argument(
        None, help="A run, or a .onnx or .tflite file (default: the newest run).", show_default=False
    ),
    device: str = typer.Option("local", "--device", help="Where to measure; this version: local."),
    threads: int | None = typer.Option(None, "--threads", help="Threads (default: 1, then all cores)."),
    seconds: float = typer.Option(4.0, "--seconds", help="Measuring time per thread count."),
    as_json: bool = settings.JSON,
) -> None:
    """Time the exported files side by side with their fp32 and int8 twins, and compare with the prediction.

    Example: bnas bench, or for any file: bnas bench model.onnx --threads 1
    """
    with result(as_json) as emit, progress() as report:
        document = do_bench(target, device=device, threads=threads, seconds=seconds, report=report)
        emit(document, lambda: _show(document))


def do_bench(
    target: str | None, *, report: Progress, device: str = "local", threads: int | None = None, seconds: float = 4.0
) -> dict:
    """Measure; the document of bench.json. For a run it is written there, raw samples included."""
    if device != "local":
        raise InputError(f"--device {device!r} is not supported yet; this version measures on: local")
    settings.check_measuring(threads, seconds)
    from bnas.profiles.schema import load_profile
    from bnas.runtime_bench import machine
    from bnas.runtime_bench.compare import bench_files

    run = profile = None
    main = Path(target or "")
    if main.is_file() or main.suffix.lower() in (".onnx", ".tflite"):
        files = {main.suffix[1:].lower() or main.name: main, **_twins(main)}
    else:
        run = runs.find(target)
        exported = [
            run.path(f"model{suffix}") for suffix in (".onnx", ".tflite") if run.path(f"model{suffix}").is_file()
        ]
        if not exported:
            raise InputError(f"nothing is exported in {run.folder} yet; do: bnas export {run.folder} --format tflite")
        files = {path.suffix[1:]: path for path in exported} | _twins(exported[0])
        profile = load_profile(run.path("profile.yaml"))
    counts = [threads] if threads else sorted({1, machine.usable_cores()})
    document = bench_files(files, counts, seconds, report)
    if run is not None and profile is not None:
        document = {"run": str(run.folder), **document, "predicted": _predicted(run, profile, document)}
        run.write("bench.json", document)
    return document


def _twins(path: Path) -> dict[str, Path]:
    """The twins that lie beside `path`, by label."""
    candidates = {f"{kind} twin": path.with_suffix(f".{kind}.onnx") for kind in TWINS}
    return {label: twin for label, twin in candidates.items() if twin.is_file()}


def _predicted(run: runs.Run, profile: Profile, document: dict) -> dict:
    """The run's prediction and, where it is about this machine and engine, how far the measured median is from it."""
    from bnas.runtime_bench import machine

    found = run.read("search.json") or {}
    predicted = {
        "profile": profile.name,
        "ms": found["predicted_ms"],
        "text": found["prediction"],
        "error": profile.error,
    }
    row = next((r for r in document["results"] if r["label"] == "onnx" and r["threads"] == profile.threads), None)
    if profile.device.fingerprint != machine.fingerprint():
        return predicted | {
            "comparable": False,
            "reason": f"predicted for {profile.device.name}, measured on this machine",
        }
    if row is None or _engine(row) != profile.engine:
        return predicted | {
            "comparable": False,
            "reason": f"predicted for {profile.engine.text} with {profile.threads} threads, which was not measured; "
            "rebuild the profile: bnas profiles build --device local",
        }
    measured = row["p50_ms"]
    return predicted | {"comparable": True, "measured_ms": measured, "deviation": measured / found["predicted_ms"] - 1}


def _engine(row: dict) -> EngineInfo:
    from bnas.profiles.schema import EngineInfo

    return EngineInfo(name=row["engine"], runtime=row["runtime"], version=row["version"], operators=row["operators"])


def _show(document: dict) -> None:
    from rich.table import Table

    from bnas.profiles.table import format_ms

    table = Table("file", "engine", "threads", "p50", "p90", "size", title=document["environment"]["processor"])
    for row in document["results"]:
        table.add_row(
            row["label"], row["engine"], str(row["threads"]), format_ms(row["p50_ms"]), format_ms(row["p90_ms"]),
            f"{row['bytes']:,} B",
        )  # fmt: skip
    output.print(table)
    if predicted := document.get("predicted"):
        text = f"predicted {predicted['text']} by {predicted['profile']}"
        if predicted["comparable"]:
            text += f", measured {format_ms(predicted['measured_ms'])} ({predicted['deviation']:+.1%})"
        else:
            text += f"; not comparable: {predicted['reason']}"
        output.print(text, markup=False)
    for line in document["speedups"]:
        output.print(
            f"{line['label']} is {line['ratio']:.2f} times as fast as the {line['against']} "
            f"({line['threads']} thread{'s' * (line['threads'] > 1)})"
        )
    if reason := document.get("no_speedup_reason"):
        say(f"no speed-up is claimed: {reason}")
