"""`bnas profiles`: list, show and measure what is known about the speed of devices."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from bnas.profiles.errors import InputError

from ..console import Progress, output, progress, result, say
from . import settings

if TYPE_CHECKING:
    from bnas.profiles.schema import Calibration, Profile
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
    device: str = typer.Option("local", "--device", help="Where to measure; this version: local."),
    space: str = typer.Option("tiny", "--space", help="Space whose units are measured."),
    data: str = settings.DATA,
    image_size: int | None = settings.IMAGE_SIZE,
    image_column: str | None = settings.IMAGE_COLUMN,
    label_column: str | None = settings.LABEL_COLUMN,
    out: Path = typer.Option(Path("local.yaml"), "--out", help="Profile to write."),
    threads: int = typer.Option(1, "--threads", help="Threads of the runtime."),
    seconds: float = typer.Option(1.0, "--seconds", help="Most time spent on one row."),
    networks: int = typer.Option(20, "--networks", help="Random networks measured to calibrate (0: none)."),
    as_json: bool = settings.JSON,
) -> None:
    """Measure every unit of a space on this machine. Interrupted? The same command continues.

    Example: bnas profiles build --device local --out kitchen.yaml
    """
    config = settings.data_config(data, image_size, image_column, label_column)
    with result(as_json) as emit, progress() as report:
        profile = do_build(
            device=device, space=space, data=config, out=out, threads=threads, seconds=seconds, networks=networks,
            report=report,
        )  # fmt: skip
        emit({"path": str(out), **_summary(profile)}, lambda: _show(profile))


def do_build(
    *,
    device: str = "local",
    space: str = "tiny",
    data: dict,
    out: Path,
    threads: int = 1,
    seconds: float = 1.0,
    networks: int = 20,
    report: Progress,
) -> Profile:
    """Measure, calibrate and write a profile; rows already measured by an interrupted build are kept."""
    import datetime

    from bnas.profiles.schema import Device, Profile, save_profile
    from bnas.profiles.workload import FIXED
    from bnas.runtime_bench import machine, native_library
    from bnas.runtime_bench.engines import onnx_engine
    from bnas.runtime_bench.table_builder import build_rows
    from bnas.search.spaces import make_space

    if device != "local":
        raise InputError(f"--device {device!r} is not supported yet; this version measures on: local")
    if out.suffix not in (".yaml", ".yml"):
        raise InputError(f"--out {out} must end with .yaml")
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}; make it first")
    settings.check_measuring(threads, seconds)
    if networks != 0 and networks < 5:
        raise InputError(f"--networks {networks} must be 0 (no calibration) or at least 5")
    images = settings.load_data(data, report)
    the_space = make_space(space, images.shape, len(images.classes))
    from bnas.export.units import unit_model

    units = [(w, unit_model(w).SerializeToString()) for w in (FIXED, *the_space.all_workloads())]
    partial = out.with_name(f".{out.stem}.partial.json")
    rows = build_rows(units, threads=threads, seconds_per_row=seconds, progress=report, partial_path=partial)
    here = machine.describe()
    profile = Profile(
        name=out.stem,
        source="measured",
        description=f"{here['processor']}, units of {the_space.id} one by one",
        created=datetime.date.today(),
        device=Device(
            name="local",
            fingerprint=machine.fingerprint(),
            binary_gmac_s=native_library.bound_gmacs(),
            **_fields(here, Device.model_fields),
        ),
        engine=onnx_engine(),
        threads=threads,
        precision="1-bit units, float32 elsewhere",
        error=UNCALIBRATED_ERROR,
        error_source="assumed; build with --networks 20 to measure it",
        rows=tuple(rows),
    )
    if networks:
        calibration = _calibrate(the_space, profile, networks, seconds, report)
        profile = profile.model_copy(
            update={
                "calibration": calibration,
                "error": calibration.kfold_error,
                "error_source": f"mean error on held-out networks of {calibration.nets}, 5-fold",
            }
        )
    save_profile(profile, out)
    partial.unlink(missing_ok=True)
    return profile


def _calibrate(space: SearchSpace, measured: Profile, networks: int, seconds: float, report: Progress) -> Calibration:
    """Fit the whole-network estimate to random networks, exported and measured."""
    import numpy as np
    import torch

    from bnas.export.capture import capture
    from bnas.export.lowering import lower
    from bnas.export.onnx_writer import to_onnx
    from bnas.profiles.calibration import fit
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
        models.append(to_onnx(graph, {}).SerializeToString())
        report("networks", done + 1, len(archs))
    times = measure_networks(models, threads=measured.threads, seconds=seconds, progress=report)
    table = LatencyTable(measured)
    workloads = [space.workloads(arch) for arch in archs]
    return fit([(table.sum_ms(w), len(w), ms) for w, ms in zip(workloads, times, strict=True)])


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
