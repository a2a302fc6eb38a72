"""Runs a command line again and again, each time killing it by SIGKILL at another call: `killer.py POINTS COMMAND...`.

POINTS is a JSON list of [FUNCTION, TEXT, COUNT, SETTING...]. FUNCTION is the dotted name by which the product calls it.
Only calls whose arguments, as text, hold TEXT are counted (a file number stands for the name of its file); the process
dies at the COUNT-th. SETTING is NAME=VALUE and sets a number in a module first. Exits with 1 if a point is not reached.
"""

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any


def holder(name: str) -> tuple[Any, str]:
    """The object that holds the last part of the dotted `name`, and that part."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:-1]:
            owner = getattr(owner, part)
        return owner, parts[-1]
    raise ModuleNotFoundError(name)


def text_of(argument: object) -> str:
    if type(argument) is int and argument > 2 and os.path.islink(f"/proc/self/fd/{argument}"):
        return os.readlink(f"/proc/self/fd/{argument}")
    return str(argument) if isinstance(argument, (str, int, float, os.PathLike)) else ""


def kill_at(name: str, text: str, count: int) -> None:
    """Replace the function by one that does not survive its `count`-th matching call."""
    owner, attribute = holder(name)
    real: Callable = getattr(owner, attribute)
    left = count

    def deadly(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        if text in " ".join(map(text_of, arguments)):
            left -= 1
            if left == 0:
                if name == "os.fsync":  # the kill comes while the file is being written
                    os.ftruncate(arguments[0], os.fstat(arguments[0]).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **named)

    setattr(owner, attribute, deadly)


def run_and_die(point: Sequence[Any], command: Sequence[str]) -> int:
    name, text, count, *settings = point
    for setting in settings:
        target, _, value = setting.partition("=")
        owner, attribute = holder(target)
        setattr(owner, attribute, float(value))
    kill_at(name, text, count)
    from bnas.cli import run

    return run(command)


def main(points: str, *command: str) -> int:
    for module in ("bnas.search.strategies", "optuna", "sklearn.datasets", "torch._dynamo"):  # once, not in every child
        importlib.import_module(module)
    for point in json.loads(points):
        child = os.fork()
        if not child:
            os._exit(run_and_die(point, command))
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            print(f"{point} was not reached, status {status}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
