"""`bnas profiles`: list, show and measure what is known about the speed of devices."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from bnas.profiles.errors import InputError, unknown

from .. import runs
from ..console import Progress, output, progress, result, say
from . import settings

if TYPE_CHECKING:
    from bnas.profiles.calibration import Sample
    from bnas.profiles.schema import EngineInfo, Profile, Row
    from bnas.runtime_bench.devices.target import Format, Target
    from bnas.search.spaces import SearchSpace

UNCALIBRATED_ERROR = 0.3

profiles = typer.Typer(no_args_is_help=True, help="List, show and measure device profiles.")


@profiles.command("list")
def list_command(as_json: bool = settings.JSON) -> None:
    """The shipped profiles.

    Example: bnas profiles list
    """
    from bnas.profiles.schema import list_profiles, load_profile

    with result(as_json) as emit:
        known = [load_profile(name) for name in list_profiles()]
        document = {"profiles": [_summary(p) for p in known]}
        emit(document, lambda: _show_list(known))


@profiles.command("show")
def show_command(
    name: str = typer.Argument(..., help="Shipped profile or .yaml file."), as_json: bool = settings.JSON
) -> None:
    """One profile: device, engine, source, error band and rows.

    Example: bnas profiles show rpi4b
    """
    from bnas.profiles.schema import load_profile

    with result(as_json) as emit:
        profile = load_profile(name)
        emit({**_summary(profile), **profile.model_dump(mode="json")}, lambda: _show(profile))


@profiles.command("build")
def build_command(
    device: str = settings.DEVICE,
    space: str = typer.Option("tiny", "--space", help="Space whose units are measured."),
    data: str = settings.DATA,
    image_size: int | None = settings.IMAGE_SIZE,
    image_column: str | None = settings.IMAGE_COLUMN,
    label_column: str | None = settings.LABEL_COLUMN,
    engine: str = typer.Option("onnx", "--engine", help="onnx or tflite: the files that units are measured as."),
    out: Path = typer.Option(Path("local.yaml"), "--out", help="Profile to write."),
    threads: int = typer.Option(1, "--threads", help="Threads of the runtime."),
    seconds: float = typer.Option(1.0, "--seconds", help="Most time spent on one row."),
    networks: int = typer.Option(20, "--networks", help="Random networks measured to calibrate (0: none)."),
    cpus: str | None = settings.CPUS,
    keep: bool = settings.KEEP,
    as_json: bool = settings.JSON,
) -> None:
    """Measure every unit of a space on a device. Interrupted? The same command continues.

    Example: bnas profiles build --device ssh://pi@kitchen --out kitchen.yaml
    """
    config = settings.data_config(data, image_size, image_column, label_column)
    with result(as_json) as emit, progress() as report:
        profile = do_build(
            device=device, space=space, data=config, engine=engine, out=out, threads=threads, seconds=seconds,
            networks=networks, cpus=cpus, keep=keep, report=report,
        )  # fmt: skip
        emit({"path": str(out), **_summary(profile)}, lambda: _show(profile))


@profiles.command("calibrate")
def calibrate_command(
    names: list[Path] = typer.Argument(..., metavar="FILE", help="Profile to fit anew, a .yaml file."),
    first: list[Path] = typer.Option(
        ..., "--from", metavar="RUN...", help="Benched runs to fit it to, for example runs/*."
    ),
    out: Path | None = typer.Option(None, "--out", help="Profile to write (default: FILE itself)."),
    as_json: bool = settings.JSON,
) -> None:
    """Fit a profile's whole-network estimate to what `bnas bench` measured of networks in runs.

    Example: bnas profiles calibrate kitchen.yaml --from runs/*
    """
    files = [path for path in names if path.suffix in (".yaml", ".yml")]
    if len(files) != 1:
        raise InputError(f"one .yaml profile is needed to calibrate, got {len(files)}")
    with result(as_json) as emit:
        # A shell writes --from runs/* out: the option gets the first of them, and the others come as arguments.
        found = [*first, *(path for path in names if path not in files)]
        document, profile = do_calibrate(files[0], found, out or files[0])
        emit(document, lambda: _show_calibration(document, profile))


def do_calibrate(file: Path, folders: list[Path], out: Path) -> tuple[dict, Profile]:
    """Fit and write; what was used of which run and why the others were not, and the new profile."""
    from bnas.profiles.schema import load_profile, save_profile

    profile = load_profile(file)
    used: dict[str, tuple[str, Sample]] = {}
    left: list[dict] = []
    for folder in sorted(set(folders)):
        try:
            network, sample = _benched(folder, profile)
        except InputError as error:
            left.append({"run": str(folder), "reason": str(error)})
        else:
            used[str(folder)] = (network, sample)
    networks = len({network for network, _ in used.values()})
    if networks < 5:
        why = f"; {left[0]['run']}: {left[0]['reason']}" if left else ""
        raise InputError(
            f"{networks} different networks were benched with what {file} is about, a calibration needs at least 5{why}"
        )
    samples = [sample for _, sample in used.values()]
    fitted = calibrated(profile, samples, "benched networks")
    save_profile(fitted, out)
    rows = [{"run": run, "measured_ms": s.measured_ms, "sum_rows_ms": s.sum_rows_ms} for run, (_, s) in used.items()]
    return {"path": str(out), "used": rows, "left_out": left, **_summary(fitted)}, fitted


def _benched(folder: Path, profile: Profile) -> tuple[str, Sample]:
    """The network of a run, and what was measured of it. Raises InputError where that is not what `profile` is about:
    another device, engine or number of threads, an emulator, a throttled processor."""
    from bnas.profiles.calibration import Sample
    from bnas.profiles.table import LatencyTable
    from bnas.search.spaces import space_of

    from .bench import LOCAL, engine_of, runs_as
    from .train import found_architecture

    run = runs.open_run(folder)
    bench = run.read("bench.json")
    if bench is None:
        raise InputError(f"it is not benched; do: bnas bench {folder}")
    try:
        environment, emulated = bench["environment"], bench["device"]["emulated"]
        throttled, fingerprint = environment["throttled"], environment["fingerprint"]
        mine = [r for r in bench["results"] if "twin" not in r["label"] and r["threads"] == profile.threads]
        others = " and ".join(engine_of(r).text for r in mine)
        found = [float(r["p50_ms"]) for r in mine if runs_as(r, profile)]
        local = bench["device"]["local"]
    except (LookupError, TypeError, ValueError):
        raise InputError(f"was benched by another version; do again: bnas bench {folder}") from None
    if emulated or throttled:
        raise InputError("an emulator ran it" if emulated else f"the processor was throttled: {'; '.join(throttled)}")
    if fingerprint != profile.device.fingerprint or local != (profile.device.name == LOCAL):
        raise InputError(f"was benched on another device ({bench['device']['url']}, {environment['processor']})")
    if not mine:
        raise InputError(f"was not benched with {settings.threads_text(profile.threads)}")
    if not found:
        raise InputError(f"was benched with {others}, the profile is about {profile.engine.text}")
    arch = found_architecture(run)
    workloads = space_of(arch.space).workloads(arch)
    table = LatencyTable(profile)
    return arch.to_yaml(), Sample(table.sum_ms(workloads), len(workloads), found[0])


def do_build(
    *,
    device: str = "local",
    space: str = "tiny",
    data: dict,
    engine: Format | str = "onnx",
    out: Path,
    threads: int = 1,
    seconds: float = 1.0,
    networks: int = 20,
    cpus: str | None = None,
    keep: bool = False,
    report: Progress,
) -> Profile:
    """Measure, calibrate and write a profile; rows already measured by an interrupted build are kept.

    engine: onnx or tflite, the files that units and networks are measured as, by what would run them on the device.
    """
    from bnas.profiles.schema import save_profile
    from bnas.profiles.workload import FIXED
    from bnas.runtime_bench.devices import ConnectionLost, open_device
    from bnas.runtime_bench.devices.target import FORMATS
    from bnas.runtime_bench.table_builder import build_rows
    from bnas.search.spaces import make_space

    if engine not in FORMATS:
        raise unknown("engine", engine, FORMATS)
    if out.suffix not in (".yaml", ".yml"):
        raise InputError(f"--out {out} must end with .yaml")
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}; make it first")
    settings.check_seconds(seconds)
    if networks != 0 and networks < 5:
        raise InputError(f"--networks {networks} must be 0 (no calibration) or at least 5")
    images = settings.load_data(data, report)
    the_space = make_space(space, images.shape, len(images.classes))
    from bnas.export.units import graph_file, unit_graph

    partial = out.with_name(f".{out.stem}.partial.json")
    try:
        with open_device(device, cpus=cpus, keep=keep) as target:
            settings.thread_counts(threads, target.usable_cores())
            runs_on = target.engine(engine)  # what cannot run there is refused before it is written
            workloads = [FIXED, *the_space.all_workloads()]
            units = []
            report("write", 0, len(workloads))
            for workload in workloads:
                units.append((workload, graph_file(unit_graph(workload), engine, {"workload": workload.key})))
                report("write", len(units), len(workloads))
            rows = build_rows(
                target, units, format=engine, threads=threads, seconds_per_row=seconds, progress=report,
                partial_path=partial,
            )  # fmt: skip
            profile = _profile(out.stem, target, runs_on, threads, the_space.id, rows)
            if networks:
                samples = _measure_networks(target, the_space, profile, engine, networks, seconds, report)
                profile = calibrated(profile, samples, "random networks")
    except ConnectionLost as error:
        raise ConnectionLost(f"{error}; rows measured so far are kept in {partial}, the same command goes on") from None
    save_profile(profile, out)
    partial.unlink(missing_ok=True)
    return profile


def _profile(name: str, target: Target, engine: EngineInfo, threads: int, space: str, rows: list[Row]) -> Profile:
    import datetime

    from bnas.profiles.schema import Device, Profile

    there = target.describe()
    emulated = " under an emulator: good for tests, not for predictions" if target.emulated else ""
    return Profile(
        name=name,
        source="measured",
        description=f"{there['processor']}, units of {space} one by one{emulated}",
        created=datetime.date.today(),
        device=Device(
            name=target.url,
            fingerprint=target.fingerprint(),
            binary_gmac_s=target.bound_gmacs(),
            **_fields(there, Device.model_fields),
        ),
        engine=engine,
        threads=threads,
        precision="1-bit units, float32 elsewhere",
        error=UNCALIBRATED_ERROR,
        error_source="assumed; build with --networks 20 to measure it",
        rows=tuple(rows),
    )


def calibrated(profile: Profile, samples: list[Sample], kind: str) -> Profile:
    """The profile with its whole-network estimate fitted to `samples`."""
    from bnas.profiles.calibration import fit

    calibration = fit(samples)
    return profile.model_copy(
        update={
            "calibration": calibration,
            "error": calibration.kfold_error,
            "error_source": f"mean error on held-out networks of {calibration.nets} {kind}, 5-fold",
        }
    )


def _measure_networks(
    target: Target,
    space: SearchSpace,
    measured: Profile,
    format: Format,
    networks: int,
    seconds: float,
    report: Progress,
) -> list[Sample]:
    """Random networks of the space, exported and timed on the device."""
    import numpy as np
    import torch

    from bnas.export.capture import capture
    from bnas.export.lowering import lower
    from bnas.export.units import graph_file
    from bnas.profiles.calibration import Sample
    from bnas.profiles.table import LatencyTable
    from bnas.runtime_bench.table_builder import measure_networks

    rng = np.random.default_rng(0)
    archs = [space.random(rng) for _ in range(networks)]
    models = []
    for done, arch in enumerate(archs):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = space.build(arch).eval()
            with torch.no_grad():  # as after training: a shift that is exactly 0 would be left out of the file
                for parameter in network.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        graph = lower(capture(network, torch.zeros(2, *space.shape))).graph
        models.append(graph_file(graph, format, {}))
        report("networks", done + 1, len(archs))
    times = measure_networks(target, models, threads=measured.threads, seconds=seconds, progress=report)
    table = LatencyTable(measured)
    workloads = [space.workloads(arch) for arch in archs]
    return [Sample(table.sum_ms(w), len(w), ms) for w, ms in zip(workloads, times, strict=True)]


def _fields(description: dict, known: Iterable[str]) -> dict:
    return {k: v for k, v in description.items() if k in known and k not in ("name", "fingerprint")}


def _summary(profile: Profile) -> dict:
    return {
        "name": profile.name,
        "source": profile.source,
        "engine": profile.engine.model_dump(),
        "threads": profile.threads,
        "error": profile.error,
        "error_source": profile.error_source,
        "rows_count": len(profile.rows),
        "hash": profile.hash,
    }


def _show_calibration(document: dict, profile: Profile) -> None:
    for row in document["left_out"]:
        say(f"left out: {row['run']}: {row['reason']}")
    output.print(f"{document['path']}: {len(document['used'])} benches used, {len(document['left_out'])} left out")
    output.print(f"error ±{profile.error:.1%} ({profile.error_source})")


def _show_list(known: list[Profile]) -> None:
    from rich.table import Table

    table = Table("profile", "source", "engine", "error", "description")
    for p in known:
        table.add_row(p.name, p.source, p.engine.name, f"±{p.error:.1%}", p.description)
    output.print(table)
    say("a profile of this machine: bnas profiles build --device local --out FILE.yaml")


def _show(profile: Profile) -> None:
    from rich.table import Table

    from bnas.profiles.table import format_ms

    table = Table(title=f"profile {profile.name} ({profile.source})", show_header=False)
    table.add_row("device", f"{profile.device.name}: {profile.description}")
    table.add_row("engine", profile.engine.text)
    table.add_row("threads, batch", f"{profile.threads}, {profile.batch}")
    table.add_row("error", f"±{profile.error:.1%} ({profile.error_source})")
    if profile.cost_model:
        table.add_row("model", profile.cost_model.formula)
    if profile.cost_model and profile.cost_model.kind == "roofline":
        for name, path in profile.cost_model.paths.items():
            used = "used" if name == profile.cost_model.path else f"choose with {profile.name}:{name}"
            label = "hypothetical, " if path.hypothetical else ""
            table.add_row(f"path {name}", f"{path.description} ({label}{used})")
    if c := profile.calibration:
        formula = f"T = {c.a_ms:.4g} ms + {c.b:.3g} * sum + {c.c_ms:.4g} ms * units"
        table.add_row("calibration", f"{formula}, fitted to {c.nets} networks")
    for source in profile.sources:
        table.add_row("source", source)
    output.print(table)
    if profile.rows:
        rows = Table("unit", "p10", "p50", "p90", "source")
        for row in profile.rows:
            rows.add_row(row.workload, *(format_ms(v) for v in (row.p10_ms, row.p50_ms, row.p90_ms)), row.source)
        output.print(rows)
