"""`bnas bench`: time exported networks on a device, against their twins or against each other."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from bnas.profiles.errors import InputError

from .. import runs
from ..console import Progress, output, progress, result, say
from . import settings

if TYPE_CHECKING:
    from bnas.profiles.schema import EngineInfo, Profile
    from bnas.runtime_bench.devices.target import Target
    from bnas.search.data import ImageSet

LOCAL = "local"
TWINS = ("fp32", "int8")
SUFFIXES = (".onnx", ".tflite")
OTHER_SPEED = 0.05  # by which a processor may count faster or slower than when a profile was measured
ACCURACY_BATCH = 256  # images pushed to a device at a time


def bench(
    targets: list[str] = typer.Argument(
        None, help="A run, or a .onnx or .tflite file (default: the newest run).", show_default=False
    ),
    device: str = settings.DEVICE,
    threads: int | None = typer.Option(None, "--threads", help="Threads (default: 1, and all cores)."),
    seconds: float = typer.Option(4.0, "--seconds", help="Measuring time per thread count."),
    compare: bool = typer.Option(False, "--compare", help="Any files, also of others: each against the first."),
    accuracy: bool = typer.Option(False, "--accuracy", help="Run the test images on the device, too."),
    units: bool = typer.Option(False, "--units", help="Also what every node of the file takes."),
    cpus: str | None = settings.CPUS,
    keep: bool = settings.KEEP,
    tflite_benchmark: Path | None = typer.Option(
        None, "--tflite-benchmark", help="TFLite's benchmark_model for a device without Python."
    ),
    lce_benchmark: Path | None = typer.Option(
        None, "--lce-benchmark", help="Larq's lce_benchmark_model for a device without Python."
    ),
    out: Path | None = typer.Option(None, "--out", help="JSON file to write (default: bench.json of a run)."),
    as_json: bool = settings.JSON,
) -> None:
    """Time the exported files side by side with their fp32 and int8 twins, and compare with the prediction.

    Example: bnas bench --device ssh://pi@kitchen, or for any files: bnas bench --compare a.onnx b.onnx
    """
    with result(as_json) as emit, progress() as report:
        document = do_bench(
            targets or [], device=device, threads=threads, seconds=seconds, compare=compare, accuracy=accuracy,
            units=units, cpus=cpus, keep=keep, benchmarks=(tflite_benchmark, lce_benchmark), out=out, report=report,
        )  # fmt: skip
        emit(document, lambda: _show(document))


def do_bench(
    targets: list[str],
    *,
    report: Progress,
    device: str = "local",
    threads: int | None = None,
    seconds: float = 4.0,
    compare: bool = False,
    accuracy: bool = False,
    units: bool = False,
    cpus: str | None = None,
    keep: bool = False,
    benchmarks: tuple[Path | None, Path | None] = (None, None),
    out: Path | None = None,
) -> dict:
    """Measure; the document of bench.json. For a run it is written there, raw samples included.

    A bench of a run, or one with `out`, keeps what it has measured; the same command goes on with it.
    """
    settings.check_seconds(seconds)
    settings.check_device(device, threads)
    if compare and len(targets) < 2:
        raise InputError(f"--compare needs at least two files, got {len(targets)}")
    if not compare and len(targets) > 1:
        raise InputError(f"{len(targets)} targets are named; add --compare to bench them against each other")
    run = None
    if compare or (targets and _is_file(targets[0])):
        files = _labelled([Path(target) for target in targets]) if compare else _with_twins(Path(targets[0]))
    else:
        run = runs.find(targets[0] if targets else None)
        files = _exported(run)
    if accuracy and run is None:
        raise InputError("--accuracy needs a run, whose test images and PyTorch network it compares with")
    if out is not None and (out.suffix != ".json" or out.is_dir()):
        raise InputError(f"--out {out} must be a file that ends with .json")
    if out is not None and not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}; make it first")
    place = run.path("bench.json") if run and out is None else out
    partial = place.with_name(f".{place.stem}.partial.json") if place else None

    from bnas.profiles.schema import load_profile
    from bnas.runtime_bench.compare import bench_files
    from bnas.runtime_bench.devices import ConnectionLost, open_device

    # What can be missing here is asked for before anything is measured.
    profile = load_profile(run.path("profile.yaml")) if run is not None else None
    images = settings.load_data(run.config["data"], report) if run is not None and accuracy else None
    try:
        with (
            runs.locked(run.folder) if run is not None else nullcontext(),
            open_device(
                device, keep=keep, cpus=cpus, tflite_benchmark=benchmarks[0], lce_benchmark=benchmarks[1]
            ) as target,
        ):
            counts = settings.thread_counts(threads, target.usable_cores())
            left_out = {} if compare or any(benchmarks) else _without_a_program(files, target)
            files = {label: path for label, path in files.items() if label not in left_out}
            document = bench_files(target, files, counts, seconds, report, each=compare, partial=partial)
            document["warnings"] += left_out.values()
            if units:
                document["units"] = {
                    label: target.unit_profile(path, counts[0], 20)
                    for label, path in files.items()
                    if path.suffix == ".onnx"
                }
            if run is not None and profile is not None:
                predicted = _predicted(run, profile, document, target)
                document = {"run": str(run.folder), **document, "predicted": predicted}
            if run is not None and images is not None:
                document["accuracy"] = _accuracy(run, images, files, target, counts[-1], report)
    except ConnectionLost as error:
        kept = f"; what was measured is kept in {partial}, and the same command goes on with it" if partial else ""
        raise ConnectionLost(f"{error}{kept}") from None
    if place:
        import json

        from bnas.profiles import atomic

        atomic.write_text(place, json.dumps(document, indent=2) + "\n")
    if partial:
        partial.unlink(missing_ok=True)
    return document


def _is_file(target: str) -> bool:
    return Path(target).is_file() or Path(target).suffix.lower() in SUFFIXES


def _labelled(paths: list[Path]) -> dict[str, Path]:
    """Names to tell the files by: their own, the path where two are called the same, a number for the same file."""
    names = [path.name for path in paths]
    labels: dict[str, Path] = {}
    for path in paths:
        label = path.name if names.count(path.name) == 1 else str(path)
        number = sum(other == path for other in labels.values())
        labels[f"{label} ({number + 1})" if number else label] = path
    return labels


def _with_twins(path: Path) -> dict[str, Path]:
    """The file, and its twins that lie beside it."""
    candidates = {f"{kind} twin": path.with_suffix(f".{kind}.onnx") for kind in TWINS}
    twins = {label: twin for label, twin in candidates.items() if twin.is_file()}
    return {path.suffix[1:].lower() or path.name: path, **twins}


def _exported(run: runs.Run) -> dict[str, Path]:
    found = [path for suffix in SUFFIXES if (path := run.path(f"model{suffix}")).is_file()]
    if not found:
        raise InputError(f"nothing is exported in {run.folder} yet; do: bnas export {run.folder} --format tflite")
    return {path.suffix[1:]: path for path in found} | _with_twins(found[0])


def _without_a_program(files: dict[str, Path], target: Target) -> dict[str, str]:
    """The files that a device without Python has no program for, where it can run others; with what to say of them."""
    tflite = [label for label, path in files.items() if path.suffix == ".tflite" and not target.local]
    if len(tflite) == len(files):
        return {}
    return {
        label: f"{files[label]} is left out: a device needs a program for it; name one with --lce-benchmark"
        for label in tflite
    }


def _predicted(run: runs.Run, profile: Profile, document: dict, target: Target) -> dict:
    """The run's prediction and, where it is about this device and engine, how far the measured median is from it."""
    found = run.read("search.json") or {}
    predicted = {
        "profile": profile.name,
        "ms": found["predicted_ms"],
        "text": found["prediction"],
        "error": profile.error,
        "comparable": False,
    }
    if target.emulated:
        return predicted | {"reason": "measured under an emulator"}
    if profile.device.fingerprint != target.fingerprint():
        where = "this machine" if target.local else target.url
        return predicted | {"reason": f"predicted for {profile.device.name}, measured on {where}"}
    if (profile.device.name == LOCAL) != target.local:  # a call from Python takes longer than one in the runner
        return predicted | {"reason": f"predicted for {profile.device.name}, measured on {target.url}"}
    format = settings.file_format(profile.engine)
    if format not in {result["label"] for result in document["results"]}:
        return predicted | {"reason": f"predicted for model.{format}; do: bnas export {run.folder} --format {format}"}
    row = next((r for r in document["results"] if runs_as(r, profile)), None)
    if row is None:
        return predicted | {
            "reason": f"predicted for {profile.engine.text} with {settings.threads_text(profile.threads)}, which was "
            f"not measured; rebuild the profile: bnas profiles build --device {target.url} --engine {format}",
        }
    deviation = row["p50_ms"] / found["predicted_ms"] - 1
    then, now = profile.device.binary_gmac_s, target.bound_gmacs()
    return predicted | {
        "processor_speed": now / then if now and then else None,  # against when the profile was measured
        "comparable": True,
        "measured_ms": row["p50_ms"],
        "deviation": deviation,
        "inside_band": abs(deviation) <= profile.error,
    }


