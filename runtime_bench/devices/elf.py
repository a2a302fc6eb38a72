"""What a program or library needs of a machine, read from the file itself."""

import re
from dataclasses import dataclass
from pathlib import Path

# e_machine, the half word at byte 18 of the header (System V ABI).
_MACHINES = {3: "i686", 40: "armv7l", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
_GLIBC = re.compile(rb"\0GLIBC_(\d+)\.(\d+)(?:\.\d+)?(?=\0)")

Version = tuple[int, int]


@dataclass(frozen=True)
class Elf:
    """`arch` as `uname -m` calls it; `glibc`: the newest version whose symbols it names, None without any."""

    arch: str
    glibc: Version | None


def read(path: Path) -> Elf | None:
    """None if it is no ELF file."""
    data = path.read_bytes()
    arch = machine(data[:20])
    versions = [(int(major), int(minor)) for major, minor in _GLIBC.findall(data)]
    return Elf(arch, max(versions, default=None)) if arch else None


def machine(start: bytes) -> str | None:
    """The processor that a file with these first 20 bytes is built for."""
    if len(start) < 20 or not start.startswith(b"\x7fELF"):
        return None
    number = int.from_bytes(start[18:20], "little")
    return _MACHINES.get(number, f"machine {number}")


def version(text: str) -> Version:
    """(2, 36) of "2.36"."""
    major, _, minor = text.partition(".")
    return int(major), int(minor)
