"""DARTS+: DARTS that stops before skip connections take over (Liang et al., arXiv 1909.06035).

No code of the authors was found. Two rules, asked after each epoch: the derived network has two skips, or the order of
the operations with weights has not changed for a while. The paper takes one or the other; the default is whichever
comes first. Its numbers are for 50 epochs; ours are shares of the epochs, so that the rules mean the same in any
budget. Nothing stops in the first fifth: alphas are still noise then.
"""

from dataclasses import replace

import numpy as np

from ..relaxations import Probabilities
from ..spaces import SearchSpace
from ..spaces.space import NONE
from .bilevel import Method, Trace, search, unlimited
from .darts import METHOD as DARTS
from .task import SearchResult, SearchTask

SOURCE = "DARTS+: Improved Differentiable Architecture Search with Early Stopping (Liang et al., 2019)"
SKIPS = ("skip_connect", "identity")
EARLIEST = 0.2  # share of the epochs before which nothing stops: 10 of 50
STABLE = 0.2  # share of the epochs through which the order has to stay: 10 of 50


def skips(space: SearchSpace, kept: Probabilities) -> int:
    """Skips in the architecture that DARTS's rule derives: in the normal cell, or in all layers of a chain."""
    gates = space.gates(unlimited(space, kept))
    chosen = zip(space.decisions, gates, strict=True)
    return sum(d.candidates[k] in SKIPS for d, k in chosen if d.group in ("", "normal"))


def orders(space: SearchSpace, kept: Probabilities) -> list[tuple[int, ...]]:
    """For each decision its candidates with weights, from the least to the most probable."""
    return [
        tuple(k for k in np.argsort(p, kind="stable").tolist() if learns(decision.candidates[k]))
        for decision, p in zip(space.decisions, kept, strict=True)
    ]


def learns(candidate: str) -> bool:
    return candidate not in (*SKIPS, NONE) and "pool" not in candidate


def at_skips(space: SearchSpace, trace: Trace, epochs: int, most: int = 2) -> int | None:
    """Criterion 1: `most` skips. If this epoch brought more than that, the architecture of the one before is taken."""
    last = len(trace) - 1
    if len(trace) < EARLIEST * epochs or (found := skips(space, trace[last])) < most:
        return None
    return last - 1 if found > most and last else last


def at_rest(space: SearchSpace, trace: Trace, epochs: int) -> int | None:
    """Criterion 2: the order of the candidates with weights is the same since a share `STABLE` of the epochs."""
    wait = max(1, round(STABLE * epochs))
    if len(trace) <= wait:
        return None
    now = orders(space, trace[-1])
    return len(trace) - 1 if all(orders(space, kept) == now for kept in trace[-1 - wait : -1]) else None


def either(space: SearchSpace, trace: Trace, epochs: int) -> int | None:
    found = at_skips(space, trace, epochs)
    return at_rest(space, trace, epochs) if found is None else found


METHOD = replace(DARTS, stop=either)


def run(task: SearchTask, method: Method = METHOD) -> SearchResult:
    return search(task, method)
