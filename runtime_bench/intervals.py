"""What samples taken in interleaved blocks allow to say about a median, and about the ratio of two.

Runs within a block share a loaded file, the memory it happened to get and the mood of the machine; they do not count as
independent. Blocks do: every one loads the files anew and in another order. So blocks are what is drawn again (Künsch,
"The jackknife and the bootstrap for general stationary observations", 1989), the same ones for all files, and an
interval covers what loading anew and drift do to a time, too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 2000
CONFIDENCE = 0.95
# Student's t at 97.5 % for 1, 2, ... degrees of freedom; the normal value after the last.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120)
_NORMAL = 1.960

Blocks = Sequence[Sequence[float]]  # samples of one file, block by block


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; without bounds (infinite ones) where a single block tells nothing about them."""

    value: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high

    @property
    def relative_error(self) -> float:
        """Half the width, relative to the value; infinite without bounds."""
        return (self.high - self.low) / 2 / self.value


def median(blocks: Blocks, seed: int = 0) -> Interval:
    """Of all samples."""
    draws = _draws(len(blocks), seed)
    return _interval(_log_medians(blocks, np.arange(len(blocks))[None])[0], _log_medians(blocks, draws), len(blocks))


def ratio(above: Blocks, below: Blocks, seed: int = 0) -> Interval:
    """median(above) / median(below); block i of both was taken in turns. Raises ValueError for unequal numbers."""
    if len(above) != len(below):
        raise ValueError(f"samples of {len(above)} and {len(below)} blocks were not interleaved")
    draws, whole = _draws(len(above), seed), np.arange(len(above))[None]
    here = (_log_medians(above, whole) - _log_medians(below, whole))[0]
    return _interval(here, _log_medians(above, draws) - _log_medians(below, draws), len(above))


def _draws(count: int, seed: int) -> np.ndarray:
    """Indices of blocks [DRAWS, count]."""
    return np.random.default_rng(seed).integers(0, count, (DRAWS, count))


def _log_medians(blocks: Blocks, draws: np.ndarray) -> np.ndarray:
    """Mean over the drawn blocks of the logarithm of each one's median [len(draws)].

    Not the median of all samples: where a file is fast in some blocks and slow in others, that jumps.
    """
    if not blocks or any(len(block) == 0 for block in blocks):
        raise ValueError("an interval needs at least one block, and none without samples")
    medians = np.log([np.median(block) for block in blocks])
    return np.asarray(medians[draws].mean(axis=1))


def _interval(value: float, drawn: np.ndarray, count: int) -> Interval:
    """From logarithms. With few blocks, percentiles of what is drawn are too narrow by the two factors here."""
    if count < 2:
        return Interval(math.exp(value), 0.0, math.inf)
    t = _T[count - 2] if count - 2 < len(_T) else _NORMAL
    widen = t / _NORMAL * math.sqrt(count / (count - 1))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(math.exp(value), math.exp(value + widen * (low - value)), math.exp(value + widen * (high - value)))
