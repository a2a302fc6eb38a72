"""`bnas demo`: the whole path on the embedded digits, in a few minutes on two cores."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from .. import runs
from ..console import Progress, output, progress, result, say
from . import settings
from .bench import _show as show_bench
from .bench import do_bench
from .export import do_export
from .profiles import do_build
from .search import do_search
from .train import do_train

FOLDER = Path("runs/demo")


def demo(
    restart: bool = typer.Option(False, "--restart", help="Throw away an earlier demo and its profile."),
    as_json: bool = settings.JSON,
) -> None:
    """Measure this machine, search, train, export to ONNX and TFLite, and bench: all of bnas on the digits set.

    Example: bnas demo --restart
    """
    with result(as_json) as emit, progress() as report:
        document = do_demo(restart, report)
        emit(document, lambda: _show(document))


def do_demo(restart: bool, report: Progress) -> dict:
    """The document of report.json. An interrupted demo, repeated on the same machine, goes on where it was."""
    seconds: dict[str, float] = {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        say(f"demo: {name}")
        started = time.perf_counter()
        yield
        seconds[name] = round(time.perf_counter() - started, 2)

    data = settings.data_config("digits", None, None, None)
    profile = FOLDER.with_name("demo-profile.yaml")
    profile.parent.mkdir(parents=True, exist_ok=True)
    if restart:
        profile.unlink(missing_ok=True)
    with stage("profile"):
        if not _is_ours(profile):
            do_build(data=data, out=profile, seconds=0.6, networks=10, report=report)
    restart = restart or _guided_by_another(profile)
    with stage("search"):
        found = do_search(profile=str(profile), data=data, out=FOLDER, restart=restart, report=report)
    run = runs.open_run(FOLDER)
    with stage("train"):
        trained = do_train(run, "cpu", report)
    exported = {}
    for format in ("onnx", "tflite"):
        with stage(f"export {format}"):
            exported[format] = do_export(run, format, require_binary=True, twins=format == "onnx", report=report)
    with stage("bench"):
        measured = do_bench([str(FOLDER)], seconds=4.0, report=report)
    one_thread = {r["label"]: r for r in measured["results"] if r["threads"] == 1}
    document = {
        "test_accuracy": trained["test_accuracy"],
        "architecture": found["architecture"],
        "latency_limit_ms": found["limit_ms"],
        "predicted_ms": found["predicted_ms"],
        "prediction": found["prediction"],
        "measured_ms": one_thread["onnx"]["p50_ms"],
        "fp32_twin_ms": one_thread["fp32 twin"]["p50_ms"],
        "int8_twin_ms": one_thread["int8 twin"]["p50_ms"],
        "tflite_ms": one_thread["tflite"]["p50_ms"],
        "engine": one_thread["onnx"]["engine"],
        "tflite_engine": one_thread["tflite"]["engine"],
        "threads": 1,
        "no_speedup_reason": measured.get("no_speedup_reason"),
        "environment": measured["environment"],
        "seconds": seconds | {"total": round(sum(seconds.values()), 2)},
        **{format: _facts(exported[format]) for format in exported},
    }
    run.write("report.json", document)
    return document | {"bench": measured}


def _is_ours(profile: Path) -> bool:
    """Whether the file is a profile of this machine and of the engine that would run now."""
    from bnas.profiles.errors import InputError
    from bnas.profiles.schema import load_profile
    from bnas.runtime_bench import machine

    try:
        known = load_profile(profile)
    except InputError:
        return False
    return known.device.fingerprint == machine.fingerprint() and not settings.outdated(known)


def _guided_by_another(profile: Path) -> bool:
    """Whether the demo's folder holds a run that another profile guided: what a demo cut at the wrong moment leaves."""
    from bnas.profiles.schema import load_profile

    if not (FOLDER / "run.yaml").exists():
        return False
    return runs.open_run(FOLDER).config["profile"]["hash"] != load_profile(profile).hash


def _facts(report: dict) -> dict:
    names = ("path", "bytes", "binary_convs", "float_convs", "max_abs_diff", "argmax_agreement", "sign_flips", "images")
    return {name: report[name] for name in names}


def _show(document: dict) -> None:
    show_bench(document["bench"])
    from rich.table import Table

    from bnas.profiles.table import format_ms

    table = Table(title="bnas demo, digits", show_header=False)
    table.add_row("test accuracy", f"{document['test_accuracy']:.2%}")
    table.add_row("architecture", " ".join(document["architecture"]["choices"]))
    table.add_row("latency limit", format_ms(document["latency_limit_ms"]))
    table.add_row("predicted", document["prediction"])
    table.add_row("measured", f"{format_ms(document['measured_ms'])} (onnx, 1 thread, {document['engine']})")
    for format in ("onnx", "tflite"):
        facts = document[format]
        table.add_row(
            format,
            f"{facts['bytes']:,} bytes, {facts['binary_convs']} binary and {facts['float_convs']} float convolutions, "
            f"{facts['argmax_agreement']:.2%} equal arg-max, {facts['sign_flips']} flipped signs",
        )
    table.add_row("seconds", json.dumps(document["seconds"]))
    output.print(table)
    say(f"report: {FOLDER / 'report.json'}; picture: bnas report")
