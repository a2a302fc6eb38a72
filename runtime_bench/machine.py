"""This machine in words: what a reader needs to doubt or repeat a measurement. What cannot be read is None."""

import hashlib
import os
import platform
import subprocess
from pathlib import Path

_CPU0 = Path("/sys/devices/system/cpu/cpu0/cpufreq")


def describe() -> dict[str, str | int | float | None]:
    """Processor, clock (MHz), temperature (degrees C) and versions, as they are now."""
    return {
        "processor": processor(),
        "arch": platform.machine(),
        "cores": os.cpu_count() or 1,
        "os": platform.platform(),
        "governor": _read(_CPU0 / "scaling_governor"),
        "clock_mhz": _clock_mhz(),
        "temperature_c": _scaled(_read(Path("/sys/class/thermal/thermal_zone0/temp")), 1e-3),
        "python": platform.python_version(),
        "onnxruntime": _onnxruntime(),
    }


def fingerprint() -> str:
    """12 hex digits naming this kind of machine: processor, architecture and core count."""
    text = f"{processor()}|{platform.machine()}|{os.cpu_count() or 1}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def usable_cores() -> int:
    """Cores this process may run on; fewer than the machine has under taskset or in a container."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_arm64() -> bool:
    return platform.machine().lower() in ("aarch64", "arm64")


def processor() -> str:
    """The processor's own name, e.g. `Intel(R) Xeon(R) Processor`; a board's name where the processor has none."""
    return _cpuinfo("model name") or _read(Path("/proc/device-tree/model")) or _sysctl() or platform.processor() or "?"


def _clock_mhz() -> float | None:
    return _scaled(_read(_CPU0 / "scaling_cur_freq"), 1e-3) or _scaled(_cpuinfo("cpu MHz"), 1.0)


def _cpuinfo(field: str) -> str | None:
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return None


def _sysctl() -> str | None:
    if platform.system() != "Darwin":
        return None
    answer = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip("\x00\n ") or None
    except OSError:
        return None


def _scaled(text: str | None, factor: float) -> float | None:
    try:
        return None if text is None else float(text) * factor
    except ValueError:
        return None


def _onnxruntime() -> str | None:
    from importlib import metadata

    try:
        return metadata.version("onnxruntime")
    except metadata.PackageNotFoundError:
        return None
