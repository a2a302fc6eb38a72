"""Throttling is told from readings of real forms: a Raspberry Pi's firmware word, x86 counters, clocks."""

import pytest

from bnas.runtime_bench import health

CPU = "/sys/devices/system/cpu/cpu{}/"
FIRMWARE = "/sys/devices/platform/soc/soc:firmware/get_throttled"
ZONE = "/sys/class/thermal/thermal_zone{}/"


def pi(word: str = "0", clock: int = 1_800_000, limit: int = 1_800_000, temperature: int = 52_582) -> dict[str, str]:
    """The files of a Raspberry Pi 4."""
    files = {FIRMWARE: word, ZONE.format(0) + "type": "cpu-thermal", ZONE.format(0) + "temp": str(temperature)}
    for number in range(4):
        folder = CPU.format(number) + "cpufreq/"
        files |= {
            folder + "scaling_governor": "ondemand",
            folder + "scaling_cur_freq": str(clock),
            folder + "scaling_max_freq": str(limit),
        }
    return files


def state(files: dict[str, str], cpus: range | list[int] = range(4)) -> dict:
    return health.state(files, list(cpus))


def told(before: dict[str, str], during: list[dict[str, str]], after: dict[str, str]) -> list[str]:
    return health.throttling(state(before), [state(files) for files in during], state(after))


def test_state_of_a_raspberry_pi() -> None:
    assert state(pi("50005")) == {
        "governor": "ondemand",
        "clock_mhz": [1800.0] * 4,
        "limit_mhz": [1800.0] * 4,
        "temperature_c": 52.582,
        "throttled": [
            "under-voltage",
            "throttled by the firmware",
            {"under-voltage since boot": 1},
            {"throttled by the firmware since boot": 1},
        ],
    }


@pytest.mark.parametrize(
    ("bit", "word"),
    [(0, "under-voltage"), (1, "capped"), (2, "throttled"), (3, "temperature")],
)
def test_every_bit_of_the_firmware(bit: int, word: str) -> None:
    """Raspberry Pi's documentation of get_throttled: bits 0 to 3 now, 16 to 19 since boot."""
    now, since = state(pi(f"{1 << bit:x}"))["throttled"], state(pi(f"{1 << bit + 16:x}"))["throttled"]
    assert len(now) == len(since) == 1 and word in now[0] and [*since[0].values()] == [1]
    assert len(told(pi(), [pi(f"{1 << bit:x}")], pi())) == 1, "seen in between only"
    assert len(told(pi(), [pi()], pi(f"{1 << bit + 16:x}"))) == 1, "so short that only the bit since boot tells"
    assert told(pi(f"{1 << bit + 16:x}"), [pi(f"{1 << bit + 16:x}")], pi(f"{1 << bit + 16:x}")) == [], "long ago"


def test_a_program_may_stand_in_for_the_file() -> None:
    files = {path: text for path, text in pi().items() if path != FIRMWARE} | {health.VCGENCMD: "throttled=0x4"}
    assert state(files)["throttled"] == ["throttled by the firmware"]
    assert health.wanted(health.FILES, ["/sys/other"]) and not health.wanted(health.FILES, [FIRMWARE])
    assert state(pi("nonsense"))["throttled"] == []


def test_counters_of_x86() -> None:
    def counted(*counts: int) -> dict[str, str]:
        name = CPU + "thermal_throttle/core_throttle_count"
        return {name.format(number): str(count) for number, count in enumerate(counts)}

    assert told(counted(7, 0), [counted(7, 0)], counted(7, 0)) == []
    assert told(counted(7, 0), [], counted(7, 1)) == ["thermal throttling events"]
    only_the_other_core = health.throttling(state(counted(7, 0), [0]), [], state(counted(7, 9), [0]))
    assert only_the_other_core == []


def test_clocks() -> None:
    slow = pi(clock=1_500_000)
    assert told(pi(), [slow, slow, pi()], pi()) == ["clock fell from 1800 to 1500 MHz"]
    assert told(pi(), [slow, pi(), pi()], pi()) == [], "one reading between two runs is no throttling"
    assert told(pi(), [pi(clock=1_700_000)] * 3, pi()) == [], "within 10 %"
    assert told(slow, [pi()] * 3, slow) == [], "faster is no throttling"
    assert told(pi(), [pi(limit=1_400_000)], pi()) == ["highest clock lowered from 1800 to 1400 MHz"]


def test_nothing_readable_tells_nothing() -> None:
    assert state({}) == {"governor": None, "clock_mhz": [], "limit_mhz": [], "temperature_c": None, "throttled": []}
    assert told({}, [{}], {}) == []


def test_temperature_is_the_processors() -> None:
    files = {
        ZONE.format(0) + "type": "acpitz", ZONE.format(0) + "temp": "27800",
        ZONE.format(1) + "type": "x86_pkg_temp", ZONE.format(1) + "temp": "61000",
    }  # fmt: skip
    assert state(files)["temperature_c"] == 61.0
    assert state({ZONE.format(2) + "temp": "40000"})["temperature_c"] == 40.0
    assert state({ZONE.format(2) + "temp": "broken"})["temperature_c"] is None


def test_only_the_chosen_cpus_count() -> None:
    files = pi() | {CPU.format(3) + "cpufreq/scaling_cur_freq": "600000"}
    assert state(files, [0, 3])["clock_mhz"] == [1800.0, 600.0]
    assert state({health.CPUINFO: "cpu MHz\t\t: 2300.5\n\ncpu MHz\t\t: 2200.0\n"}, [1])["clock_mhz"] == [2200.0]
