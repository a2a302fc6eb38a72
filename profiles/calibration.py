"""Fitting the whole-network estimate T = a + b * sum(rows) + c * units to measured networks."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from .errors import InputError
from .schema import Calibration

FOLDS = 5


class Sample(NamedTuple):
    """One whole network: what the table says, and what was measured."""

    sum_rows_ms: float
    units: int
    measured_ms: float


def fit(samples: Sequence[Sample | tuple[float, int, float]]) -> Calibration:
    """Least squares on the relative error; a, b and c are not negative, so no unit ever makes a network faster.

    c is dropped (0) where all networks have the same number of units. The k-fold error puts sample i in fold i mod 5.
    Raises InputError for fewer than 5 networks.
    """
    if len(samples) < FOLDS:
        raise InputError(f"a calibration needs at least {FOLDS} networks, got {len(samples)}; measure more of them")
    sums, units, measured = (np.array(column, dtype=float) for column in zip(*samples, strict=True))
    if not (measured > 0).all():
        raise ValueError(f"measured times must be positive, got {measured.min()} ms")
    columns = [np.ones_like(sums), sums]
    if np.ptp(units) > 0:
        columns.append(units)
    terms = np.stack(columns, axis=1)
    errors = _held_out_errors(terms, measured)
    a, b, c = (*_solve(terms, measured), 0.0)[:3]
    return Calibration(
        a_ms=a,
        b=b,
        c_ms=c,
        nets=len(samples),
        kfold_error=float(errors.mean()),
        within_10pct=float((errors <= 0.1).mean()),
    )


def _held_out_errors(terms: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Absolute relative error of every sample [n], predicted by a fit to the other folds."""
    fold = np.arange(len(measured)) % FOLDS
    errors = np.empty(len(measured))
    for held in range(FOLDS):
        out = fold == held
        predicted = terms[out] @ _solve(terms[~out], measured[~out])
        errors[out] = np.abs(predicted - measured[out]) / measured[out]
    return errors


def _solve(terms: np.ndarray, measured: np.ndarray) -> tuple[float, ...]:
    """argmin over x >= 0 of |terms @ x / measured - 1|^2, terms [n, 1..3].

    Exact: the optimum is an unconstrained one on some subset of the terms, and there are at most seven subsets.
    """
    scaled = terms / measured[:, None]
    best, best_residual = np.zeros(terms.shape[1]), np.inf
    for chosen in _subsets(terms.shape[1]):
        part = scaled[:, chosen]
        x, _, rank, _ = np.linalg.lstsq(part, np.ones(len(measured)), rcond=None)
        residual = float(np.square(part @ x - 1).sum())
        if rank == len(chosen) and (x >= 0).all() and residual < best_residual:
            best, best_residual = np.zeros(terms.shape[1]), residual
            best[chosen] = x
    return tuple(map(float, best))


def _subsets(count: int) -> Iterator[list[int]]:
    for size in range(1, count + 1):
        yield from map(list, combinations(range(count), size))
