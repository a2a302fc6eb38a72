"""What goes wrong is said in one line that names it, and the device is clean afterwards."""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bnas.profiles.errors import InputError
from bnas.runtime_bench import native_library
from bnas.runtime_bench.devices import ConnectionLost, DeviceError, kit, open_device, probe, workplace
from bnas.runtime_bench.devices.address import parse
from bnas.runtime_bench.devices.ssh import refusal
from bnas.runtime_bench.devices.transport import Result, Transport

from ..native.conftest import missing
from . import ssh_server
from .conftest import NEAR
from .ssh_server import SshServer

# Opens the device, says so, and times a network for a long time.
LONG = """
import sys
from pathlib import Path
from bnas.runtime_bench.devices import open_device
with open_device(sys.argv[1]) as target:
    session = target.open(Path(sys.argv[2]).read_bytes())
    print("ready", flush=True)
    while True:
        session.timed(0, 100000)
"""
ALONG = [sys.executable, "-c", LONG]


def emptied(folder: Path, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while any(folder.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(folder.iterdir())


def one_line(error: BaseException) -> str:
    text = str(error)
    assert text and "\n" not in text
    return text


@pytest.mark.parametrize("url", ["ssh"], indirect=True)
def test_connection_cut_while_measuring(url: str, network: bytes, device_folder: Path, server: SshServer) -> None:
    with pytest.raises(ConnectionLost) as caught, open_device(url) as target:
        session = target.open(network)
        threading.Timer(0.3, server.cut).start()
        while True:
            session.timed(0, 1000)
    assert url in one_line(caught.value) and "exit code" not in str(caught.value)
    assert emptied(device_folder)


@pytest.mark.parametrize("url", ["ssh"], indirect=True)
def test_after_the_cut_everything_says_so(url: str, network: bytes, server: SshServer) -> None:
    with open_device(url) as target:
        session = target.open(network)
        server.cut()
        for ask in (lambda: session.timed(0, 1), target.state, lambda: target.open(network), target.bound_gmacs):
            with pytest.raises(ConnectionLost, match="connection to ssh://board is lost") as caught:
                ask()
            assert not re.search("exit code|UNKNOWN", one_line(caught.value))
        session.close()


@pytest.mark.parametrize("url", ["ssh"], indirect=True)
def test_a_cut_before_there_is_a_folder(url: str, server: SshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    find = kit.find

    def cut_and_find(*arguments: Any, **more: Any) -> kit.Kit:
        server.cut()
        return find(*arguments, **more)

    monkeypatch.setattr(kit, "find", cut_and_find)
    words = "^the connection to ssh://board is lost: the connection closed"
    with pytest.raises(ConnectionLost, match=words), open_device(url):
        pass


@pytest.mark.parametrize("url", NEAR, indirect=True)
def test_a_runner_that_is_killed_is_told_from_a_cut(url: str, network: bytes, device_folder: Path) -> None:
    words = r"ended by signal 9 \(Killed\), perhaps for lack of memory"
    with pytest.raises(ConnectionLost, match=words), open_device(url) as target:
        session = target.open(network)
        _kill_runner(device_folder)
        session.timed(0, 1)
    assert emptied(device_folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("url", ["ssh"], indirect=True)
def test_ended_by_a_signal(number: int, url: str, network: bytes, tmp_path: Path, device_folder: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(network)

    def heed() -> None:
        """Tests that run in the background may ignore some signals, and what they start inherits that."""
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)

    pipe = subprocess.PIPE
    with subprocess.Popen([*ALONG, url, model], stdout=pipe, stderr=pipe, preexec_fn=heed) as process:
        try:
            assert process.stdout and process.stdout.readline() == b"ready\n"
            assert any(device_folder.iterdir())
            process.send_signal(number)
            process.communicate(timeout=30)
            assert process.returncode != 0
        finally:
            process.kill()
    # What was killed could do nothing about it any more; the device notices by itself.
    assert emptied(device_folder) if number == signal.SIGKILL else not any(device_folder.iterdir())


@pytest.mark.parametrize(
    ("known", "words"),
    [("other", "host key is not the one in known_hosts"), ("nobody", "host key is not known here")],
)
def test_wrong_and_unknown_host_keys(
    known: str, words: str, server: SshServer, device_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ssh_server.CONFIG, str(server.config(known)))
    before = set(Path("/tmp").glob("bnas-*"))
    with pytest.raises(InputError, match=words) as caught, open_device("ssh://board"):
        pass
    assert "ssh board" in one_line(caught.value)
    assert not any(device_folder.iterdir())
    assert not {path for path in set(Path("/tmp").glob("bnas-*")) - before if (path / "m").exists()}


@pytest.mark.parametrize(
    ("url", "login", "known"),
    [
        ("ssh://board", "board", "board"),
        ("ssh://pi@board:22", "pi@board", "board"),
        ("emulator+ssh://pi@board:2222", "-p 2222 pi@board", "'[board]:2222'"),
        ("ssh://[fe80::1%eth0]:2222", "-p 2222 fe80::1%eth0", "'[fe80::1%eth0]:2222'"),
    ],
)
def test_remedies_are_commands_for_the_same_user_and_port(url: str, login: str, known: str) -> None:
    address = parse(url)
    for said, command in (
        ("pi@board: Permission denied (publickey).", f"ssh-copy-id {login}"),
        ("Host key verification failed.", f"ssh {login},"),
        ("REMOTE HOST IDENTIFICATION HAS CHANGED!\nHost key verification failed.", f"ssh-keygen -R {known},"),
        ("REMOTE HOST IDENTIFICATION HAS CHANGED!\nHost key verification failed.", f"ssh {login}"),
    ):
        assert f": {command}" in refusal(address, Result(255, b"", said))
    assert refusal(address, Result(255, b"", "something\nnew")) == "new"


def test_refused_login_and_no_server(server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = server.config().read_text()
    for old, new, words in (
        (f"IdentityFile {server.folder}/user", f"IdentityFile {server.folder}/other", "refuses the login"),
        (f"Port {server.port}", "Port 1", "nothing listens there"),
        ("HostName 127.0.0.1", "HostName no.such.host.invalid", "no such host"),
    ):
        changed = tmp_path / "config"
        changed.write_text(config.replace(old, new))
        monkeypatch.setenv(ssh_server.CONFIG, str(changed))
        with pytest.raises(InputError, match=words) as caught, open_device("ssh://board"):
            pass
        one_line(caught.value)


@pytest.mark.parametrize("url", NEAR, indirect=True)
def test_wrong_architecture_is_refused_before_anything_is_pushed(
    url: str, device_folder: Path, forced_kit: Callable[..., Path]
) -> None:
    arch = kit.machine_arch()
    other = next(name for name in kit.ARCHES if name != arch)
    header = {"x86_64": 62, "aarch64": 183}[other]
    program = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00" + header.to_bytes(2, "little") + bytes(44)
    forced_kit(arch, runner=program)
    with pytest.raises(InputError, match=rf"built for {other}, but .* needs {arch}"), open_device(url):
        pass
    assert not any(device_folder.iterdir())


@pytest.fixture
def old_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device says that it has glibc 2.19."""
    ask = probe.facts
    monkeypatch.setattr(probe, "facts", lambda transport: dataclasses.replace(ask(transport), glibc="2.19"))


@pytest.mark.parametrize("url", ["ssh"], indirect=True)
@pytest.mark.usefixtures("old_glibc")
def test_too_old_glibc_without_a_loader(url: str, device_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit, "_SYSTEM_FOLDERS", ())
    words = r"needs glibc 2\.\d+, but ssh://board has glibc 2\.19"
    with pytest.raises(InputError, match=words) as caught, open_device(url):
        pass
    assert "apt install" in one_line(caught.value)
    assert not any(device_folder.iterdir())


@pytest.mark.parametrize("url", ["ssh"], indirect=True)
@pytest.mark.usefixtures("old_glibc")
def test_too_old_glibc_gets_one_pushed(url: str, network: bytes, device_folder: Path) -> None:
    if not kit.find_loader(kit.machine_arch(), (2, 28)):
        missing("needs glibc's loader where Debian has it")
    with open_device(url) as target:
        assert target.open(network).timed(0, 1)
        assert any(device_folder.rglob("libc.so.6"))
    assert not any(device_folder.iterdir())


@pytest.mark.parametrize("url", ["ssh"], indirect=True)
def test_missing_runner(url: str, device_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kit.FOLDER, str(tmp_path / "empty"))
    monkeypatch.setattr(kit, "machine_arch", lambda: "riscv64")  # so that nothing is installed for the device
    monkeypatch.setattr(kit, "_CHECKOUT", tmp_path)
    with (
        pytest.raises(InputError, match=f"{native_library.RUNNER} for .* is in neither of") as caught,
        open_device(url),
    ):
        pass
    assert "make " in one_line(caught.value) and not any(device_folder.iterdir())


@pytest.mark.parametrize("url", ["ssh"], indirect=True)
def test_a_runner_that_does_not_start(url: str, device_folder: Path, forced_kit: Callable[..., Path]) -> None:
    real = kit.locate(kit.machine_arch()).runner.read_bytes()
    forced_kit(kit.machine_arch(), runner=real[:4096] + b"\0" * 64)
    with pytest.raises(DeviceError, match="the runner does not start") as caught, open_device(url):
        pass
    one_line(caught.value)
    assert emptied(device_folder)


@pytest.mark.parametrize("url", ["ssh"], indirect=True)
def test_a_damaged_runner_is_told_from_a_folder_without_programs(
    url: str, device_folder: Path, forced_kit: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = kit.locate(kit.machine_arch()).runner.read_bytes()
    header = real[:16] + b"\xff\xff" + real[18:64]  # neither a program nor a library
    forced_kit(kit.machine_arch(), runner=header + bytes(1000))
    with pytest.raises(DeviceError, match="damaged or built for another processor") as caught, open_device(url):
        pass
    assert "noexec" not in one_line(caught.value)
    monkeypatch.delenv(kit.FOLDER)
    script = Transport.script

    def without_rights(self: Transport, text: str, *arguments: str, **more: Any) -> Result:
        return script(self, text.replace("chmod 700", "chmod 600"), *arguments, **more)

    monkeypatch.setattr(Transport, "script", without_rights)
    with pytest.raises(DeviceError, match=r"does not allow programs \(mounted noexec\?\)") as caught, open_device(url):
        pass
    assert "built for another processor" not in one_line(caught.value)
    assert emptied(device_folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """small_disk(megabytes): a folder on a file system of that size."""
    mounted: list[Path] = []

    def mount(megabytes: int) -> Path:
        folder = tmp_path / f"disk{megabytes}"
        folder.mkdir()
        options = f"size={megabytes}m,mode=777"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
        if done.returncode:
            missing("needs the right to mount a file system")
        mounted.append(folder)
        return folder

    if shutil.which("mount") is None or os.geteuid() != 0:
        missing("needs the right to mount a file system")
    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=False)


@pytest.mark.parametrize(("url", "megabytes"), [("ssh", 3), ("ssh", 60), ("adb", 60)], indirect=["url"])
def test_full_disk(
    megabytes: int, url: str, network: bytes, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too small for the programs; large enough for them, but full when a network is to follow."""
    disk = small_disk(megabytes)
    monkeypatch.setenv(workplace.PARENT, str(disk))
    words = rf"No space left on device: needs \d+ MB, \d+ MB free in {disk}.*; choose another with {workplace.PARENT}"
    with pytest.raises(DeviceError, match=words) as caught, open_device(url) as target:
        filler = disk / "filler"
        with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        target.open(network)
    one_line(caught.value)
    assert {path.name for path in disk.iterdir()} <= {"filler"}


def _kill_runner(folder: Path) -> None:
    """With SIGKILL, the process whose program lies in `folder`."""
    for link in Path("/proc").glob("[0-9]*/exe"):
        try:
            program = os.readlink(link)
        except OSError:
            continue
        loaded = (link.parent / "cmdline").read_bytes().split(b"\0") if "ld-linux" in program else []
        if program.startswith(str(folder)) or any(word.startswith(bytes(folder)) for word in loaded):
            os.kill(int(link.parent.name), signal.SIGKILL)
