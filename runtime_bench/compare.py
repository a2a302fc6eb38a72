"""Several network files against each other on this machine, interleaved, and what may be said about the ratio."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from bnas.profiles.errors import InputError

from . import machine, native_library
from .engines import FUNCTION_FLOAT, Engine, may_claim_speedup, open_engine
from .measure import Measurement, run_interleaved

Progress = Callable[[str, int, int], None]  # (stage, done, total)


def bench_files(
    files: Mapping[str, Path | str],
    threads: Sequence[int] | None = None,
    seconds: float = 5.0,
    progress: Progress | None = None,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Time every file (label -> path) at each thread count (default: one, and all usable cores), `seconds` for each.

    JSON-ready: "environment" (`machine.describe()` before, and under "after" once more), "seconds", "results" (one per
    thread count and file: label, path, bytes, engine, runtime, version, operators, threads, load_ms, first_run_ms,
    p10_ms, p50_ms, p90_ms, count, samples_ns), "speedups" (see `speedups`) and "no_speedup_reason" (None if there are
    any).
    """
    if not files:
        raise InputError("nothing to bench; name at least one .onnx or .tflite file")
    if not seconds > 0:
        raise InputError(f"seconds must be positive, got {seconds}")
    counts = list(dict.fromkeys(threads or (1, machine.usable_cores())))
    environment = machine.describe()
    results: list[dict[str, Any]] = []
    gains: list[dict[str, Any]] = []
    for count in counts:
        engines = {label: open_engine(path, count) for label, path in files.items()}
        runs = {label: engine.call(np.random.default_rng(seed)) for label, engine in engines.items()}
        first_run_ms = {label: _first_run_ms(run, files[label]) for label, run in runs.items()}
        times = run_interleaved(
            runs,
            max_seconds=seconds,
            engines={label: engine.name for label, engine in engines.items()},
            threads=count,
            on_round=partial(_report, progress, count, seconds),
        )
        _report(progress, count, seconds, seconds)
        for label, path in files.items():
            record = {"label": label, **_file(Path(path), engines[label]), "first_run_ms": first_run_ms[label]}
            results.append(record | times[label].to_dict())
        gains += speedups(times)
    return {
        "environment": {**environment, "after": machine.describe()},
        "seconds": seconds,
        "results": results,
        "speedups": gains,
        "no_speedup_reason": None if gains else _reason([result["engine"] for result in results[: len(files)]]),
    }


def speedups(times: Mapping[str, Measurement]) -> list[dict[str, Any]]:
    """[{"label", "against", "threads", "ratio" of medians}]: each label entitled to it against its fastest rival."""
    entitled = [label for label, taken in times.items() if may_claim_speedup(taken.engine)]
    rivals = [label for label in times if label not in entitled]
    if not rivals:
        return []
    fastest = min(rivals, key=lambda label: times[label].p50_ms)
    return [
        {
            "label": label,
            "against": fastest,
            "threads": times[label].threads,
            "ratio": times[fastest].p50_ms / times[label].p50_ms,
        }
        for label in entitled
    ]


def _reason(engines: Sequence[str]) -> str:
    not_built = FUNCTION_FLOAT in engines and native_library.operator_library() is None
    if all(map(may_claim_speedup, engines)) or (len(engines) == 1 and not not_built):
        return "nothing to compare with"
    names = ", ".join(sorted(set(engines)))
    reason = f"a speed-up needs native kernels or Larq Compute Engine on 64-bit ARM; here ran: {names}"
    if not_built:
        reason += f", because {native_library.NOT_BUILT}"
    return reason


def _report(progress: Progress | None, threads: int, seconds: float, passed: float) -> None:
    """Progress in tenths of a second."""
    if progress:
        stage = f"bench, {threads} thread{'s' if threads > 1 else ''}"
        progress(stage, min(round(10 * passed), round(10 * seconds)), round(10 * seconds))


def _file(path: Path, engine: Engine) -> dict[str, Any]:
    return {
        "path": str(path),
        "bytes": path.stat().st_size,
        "runtime": engine.runtime,
        "version": engine.version,
        "operators": engine.operators,
        "load_ms": engine.load_ms,
    }


def _first_run_ms(run: Callable[[], object], path: Path | str) -> float:
    started = perf_counter()
    try:
        run()
    except Exception as error:  # a runtime's own error, of whatever class: the file does not take random inputs
        raise InputError(f"{path} does not run on random inputs: {' '.join(str(error).split())[:150]}") from None
    return 1e3 * (perf_counter() - started)
