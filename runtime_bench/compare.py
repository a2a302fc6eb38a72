"""Several network files against each other on a device, interleaved in blocks, and what may be said about them."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bnas.profiles import atomic
from bnas.profiles.errors import InputError

from . import intervals, native_library
from .devices.target import Session, Target
from .engines import FALLBACKS, FUNCTION_FLOAT, may_claim_speedup
from .health import throttling
from .intervals import Interval
from .measure import TIMED, UNTIMED, Measurement, run_interleaved

BLOCKS_A_SECOND, FEWEST_BLOCKS, MOST_BLOCKS = 2.5, 10, 60  # per thread count
SHORT_ROUND = (1, 2)  # untimed and timed runs of files that are too slow for more in a block
NOISY = 0.025  # a median known no better than this is called noisy
DRIFTING = 0.05
FORMAT = 1

Block = dict[str, Any]
Progress = Callable[[str, int, int], None]  # (stage, done, total)


def bench_files(
    target: Target,
    files: Mapping[str, Path],
    threads: Sequence[int] | None = None,
    seconds: float = 5.0,
    progress: Progress | None = None,
    *,
    each: bool = False,
    blocks: int | None = None,
    seed: int = 0,
    partial: Path | None = None,
) -> dict[str, Any]:
    """Time every file (label -> path) on `target` at each thread count (default: one, and all usable cores).

    A thread count gets `seconds` in `blocks` blocks (default: 2.5 a second, 10 to 60; 1 on an emulator, whose times
    mean nothing). A block loads all files anew, in a random order, and times them in turns. Blocks done are kept in
    `partial`: a later call for the same files, device and engine goes on with the rest. The caller removes it.
    `each`: every file against the first; otherwise those entitled to a speed-up against their fastest rival.

    JSON-ready: "device", "environment" (with the device's states before, during and after, and "throttled": what
    slowed it meanwhile), "seconds", "results" (one per thread count and file: label, path, bytes, engine, runtime,
    version, operators, threads, load_ms, first_run_ms, p10_ms, p50_ms, p90_ms, p50_low_ms and p50_high_ms (95 %),
    count, means_of, base_bytes, peak_bytes, samples_ns by block), "comparisons" (label, against, threads, ratio, low,
    high (95 %), difference), "speedups" (those of them that are claimed), "no_speedup_reason" (None if there are any)
    and "warnings". Raises InputError for files that do not run, ConnectionLost with the device.
    """
    if not files:
        raise InputError("nothing to bench; name at least one .onnx or .tflite file")
    if not seconds > 0:
        raise InputError(f"seconds must be positive, got {seconds}")
    counts = list(dict.fromkeys(threads or (1, target.usable_cores())))
    if blocks is None:
        blocks = 1 if target.emulated else min(max(round(BLOCKS_A_SECOND * seconds), FEWEST_BLOCKS), MOST_BLOCKS)
    environment = target.describe()
    key = _key(target, environment, files, seconds, blocks)
    before, done = _read_partial(partial, key) or (target.state(), [])
    plan = [(number, count) for number in range(blocks) for count in counts]
    for step, (number, count) in enumerate(plan, start=1):
        if not any((block["number"], block["threads"]) == (number, count) for block in done):
            rng = np.random.default_rng([seed, number, count])
            done.append({"number": number, **measure_block(target, files, count, seconds / blocks, rng)})
            if partial:
                kept = {"format": FORMAT, "key": key, "before": before, "blocks": done}
                atomic.write_text(partial, json.dumps(kept))
        if progress:
            progress("bench", step, len(plan))
    after = target.state()
    taken = [block for count in counts for block in done if block["threads"] == count]
    throttled = throttling(before, [block["state"] for block in taken], after)
    memory = {label: target.memory(path, 1) or {} for label, path in files.items()}
    results = [
        _result(label, Path(path), count, taken, memory[label]) for count in counts for label, path in files.items()
    ]
    document = {
        "device": {"url": target.url, "local": target.local, "emulated": target.emulated},
        "environment": {
            **environment,
            "fingerprint": target.fingerprint(),
            "states": {"before": before, "during": [block["state"] for block in taken], "after": after},
            "throttled": throttled,
        },
        "seconds": seconds,
        "results": results,
        "warnings": _warnings(results, throttled, target.emulated),
    }
    return document | conclude(results, emulated=target.emulated, throttled=throttled, each=each)


def measure_block(
    target: Target, files: Mapping[str, Path], threads: int, seconds: float, rng: np.random.Generator
) -> Block:
    """Load all files in a random order, time them in turns for about `seconds`, and close them again."""
    order = [list(files)[index] for index in rng.permutation(len(files))]
    sessions: dict[str, Session] = {}
    try:
        first: dict[str, float] = {}
        for label in order:
            sessions[label] = target.open(files[label], threads)
            first[label] = sessions[label].timed(0, 1)[0] / 1e6
        timers = {label: sessions[label].timed for label in order}
        whole = (UNTIMED + TIMED) * sum(first.values()) <= 1e3 * seconds
        times = run_interleaved(timers, max_seconds=seconds, round_of=(UNTIMED, TIMED) if whole else SHORT_ROUND)
        state = target.state()
    finally:
        for session in sessions.values():
            session.close()
    records = {
        label: {
            "engine": sessions[label].name,
            "runtime": sessions[label].runtime,
            "version": sessions[label].version,
            "operators": sessions[label].operators,
            "means_of": sessions[label].means_of,
            "load_ms": sessions[label].load_ms,
            "first_run_ms": first[label],
            "samples_ns": list(times[label].samples_ns),
        }
        for label in files
    }
    return {"threads": threads, "order": order, "state": state, "files": records}


def conclude(
    results: Sequence[dict[str, Any]], *, emulated: bool = False, throttled: Sequence[str] = (), each: bool = False
) -> dict[str, Any]:
    """ "comparisons", "speedups" and "no_speedup_reason" of results, as `bench_files` describes them.

    Nothing is compared where an emulator ran the files or the processor was throttled, and no engine that only stands
    in for a fast one takes part.
    """
    reason = None
    if emulated:
        reason = "an emulator ran the files, and its times say nothing about a device"
    elif throttled:
        reason = f"the processor was throttled: {'; '.join(throttled)}; cool it and bench again"
    if reason:
        return {"comparisons": [], "speedups": [], "no_speedup_reason": reason}
    comparisons = []
    for count in dict.fromkeys(result["threads"] for result in results):
        rows = {r["label"]: r for r in results if r["threads"] == count and r["engine"] not in FALLBACKS}
        for label, against in _against(results[0]["label"], rows) if each else _against_fastest(rows):
            found = intervals.ratio(rows[against]["samples_ns"], rows[label]["samples_ns"])
            comparisons.append(
                {
                    "label": label,
                    "against": against,
                    "threads": count,
                    "ratio": found.value,
                    "low": found.low,
                    "high": found.high if np.isfinite(found.high) else None,
                    "difference": not found.holds(1.0),
                }
            )
    claimed = [c for c in comparisons if c["difference"] and c["ratio"] > 1 and _entitled(results, c["label"])]
    if each:
        claimed = []  # the first file may not be the fastest rival
    if each and not comparisons:
        reason = f"nothing can be compared with {results[0]['label']} by {results[0]['engine']}"
    elif not claimed:
        reason = "files were compared with the first one" if each else _no_claim(results, comparisons)
    return {"comparisons": comparisons, "speedups": claimed, "no_speedup_reason": reason}


def _against_fastest(rows: Mapping[str, dict[str, Any]]) -> Iterable[tuple[str, str]]:
    rivals = [label for label, row in rows.items() if not may_claim_speedup(row["engine"])]
    if not rivals:
        return []
    fastest = min(rivals, key=lambda label: float(rows[label]["p50_ms"]))
    return [(label, fastest) for label in rows if label not in rivals]


def _against(first: str, rows: Mapping[str, dict[str, Any]]) -> Iterable[tuple[str, str]]:
    return [(label, first) for label in rows if label != first and first in rows]


def _entitled(results: Sequence[dict[str, Any]], label: str) -> bool:
    return any(may_claim_speedup(result["engine"]) for result in results if result["label"] == label)


def _no_claim(results: Sequence[dict[str, Any]], comparisons: Sequence[dict[str, Any]]) -> str:
    engines = sorted({result["engine"] for result in results})
    entitled = [engine for engine in engines if may_claim_speedup(engine)]
    if any(_entitled(results, c["label"]) for c in comparisons):
        return "it is not faster than its fastest rival, or the difference is within the error of the measurement"
    not_built = FUNCTION_FLOAT in engines and native_library.operator_library() is None
    if entitled or (len({result["label"] for result in results}) == 1 and not not_built):
        return "nothing to compare with"
    reason = f"a speed-up needs native kernels or Larq Compute Engine on 64-bit ARM; here ran: {', '.join(engines)}"
    return f"{reason}, because {native_library.NOT_BUILT}" if not_built else reason


def _result(label: str, path: Path, threads: int, blocks: Sequence[Block], memory: dict[str, int]) -> dict[str, Any]:
    records = [block["files"][label] for block in blocks if block["threads"] == threads]
    samples = [record["samples_ns"] for record in records]
    whole = Measurement(tuple(ns for block in samples for ns in block))
    middle = intervals.median(samples)
    return {
        "label": label,
        "path": str(path),
        "bytes": path.stat().st_size,
        **{name: records[-1][name] for name in ("engine", "runtime", "version", "operators", "means_of")},
        "threads": threads,
        "load_ms": median(record["load_ms"] for record in records),
        "first_run_ms": median(record["first_run_ms"] for record in records),
        "p10_ms": whole.p10_ms,
        "p50_ms": whole.p50_ms,
        "p90_ms": whole.p90_ms,
        "p50_low_ms": min(middle.low / 1e6, whole.p50_ms),
        "p50_high_ms": max(middle.high / 1e6, whole.p50_ms) if np.isfinite(middle.high) else None,
        "count": whole.count,
        "base_bytes": memory.get("base_bytes"),
        "peak_bytes": memory.get("peak_bytes"),
        "samples_ns": samples,
    }


def known_to(result: Mapping[str, Any]) -> float:
    """Half the width of the 95 % interval of a result's median, relative to the median; infinite where one block has
    given none."""
    high = math.inf if result["p50_high_ms"] is None else result["p50_high_ms"]
    return Interval(result["p50_ms"], result["p50_low_ms"], high).relative_error


def _warnings(results: Sequence[dict[str, Any]], throttled: Sequence[str], emulated: bool) -> list[str]:
    """What a reader must know before believing the numbers."""
    found = [f"throttled: {reason}" for reason in throttled]
    errors = {(r["label"], r["threads"]): known_to(r) for r in results}
    if emulated:
        return found
    worst = max(errors, key=lambda name: errors[name])
    if errors[worst] > NOISY:
        known = f"only to ±{errors[worst]:.0%}" if np.isfinite(errors[worst]) else "from one block, without an error"
        found.append(
            f"too noisy: the median of {worst[0]} with {worst[1]} thread{'s' * (worst[1] > 1)} is known {known}; "
            "stop other programs, bind it to cores with --cpus, or measure longer with --seconds"
        )
    drift = _drift(results)
    if abs(drift.value - 1) > DRIFTING and not drift.holds(1.0):
        found.append(
            f"the device changed its speed: runs took {drift.value:.2f} times as long in the second half of the bench"
        )
    return found


def _drift(results: Sequence[dict[str, Any]]) -> Interval:
    """Time of the second half of the blocks against the first, over all files; a block counts once."""
    medians = np.array([[np.median(block) for block in result["samples_ns"]] for result in results])  # [files, blocks]
    levels = np.exp(np.log(medians / np.median(medians, axis=1, keepdims=True)).mean(axis=0))
    half = len(levels) // 2
    if half == 0:
        return Interval(1.0, 0.0, float("inf"))
    later, earlier = ([[level] for level in part] for part in (levels[-half:], levels[:half]))
    return intervals.ratio(later, earlier)


def _key(
    target: Target, environment: Mapping[str, Any], files: Mapping[str, Path], seconds: float, blocks: int
) -> dict[str, Any]:
    """What must be the same for blocks of an interrupted bench to be worth keeping."""
    tflite = target.local and any(Path(path).suffix.lower() == ".tflite" for path in files.values())
    engines = [target.engine(), *([target.engine("tflite")] if tflite else [])]
    return {
        "files": {label: _sha256(Path(path)) for label, path in files.items()},
        "device": [target.url, target.fingerprint(), environment.get("cpus")],
        "engines": [engine.text for engine in engines],
        "seconds": seconds,
        "blocks": blocks,
        "bnas": metadata.version("bnas"),
    }


def _sha256(path: Path) -> str:
    """Of a file that exists; what is wrong with one is said when it is opened."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _read_partial(path: Path | None, key: dict[str, Any]) -> tuple[dict[str, Any], list[Block]] | None:
    """The device's state before the first block, and the blocks so far; None if the file is absent, unreadable or of
    another bench."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path else {}
        if found.get("format") != FORMAT or found.get("key") != key:
            return None
        for block in found["blocks"]:
            if not all(record["samples_ns"] for record in block["files"].values()):
                return None
        return dict(found["before"]), list(found["blocks"])
    except (OSError, ValueError, AttributeError, LookupError, TypeError):
        return None
