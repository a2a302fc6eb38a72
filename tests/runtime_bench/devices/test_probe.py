"""What a machine says of itself, in the words of several systems, becomes the same facts."""

import subprocess
from collections.abc import Sequence

import pytest

from bnas.profiles.errors import InputError
from bnas.runtime_bench import machine
from bnas.runtime_bench.devices import DeviceError, kit, probe
from bnas.runtime_bench.devices.checking import warnings
from bnas.runtime_bench.devices.transport import BEGIN, PATIENCE, Result, Source, Transport

A76, A55 = "0xd0b", "0xd05"
ELF32_ARM = "7f454c46" + "01" + "01" + "01" + "00" * 9 + "0200" + "2800"
ELF64_ARM = "7f454c46" + "02" + "01" + "01" + "00" * 9 + "0300" + "b700"

PI = {
    "@arch": "aarch64", "@system": "Linux 6.12.34+rpt-rpi-v8", "@shell": ELF64_ARM,
    "@libc": "glibc 2.41", "@cores": "4",
    "/proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0", "/proc/meminfo": "MemTotal:        3884352 kB",
    "/etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"', "/proc/self/status": "Cpus_allowed_list:\t0-3",
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand",
}  # fmt: skip
PI_32 = PI | {"@shell": ELF32_ARM}
OLD_PI = PI | {"@arch": "armv7l", "@shell": ELF32_ARM}
ALPINE = {"@arch": "x86_64", "@system": "Linux 6.6.1", "@musl": "/lib/ld-musl-x86_64.so.1", "@cores": "2",
          "@libc": "musl libc (x86_64)"}  # fmt: skip
PHONE = {
    "@arch": "aarch64", "@system": "Linux 5.15.0", "@android": "14", "@board": "Maker Phone 8", "@cores": "8",
    "@cpu": "Google Tensor",
    "/proc/self/status": "Cpus_allowed_list:\t0-1,4-7",
}  # fmt: skip


class Saying(Transport):
    """Answers the script with what a machine said; a value of several lines comes as several lines."""

    def __init__(self, said: dict[str, str]) -> None:
        super().__init__("device")
        self.said = said

    def run(self, argv: Sequence[str], stdin: Source = b"", timeout: float = PATIENCE) -> Result:
        rows = (f"{name}\t{line}\n" for name, text in self.said.items() for line in text.split("\n"))
        return Result(0, BEGIN + "".join(rows).encode(), "")


def facts(said: dict[str, str]) -> machine.Facts:
    return probe.facts(Saying(said))


def test_a_raspberry_pi() -> None:
    found = facts(PI)
    assert (found.arch, found.glibc, found.cores, found.cpus) == ("aarch64", "2.41", 4, (0, 1, 2, 3))
    told = found.describe()
    assert told["board"] == told["processor"] == "Raspberry Pi 4 Model B Rev 1.4"
    assert (told["memory_mb"], told["governor"], told["python"]) == (3793, "ondemand", None)
    assert told["os"] == "Linux 6.12.34+rpt-rpi-v8, Debian GNU/Linux 13 (trixie)"


def test_a_phone() -> None:
    found = facts(PHONE)
    assert (found.libc, found.glibc, found.cpus) == ("bionic", None, (0, 1, 4, 5, 6, 7))
    assert found.describe()["board"] == "Maker Phone 8" and found.describe()["processor"] == "Google Tensor"


@pytest.mark.parametrize(
    ("words", "libc", "glibc"),
    [
        ("glibc 2.31", "glibc", "2.31"),
        ("ldd (Debian GLIBC 2.36-9+deb12u10) 2.36", "glibc", "2.36"),
        ("ldd (Ubuntu GLIBC 2.27-3ubuntu1) 2.27", "glibc", "2.27"),
        ("ldd (GNU libc) 2.17", "glibc", "2.17"),
        ("musl libc (aarch64)", "musl", None),
        ("", "an unknown C library", None),
    ],
)
def test_c_libraries(words: str, libc: str, glibc: str | None) -> None:
    found = facts({"@arch": "aarch64", "@system": "Linux", "@libc": words})
    assert (found.libc, found.glibc) == (libc, glibc)


def test_no_linux_machine_is_an_error() -> None:
    with pytest.raises(DeviceError, match="does not answer as a Linux machine"):
        facts({})


def test_the_shell_script_tells_what_python_tells() -> None:
    """Of this machine, by both ways."""
    there, here = probe.facts(Transport()), machine.here()
    assert there.fingerprint == here.fingerprint
    for key in ("processor", "arch", "cores", "cpus", "memory_mb", "glibc", "governor", "board"):
        assert there.describe()[key] == here.describe()[key]
    assert there.more["userland"] == here.arch
    dash = subprocess.run(["sh", "-c", "echo ok"], capture_output=True, text=True).stdout
    assert dash == "ok\n"


def test_cores_that_differ() -> None:
    blocks = [(n, A55 if n < 4 else A76) for n in range(6)]
    cpuinfo = "\n".join(f"processor\t: {n}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n" for n, part in blocks)
    highest = machine.FASTEST.replace("*", "{}")
    clocks = {highest.format(n): "1800000" if n < 4 else "2400000" for n in range(6)}
    found = facts(PI | {"@cores": "6", "/proc/cpuinfo": cpuinfo} | clocks)
    assert found.core_groups == [
        {"core": "Cortex-A76", "mhz": 2400.0, "cpus": [4, 5]},
        {"core": "Cortex-A55", "mhz": 1800.0, "cpus": [0, 1, 2, 3]},
    ]
    assert facts(ALPINE).core_groups == [{"core": None, "mhz": None, "cpus": [0, 1]}]


def test_warnings() -> None:
    def told(said: dict[str, str], **state: object) -> list[str]:
        plain = {"governor": None, "throttled": [], "temperature_c": None}
        return warnings(facts(said), plain | state)

    assert told(PI, governor="performance") == []
    assert any("64-bit" in line and "armv7l" in line for line in told(PI_32))
    assert any("ondemand" in line and "sudo tee" in line for line in told(PI, governor="performance,ondemand"))
    assert any("under-voltage" in line for line in told(PI, throttled=["under-voltage"]))
    assert any("since boot" in line for line in told(PI, throttled=[{"under-voltage since boot": 1}]))
    assert told(PI, throttled=[{"events since boot": 0}]) == []
    assert any("81 °C" in line for line in told(PI, temperature_c=81.4)) and told(PI, temperature_c=60.0) == []
    assert "emulator" in warnings(facts(PI), {}, emulated=True)[0]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (OLD_PI, "is armv7l, but bnas has programs for aarch64 and x86_64 only; install a 64-bit system"),
        ({"@arch": "riscv64", "@system": "Linux"}, "is riscv64"),
    ],
)
def test_processors_without_programs(said: dict[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        kit.check_arch(facts(said), "device")
