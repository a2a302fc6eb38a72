"""Several network files against each other on this machine, interleaved, and what may be said about the ratio."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from bnas.profiles.errors import InputError

from . import machine
from .engines import Engine, may_claim_speedup, open_engine
from .measure import Measurement, run_interleaved

Progress = Callable[[str, int, int], None]  # (stage, done, total)


def bench_files(
    files: Mapping[str, Path | str],
    *,
    threads: Sequence[int] | None = None,
    seconds: float = 5.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time every file (label -> path) at each thread count (default: one, and all usable cores), `seconds` for each.

    JSON-ready: {"environment": {"before", "after"}, "seconds", "results": [per thread count: {"threads",
    "files": {label: engine, runtime, version, p10/p50/p90_ms, count, samples_ns, first_run_ms, load_ms, bytes, ...},
    "speedups": {label: {rival: ratio of medians}}, "no_speedup_reason": text or None}]}.
    """
    if not files:
        raise InputError("nothing to bench; name at least one .onnx or .tflite file")
    if not seconds > 0:
        raise InputError(f"seconds must be positive, got {seconds}")
    counts = list(dict.fromkeys(threads or (1, machine.usable_cores())))
    before = machine.describe()
    results = [_bench(files, count, seconds, seed, progress) for count in counts]
    return {
        "environment": {"before": before, "after": machine.describe()},
        "seconds": seconds,
        "results": results,
    }


def _bench(
    files: Mapping[str, Path | str], threads: int, seconds: float, seed: int, progress: Progress | None
) -> dict[str, Any]:
    stage = f"bench, {threads} thread{'s' if threads > 1 else ''}"
    engines = {label: open_engine(path, threads) for label, path in files.items()}
    runs = {label: engine.call(np.random.default_rng(seed)) for label, engine in engines.items()}
    first_ms = {label: _once_ms(run) for label, run in runs.items()}

    def report(passed: float) -> None:
        if progress:
            progress(stage, min(round(10 * passed), round(10 * seconds)), round(10 * seconds))

    names = {label: engine.name for label, engine in engines.items()}
    times = run_interleaved(runs, max_seconds=seconds, engines=names, threads=threads, on_round=report)
    report(seconds)
    return {
        "threads": threads,
        "files": {
            label: {
                **_file(Path(path), engines[label]),
                "first_run_ms": first_ms[label],
                **times[label].to_dict(),
            }
            for label, path in files.items()
        },
        **speedups(times),
    }


def speedups(times: Mapping[str, Measurement]) -> dict[str, Any]:
    """{"speedups": {label: {rival: ratio of medians}}, "no_speedup_reason"}, for the labels entitled to one."""
    entitled = [label for label, taken in times.items() if may_claim_speedup(taken.engine)]
    ratios = {
        label: {rival: times[rival].p50_ms / times[label].p50_ms for rival in times if rival not in entitled}
        for label in entitled
    }
    ratios = {label: rivals for label, rivals in ratios.items() if rivals}
    return {"speedups": ratios, "no_speedup_reason": None if ratios else _reason(times, entitled)}


def _reason(times: Mapping[str, Measurement], entitled: Sequence[str]) -> str:
    if len(times) == 1 or len(entitled) == len(times):
        return "nothing to compare with"
    engines = ", ".join(sorted({taken.engine for taken in times.values()}))
    return f"a speed-up needs native kernels or Larq Compute Engine on 64-bit ARM; here ran: {engines}"


def _file(path: Path, engine: Engine) -> dict[str, Any]:
    return {
        "path": str(path),
        "bytes": path.stat().st_size,
        "runtime": engine.runtime,
        "version": engine.version,
        "load_ms": engine.load_ms,
    }


def _once_ms(run: Callable[[], object]) -> float:
    started = perf_counter()
    run()
    return 1e3 * (perf_counter() - started)
