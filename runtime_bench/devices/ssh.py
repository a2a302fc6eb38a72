"""The system's OpenSSH client: its keys, configuration, jump hosts and host key checks, over one connection."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bnas.profiles.errors import InputError

from .address import Address
from .errors import ConnectionLost
from .transport import Result, Started, Transport

CONFIG = "BNAS_SSH_CONFIG"  # an ssh_config(5) file to use in place of the user's and the system's
SSH_PORT = 22
CONNECT_S = 10
ALIVE_S, ALIVE_COUNT = 5, 3  # a dead network is noticed after 15 s
PERSIST_S = 60  # how long the connection waits when this process was killed
_GUARD = 'cat > /dev/null; rm -rf "$1"'  # removes a folder when nobody holds its standard input any more
FAILED = 255  # the client's own exit code; our scripts never end with it


class Ssh(Transport):
    """One master connection, which all commands share. Raises InputError if it cannot be made: the user can mend it."""

    def __init__(self, address: Address) -> None:
        super().__init__(address.url.removeprefix("emulator+"))
        client = shutil.which("ssh")
        if client is None:
            raise InputError(f"{address.url} needs the OpenSSH client (Debian: apt install openssh-client)")
        self._address, self._host = address, address.host
        # Short, because the path of a socket may have some 100 bytes; readable by nobody else.
        self._folder = Path(tempfile.mkdtemp(prefix="bnas-", dir="/tmp" if os.path.isdir("/tmp") else None))
        # What Ctrl-C and exceptions leave to `close`, and a kill leaves to nobody else.
        self._guard = Started(["sh", "-c", _GUARD, "sh", str(self._folder)])
        self._client = [client, "-T", "-o", f"ControlPath={self._folder}/m"]
        if config := os.environ.get(CONFIG):
            self._client += ["-F", str(Path(config).absolute())]
        if address.user:
            self._client += ["-l", address.user]
        if address.port:
            self._client += ["-p", str(address.port)]
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        options = ["ControlMaster=yes", f"ControlPersist={PERSIST_S}", f"ConnectTimeout={CONNECT_S}"]
        options += ["RemoteCommand=none", "ClearAllForwardings=yes"]  # what a login there is otherwise used for
        options += [f"ServerAliveInterval={ALIVE_S}", f"ServerAliveCountMax={ALIVE_COUNT}"]
        if not sys.stdin.isatty():
            options.append("BatchMode=yes")
        command = [*self._client, *_given(options), "--", self._host, "true"]
        # In the foreground, where it may ask for a password; once it has what it needs it leaves our process group.
        # Its stderr is a file: a pipe would stay open as long as the connection.
        with tempfile.TemporaryFile() as err:
            code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err).returncode
            err.seek(0)
            result = Result(code, b"", err.read().decode(errors="replace"))
        if result.code:
            raise InputError(f"cannot connect to {self.name}: {refusal(self._address, result)}")

    def command(self, argv: Sequence[str]) -> list[str]:
        # One string, because ssh would join the words with spaces for the shell over there. Without the master no new
        # connection is made: ProxyCommand=false fails at once.
        options = ["ControlMaster=no", "BatchMode=yes", "ProxyCommand=false", "RemoteCommand=none"]
        return [*self._client, *_given(options), "--", self._host, shlex.join(argv)]

    def lost(self, result: Result) -> bool:
        return result.code == FAILED

    def loss(self, result: Result) -> ConnectionLost:
        # "Connection closed by UNKNOWN port 65535" is about ProxyCommand=false, not about the device.
        return super().loss(replace(result, err="") if "UNKNOWN port" in result.err else result)

    def close(self) -> None:
        if (self._folder / "m").exists():
            command = [*self._client, "-O", "exit", "--", self._host]
            subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=15, check=False, start_new_session=True
            )
        self._guard.hang_up()
        self._guard.ended()


def _given(options: Sequence[str]) -> list[str]:
    return [part for option in options for part in ("-o", option)]


# What the client says -> what that means, and what to do.
_REFUSALS = {
    "IDENTIFICATION HAS CHANGED": "its host key is not the one in known_hosts: the device was set up anew, or another "
    "one answers in its place; if you know why, do: ssh-keygen -R {known}, then log in once with: ssh {login}",
    "Host key verification failed": "its host key is not known here; log in once with: ssh {login}, and compare the "
    "fingerprint it shows",
    "Permission denied": "it refuses the login; set up a key with: ssh-copy-id {login}",
    "Could not resolve hostname": "there is no such host; check the name, or add it to ~/.ssh/config",
    "Connection refused": "nothing listens there; check the port, and that the device runs an ssh server",
    "timed out": f"no answer within {CONNECT_S} s; check that it is on, and in this network",
    "No route to host": "it cannot be reached; check that it is on, and in this network",
}


def refusal(address: Address, result: Result) -> str:
    """Why the client could not log in, and what to do; its own last words if those are not among the usual ones."""
    user, port = (f"{address.user}@" if address.user else ""), address.port or SSH_PORT
    login, known = f"{user}{address.host}", address.host
    if port != SSH_PORT:
        login, known = f"-p {port} {login}", f"'[{address.host}]:{port}'"
    for words, meaning in _REFUSALS.items():
        if words in result.err:
            return meaning.format(login=login, known=known)
    return result.reason
