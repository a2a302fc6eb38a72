"""The curves of a search, and their file for TensorBoard in the run folder: `tensorboard --logdir runs` shows all."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from bnas.profiles import atomic
from bnas.profiles.errors import InputError

from .runs import Run

NAME = "events.out.tfevents.bnas"


def check() -> None:
    """Raises InputError if TensorBoard's package is missing."""
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        raise InputError("--tensorboard needs the package tensorboard; pip install tensorboard") from None


def write(run: Run, search: Mapping[str, Any]) -> None:
    """Every curve of a search.json, by epoch; written anew in one step, so nobody reads half of it.

    Raises InputError if TensorBoard's package is missing.
    """
    check()
    atomic.write_bytes(run.path(NAME), events(series(search)))


def series(search: Mapping[str, Any]) -> dict[str, list[float]]:
    """The mean losses of the weights, and what else was seen in each epoch, by name."""
    return {"loss": search["supernet_losses"], **search.get("curves", {})}


def events(curves: Mapping[str, Sequence[float]]) -> bytes:
    """A TensorBoard event file. Step e is epoch e, from 1; a shorter curve began later."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    file = io.BytesIO()
    writer = RecordWriter(file)
    writer.write(Event(file_version="brain.Event:2").SerializeToString())
    epochs = max(map(len, curves.values()), default=0)
    for name, values in curves.items():
        for epoch, value in enumerate(values, start=epochs - len(values) + 1):
            point = Summary.Value(tag=f"search/{name}", simple_value=value)
            writer.write(Event(step=epoch, summary=Summary(value=[point])).SerializeToString())
    return file.getvalue()
