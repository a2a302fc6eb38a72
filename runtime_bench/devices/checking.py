"""What a device is, what fits it and what is missing, found out step by step; a step that fails is an answer, too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bnas.profiles.errors import InputError

from .. import health, machine, native_library
from ..engines import open_engine
from . import adb, emulation, kit, open_device, probe
from .address import Address, parse
from .errors import DeviceError
from .remote import connect
from .ssh import CONFIG
from .workplace import Workplace

STEADY = ("performance", "userspace")  # governors that leave the clock alone
HOT_C = 75.0
TOLERANCE = 1e-4


def check(url: str, model: bytes) -> dict[str, Any]:
    """JSON-ready: "device" (`describe`), "cores" (alike ones together), "state", "kit" (the files that fit it, or
    None), "needs_mb", "free_mb", "ran" (the engine that ran `model` there and gave what it gives here, or None),
    "missing" (each with its remedy) and "warnings". Raises InputError if there is no way to the device at all."""
    address = parse(url)
    missing: list[str] = []
    if address.kind == "local":
        facts, found, free = machine.here(), None, None
    else:
        facts, found, free = _looked_at(address, missing)
    ran = None
    if not missing:
        with _noting(missing):
            ran = _ran(url, model)
    with _noting(missing):
        if found:
            kit.check_kernels(found)
        elif address.kind == "local":
            native_library.path_of(native_library.LIBRARY)
    state = health.state(facts.files, facts.cpus)
    return {
        "url": url,
        "device": facts.describe(),
        "cores": facts.core_groups,
        "state": state,
        "kit": {name: str(path) for name, path in found.files.items()} if found else None,
        "needs_mb": sum(path.stat().st_size for path in found.files.values()) / 2**20 if found else None,
        "free_mb": None if free is None else free / 2**20,
        "ran": ran,
        "missing": missing,
        "warnings": warnings(facts, state, emulated=address.emulated),
    }


def warnings(facts: machine.Facts, state: dict[str, Any], *, emulated: bool = False) -> list[str]:
    """What makes measurements on such a machine hard to believe, each with what helps."""
    if emulated:
        return ["an emulator: it shows whether files run and what they compute, its times say nothing about a device"]
    found = []
    userland = facts.more.get("userland", facts.arch)
    if userland != facts.arch:
        found.append(f"its programs are built for {userland}, and its kernel for {facts.arch}; install a 64-bit system")
    governors = (state["governor"] or "").split(",")
    if unsteady := [name for name in governors if name and name not in STEADY]:
        found.append(
            f"the governor {unsteady[0]} changes the clock while you measure; there, do: echo performance | sudo tee "
            "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
        )
    for entry in state["throttled"]:
        if isinstance(entry, str):
            found.append(f"{entry}, right now; see to its power supply and cooling")
        elif reasons := [name for name, value in entry.items() if value]:
            found.append(f"{reasons[0]}: it may happen again while you measure; see to its power supply and cooling")
    if (state["temperature_c"] or 0) > HOT_C:
        found.append(f"{state['temperature_c']:.0f} °C: it will soon slow down; let it cool, or give it a fan")
    return found


def known() -> list[dict[str, str]]:
    """[{"device", "what"}]: this machine, an emulator if there is one, what adb sees, and the names in ssh's
    configuration."""
    found = [{"device": "local", "what": machine.processor()}]
    with _noting([]):
        emulator = emulation.find(connect(Address("emulator", "here", emulated=True)), machine.here())
        found.append({"device": "emulator", "what": emulator.facts.processor})
    found += [{"device": f"adb:{serial}", "what": state} for serial, state in adb.devices().items()]
    config = Path(os.environ.get(CONFIG) or Path.home() / ".ssh" / "config")
    return found + [{"device": f"ssh://{name}", "what": str(config)} for name in _ssh_names(config)]


def _looked_at(address: Address, missing: list[str]) -> tuple[machine.Facts, kit.Kit | None, int | None]:
    """(facts, kit, free bytes) of a device that programs are pushed to."""
    with connect(address) as transport:
        facts, found, free = probe.facts(transport), None, None
        if address.emulated:
            with _noting(missing):
                facts = emulation.find(transport, facts).facts
        if not missing:
            with _noting(missing):
                found = kit.find(facts, transport.name, emulated=address.emulated)
        with _noting(missing), Workplace(transport) as place:
            free = place.free()
        return facts, found, free


def _ran(url: str, model: bytes) -> str:
    """The engine's name. Raises DeviceError if the device computes something else than this machine."""
    with open_device(url) as target:
        session = target.open(model)
        x = np.random.default_rng(0).standard_normal((1, *session.input_shape)).astype(np.float32)
        there, here = session.infer(x), open_engine(model).run(x)
        session.timed(1, 1)
        name = session.name
        session.close()
    if there.shape != here.shape or not np.allclose(there, here, rtol=TOLERANCE, atol=TOLERANCE):
        raise DeviceError(f"{name} on {url} computes something else than this machine; please report that")
    return name


@contextmanager
def _noting(missing: list[str]) -> Iterator[None]:
    try:
        yield
    except (InputError, DeviceError) as error:
        missing.append(str(error))


def _ssh_names(config: Path) -> list[str]:
    """The hosts that have a section of their own; patterns are none."""
    try:
        lines = config.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    words = (line.partition("#")[0].replace("=", " ", 1).split() for line in lines)
    names = [name for row in words if row and row[0].lower() == "host" for name in row[1:]]
    return [name for name in dict.fromkeys(names) if not set(name) & set('*?!"')]
