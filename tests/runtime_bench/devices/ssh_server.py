"""A real OpenSSH server on loopback, with host and user keys of its own; nothing of the user's is read or changed."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from bnas.runtime_bench.devices.ssh import CONFIG

SERVER = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
PidFile none
SetEnv HOME={folder}/home
"""
CLIENT = """
Host board
  HostName 127.0.0.1
  Port {port}
  IdentityFile {folder}/user
  IdentitiesOnly yes
  UserKnownHostsFile {known}
  GlobalKnownHostsFile /dev/null
"""


def find() -> str | None:
    return shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class SshServer:
    """`config(known)`: the file for BNAS_SSH_CONFIG in which it is called `board`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("host", "user", "other"):
            self._keygen(name)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (folder / "home").mkdir()  # so that no start-up file of the user's is read
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where the server gives up its rights; Debian's service makes it
        (folder / "sshd_config").write_text(SERVER.format(port=self.port, folder=folder))
        program = find()
        assert program
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            [program, "-D", "-e", "-f", str(folder / "sshd_config")], stdin=subprocess.DEVNULL, stderr=self._log
        )
        self._await()

    def config(self, known: str = "host") -> Path:
        """known: whose key stands in known_hosts for this server: host, other, or nobody."""
        keys = {name: (self.folder / f"{name}.pub").read_text() for name in ("host", "other")}
        hosts = self.folder / f"known_{known}"
        hosts.write_text(f"[127.0.0.1]:{self.port} {keys[known]}" if known in keys else "")
        path = self.folder / f"config_{known}"
        path.write_text(CLIENT.format(port=self.port, folder=self.folder, known=hosts))
        return path

    def cut(self) -> int:
        """Kills the server's side of all connections, but nothing that runs in them; how many there were."""
        sessions = _children(self._process.pid)
        for pid in sessions:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(sessions)

    def stop(self) -> None:
        self.cut()
        self._process.terminate()
        self._process.wait(10)
        self._log.close()

    def _keygen(self, name: str) -> None:
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(self.folder / name)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)

    def _await(self) -> None:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError(f"sshd does not start: {(self.folder / 'log').read_text()}")


def _children(pid: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(folder.name))
    return found


__all__ = ["CONFIG", "SshServer", "find"]
