"""A machine in words: what a reader needs to doubt or repeat a measurement. What cannot be read is None.

Everything is told from `Facts`, the contents of a few system files: of this machine (`here`), or of another one, from
which `devices.probe` brings them.
"""

import functools
import glob
import hashlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bnas.profiles.errors import InputError

from . import health

CPUINFO, MEMINFO, STATUS = "/proc/cpuinfo", "/proc/meminfo", "/proc/self/status"
BOARDS = ("/proc/device-tree/model", "/sys/class/dmi/id/product_name")
OS_RELEASE = "/etc/os-release"
FASTEST = "/sys/devices/system/cpu/cpu*/cpufreq/cpuinfo_max_freq"
FILES = (CPUINFO, MEMINFO, STATUS, OS_RELEASE, FASTEST, *BOARDS)  # beside those of `health`

# Linux's names for the `CPU part` numbers of Arm's own cores (implementer 0x41).
ARM_CORES = {
    0xD03: "Cortex-A53", 0xD04: "Cortex-A35", 0xD05: "Cortex-A55", 0xD07: "Cortex-A57", 0xD08: "Cortex-A72",
    0xD09: "Cortex-A73", 0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76", 0xD0C: "Neoverse-N1", 0xD0D: "Cortex-A77",
    0xD40: "Neoverse-V1", 0xD41: "Cortex-A78", 0xD44: "Cortex-X1", 0xD46: "Cortex-A510", 0xD47: "Cortex-A710",
    0xD48: "Cortex-X2", 0xD49: "Neoverse-N2", 0xD4D: "Cortex-A715", 0xD4E: "Cortex-X3", 0xD4F: "Neoverse-V2",
    0xD80: "Cortex-A520", 0xD81: "Cortex-A720", 0xD82: "Cortex-X4",
}  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """Of one machine, as they are now. `files`: path -> content; `glibc`: its version, None for another C library,
    which `libc` names; `cpus`: numbers of the processors that may be used."""

    arch: str
    system: str
    files: Mapping[str, str]
    libc: str = ""
    glibc: str | None = None
    cores: int = 1
    cpus: tuple[int, ...] = (0,)
    python: str | None = None
    onnxruntime: str | None = None
    board: str | None = None
    more: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property
    def processor(self) -> str:
        """The processor's own name, e.g. `Intel(R) Xeon(R) Processor`; a board's name where it has none."""
        return _field(self.files.get(CPUINFO), "model name") or self.files.get(BOARDS[0]) or self.more.get("cpu") or "?"

    @property
    def fingerprint(self) -> str:
        """12 hex digits naming this kind of machine: processor, architecture and core count."""
        return hashlib.sha256(f"{self.processor}|{self.arch}|{self.cores}".encode()).hexdigest()[:12]

    @property
    def core_kinds(self) -> dict[int, str]:
        """CPU number -> the core's name, where /proc/cpuinfo tells: ARM's cores differ within one processor."""
        kinds = {}
        for block in re.split(r"\n\s*\n", self.files.get(CPUINFO, "")):
            number, part, maker = (_field(block, name) for name in ("processor", "CPU part", "CPU implementer"))
            if number is not None and part is not None and number.isdigit():
                code = int(part, 16)
                arm = maker is not None and int(maker, 16) == 0x41
                kinds[int(number)] = ARM_CORES.get(code, part) if arm else f"{maker}/{part}"
        return kinds

    @property
    def core_groups(self) -> list[dict[str, Any]]:
        """[{"core", "mhz", "cpus"}], fastest first: alike by name and highest clock, None if unknown."""
        kinds = self.core_kinds
        groups: dict[tuple[str | None, float | None], list[int]] = {}
        for number in range(self.cores):
            highest = self.files.get(FASTEST.replace("*", str(number)), "")
            mhz = int(highest) / 1000 if highest.isdigit() else None
            groups.setdefault((kinds.get(number), mhz), []).append(number)
        rows = [{"core": core, "mhz": mhz, "cpus": cpus} for (core, mhz), cpus in groups.items()]
        return sorted(rows, key=lambda row: -(row["mhz"] or 0))

    @property
    def memory_mb(self) -> int | None:
        total = re.match(r"(\d+) kB", _field(self.files.get(MEMINFO), "MemTotal") or "")
        return int(total[1]) // 1024 if total else None

    def describe(self) -> dict[str, Any]:
        """Processor, clock (MHz), temperature (degrees C), memory and versions. JSON-ready."""
        state = health.state(self.files, self.cpus)
        return {
            "processor": self.processor,
            "board": self.board or next((self.files[path] for path in BOARDS if self.files.get(path)), None),
            "arch": self.arch,
            "cores": self.cores,
            "cpus": list(self.cpus),
            "memory_mb": self.memory_mb,
            "os": self.system,
            "glibc": self.glibc,
            "governor": state["governor"],
            "clock_mhz": state["clock_mhz"][0] if state["clock_mhz"] else None,
            "temperature_c": state["temperature_c"],
            "python": self.python,
            "onnxruntime": self.onnxruntime,
        }


