"""`bnas devices`: which devices there are, and what one of them is, fits and misses."""

from __future__ import annotations

import typer

from ..console import output, result, say
from . import settings

devices = typer.Typer(no_args_is_help=True, help="Find devices to measure on, and check one.")


@devices.command("list")
def list_command(as_json: bool = settings.JSON) -> None:
    """This machine, the emulator, what adb sees, and the hosts of ~/.ssh/config. Nothing is connected to.

    Example: bnas devices list
    """
    from bnas.runtime_bench.devices.checking import known

    with result(as_json) as emit:
        found = known()
        emit({"devices": found}, lambda: _show_list(found))


@devices.command("check")
def check_command(
    url: str = typer.Argument(..., help="local, ssh://[user@]host[:port], adb:SERIAL, emulator, emulator+ssh://..."),
    as_json: bool = settings.JSON,
) -> None:
    """What a device is, whether our programs fit it, and what is missing; runs a tiny network there and cleans up.

    Exit code 2 if something is missing. Example: bnas devices check ssh://pi@raspberrypi.local
    """
    from bnas.export.units import unit_model
    from bnas.profiles.workload import Workload
    from bnas.runtime_bench.devices.checking import check

    tiny = Workload("binary_conv", 1, 32, 32, 8, 8, kernel=3, epilogue=("residual", "prelu"))
    with result(as_json) as emit:
        document = check(url, unit_model(tiny).SerializeToString())
        emit(document, lambda: _show(document))
    if document["missing"]:
        raise typer.Exit(2)


def _show_list(found: list[dict]) -> None:
    from rich.table import Table

    table = Table("device", "what")
    for row in found:
        table.add_row(row["device"], row["what"])
    output.print(table)


def _show(document: dict) -> None:
    from rich.table import Table

    device, state = document["device"], document["state"]
    rows = {
        "board": device["board"],
        "processor": f"{device['processor']} ({device['arch']}, {device['cores']} cores)",
        "cores": "; ".join(filter(None, map(_cores, document["cores"]))),
        "memory": device["memory_mb"] and f"{device['memory_mb']:,} MB",
        "system": device["os"],
        "glibc": device["glibc"] or "another C library",
        "governor": state["governor"],
        "clock": state["clock_mhz"] and f"{max(state['clock_mhz']):.0f} MHz",
        "temperature": state["temperature_c"] and f"{state['temperature_c']:.0f} °C",
        "throttled": "; ".join(map(_throttled, state["throttled"])),
        "programs": document["kit"] and f"{document['needs_mb']:.0f} MB to push",
        "free space": document["free_mb"] and f"{document['free_mb']:,.0f} MB",
        "ran": document["ran"] and f"a tiny network, by {document['ran']}, with the same result as here",
    }
    table = Table(show_header=False, title=document["url"])
    for name, text in rows.items():
        if text:
            table.add_row(name, text)
    if untold := [name for name in ("board", "governor", "clock", "temperature") if not rows[name]]:
        table.add_row("not readable", ", ".join(untold))
    output.print(table)
    for line in document["missing"]:
        say(f"missing: {line}")
    for line in document["warnings"]:
        say(f"warning: {line}")
    if not document["missing"]:
        say(f"ready: bnas bench --device {document['url']}")


def _cores(group: dict) -> str:
    if group["core"] is None and group["mhz"] is None:
        return ""
    clock = f" up to {group['mhz']:.0f} MHz" if group["mhz"] else ""
    return f"{len(group['cpus'])} x {group['core'] or 'core'}{clock} (CPU {', '.join(map(str, group['cpus']))})"


def _throttled(entry: str | dict) -> str:
    return entry if isinstance(entry, str) else ", ".join(f"{name}: {value}" for name, value in entry.items())
