"""What a person or a script sees: progress on stderr, one result on stdout, as tables or as one JSON document."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

errors = Console(stderr=True, highlight=False, soft_wrap=True)
output = Console(highlight=False)

Progress = Callable[[str, int, int], None]  # (stage, done, total)


@contextmanager
def result(as_json: bool) -> Iterator[Callable[[dict, Callable[[], None]], None]]:
    """Yields emit(document, render): prints the document as JSON, or calls render for people.

    With JSON, whatever libraries print on stdout in the meantime goes to stderr, so stdout holds one document only.
    """

    def emit(document: dict, render: Callable[[], None]) -> None:
        if not as_json:
            render()
            return
        text = json.dumps(document, indent=2, default=_plain) + "\n"
        if real is None:
            sys.stdout.write(text)
        else:
            os.write(real, text.encode())

    real = None
    if as_json:
        sys.stdout.flush()
        real = os.dup(1)
        os.dup2(2, 1)
    try:
        yield emit
    finally:
        if real is not None:
            sys.stdout.flush()
            os.dup2(real, 1)
            os.close(real)


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()
    return str(value)


@contextmanager
def progress() -> Iterator[Progress]:
    """Yields a callback (stage, done, total): a bar with time left per stage, or lines where stderr is no terminal."""
    if not errors.is_terminal:
        yield _lines()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Bars(*columns, console=errors) as bars:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield report


def _lines(every_s: float = 10.0) -> Progress:
    started: dict[str, float] = {}
    printed: dict[str, float] = {}
    finished: set[str] = set()

    def report(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        start = started.setdefault(stage, now)
        if stage in finished or (done < total and now - printed.setdefault(stage, now) < every_s):
            return
        printed[stage] = now
        if done >= total:
            finished.add(stage)
        left = (now - start) / max(done, 1) * (total - done)
        ending = f"{now - start:.1f} s" if done >= total else f"{left:.0f} s left"
        errors.print(f"{stage}: {done}/{total}, {ending}", markup=False)

    return report


def say(text: str) -> None:
    """One line for the person who waits; never part of the result."""
    errors.print(text, markup=False)