def runs_as(row: dict, profile: Profile) -> bool:
    """Whether a row of "results" is the exported network as `profile` predicts it: same engine, as many threads."""
    return "twin" not in row["label"] and row["threads"] == profile.threads and engine_of(row) == profile.engine


def engine_of(row: dict) -> EngineInfo:
    """What ran a row of "results", as a profile names it."""
    from bnas.profiles.schema import EngineInfo

    return EngineInfo(name=row["engine"], runtime=row["runtime"], version=row["version"], operators=row["operators"])


def _accuracy(
    run: runs.Run, images: ImageSet, files: dict[str, Path], target: Target, threads: int, report: Progress
) -> dict:
    """The test images through the exported files on the device, and through PyTorch here."""
    import numpy as np
    import torch

    from bnas.search.training.from_scratch import load_network

    network, _ = load_network(run.path("model.safetensors"))
    pixels, labels = images.test.images, np.asarray(images.test.labels)
    # A benchmark program, which runs .tflite files on other devices, gives no outputs.
    mine = [label for label, path in files.items() if "twin" not in label and (target.local or path.suffix == ".onnx")]
    sessions = {label: target.open(files[label], threads) for label in mine}
    classes: dict[str, list[np.ndarray]] = {label: [] for label in (*mine, "pytorch")}
    try:
        for start in range(0, len(pixels), ACCURACY_BATCH):
            x = settings.normalised(images, pixels[start : start + ACCURACY_BATCH])
            with torch.no_grad():
                classes["pytorch"].append(network(torch.from_numpy(x)).argmax(1).numpy())
            for label, session in sessions.items():
                given = x if session.input_layout == "NCHW" else np.ascontiguousarray(x.transpose(0, 2, 3, 1))
                classes[label].append(session.infer(given).reshape(len(x), -1).argmax(1))
            report("accuracy", min(start + ACCURACY_BATCH, len(pixels)), len(pixels))
    finally:
        for session in sessions.values():
            session.close()
    found = {label: np.concatenate(parts) for label, parts in classes.items()}
    return {
        "images": len(pixels),
        "pytorch": float((found["pytorch"] == labels).mean()),
        "results": [
            {
                "label": label,
                "engine": sessions[label].name,
                "accuracy": float((found[label] == labels).mean()),
                "same_class_as_pytorch": int((found[label] == found["pytorch"]).sum()),
            }
            for label in mine
        ],
    }


