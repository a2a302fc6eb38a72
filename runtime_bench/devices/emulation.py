"""aarch64 under qemu-user, on whatever machine a transport leads to: for correctness, never for speed."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from bnas.profiles.errors import InputError

from .. import machine
from .transport import Transport
from .workplace import Workplace

ARCH = "aarch64"
SYSROOT = "/usr/aarch64-linux-gnu"  # where Debian's cross-compiler keeps its C library
PACKAGES = "apt install qemu-user g++-aarch64-linux-gnu"
# What /proc/cpuinfo of a Cortex-A72 says of one processor. The emulator would show programs the file of the machine it
# runs on, in which onnxruntime finds no ARM processor.
_CPUINFO = """processor\t: {}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""
_FIND = """
program=$(command -v qemu-aarch64 || command -v qemu-aarch64-static) || exit 1
printf '%s\\n' "$program"
"$program" --version | head -n 1
[ -e "$1/lib/ld-linux-aarch64.so.1" ] || exit 2
"$program" -L "$1" "$1/lib/libc.so.6" | head -n 1
"""
_ROOT = 'mkdir -p "$1/proc" && cat > "$1/proc/cpuinfo" && ln -s "$2/lib" "$1/lib"'


@dataclass(frozen=True)
class Emulator:
    """qemu-user on one machine, and the machine it pretends to be."""

    program: str
    facts: machine.Facts

    def launch(self, transport: Transport, workplace: Workplace) -> list[str]:
        """The command that runs an aarch64 program, its root folder made in `workplace`."""
        root = workplace.path("root")
        cpuinfo = "".join(_CPUINFO.format(number) for number in range(self.facts.cores))
        transport.script(_ROOT, root, SYSROOT, stdin=cpuinfo.encode())
        return [self.program, "-L", root]


def find(transport: Transport, host: machine.Facts) -> Emulator:
    """Raises InputError with the packages to install if `transport` leads to no emulator or no C library for it."""
    result = transport.script(_FIND, SYSROOT)
    if result.code:
        what = f"{ARCH}'s C library in {SYSROOT}" if result.code == 2 else "qemu-aarch64"
        raise InputError(f"{transport.name} has no {what}; there, do (Debian): {PACKAGES}")
    program, version, libc = (*result.text.splitlines(), "", "")[:3]
    number = re.search(r"version ([\d.]+)", version)
    release = re.search(r"version (\d+\.\d+)", libc)
    facts = dataclasses.replace(
        host,
        arch=ARCH,
        files={path: text for path, text in host.files.items() if path != machine.CPUINFO},
        libc="glibc",
        glibc=release[1] if release else None,
        board=None,
        more={"cpu": f"{ARCH} emulated by qemu {number[1] if number else '?'} on {host.processor}"},
    )
    return Emulator(program, facts)
