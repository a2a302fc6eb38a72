"""Timing a callable so that the number can be believed: warm-up, a monotonic clock, raw samples kept, medians."""

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

Run = Callable[[], object]
Timer = Callable[[int, int], list[int]]  # (untimed, timed) runs -> ns of the timed ones; wherever they run

UNTIMED, TIMED = 2, 5  # runs per engine and round of an interleaved measurement
MIN_ROUNDS = 12
MAX_ROUNDS = 1000  # bounds the raw samples kept: at most 5000 per engine


@dataclass(frozen=True)
class Measurement:
    """Raw times of single calls, in order."""

    samples_ns: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.samples_ns:
            raise ValueError("a measurement needs at least one sample")

    def percentile_ms(self, q: float) -> float:
        return float(np.percentile(self.samples_ns, q)) / 1e6

    @property
    def p10_ms(self) -> float:
        return self.percentile_ms(10)

    @property
    def p50_ms(self) -> float:
        return self.percentile_ms(50)

    @property
    def p90_ms(self) -> float:
        return self.percentile_ms(90)

    @property
    def median_ms(self) -> float:
        return self.p50_ms

    @property
    def count(self) -> int:
        return len(self.samples_ns)


def median_deviation(samples: Sequence[float]) -> float:
    """Standard error of the median, relative to the median; no assumption on the distribution.

    The rank of the true median among n samples has standard deviation sqrt(n) / 2, so half the distance between the
    order statistics that many ranks below and above the middle is one standard error.
    """
    ordered = np.sort(np.asarray(samples, dtype=float))
    middle, reach = (len(ordered) - 1) / 2, math.sqrt(len(ordered)) / 2
    low = ordered[max(0, math.floor(middle - reach))]
    high = ordered[min(len(ordered) - 1, math.ceil(middle + reach))]
    return float((high - low) / 2 / np.median(ordered))


def timer(run: Run) -> Timer:
    """A timer of `run` in this process; no garbage is collected meanwhile."""

    def timed(untimed: int, count: int) -> list[int]:
        clock = time.perf_counter_ns
        samples = []
        with _no_garbage_collection():
            for _ in range(untimed):
                run()
            for _ in range(count):
                start = clock()
                run()
                samples.append(clock() - start)
        return samples

    return timed


def measure(
    timed: Timer,
    *,
    min_samples: int = 30,
    max_seconds: float = 2.0,
    rel_dev: float = 0.01,
) -> Measurement:
    """Time runs until the standard error of the median is below `rel_dev` of it, or `max_seconds` have passed.

    `min_samples` are always taken, however slow a run is.
    """
    warm_up(timed, max_seconds=max_seconds / 4)
    samples: list[int] = []
    deadline = time.perf_counter_ns() + int(max_seconds * 1e9)
    while True:
        samples += timed(0, len(samples) // 4 or min_samples)
        if median_deviation(samples) < rel_dev or time.perf_counter_ns() >= deadline:
            return Measurement(tuple(samples))


def run_interleaved(
    timers: Mapping[str, Timer],
    *,
    max_seconds: float = 5.0,
    min_rounds: int = 1,
    round_of: tuple[int, int] = (UNTIMED, TIMED),
    enough: Callable[[Mapping[str, Sequence[int]]], bool] | None = None,
    on_round: Callable[[float], None] | None = None,
) -> dict[str, Measurement]:
    """Time several things in turns, so that drift and disturbances of the machine hit all of them alike.

    A round gives each of them untimed and timed runs (`round_of`), in alternating order. Rounds go on until
    `max_seconds` (warm-up included), for at most 1000 rounds, or until `enough`, asked every 12 rounds, is content with
    the samples in ns. `min_rounds` are made in any case. `on_round` gets the seconds passed.
    """
    samples: dict[str, list[int]] = {name: [] for name in timers}
    order = list(timers)
    started = time.perf_counter()
    for timed in timers.values():
        warm_up(timed, max_seconds=max_seconds / 4 / len(timers))
    for number in range(1, MAX_ROUNDS + 1):
        for name in order[:: 1 if number % 2 else -1]:
            samples[name] += timers[name](*round_of)
        seconds = time.perf_counter() - started
        if on_round:
            on_round(seconds)
        if number < min_rounds:
            continue
        if seconds >= max_seconds or (enough and number % MIN_ROUNDS == 0 and enough(samples)):
            break
    return {name: Measurement(tuple(taken)) for name, taken in samples.items()}


def warm_up(timed: Timer, *, max_seconds: float, block: int = 3, tolerance: float = 0.05) -> None:
    """Run until the medians of two blocks in a row agree within `tolerance`; at least 2 runs, at most `max_seconds`."""
    deadline = time.perf_counter_ns() + int(max_seconds * 1e9)
    previous = float(np.median(timed(0, 2)))
    while time.perf_counter_ns() < deadline:
        now = float(np.median(timed(0, block)))
        if abs(now - previous) <= tolerance * previous:
            return
        previous = now


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