def _show(document: dict) -> None:
    from rich.table import Table

    from bnas.profiles.table import format_ms
    from bnas.runtime_bench.compare import known_to

    here, shown = document["environment"], settings.shown
    title = here["processor"] if document["device"]["local"] else f"{document['device']['url']}: {here['processor']}"
    if document["device"]["emulated"]:
        title += " (emulated: times say nothing about a device)"
    times = Table("file", "engine", "threads", "p50", "known to", "p90", title=shown(title))
    loads = Table("file", "size", "memory", "to load", "first run")
    for row in document["results"]:
        error = known_to(row)
        median = format_ms(row["p50_ms"])
        times.add_row(
            shown(row["label"]), row["engine"], str(row["threads"]),
            median if row["means_of"] is None else f"{median} (means of {row['means_of']})",
            f"±{error:.1%}" if error < math.inf else "unknown", format_ms(row["p90_ms"]),
        )  # fmt: skip
        if row["threads"] == document["results"][0]["threads"]:
            peak = row["peak_bytes"]
            loads.add_row(
                shown(row["label"]), f"{row['bytes']:,} B",
                f"{(peak - (row['base_bytes'] or 0)) / 1e6:.1f} MB" if peak is not None else "unknown",
                format_ms(row["load_ms"]), format_ms(row["first_run_ms"]),
            )  # fmt: skip
    output.print(times)
    output.print(loads)
    for label, nodes in document.get("units", {}).items():
        if "twin" not in label:  # those of the twins are in the JSON
            _show_units(label, nodes)
    if predicted := document.get("predicted"):
        text = f"predicted {predicted['text']} by {predicted['profile']}"
        if predicted["comparable"]:
            place = "inside" if predicted["inside_band"] else "outside"
            measured = format_ms(predicted["measured_ms"])
            text += f", measured {measured} ({predicted['deviation']:+.1%}, {place} that band)"
            speed = predicted["processor_speed"]
            if speed and abs(speed - 1) > OTHER_SPEED:
                text += f"; the processor counts {speed:.2f} times as fast as when the profile was measured"
        else:
            text += f"; not comparable: {predicted['reason']}"
        output.print(shown(text))
    if accuracy := document.get("accuracy"):
        for row in accuracy["results"]:
            output.print(
                f"{row['label']} on the device ({row['engine']}): {row['accuracy']:.2%} of {accuracy['images']} test "
                f"images, PyTorch {accuracy['pytorch']:.2%}; the same class for {row['same_class_as_pytorch']}"
            )
    for line in document["comparisons"]:
        output.print(shown(comparison_text(line)))
    if (reason := document["no_speedup_reason"]) and not document["comparisons"]:
        say(f"no speed-up is claimed: {reason}")
    for warning in document["warnings"]:
        say(f"warning: {warning}")


def comparison_text(line: dict) -> str:
    """One comparison in words."""
    threads = settings.threads_text(line["threads"])
    band = f"{line['low']:.3g} to {line['high']:.3g}" if line["high"] else "unknown interval"
    if not line["difference"]:
        return f"no difference between {line['label']} and {line['against']} ({threads}; ratio {band})"
    if abs(line["ratio"] - 1) < 0.1:
        how = f"{abs(line['ratio'] - 1):.1%} {'faster' if line['ratio'] > 1 else 'slower'} than"
    else:
        how = f"{line['ratio']:.2f} times as fast as"
    return f"{line['label']} is {how} {line['against']} ({threads}; ratio {band})"


def _show_units(label: str, nodes: list[dict]) -> None:
    from rich.table import Table

    from bnas.profiles.table import format_ms

    shown = settings.shown
    total = sum(node["ms"] for node in nodes) or 1.0
    table = Table("node", "operator", "time", "share", title=shown(f"{label}, node by node"))
    for node in nodes:
        table.add_row(shown(node["name"]), shown(node["op"]), format_ms(node["ms"]), f"{node['ms'] / total:.0%}")
    output.print(table)