def here() -> Facts:
    """This machine, now."""
    libc, version = platform.libc_ver()
    return Facts(
        arch=platform.machine(),
        system=platform.platform(),
        files=read_files((*FILES, *health.FILES)),
        libc=libc,
        glibc=version if libc == "glibc" else None,
        cores=os.cpu_count() or 1,
        cpus=usable_cpus(),
        python=platform.python_version(),
        onnxruntime=_onnxruntime(),
        more={"cpu": _sysctl() or platform.processor()},
    )


def describe() -> dict[str, Any]:
    """`Facts.describe` of this machine."""
    return here().describe()


def state() -> dict[str, Any]:
    """`health.state` of this machine, for the processors this process may use."""
    return health.state(read_files(health.FILES), usable_cpus())


def fingerprint() -> str:
    """`Facts.fingerprint` of this machine."""
    return here().fingerprint


def processor() -> str:
    return here().processor


def usable_cpus() -> tuple[int, ...]:
    """Numbers of the CPUs this process may run on; fewer than the machine has under taskset or in a container."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def usable_cores() -> int:
    return len(usable_cpus())


def is_arm64() -> bool:
    return platform.machine().lower() in ("aarch64", "arm64")


def cpu_list(cpus: str | Sequence[int]) -> list[int]:
    """[0, 2, 3] of "0,2-3", sorted and without repetition. Raises InputError for anything but CPU numbers."""
    if not isinstance(cpus, str):
        cpus = ",".join(map(str, cpus))
    numbers: set[int] = set()
    for part in cpus.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise InputError(f"CPUs {cpus!r} are not numbers and ranges; write for example 0,2-3")
        numbers.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(numbers)


def read_files(patterns: Sequence[str]) -> dict[str, str]:
    """Path -> content of the files that can be read. Where the firmware of a Raspberry Pi does not answer through a
    file, its own program is asked."""
    paths = (path for pattern in patterns for path in glob.glob(pattern))
    found = {path: text for path in paths if (text := _read(path))}
    if health.wanted(patterns, found) and (program := shutil.which("vcgencmd")):
        done = subprocess.run([program, "get_throttled"], capture_output=True, text=True, check=False)
        found[health.VCGENCMD] = done.stdout.strip()
    return found


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(errors="replace").strip("\x00\n ") or None
    except OSError:
        return None


def _field(text: str | None, name: str) -> str | None:
    """The value of the first line `name : value`."""
    match = re.search(rf"^{re.escape(name)}\s*:\s*(.*?)\s*$", text or "", re.MULTILINE)
    return match[1] if match else None


def _sysctl() -> str | None:
    if platform.system() != "Darwin":
        return None
    answer = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def _onnxruntime() -> str | None:
    from importlib import metadata

    try:
        return metadata.version("onnxruntime")
    except metadata.PackageNotFoundError:
        return None
