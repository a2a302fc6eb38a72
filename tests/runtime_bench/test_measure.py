"""Measuring rules, with a clock that only the measured functions move."""

import gc
from collections.abc import Callable

import numpy as np
import pytest

from bnas.runtime_bench import measure as module
from bnas.runtime_bench.measure import Measurement, Timer, measure, median_deviation, run_interleaved, timer, warm_up


class Clock:
    """Stands in for the time module."""

    now_ns = 0

    def perf_counter_ns(self) -> int:
        return self.now_ns

    def perf_counter(self) -> float:
        return self.now_ns / 1e9

    def task(self, ms: Callable[[int], float], log: list[str] | None = None, name: str = "") -> Timer:
        calls = 0

        def run() -> None:
            nonlocal calls
            self.now_ns += int(ms(calls) * 1e6)
            calls += 1
            if log is not None:
                log.append(name)

        return timer(run)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_percentiles() -> None:
    m = Measurement(tuple(1_000_000 * i for i in range(1, 12)))
    assert (m.p10_ms, m.p50_ms, m.p90_ms, m.median_ms, m.count) == (2.0, 6.0, 10.0, 6.0, 11)
    with pytest.raises(ValueError, match="at least one sample"):
        Measurement(())


def test_median_deviation_against_a_bootstrap() -> None:
    rng = np.random.default_rng(0)
    ratios = []
    for draw in (rng.normal(10, 1, 400), rng.lognormal(0, 0.5, 400), rng.uniform(1, 3, 400)):
        medians = np.median(rng.choice(draw, (2000, draw.size)), axis=1)
        ratios.append(median_deviation(draw) / (medians.std() / np.median(draw)))
    assert 0.75 < np.mean(ratios) < 1.35
    assert median_deviation([5.0]) == 0
    assert median_deviation([7] * 50) == 0


def test_steady_times_need_thirty_samples(clock: Clock) -> None:
    assert measure(clock.task(lambda _: 2.0), max_seconds=10).count == 30


def test_noisy_times_take_more_until_one_percent(clock: Clock) -> None:
    rng = np.random.default_rng(0)
    m = measure(clock.task(lambda _: rng.normal(10, 2)), max_seconds=1000)
    assert m.count > 200 and median_deviation(m.samples_ns) <= 0.01
    assert m.p50_ms == pytest.approx(10, rel=0.03)


def test_the_time_cap_ends_it_but_not_below_the_minimum(clock: Clock) -> None:
    wild = clock.task(lambda i: 1.0 + 9.0 * (i % 2))
    m = measure(wild, max_seconds=1.0)
    assert 30 <= m.count < 300
    assert measure(clock.task(lambda _: 2000.0), max_seconds=1.0, rel_dev=0.0).count == 30


def test_warm_up_waits_for_stable_times_within_its_cap(clock: Clock) -> None:
    falling: list[str] = []
    warm_up(clock.task(lambda i: max(1.0, 100 - 5 * i), falling), max_seconds=100)
    assert len(falling) >= 20
    slow: list[str] = []
    warm_up(clock.task(lambda _: 1000.0, slow), max_seconds=0.5)
    assert len(slow) == 2


def test_garbage_collection_is_off_while_timing_and_back_on_after() -> None:
    seen: list[bool] = []
    measure(timer(lambda: seen.append(gc.isenabled())), max_seconds=0.05)
    assert len(seen) > 30 and not any(seen) and gc.isenabled()

    def broken() -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        measure(timer(broken))
    assert gc.isenabled()


def test_interleaving_takes_turns_in_blocks(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "warm_up", lambda *_, **__: None)
    log: list[str] = []
    rounds: list[float] = []
    result = run_interleaved(
        {"a": clock.task(lambda _: 1.0, log, "a"), "b": clock.task(lambda _: 3.0, log, "b")},
        max_seconds=0.28,  # ten rounds of 7 x 1 ms + 7 x 3 ms
        on_round=rounds.append,
    )
    assert "".join(log) == ("a" * 7 + "b" * 7 + "b" * 7 + "a" * 7) * 5
    assert {name: (m.count, m.p50_ms) for name, m in result.items()} == {"a": (50, 1.0), "b": (50, 3.0)}
    assert rounds == pytest.approx([0.028 * i for i in range(1, 11)])


def test_drift_hits_both_alike(clock: Clock) -> None:
    """A machine that slows down to a third during the measurement leaves the ratio of two equal tasks at 1."""
    slowing = lambda _: 1.0 + clock.now_ns / 1e9  # noqa: E731
    result = run_interleaved({"a": clock.task(slowing), "b": clock.task(slowing)}, max_seconds=2.0)
    assert result["a"].p50_ms == pytest.approx(result["b"].p50_ms, rel=0.02)


def test_interleaving_stops_early_only_when_asked_and_settled(clock: Clock) -> None:
    tasks = {"a": clock.task(lambda _: 1.0), "b": clock.task(lambda _: 2.0)}
    assert run_interleaved(tasks, max_seconds=5, enough=lambda samples: len(samples["b"]) >= 60)["a"].count == 12 * 5
    assert run_interleaved(tasks, max_seconds=1)["a"].count > 12 * 5
    slow = {"a": clock.task(lambda _: 1000.0)}
    assert run_interleaved(slow, max_seconds=1)["a"].count == 5
    assert run_interleaved(slow, max_seconds=1, round_of=(1, 2), min_rounds=3)["a"].count == 6
    quick = {"a": clock.task(lambda _: 0.001)}
    assert run_interleaved(quick, max_seconds=60)["a"].count == 5000
