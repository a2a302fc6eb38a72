"""Android's debug bridge, by the `adb` program."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bnas.profiles.errors import InputError

from .address import Address
from .errors import DeviceError
from .transport import PATIENCE, SLOWEST_LINE, Result, Source, Transport, size_of

_OWN_WORDS = re.compile(r"^(adb|error): ", re.MULTILINE)  # how adb begins what it says itself
PART = ".part"
_ARRIVED = '[ "$(wc -c < "$1")" -eq "$3" ] && chmod 700 "$1" && mv "$1" "$2"'
_STATES = {
    "unauthorized": "has not allowed debugging from this computer yet; look at its screen",
    "offline": "is offline; unplug it and plug it in again",
}


class Adb(Transport):
    """`adb -s SERIAL`. Raises InputError if the device is not there."""

    def __init__(self, address: Address) -> None:
        program = _program()
        if program is None:
            raise InputError(f"{address.url} needs adb (Debian: apt install adb)")
        found = devices()
        serial = address.serial
        if not serial:
            if len(found) != 1:
                which = ", ".join(f"adb:{name}" for name in found) or "none; connect one and allow USB debugging"
                raise InputError(f"{address.url} means the only device, but there are {len(found)}: {which}")
            serial = next(iter(found))
        super().__init__(f"adb:{serial}")
        state = found.get(serial)
        if state is None:
            raise InputError(f"{self.name} is not connected; adb sees: {', '.join(found) or 'no device'}")
        if state != "device":
            raise InputError(f"{self.name} {_STATES.get(state, f'is in state {state!r}; wait, or restart it')}")
        self._client = [program, "-s", serial]

    def command(self, argv: Sequence[str]) -> list[str]:
        return [*self._client, "shell", shlex.join(argv)]  # adb joins words with spaces, as ssh does

    def lost(self, result: Result) -> bool:
        return result.code != 0 and bool(_OWN_WORDS.search(result.err))

    def push(self, source: Source, target: str) -> None:
        made = self.run(["mkdir", "-p", "-m", "700", target.rpartition("/")[0]])
        if made.code:
            raise DeviceError(f"cannot write to {self.name}: {made.reason}")
        with tempfile.TemporaryDirectory(prefix="bnas-") as folder:
            file = Path(folder, "file")  # under a name of ours: the user's never stands in a command
            if isinstance(source, bytes):
                file.write_bytes(source)
            else:
                shutil.copyfile(source, file)
            self._move("push", str(file), target + PART, file.stat().st_size)
            result = self.script(_ARRIVED, target + PART, target, str(size_of(source)))
            if result.code:
                raise DeviceError(f"cannot write to {self.name}: {result.reason}")

    def pull(self, source: str) -> bytes:
        with tempfile.TemporaryDirectory(prefix="bnas-") as folder:
            file = Path(folder, "file")
            self._move("pull", source, str(file), 0)
            return file.read_bytes()

    def _move(self, verb: str, source: str, target: str, size: int) -> None:
        try:
            done = subprocess.run(
                [*self._client, verb, source, target],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=max(600, PATIENCE + size / SLOWEST_LINE),
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise DeviceError(f"{self.name}: adb {verb} hangs") from None
        if done.returncode:
            raise DeviceError(f"{self.name}: {Result(done.returncode, b'', done.stderr or done.stdout).reason}")


def devices() -> dict[str, str]:
    """Serial number -> state of every device that adb sees; none without adb."""
    program = _program()
    if program is None:
        return {}
    done = subprocess.run(
        [program, "devices"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False
    )
    rows = (line.split("\t") for line in done.stdout.splitlines() if "\t" in line)
    return {row[0].strip(): row[1].strip() for row in rows}


def _program() -> str | None:
    return shutil.which("adb")
