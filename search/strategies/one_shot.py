"""One-Shot: all candidates at once with path dropout, then random architectures are scored (Bender et al., ICML 2018).

No code was published. Each candidate is left out with probability r^(1/k), k the number of candidates, rising linearly
from 0; the last one left is never dropped. Here one mask serves a whole batch (there: a ghost batch of 32 images), and
candidates that are kept are averaged (there: summed): each of our blocks carries a shortcut, and a sum would multiply
what passes through all of them by the number of candidates in every layer.
"""

import numpy as np

from ..spaces import SearchSpace
from ..spaces.space import NONE
from ..supernet import Gate
from .selecting import by_sampling
from .single_path import Method, Passes, search
from .task import SearchResult, SearchTask, relaxed_budget

SOURCE = "Understanding and Simplifying One-Shot Architecture Search (Bender et al., ICML 2018)"
DROPOUT = 0.1  # r; with 6 candidates each is dropped with probability 0.68 in the end


def path_dropout(space: SearchSpace, seed: int, step: int, steps: int) -> Passes:
    """One pass; of each decision, the candidates that are kept share the weight 1."""
    rng = np.random.default_rng((seed, step))
    gates: list[Gate] = []
    for decision in space.decisions:
        real = np.array([name != NONE for name in decision.candidates])
        dropped = rng.random(len(real)) < step / max(1, steps - 1) * DROPOUT ** (1 / real.sum())
        kept = real & ~dropped
        if not kept.any():
            kept[rng.choice(np.flatnonzero(real))] = True
        gates.append([(int(k), 1 / kept.sum()) for k in np.flatnonzero(kept)])
    return [gates]


METHOD = Method(passes=path_dropout, select=by_sampling)


def run(task: SearchTask) -> SearchResult:
    return search(relaxed_budget(task), METHOD)
