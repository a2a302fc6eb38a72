"""Devices to test on: this machine, a real ssh server on loopback, an emulator alone and behind it, adb's stand-in."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from bnas.export.units import unit_model
from bnas.profiles.errors import InputError
from bnas.profiles.workload import Workload
from bnas.runtime_bench import native_library
from bnas.runtime_bench.devices import kit, workplace

from ..native.conftest import emulator, here, missing
from . import ssh_server
from .ssh_server import SshServer

STAND_IN = Path(__file__).with_name("stand_in_adb.sh")
URLS = {
    "local": "local",
    "ssh": "ssh://board",
    "adb": "adb:SERIAL-1",
    "emulator": "emulator",
    "emulator behind ssh": "emulator+ssh://board",
}
NEAR = ["ssh", "adb"]  # without an emulator, and not the engines of this process


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    if ssh_server.find() is None:
        missing("needs sshd (Debian: apt install openssh-server)")
    running = SshServer(tmp_path_factory.mktemp("sshd"))
    yield running
    running.stop()


@pytest.fixture
def device_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where everything on a device lies: a folder with a name that a shell would take apart."""
    folder = tmp_path / "the device; $(touch x) 'it'"
    folder.mkdir()
    monkeypatch.setenv(workplace.PARENT, str(folder))
    return folder


@pytest.fixture
def adb_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts the stand-in on the PATH; the file it writes to. Its device says it is an Android."""
    programs, commands = tmp_path / "programs", tmp_path / "commands"
    for folder in (programs, commands):
        folder.mkdir()
    (programs / "adb").symlink_to(STAND_IN)
    _program(commands / "getprop", "#!/bin/sh\ncase $1 in *release) echo 14;; *model) echo Phone;; esac\n")
    log = tmp_path / "adb.log"
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN_LOG", str(log))
    monkeypatch.setenv("STAND_IN_DEVICES", "SERIAL-1 device\n")
    monkeypatch.setenv("STAND_IN_COMMANDS", str(commands))
    return log


@pytest.fixture
def url(request: pytest.FixtureRequest, device_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of the kind that the test is parametrized with, ready to be opened."""
    kind: str = request.param
    if kind != "local" and native_library.operator_library() is None:
        here()
    if "ssh" in kind:
        server: SshServer = request.getfixturevalue("server")
        monkeypatch.setenv(ssh_server.CONFIG, str(server.config()))
    if kind == "adb":
        request.getfixturevalue("adb_log")
    if "emulator" in kind:
        emulator()
        aarch64_kit()
    return URLS[kind]


def aarch64_kit() -> None:
    """Skips where the programs for aarch64 are not built, or onnxruntime for it cannot be had."""
    try:
        kit.locate("aarch64")
    except InputError as error:
        missing(str(error))


@pytest.fixture(scope="session")
def network() -> bytes:
    """A network of one fused binary unit, on [N, 32, 8, 8]."""
    unit = Workload("binary_conv", 1, 32, 32, 8, 8, kernel=3, epilogue=("residual", "rprelu"))
    return unit_model(unit).SerializeToString()


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((40, 32, 8, 8)).astype(np.float32)


@pytest.fixture
def forced_kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """forced_kit("x86_64", runner=path, ...): BNAS_KIT with these files for a processor; the others as they are."""

    def force(arch: str, **files: Path | bytes) -> Path:
        names = {"runner": native_library.RUNNER, "operators": native_library.LIBRARY, "onnxruntime": kit.ONNXRUNTIME}
        real = kit.locate(arch)
        folder = tmp_path / "kit" / arch
        folder.mkdir(parents=True)
        for part, name in names.items():
            given = files.get(part, getattr(real, part))
            if isinstance(given, bytes):
                _program(folder / name, given.decode("latin-1"))
            elif given is not None:
                (folder / name).symlink_to(given)
        monkeypatch.setenv(kit.FOLDER, str(folder.parent))
        return folder

    return force


@pytest.fixture
def without_kernels(forced_kit: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """without_kernels(url): the programs for that device come without the operator library."""

    def leave_out(url: str) -> None:
        if "emulator" in url:
            forced_kit("aarch64", operators=None)
        else:
            built = native_library._built
            monkeypatch.setattr(
                native_library, "_built", lambda name: None if name == native_library.LIBRARY else built(name)
            )

    return leave_out


def _program(path: Path, text: str) -> None:
    path.write_bytes(text.encode("latin-1"))
    path.chmod(0o755)
