"""Whether a processor runs as fast as it could: governor, clocks, temperature, and what held it back.

Pure functions of the contents of system files, of whatever machine. Sources: Linux' documentation of sysfs
(cpufreq, thermal, and `thermal_throttle` on x86), and Raspberry Pi's of `vcgencmd get_throttled`, whose word the
firmware's sysfs file shows as well.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from statistics import median
from typing import Any

_CPUFREQ = "/sys/devices/system/cpu/cpu*/cpufreq/"
FILES = (
    _CPUFREQ + "scaling_governor",
    _CPUFREQ + "scaling_cur_freq",
    _CPUFREQ + "scaling_max_freq",
    "/sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count",
    "/sys/class/thermal/thermal_zone*/type",
    "/sys/class/thermal/thermal_zone*/temp",
    "/sys/devices/platform/soc*/soc*firmware/get_throttled",
)
CPUINFO = "/proc/cpuinfo"  # where a clock is read that no file of cpufreq tells; too long to be among FILES
VCGENCMD = "vcgencmd get_throttled"  # stands in for a path

# Bit of the firmware's word -> meaning. The same 16 bits higher: it has been so since the board was switched on.
FIRMWARE = {
    0: "under-voltage",
    1: "clock capped by the firmware",
    2: "throttled by the firmware",
    3: "soft temperature limit",
}
SINCE_BOOT = " since boot"
THROTTLE_COUNT = "thermal throttling events" + SINCE_BOOT
SLOWER = 0.9  # a clock below this part of what it was has fallen
_PROCESSOR_ZONE = re.compile(r"cpu|soc|x86_pkg|core", re.IGNORECASE)


def state(files: Mapping[str, str], cpus: Sequence[int]) -> dict[str, Any]:
    """The state of the processors `cpus`, JSON-ready: "governor" (several are joined by commas), "clock_mhz" and
    "limit_mhz" (a list each, one number for each of `cpus`; empty where not readable), "temperature_c" of the
    processor, and "throttled": words for what holds now, {name: value} for what is counted since boot.
    """
    governors = dict.fromkeys(_each(files, "cpufreq/scaling_governor", cpus))
    return {
        "governor": ",".join(governors) or None,
        "clock_mhz": _mhz(files, "scaling_cur_freq", cpus) or _cpuinfo_mhz(files, cpus),
        "limit_mhz": _mhz(files, "scaling_max_freq", cpus),
        "temperature_c": _temperature(files),
        "throttled": _throttled(files, cpus),
    }


def throttling(before: Mapping[str, Any], during: Sequence[Mapping[str, Any]], after: Mapping[str, Any]) -> list[str]:
    """What slowed the processor down during a measurement, in words; empty if nothing is known to have.

    before, after: its `state` on either side; during: states in between. Counts only tell of this measurement by
    having grown since `before`. A clock that is lower than `before` in the middle of the readings counts as throttled
    whatever lowered it.
    """
    later = [*during, after]
    now = [reason for state in (before, *later) for reason in state["throttled"] if isinstance(reason, str)]
    words = list(dict.fromkeys(now))
    counted = {name: value for name, value in _counts(before).items()}
    for state in later:
        for name, value in _counts(state).items():
            if value > counted.get(name, 0) and (reason := name.removesuffix(SINCE_BOOT)) not in words:
                words.append(reason)
    limits = [limit for state in later if (limit := _top(state["limit_mhz"]))]
    if (full := _top(before["limit_mhz"])) and limits and min(limits) < full:
        words.append(f"highest clock lowered from {full:.0f} to {min(limits):.0f} MHz")
    clocks = [clock for state in during if (clock := _top(state["clock_mhz"]))]
    if (start := _top(before["clock_mhz"])) and clocks and median(clocks) < SLOWER * start:
        words.append(f"clock fell from {start:.0f} to {median(clocks):.0f} MHz")
    return words


def wanted(patterns: Collection[str], found: Collection[str]) -> bool:
    """Whether the firmware's word is among `patterns` but not in any file `found`."""
    return FILES[-1] in patterns and not any(path.endswith("/get_throttled") for path in found)


def _throttled(files: Mapping[str, str], cpus: Sequence[int]) -> list[str | dict[str, int]]:
    found: list[str | dict[str, int]] = []
    word = next((_word(text) for path, text in files.items() if path.endswith("get_throttled")), 0)
    found += [meaning for bit, meaning in FIRMWARE.items() if word >> bit & 1]
    found += [{meaning + SINCE_BOOT: 1} for bit, meaning in FIRMWARE.items() if word >> bit + 16 & 1]
    counts = [int(text) for text in _each(files, "thermal_throttle/core_throttle_count", cpus) if text.isdigit()]
    if counts:
        found.append({THROTTLE_COUNT: sum(counts)})
    return found


def _word(text: str) -> int:
    """`50005` of the file, `throttled=0x50005` of the program."""
    match = re.fullmatch(r"(?:throttled=)?(?:0x)?([0-9a-fA-F]+)", text.strip())
    return int(match[1], 16) if match else 0


def _counts(state: Mapping[str, Any]) -> dict[str, int]:
    counted = (entry for entry in state["throttled"] if isinstance(entry, dict))
    return {name: value for entry in counted for name, value in entry.items()}


def _top(values: Sequence[float]) -> float | None:
    return max(values, default=None)


def _each(files: Mapping[str, str], name: str, cpus: Sequence[int]) -> list[str]:
    paths = (f"/sys/devices/system/cpu/cpu{number}/{name}" for number in cpus)
    return [files[path] for path in paths if files.get(path)]


def _mhz(files: Mapping[str, str], name: str, cpus: Sequence[int]) -> list[float]:
    return [int(text) / 1000 for text in _each(files, "cpufreq/" + name, cpus) if text.isdigit()]


def _cpuinfo_mhz(files: Mapping[str, str], cpus: Sequence[int]) -> list[float]:
    clocks = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", files.get(CPUINFO, ""), re.MULTILINE)
    return [float(clocks[number]) for number in cpus if number < len(clocks)]


def _temperature(files: Mapping[str, str]) -> float | None:
    """Of the first thermal zone that is the processor's, else of the first."""
    zones = sorted((int(m[1]), m[0]) for path in files if (m := re.match(r".*/thermal_zone(\d+)/(?=temp$)", path)))
    ours = [zone for _, zone in zones if _PROCESSOR_ZONE.search(files.get(zone + "type", ""))]
    for zone in [*ours, *(zone for _, zone in zones)]:
        if re.fullmatch(r"-?\d+", text := files[zone + "temp"]):
            return int(text) / 1000
    return None
