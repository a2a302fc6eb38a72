"""The client of `bnas-runner --serve`: one line of fields there, one line of JSON back. See docs/kernels.md."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Sequence
from typing import Any

from bnas.profiles.errors import InputError

from .errors import ConnectionLost, DeviceError
from .transport import PATIENCE, Result, Transport

WORK_S = 3600.0  # for a command that computes: a dead network is noticed sooner, by the transport
MISTAKE = 2  # the runner's exit code for bad options
# A shell waits for the runner, so that the exit code tells which signal ended it, whatever lies in between; it says in
# English why it could not start it.
_WAITING = 'LC_ALL=C; export LC_ALL; "$@"; exit $?'
# (exit code of a shell or the loader, what they say) -> what that means of a program that cannot be started.
_NO_START = {
    (126, "Exec format error"): "the runner is damaged or built for another processor; build it again",
    (126, ""): "the folder it lies in does not allow programs (mounted noexec?); choose another with "
    "BNAS_DEVICE_FOLDER",
    (127, ""): "its loader or a library is missing",
}


class Runner:
    """A server on the device, for as long as this object is open."""

    def __init__(self, transport: Transport, argv: Sequence[str]) -> None:
        self._transport = transport
        self._started = transport.start(["sh", "-c", _WAITING, "sh", *argv])
        self._lost: ConnectionLost | None = None
        self._code = 0
        try:
            self.hello = self.ask("hello", timeout=PATIENCE)
        except ConnectionLost as error:
            if self._code == MISTAKE:
                raise InputError(str(error)) from None
            raise DeviceError(f"the runner does not start: {error}") from None
        except BaseException:
            self.close()
            raise

    def ask(self, *fields: str | float, timeout: float = WORK_S) -> dict[str, Any]:
        """The answer to a command. Raises InputError for what the runner calls a mistake, DeviceError for what failed
        there, ConnectionLost if it does not answer any more."""
        if self._lost:
            raise self._lost
        try:
            self._started.write("\t".join(map(str, fields)))
            line = self._started.line(timeout)
            while line is not None and not line.startswith("{"):  # a greeting of the shell
                line = self._started.line(timeout)
        except TimeoutError:
            self.close()
            self._lost = ConnectionLost(f"{self._transport.name} did not answer within {timeout:.0f} s")
            raise self._lost from None
        except OSError:
            line = None
        if line is None:
            raise self._ended()
        answer = json.loads(line)
        if "error" in answer:
            kind = InputError if answer.get("kind") == "mistake" else DeviceError
            raise kind(answer["error"])
        return dict(answer)

    def close(self) -> None:
        """Ends the server and waits for it."""
        if self._lost is None:
            self._lost = ConnectionLost("the runner is closed")
            self._started.hang_up()
            self._started.ended()

    def _ended(self) -> ConnectionLost:
        """Why the server does not answer any more, told by how it ended."""
        self._started.hang_up()
        result = self._started.ended()
        self._code = result.code
        self._lost = ConnectionLost(self._reason(result))
        return self._lost

    def _reason(self, result: Result) -> str:
        name = self._transport.name
        if self._transport.lost(result):
            return str(self._transport.loss(result))
        for (code, words), reason in _NO_START.items():
            if result.code == code and words in result.err:
                return f"on {name}, {reason} ({result.reason})"
        number = result.code - 128 if result.code > 128 else -result.code
        if number > 0:
            return f"on {name}, the runner was ended by {_signal(number)}"
        return f"on {name}, the runner ended: {re.sub(r'^.*bnas-runner: ', '', result.reason)}"


def _signal(number: int) -> str:
    hints = {
        signal.SIGILL: ": an instruction that this processor does not have; force another path with BNAS_ISA",
        signal.SIGKILL: ", perhaps for lack of memory",
    }
    try:
        which = signal.Signals(number)
    except ValueError:
        return f"signal {number}"
    text = signal.strsignal(number) or which.name
    return f"signal {number} ({text}){hints.get(which, '')}"
