"""`bnas profiles`: list, show and measure what is known about the speed of devices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from bnas.profiles.errors import InputError

from ..console import Progress, output, progress, result, say
from . import settings

if TYPE_CHECKING:
    from bnas.profiles.schema import Profile
    from bnas.search.spaces import ChainSpace

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
    networks: int = typer.Option(20, "--networks", help="Whole random networks measured to calibrate the sum (0: none)."),
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

    from bnas.profiles.schema import Device, EngineInfo, Profile, save_profile
    from bnas.profiles.workload import FIXED
    from bnas.runtime_bench import machine
    from bnas.runtime_bench.engines import open_engine
    from bnas.runtime_bench.table_builder import build_rows
    from bnas.search.spaces import make_space

    if device != "local":
        raise InputError(f"--device {device!r} is not supported yet; this version measures on: local")
    if out.suffix not in (".yaml", ".yml"):
        raise InputError(f"--out {out} must end with .yaml")
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}; make it first")
    if threads < 1 or networks < 0 or not seconds > 0:
        raise InputError(f"--threads {threads}, --networks {networks}, --seconds {seconds} must be positive")
    images = settings.load_data(data)
    the_space = make_space(space, images.shape, len(images.classes))
    from bnas.export.units import unit_model

    units = [(w, unit_model(w).SerializeToString()) for w in (FIXED, *the_space.all_workloads())]
    partial = out.with_name(f".{out.stem}.partial.yaml")
    rows = build_rows(units, threads=threads, seconds_per_row=seconds, progress=report, partial_path=partial)
    calibration = _calibrate(the_space, rows, networks, threads, seconds, report) if networks else None
    engine = open_engine(units[-1][1], threads=threads)
    here = machine.describe()
    profile = Profile(
        name=out.stem,
        source="measured",
        description=f"{here['processor']}, units of {the_space.id} one by one",
        created=datetime.date.today(),
        device=Device(name="local", fingerprint=machine.fingerprint(), **_fields(here, Device)),
        engine=EngineInfo(name=engine.name, runtime=engine.runtime, version=engine.version),
        threads=threads,
        precision="1-bit units, float32 elsewhere",
        error=calibration.kfold_error if calibration else 0.3,
        error_source=(
            f"mean error on held-out networks of {calibration.nets}, 5-fold"
            if calibration
            else "assumed; build with --networks 20 to measure it"
        ),
        rows=tuple(rows),
        calibration=calibration,
    )
    save_profile(profile, out)
    partial.unlink(missing_ok=True)
    return profile
