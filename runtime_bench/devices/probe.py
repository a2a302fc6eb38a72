"""The facts of a machine behind a transport, read by one small shell script: nothing has to be installed there."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from .. import health, machine
from . import elf
from .errors import DeviceError
from .transport import Transport

# Prints `path<TAB>line` for every line of the files named. Only built-in commands, so that no process is started for
# each file, and none of them says anything of a file that cannot be read.
_SHOW = """
show() { for f do [ -r "$f" ] && while IFS= read -r line || [ -n "$line" ]; do printf '%s\\t%s\\n' "$f" "$line"; done \
< "$f"; done 2>/dev/null; }
"""
_FIRMWARE = """
for f in {firmware}; do [ -e "$f" ]; done || {{ command -v vcgencmd >/dev/null 2>&1 && \
printf '{name}\\t%s\\n' "$(vcgencmd get_throttled 2>/dev/null)"; }}
"""
# @names are not files. The first 20 bytes of the shell tell which processors the system's own programs are built for.
_FACTS = """
say() { [ -n "$2" ] && printf '%s\\t%s\\n' "$1" "$2"; }
say @arch "$(uname -m)"
say @system "$(uname -s) $(uname -r)"
say @shell "$(od -An -tx1 -N20 "$(command -v sh)" 2>/dev/null | tr -d ' \\n')"
say @libc "$(getconf GNU_LIBC_VERSION 2>/dev/null || ldd --version 2>&1 | head -n 1)"
for f in /lib/ld-musl-*; do [ -e "$f" ] && say @musl "$f"; done
say @cores "$(getconf _NPROCESSORS_CONF 2>/dev/null || nproc 2>/dev/null)"
if command -v getprop >/dev/null 2>&1; then
say @android "$(getprop ro.build.version.release)"
say @board "$(getprop ro.product.manufacturer) $(getprop ro.product.model)"
say @cpu "$(getprop ro.soc.manufacturer) $(getprop ro.soc.model)"
fi
true
"""


def facts(transport: Transport) -> machine.Facts:
    """Everything about the machine behind `transport`. Raises DeviceError if it has no usual shell."""
    files, said = _ask(transport, _FACTS, (*machine.FILES, *health.FILES))
    if not said.get("@arch"):
        raise DeviceError(f"{transport.name} does not answer as a Linux machine does")
    libc, glibc = _libc(said)
    cpus = re.search(r"^Cpus_allowed_list:\s*([\d,-]+)", files.get(machine.STATUS, ""), re.MULTILINE)
    cores = int(said["@cores"]) if said.get("@cores", "").isdigit() else 1
    release = re.search(r'^PRETTY_NAME="?([^"\n]*)', files.get(machine.OS_RELEASE, ""), re.MULTILINE)
    name = f"Android {said['@android']}" if said.get("@android") else release[1] if release else ""
    return machine.Facts(
        arch={"arm64": "aarch64", "amd64": "x86_64"}.get(said["@arch"], said["@arch"]),
        system=f"{said['@system']}, {name}" if name else said["@system"],
        files=files,
        libc=libc,
        glibc=glibc,
        cores=cores,
        cpus=tuple(machine.cpu_list(cpus[1])) if cpus else tuple(range(cores)),
        board=said.get("@board", "").strip() or None,
        more={
            "cpu": said.get("@cpu", "").strip(),
            "userland": elf.machine(bytes.fromhex(said.get("@shell", ""))) or said["@arch"],
        },
    )


def state_files(transport: Transport) -> dict[str, str]:
    """What `health.state` reads, now."""
    return _ask(transport, "", health.FILES)[0]


def _ask(transport: Transport, script: str, patterns: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """({path: content}, {@name: value}). The patterns are ours, so they may stand in the script, where they expand."""
    firmware = _FIRMWARE.format(firmware=health.FILES[-1], name=health.VCGENCMD)
    result = transport.script(f"{_SHOW}show {' '.join(patterns)}\n{firmware}{script}true")
    if result.code:
        raise DeviceError(f"{transport.name} cannot be read: {result.reason}")
    lines = defaultdict(list)
    for line in result.text.splitlines():
        path, tab, rest = line.partition("\t")
        if tab:
            lines[path].append(rest.replace("\0", ""))
    found = {path: text for path, rows in lines.items() if (text := "\n".join(rows).strip())}
    return (
        {path: text for path, text in found.items() if not path.startswith("@")},
        {name: text for name, text in found.items() if name.startswith("@")},
    )


def _libc(said: dict[str, str]) -> tuple[str, str | None]:
    """(name, version if it is glibc)."""
    if said.get("@android"):
        return "bionic", None
    version = re.search(r"(?:^glibc |G(?:NU )?LIBC[^)]*\)? |libc\) )(\d+\.\d+)", said.get("@libc", ""))
    if version:
        return "glibc", version[1]
    return ("musl" if "@musl" in said or "musl" in said.get("@libc", "") else "an unknown C library"), None
