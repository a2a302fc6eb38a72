"""Which files go to which machine, and what is said when none fits."""

import importlib.metadata
import re
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bnas.profiles.errors import InputError
from bnas.runtime_bench import machine, native_library
from bnas.runtime_bench.devices import elf, kit

from ..native.conftest import missing

MACHINES = {"x86_64": 62, "aarch64": 183, "armv7l": 40}


def program(arch: str, *glibc: str) -> bytes:
    """The start of an ELF file and names of symbol versions as its string table has them."""
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00" + MACHINES[arch].to_bytes(2, "little") + bytes(44)
    return header + b"\0" + b"\0".join(f"GLIBC_{version}".encode() for version in glibc) + b"\0"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """BNAS_KIT with programs for aarch64 that need glibc 2.28; no loader is at hand."""
    place = tmp_path / "kit" / "aarch64"
    place.mkdir(parents=True)
    for name in (native_library.RUNNER, native_library.LIBRARY):
        (place / name).write_bytes(program("aarch64", "2.17", "2.9"))
    (place / f"{kit.ONNXRUNTIME}.1.31.1").write_bytes(program("aarch64", "2.28", "2.17"))
    monkeypatch.setenv(kit.FOLDER, str(place.parent))
    monkeypatch.setattr(kit, "_SYSTEM_FOLDERS", (str(tmp_path / "system" / "{arch}"),))
    return place


def facts(**more: Any) -> machine.Facts:
    return machine.Facts(
        **({"arch": "aarch64", "system": "Linux", "files": {}, "libc": "glibc", "glibc": "2.36"} | more)
    )


def test_what_a_file_needs(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(program("aarch64", "2.17", "2.4", "2.28", "2.9"))
    assert elf.read(path) == elf.Elf("aarch64", (2, 28))
    path.write_bytes(program("armv7l"))
    assert elf.read(path) == elf.Elf("armv7l", None)
    for other in (b"", b"#!/bin/sh\n", b"\x7fELF"):
        path.write_bytes(other)
        assert elf.read(path) is None
    assert elf.version("2.4") < elf.version("2.28")


def test_agrees_with_readelf() -> None:
    if native_library.operator_library() is None:
        missing("needs the native kernels")
    path = native_library.path_of(native_library.RUNNER)
    try:
        table = subprocess.run(["readelf", "-hV", str(path)], capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        missing("needs readelf (Debian: apt install binutils)")
    found = elf.read(path)
    assert found and found.glibc
    versions = re.findall(r"\bGLIBC_(2\.\d+)", table)
    assert found.glibc == max(map(elf.version, versions))
    assert ("AArch64" if found.arch == "aarch64" else "X86-64") in table


def test_a_machine_that_fits(folder: Path) -> None:
    found = kit.find(facts(), "board")
    assert set(found.files) == {native_library.RUNNER, native_library.LIBRARY, kit.ONNXRUNTIME} and not found.loader
    assert found.needs == ((2, 28), kit.ONNXRUNTIME)
    assert kit.find(facts(glibc="2.28"), "board") == found


@pytest.mark.parametrize(
    ("machine_facts", "words"),
    [
        ({"glibc": "2.27"}, "libonnxruntime.so needs glibc 2.28, but board has glibc 2.27; use a newer 64-bit system"),
        ({"glibc": None, "libc": "musl"}, "but board has musl; .*apt install g"),
        ({"glibc": None, "libc": "bionic"}, "but board has bionic"),
        ({"more": {"userland": "armv7l"}}, "but board has programs of armv7l alone"),
    ],
)
def test_another_c_library(machine_facts: dict[str, Any], words: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        kit.find(facts(**machine_facts), "board")
    system = tmp_path / "system" / "aarch64"
    system.mkdir(parents=True)
    names = [kit.LOADERS["aarch64"], "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1",
             "libgcc_s.so.1", "libstdc++.so.6"]  # fmt: skip
    for name in names:
        (system / name).write_bytes(program("aarch64", "2.17", "2.27"))
    with pytest.raises(InputError, match=words):  # too old itself
        kit.find(facts(**machine_facts), "board")
    (system / "libc.so.6").write_bytes(program("aarch64", "2.17", "2.36"))
    found = kit.find(facts(**machine_facts), "board")
    assert [path.name for path in found.loader] == names and set(names) < set(found.files)


def test_files_for_another_processor(folder: Path) -> None:
    (folder / native_library.LIBRARY).write_bytes(program("x86_64"))
    with pytest.raises(InputError, match=r"libbnas_ort.so is built for x86_64, but board needs aarch64; .* BNAS_KIT"):
        kit.find(facts(), "board")
    (folder / native_library.LIBRARY).write_bytes(b"text")
    with pytest.raises(InputError, match=r"libbnas_ort.so is no program or library"):
        kit.find(facts(), "board", emulated=True)


def wheel(arguments: list[str], requirement: str) -> subprocess.CompletedProcess[str]:
    """What pip does: version 9.9.9 of onnxruntime has no wheel for aarch64, the newest has."""
    if "==" in requirement:
        return subprocess.CompletedProcess(arguments, 1, "", "ERROR: No matching distribution found\n")
    target = Path(arguments[arguments.index("--dest") + 1], "onnxruntime-9.8.0-cp311-cp311-manylinux_2_28_aarch64.whl")
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("onnxruntime/capi/libonnxruntime.so.9.8.0", program("aarch64", "2.28"))
        archive.writestr("onnxruntime/capi/libonnxruntime_providers_shared.so", b"")
    return subprocess.CompletedProcess(arguments, 0, "", "")


def test_onnxruntime_is_downloaded_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command[-1])
        return wheel(command, command[-1])

    (folder / f"{kit.ONNXRUNTIME}.1.31.1").unlink()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9.9")
    monkeypatch.setattr(kit.subprocess, "run", pip)
    monkeypatch.setattr(kit, "machine_arch", lambda: "x86_64")
    first = kit.find(facts(), "board").onnxruntime
    assert first.read_bytes() == program("aarch64", "2.28")
    assert asked == ["onnxruntime==9.9.9", "onnxruntime>=1.20"]
    assert kit.find(facts(), "board").onnxruntime == first and len(asked) == 2
    assert [path.name for path in (tmp_path / "cache" / "bnas").iterdir()] == ["onnxruntime-9.9.9-aarch64"]


def test_without_a_network(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / f"{kit.ONNXRUNTIME}.1.31.1").unlink()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: retrying\nERROR: no route to host\n")
    monkeypatch.setattr(kit.subprocess, "run", lambda *_, **__: failed)
    monkeypatch.setattr(kit, "machine_arch", lambda: "x86_64")
    with pytest.raises(InputError, match=r"cannot be downloaded \(ERROR: no route to host\); put .* named by BNAS_KIT"):
        kit.find(facts(), "board")
    assert not list((tmp_path / "cache" / "bnas").iterdir())
