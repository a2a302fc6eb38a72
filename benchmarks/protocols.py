"""How contenders are timed against each other, on pinned cores, and the popcount bound in the same run.

"blocks": each contender gets 2 untimed and 5 timed calls per round, in alternating order, 12 rounds or more: it has its
caches warm, as in a loop over one network. "alternate": one call of each in turn, so that each finds the caches as the
others left them. The order moves results by 20-35 %, hence both; compare only what was timed in one run.
"""

import gc
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rivals import native_module

from bnas.runtime_bench.measure import MIN_ROUNDS, Measurement, Run, run_interleaved, timer

BOUND_SECONDS = 0.02
MIN_PASSES = 30


def pin(threads: int) -> list[int]:
    """Keep this process on as many cores as it has threads; returns them, none where the system cannot pin.

    Call it before the libraries start threads of their own: these inherit it.
    """
    if not hasattr(os, "sched_setaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))[-threads:]
    os.sched_setaffinity(0, cores)
    return cores


class Bounds:
    """Binary 10^9 MACs per second that one core can do on registers, by path; sampled between the rounds.

    It is a bound, so the highest sample counts: other work on the machine only lowers it.
    """

    def __init__(self, isas: Sequence[str]) -> None:
        self.samples: dict[str, list[float]] = {isa: [] for isa in isas if native_module() is not None}

    def sample(self, seconds: float = BOUND_SECONDS) -> None:
        for isa, taken in self.samples.items():
            taken.append(native_module().bound_gmacs(isa, seconds))

    def add(self, other: "Bounds") -> None:
        for isa, taken in other.samples.items():
            self.samples.setdefault(isa, []).extend(taken)

    def highest(self) -> dict[str, float]:
        return {isa: max(taken) for isa, taken in self.samples.items() if taken}


def blocks(
    runs: Mapping[str, Run], bounds: Bounds, *, rounds: int = MIN_ROUNDS, seconds: float = 0.0
) -> dict[str, Measurement]:
    """At least `rounds` rounds, and until `seconds` have passed."""
    bounds.sample()
    timers = {name: timer(run) for name, run in runs.items()}
    return run_interleaved(
        timers, max_seconds=max(seconds, 1e-3), min_rounds=rounds, on_round=lambda passed: bounds.sample()
    )


def alternate(runs: Mapping[str, Run], *, passes: int = MIN_PASSES, seconds: float = 0.0) -> dict[str, Measurement]:
    """At least `passes` passes, and until `seconds` have passed; the first two are not counted."""
    samples: dict[str, list[int]] = {name: [] for name in runs}
    clock = time.perf_counter_ns
    gc.collect()
    gc.disable()
    try:
        started = time.perf_counter()
        number = 0
        while number < passes + 2 or time.perf_counter() - started < seconds:
            for name, run in runs.items():
                before = clock()
                run()
                samples[name].append(clock() - before)
            number += 1
    finally:
        gc.enable()
    return {name: Measurement(tuple(taken[2:])) for name, taken in samples.items()}


def times(taken: Measurement, calls: int = 1) -> dict[str, Any]:
    """p10, p50 and p90 in ms of one of the `calls` units that one run holds, and how many runs were timed."""
    parts = {f"p{q}_ms": taken.percentile_ms(q) / calls for q in (10, 50, 90)}
    return {**parts, "count": taken.count}
