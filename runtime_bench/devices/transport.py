"""Running programs and moving files, here or elsewhere: one small interface, of which `command` is nearly all."""

from __future__ import annotations

import contextlib
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO

from .errors import ConnectionLost, DeviceError

Source = bytes | Path
# Makes the folder of file $1, and the file from what comes in, which has to be $2 bytes; whole or not at all.
SHELL_PUSH = """
umask 077
mkdir -p "${1%/*}" && cat > "$1.$$" && [ "$(wc -c < "$1.$$")" -eq "$2" ] && chmod 700 "$1.$$" && mv "$1.$$" "$1" && exit
rm -f "$1.$$"
exit 1
"""
# Shells that are logged in to may greet before they run what they are given; nothing before BEGIN is an answer.
BEGIN = b"\tbnas begins\n"
SHELL_BEGIN = r"printf '\tbnas begins\n'" + "\n"
PATIENCE = 60.0  # seconds for a command that has next to nothing to do
SLOWEST_LINE = 50_000  # bytes a second below which a file transfer counts as stuck


@dataclass(frozen=True)
class Result:
    """What a command that ended left: its exit code, stdout, and stderr as text."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode(errors="replace")

    @property
    def reason(self) -> str:
        """Its last words, for a message."""
        return self.last_words or f"exit code {self.code}"

    @property
    def last_words(self) -> str:
        """The last line of stderr, empty if there is none."""
        lines = [line.strip() for line in self.err.splitlines() if line.strip()]
        return lines[-1][:300] if lines else ""


def size_of(source: Source) -> int:
    return len(source) if isinstance(source, bytes) else source.stat().st_size


class Started:
    """A running command with its pipes; stderr goes to a file, because nobody would read a pipe in time."""

    def __init__(self, command: Sequence[str]) -> None:
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115, closed when the process has ended
        self._pending = b""
        # A session of its own, so that Ctrl-C reaches this process alone, which then ends things in order.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            bufsize=0,
            start_new_session=True,
        )

    def write(self, text: str) -> None:
        """A line to its standard input. Raises OSError if it does not read any more."""
        assert self.process.stdin
        self.process.stdin.write(text.encode() + b"\n")

    def line(self, timeout: float) -> str | None:
        """The next line of its output; None if it ended before one. Raises TimeoutError."""
        assert self.process.stdout
        deadline = time.monotonic() + timeout
        while b"\n" not in self._pending:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            some = self.process.stdout.read(1 << 16)
            if not some:
                return None
            self._pending += some
        text, _, self._pending = self._pending.partition(b"\n")
        return text.decode(errors="replace")

    def hang_up(self) -> None:
        """Closes its standard input; our programs end then."""
        assert self.process.stdin
        with contextlib.suppress(OSError):  # what was still to be flushed has no reader
            self.process.stdin.close()

    def ended(self, timeout: float = 15.0) -> Result:
        """Waits for the end; what does not end is killed. To be called once."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.hang_up()
        assert self.process.stdout
        self.process.stdout.close()
        with self._stderr as file:
            file.seek(0)
            return Result(code, b"", file.read().decode(errors="replace"))


class Transport:
    """This machine. Others override `command`; scripts and their arguments are all that is ever passed to a shell."""

    def __init__(self, name: str = "this machine") -> None:
        self.name = name

    def __enter__(self) -> Transport:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command here that runs `argv` there."""
        return list(argv)

    def lost(self, result: Result) -> bool:
        """Whether a command ended as it did because the connection is gone."""
        return False

    def loss(self, result: Result) -> ConnectionLost:
        """What to raise if it is."""
        return ConnectionLost(f"the connection to {self.name} is lost: {result.last_words or 'the connection closed'}")

    def run(self, argv: Sequence[str], stdin: Source = b"", timeout: float = PATIENCE) -> Result:
        """Run `argv` to its end. Raises ConnectionLost if it does not answer in `timeout` seconds or cannot."""
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as err:
            if isinstance(stdin, bytes):
                given.write(stdin)
            else:
                with stdin.open("rb") as file:
                    shutil.copyfileobj(file, given)
            given.seek(0)
            process = subprocess.Popen(
                self.command(argv), stdin=given, stdout=subprocess.PIPE, stderr=err, start_new_session=True
            )
            try:
                out, _ = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                raise ConnectionLost(f"{self.name} did not answer within {timeout:.0f} s") from None
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
            err.seek(0)
            result = Result(process.returncode, out, err.read().decode(errors="replace"))
        if self.lost(result):
            raise self.loss(result)
        return result

    def script(self, text: str, *arguments: str, stdin: Source = b"", timeout: float = PATIENCE) -> Result:
        """Run a shell script of ours; what varies comes as its arguments."""
        result = self.run(["sh", "-c", SHELL_BEGIN + text, "sh", *arguments], stdin, timeout)
        return replace(result, out=result.out.partition(BEGIN)[2])

    def start(self, argv: Sequence[str]) -> Started:
        """Start `argv`, to be talked to through pipes."""
        return Started(self.command(argv))

    def push(self, source: Source, target: str) -> None:
        """Write a file there, and the folder it lies in. Raises DeviceError with the system's words if it cannot."""
        size = size_of(source)
        result = self.script(SHELL_PUSH, target, str(size), stdin=source, timeout=PATIENCE + size / SLOWEST_LINE)
        if result.code:
            raise DeviceError(f"cannot write to {self.name}: {result.reason}")

    def pull(self, source: str) -> bytes:
        """The content of a file there. Raises DeviceError if it cannot be read."""
        result = self.script('cat "$1"', source, timeout=600)
        if result.code:
            raise DeviceError(f"cannot read from {self.name}: {result.reason}")
        return result.out
