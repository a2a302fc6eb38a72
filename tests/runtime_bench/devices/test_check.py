"""`bnas devices`: a machine is described, tried and left clean, and what is missing comes with its remedy."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bnas.cli import run
from bnas.profiles.errors import InputError
from bnas.runtime_bench import native_library
from bnas.runtime_bench.devices import adb, emulation, kit, open_device
from bnas.runtime_bench.devices.ssh import CONFIG

from .conftest import NEAR

Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize("url", ["local", *NEAR], indirect=True)
def test_a_device_that_fits(url: str, device_folder: Path, capfd: Captured) -> None:
    assert run(["devices", "check", url, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["url"] == url and found["missing"] == []
    assert found["ran"].startswith("native-") and found["device"]["cores"] >= 1
    assert sum(len(group["cpus"]) for group in found["cores"]) == found["device"]["cores"]
    if url != "local":
        assert native_library.RUNNER in found["kit"] and 5 < found["needs_mb"] < found["free_mb"]
    assert not any(device_folder.iterdir())


@pytest.mark.parametrize("url", ["ssh"], indirect=True)
def test_what_is_missing(
    url: str, device_folder: Path, tmp_path: Path, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kit.FOLDER, str(tmp_path / "empty"))
    monkeypatch.setattr(kit, "machine_arch", lambda: "riscv64")
    monkeypatch.setattr(kit, "_CHECKOUT", tmp_path)
    assert run(["devices", "check", url]) == 2
    text = capfd.readouterr()
    assert "missing: bnas-runner for" in text.err and "ready" not in text.err
    assert "cores" in text.out, "what it is is told all the same"
    assert not any(device_folder.iterdir())


@pytest.mark.parametrize("url", ["local", "ssh", "emulator"], indirect=True)
def test_missing_kernels(url: str, without_kernels: Callable[[str], None], capfd: Captured) -> None:
    """It runs, but not as it should: by what is said, they can be had."""
    without_kernels(url)
    assert run(["devices", "check", url, "--json"]) == 2
    found = json.loads(capfd.readouterr().out)
    assert found["ran"] == "function-float"
    (missing,) = found["missing"]
    assert native_library.LIBRARY in missing and "\n" not in missing
    assert ("make aarch64" if "emulator" in url else "pip install") in missing


def test_no_emulator(tmp_path: Path, device_folder: Path, capfd: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for folder in ("/bin", "/usr/bin"):
        for program in Path(folder).iterdir():
            if not program.name.startswith("qemu") and not (programs / program.name).is_symlink():
                (programs / program.name).symlink_to(program)
    monkeypatch.setenv("PATH", str(programs))
    assert run(["devices", "check", "emulator"]) == 2
    text = capfd.readouterr().err
    assert "missing: this machine has no qemu-aarch64; there, do (Debian): apt install qemu-user" in text
    assert "warning: an emulator" in text


@pytest.mark.parametrize("url", ["emulator"], indirect=True)
def test_no_c_library_to_emulate_with(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulation, "SYSROOT", str(tmp_path))
    with pytest.raises(InputError, match=f"has no aarch64's C library in {tmp_path}"), open_device(url):
        pass


def test_no_way_to_the_device_is_one_line(capfd: Captured) -> None:
    for url in ("nonsense", "ssh://a b", "pi@kitchen"):
        assert run(["devices", "check", url]) == 2
        assert capfd.readouterr().err.count("\n") == 1


def test_list(tmp_path: Path, adb_log: Path, capfd: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config"
    config.write_text("Host *\n  User me\nHost kitchen garage # two\n  Port 7\nHost=attic\nhost bad* !no\nMatch all\n")
    monkeypatch.setenv(CONFIG, str(config))
    monkeypatch.setenv("STAND_IN_DEVICES", "SERIAL-1 device\nSERIAL-2 unauthorized\n")
    assert run(["devices", "list", "--json"]) == 0
    found = {row["device"]: row["what"] for row in json.loads(capfd.readouterr().out)["devices"]}
    assert next(iter(found)) == "local" and found["adb:SERIAL-2"] == "unauthorized"
    assert {"ssh://kitchen", "ssh://garage", "ssh://attic"} == {name for name in found if name.startswith("ssh")}


def test_adb_devices_that_cannot_be_used(adb_log: Path, capfd: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    for devices, url, words in (
        ("SERIAL-1 device\nSERIAL-2 device\n", "adb:", "there are 2: adb:SERIAL-1, adb:SERIAL-2"),
        ("", "adb:", "there are 0: none; connect one"),
        ("SERIAL-1 unauthorized\n", "adb:SERIAL-1", "look at its screen"),
        ("SERIAL-1 offline\n", "adb:SERIAL-1", "unplug it"),
        ("SERIAL-1 device\n", "adb:SERIAL-9", "not connected; adb sees: SERIAL-1"),
    ):
        monkeypatch.setenv("STAND_IN_DEVICES", devices)
        assert run(["devices", "check", url]) == 2
        assert words in capfd.readouterr().err
    monkeypatch.setattr(adb, "_program", lambda: None)
    assert run(["devices", "check", "adb:"]) == 2 and "apt install adb" in capfd.readouterr().err
