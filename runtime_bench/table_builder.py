"""Building a latency table: small models of single units in, measured rows out; an interrupted build continues."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from bnas.profiles import atomic
from bnas.profiles.schema import Row
from bnas.profiles.workload import FIXED, Workload

from . import machine
from .engines import onnx_engine, open_engine
from .measure import Measurement, Run, measure, median_deviation, run_interleaved

FLOOR_MS = 1e-4  # the clock resolves no less: a unit that costs no more than the empty graph is still not free
REL_DEV = 0.005  # standard error at which a cost is known well enough, relative to it
FORMAT = 1

Model = bytes | Path
Progress = Callable[[str, int, int], None]  # (stage, done, total)


def build_rows(
    units: Iterable[tuple[Workload, Model]],
    *,
    threads: int = 1,
    seconds_per_row: float = 1.0,
    seed: int = 0,
    progress: Progress | None = None,
    partial_path: Path | None = None,
) -> list[Row]:
    """One measured row per workload, in the order given; `units` must hold the model of FIXED, an empty graph.

    A unit costs t(unit model) - t(empty graph), the two timed in turns so that drift cancels, and at least FLOOR_MS;
    the row of FIXED is the empty graph itself. Units are measured in a shuffled order, so that drift cannot pass for a
    trend over the space. After each row `partial_path` holds all rows so far; a later call on the same machine, engine
    and thread count takes them from there. The caller removes it.
    """
    models = {workload: model for workload, model in units}
    if FIXED not in models:
        raise ValueError("build_rows needs the model of the FIXED workload, which every unit is compared with")
    key = _key(threads)
    done = _read_partial(partial_path, key)
    missing = [workload for workload in models if workload.key not in done]
    left = [missing[i] for i in np.random.default_rng(seed).permutation(len(missing))]
    empty = _call(models[FIXED], threads, seed)
    for number, workload in enumerate(left, start=len(models) - len(left) + 1):
        if workload == FIXED:
            row = _row(workload, measure(empty, max_seconds=seconds_per_row, rel_dev=REL_DEV), offset_ms=0.0)
        else:
            runs = {"empty": empty, "unit": _call(models[workload], threads, seed)}
            times = run_interleaved(runs, max_seconds=seconds_per_row, enough=_cost_is_known)
            row = _row(workload, times["unit"], offset_ms=times["empty"].p50_ms)
        done[workload.key] = row
        if partial_path:
            _write_partial(partial_path, key, done)
        if progress:
            progress("measure", number, len(models))
    return [done[workload.key] for workload in models]


def measure_networks(
    models: Sequence[Model],
    *,
    threads: int = 1,
    seconds: float = 1.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[float]:
    """Median ms of every whole network, in the order given; measured in a shuffled order, at most `seconds` each."""
    medians = [0.0] * len(models)
    for done, index in enumerate(np.random.default_rng(seed).permutation(len(models)), start=1):
        run = _call(models[index], threads, seed)
        medians[index] = measure(run, max_seconds=seconds, rel_dev=REL_DEV).median_ms
        if progress:
            progress("calibrate", done, len(models))
    return medians


def _call(model: Model, threads: int, seed: int) -> Run:
    return open_engine(model, threads).call(np.random.default_rng(seed))


def _cost_is_known(samples: Mapping[str, Sequence[int]]) -> bool:
    """Whether the standard error of the difference of the medians is below REL_DEV of that difference."""
    unit, empty = np.median(samples["unit"]), np.median(samples["empty"])
    error = math.hypot(median_deviation(samples["unit"]) * unit, median_deviation(samples["empty"]) * empty)
    return bool(error < REL_DEV * (unit - empty))


def _row(workload: Workload, taken: Measurement, *, offset_ms: float) -> Row:
    p10, p50, p90 = (max(FLOOR_MS, ms - offset_ms) for ms in (taken.p10_ms, taken.p50_ms, taken.p90_ms))
    return Row(workload=workload.key, p10_ms=p10, p50_ms=p50, p90_ms=p90, count=taken.count)


def _key(threads: int) -> dict[str, Any]:
    """What must be the same for rows of an interrupted build to be worth keeping."""
    return {
        "engine": onnx_engine().model_dump(),
        "threads": threads,
        "fingerprint": machine.fingerprint(),
        "bnas": metadata.version("bnas"),
    }


def _read_partial(path: Path | None, key: dict[str, Any]) -> dict[str, Row]:
    """The rows by workload key; none if the file is absent, unreadable or of another machine, engine or version."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path else {}
        if found.get("format") != FORMAT or found.get("key") != key:
            return {}
        return {row.workload: row for row in map(Row.model_validate, found["rows"])}
    except (OSError, ValueError, AttributeError, LookupError, TypeError):
        return {}


def _write_partial(path: Path, key: dict[str, Any], rows: dict[str, Row]) -> None:
    document = {"format": FORMAT, "key": key, "rows": [row.model_dump() for row in rows.values()]}
    atomic.write_text(path, json.dumps(document))
