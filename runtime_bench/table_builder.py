"""Building a latency table: small models of single units in, measured rows out; an interrupted build continues."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from bnas.profiles import atomic
from bnas.profiles.schema import Row
from bnas.profiles.workload import FIXED, Workload

from .devices.target import Format, Target
from .measure import Measurement, Timer, measure, median_deviation, run_interleaved

FLOOR_MS = 1e-4  # the clock resolves no less: a unit that costs no more than the empty graph is still not free
REL_DEV = 0.005  # standard error at which a cost is known well enough, relative to it
PASSES = 3  # everything is measured three times, seconds to minutes apart, and the middle result is kept
FORMAT = 2

Model = bytes | Path
Progress = Callable[[str, int, int], None]  # (stage, done, total)


def build_rows(
    target: Target,
    units: Iterable[tuple[Workload, Model]],
    *,
    format: Format = "onnx",
    threads: int = 1,
    seconds_per_row: float = 1.0,
    seed: int = 0,
    progress: Progress | None = None,
    partial_path: Path | None = None,
) -> list[Row]:
    """One row per workload, measured on `target`, in the order given; `units` must hold the model of FIXED, an empty
    graph. All models are of one `format`, which names the engine.

    A unit costs t(unit model) - t(empty graph), the two timed in turns so that drift cancels, and at least FLOOR_MS;
    the row of FIXED is the empty graph itself. All units are measured in PASSES rounds, each in another shuffled order,
    and of a unit's rows the one with the middle cost is kept: a burst of other work on the machine spoils one round,
    and drift cannot pass for a trend over the space. Each row rests on at least 30 samples. After each measurement
    `partial_path` holds all so far; a later call on the same machine, engine and thread count takes them from there.
    The caller removes it.
    """
    models = {workload: model for workload, model in units}
    if FIXED not in models:
        raise ValueError("build_rows needs the model of the FIXED workload, which every unit is compared with")
    key = _key(target, format, threads)
    done = _read_partial(partial_path, key)
    seconds = seconds_per_row / PASSES
    for number, (turn, workload) in enumerate(_turns(list(models), seed), start=1):
        taken = done.setdefault(workload.key, [])
        if len(taken) <= turn:
            with (
                closing(target.open(models[workload], threads)) as unit,
                closing(target.open(models[FIXED], threads)) as empty,
            ):
                taken.append(_measured_row(workload, unit.timed, empty.timed, seconds))
            if partial_path:
                _write_partial(partial_path, key, done)
        if progress:
            progress("measure", number, PASSES * len(models))
    return [_middle(done[workload.key]) for workload in models]


def measure_networks(
    target: Target,
    models: Sequence[Model],
    *,
    threads: int = 1,
    seconds: float = 1.0,
    progress: Progress | None = None,
) -> list[float]:
    """Median ms of every whole network on `target`, in the order given, on average `seconds` each.

    They are timed in turns, as files are when they are compared (`compare.bench_files`): a network alone would keep the
    caches warm for itself and come out some percent faster than it will be measured later.
    """
    limit = seconds * len(models)

    def report(passed: float) -> None:
        if progress:
            progress("calibrate", min(round(10 * passed), round(10 * limit)), round(10 * limit))

    with ExitStack() as opened:
        sessions = [opened.enter_context(closing(target.open(model, threads))) for model in models]
        timers = {str(index): session.timed for index, session in enumerate(sessions)}
        times = run_interleaved(timers, max_seconds=limit, min_rounds=6, on_round=report)
    report(limit)
    return [times[name].median_ms for name in timers]


def _turns(items: Sequence[Workload], seed: int) -> Iterator[tuple[int, Workload]]:
    """Every item once in each of PASSES rounds, as (round, item); each round in a shuffled order of its own."""
    rng = np.random.default_rng(seed)
    for turn in range(PASSES):
        for index in rng.permutation(len(items)):
            yield turn, items[index]


def _measured_row(workload: Workload, unit: Timer, empty: Timer, seconds: float) -> Row:
    if workload == FIXED:
        return _row(workload, measure(empty, min_samples=10, max_seconds=seconds, rel_dev=REL_DEV), offset_ms=0.0)
    times = run_interleaved({"empty": empty, "unit": unit}, max_seconds=seconds, min_rounds=2, enough=_cost_is_known)
    return _row(workload, times["unit"], offset_ms=times["empty"].p50_ms)


def _middle(rows: list[Row]) -> Row:
    """The row with the middle cost, credited with the samples of all."""
    middle = sorted(rows, key=lambda row: row.p50_ms)[len(rows) // 2]
    return middle.model_copy(update={"count": sum(row.count for row in rows)})


def _cost_is_known(samples: Mapping[str, Sequence[int]]) -> bool:
    """Whether the standard error of the difference of the medians is below REL_DEV of that difference."""
    unit, empty = np.median(samples["unit"]), np.median(samples["empty"])
    error = math.hypot(median_deviation(samples["unit"]) * unit, median_deviation(samples["empty"]) * empty)
    return bool(error < REL_DEV * (unit - empty))


def _row(workload: Workload, taken: Measurement, *, offset_ms: float) -> Row:
    p10, p50, p90 = (max(FLOOR_MS, ms - offset_ms) for ms in (taken.p10_ms, taken.p50_ms, taken.p90_ms))
    return Row(workload=workload.key, p10_ms=p10, p50_ms=p50, p90_ms=p90, count=taken.count)


def _key(target: Target, format: Format, threads: int) -> dict[str, Any]:
    """What must be the same for rows of an interrupted build to be worth keeping."""
    return {
        "engine": target.engine(format).model_dump(),
        "threads": threads,
        "device": [target.url, target.fingerprint(), target.describe().get("cpus")],
        "bnas": metadata.version("bnas"),
    }


def _read_partial(path: Path | None, key: dict[str, Any]) -> dict[str, list[Row]]:
    """The rows so far by workload key; none if the file is absent, unreadable or of another machine or version."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path else {}
        if found.get("format") != FORMAT or found.get("key") != key:
            return {}
        done: dict[str, list[Row]] = {}
        for row in map(Row.model_validate, found["rows"]):
            done.setdefault(row.workload, []).append(row)
        return done
    except (OSError, ValueError, AttributeError, LookupError, TypeError):
        return {}


def _write_partial(path: Path, key: dict[str, Any], rows: dict[str, list[Row]]) -> None:
    document = {"format": FORMAT, "key": key, "rows": [row.model_dump() for taken in rows.values() for row in taken]}
    atomic.write_text(path, json.dumps(document))
