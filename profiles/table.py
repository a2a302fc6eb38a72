"""`LatencyTable`: workload -> ms with provenance, and the prediction for a whole network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from .errors import InputError
from .schema import Profile, Source
from .workload import FIXED, Workload

TRUST: tuple[str, ...] = get_args(Source)  # best first


@dataclass(frozen=True)
class Entry:
    """What one workload costs and how that is known."""

    ms: float
    source: str


@dataclass(frozen=True)
class Prediction:
    """A network's latency with its error band (a fraction) and the least trustworthy source that went into it."""

    ms: float
    error: float
    source: str
    note: str = ""

    def __str__(self) -> str:
        label = f"{self.source}, {self.note}" if self.note else self.source
        return f"{format_ms(self.ms)} ±{_three_digits(100 * self.error)} % ({label})"


class LatencyTable:
    """Costs of workloads by one profile. A measured row wins over the cost model; nothing is ever silently 0."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self._entries = {Workload.from_key(row.workload): Entry(row.p50_ms, row.source) for row in profile.rows}
        self._has_fixed = FIXED in self._entries
        self._unit_ms = {FIXED: 0.0}  # counted once per network, not as a unit
        calibration = profile.calibration
        self._base_ms = calibration.a_ms if calibration else self._entries[FIXED].ms if self._has_fixed else 0.0
        self._slope = calibration.b if calibration else 1.0
        self._per_unit_ms = calibration.c_ms if calibration else 0.0

    def lookup(self, workload: Workload) -> Entry:
        """Cost of one workload. Raises InputError where there is neither a row nor a cost model."""
        entry = self._entries.get(workload)
        if entry is None:
            entry = self._entries[workload] = self._modelled(workload)
        return entry

    def _modelled(self, workload: Workload) -> Entry:
        model = self.profile.cost_model
        if model is None:
            raise InputError(
                f"profile {self.profile.name!r} has no row for {workload.key}; "
                "measure it: bnas profiles build --device local --space SPACE --out FILE"
            )
        source = self.profile.source
        return Entry(model.ms(workload), "analytic" if source == "measured" else source)

    def sum_ms(self, workloads: Sequence[Workload]) -> float:
        """Sum of the units' costs, without the graph's fixed cost, uncalibrated."""
        known = self._unit_ms
        total = 0.0
        for workload in workloads:
            ms = known.get(workload)
            if ms is None:
                ms = known[workload] = self.lookup(workload).ms
            total += ms
        return total

    def latency_ms(self, workloads: Sequence[Workload]) -> float:
        """a + b * sum(rows) + c * units with a calibration, else the fixed row (if any) + sum(rows)."""
        return self._base_ms + self._slope * self.sum_ms(workloads) + self._per_unit_ms * len(workloads)

    def predict(self, workloads: Sequence[Workload]) -> Prediction:
        """`latency_ms` with its error band, its worst source and, for a roofline, the compute path assumed."""
        ms = self.latency_ms(workloads)
        used = {self.lookup(workload).source for workload in workloads if workload != FIXED}
        if self._has_fixed and not self.profile.calibration:
            used.add(self._entries[FIXED].source)
        source = max(used or {self.profile.source}, key=TRUST.index)
        model = self.profile.cost_model
        note = model.note if model and source != "measured" else ""
        return Prediction(ms, self.profile.error, source, note)


def predict(profile: Profile, workloads: Sequence[Workload]) -> Prediction:
    """The prediction for one network; to ask often, keep a `LatencyTable`."""
    return LatencyTable(profile).predict(workloads)


def format_ms(ms: float) -> str:
    """Three significant digits with a unit: `18.2 ms`, `740 µs`."""
    return f"{_three_digits(ms)} ms" if ms >= 0.9995 else f"{_three_digits(1000 * ms)} µs"


def _three_digits(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"
