"""One-Shot: all candidates at once with path dropout, then random architectures are scored (Bender et al., ICML 2018).

No code was published. Each candidate is left out with probability r^(1/k), k the number of candidates whose results are
summed, rising linearly from 0; the last one left is never dropped. Here one mask serves a whole batch (there: a ghost
batch of 32 images).
"""

import numpy as np
import torch

from ..spaces import SearchSpace
from ..spaces.space import NONE
from .selecting import by_sampling
from .single_path import Method, Passes, search
from .task import SearchResult, SearchTask

SOURCE = "Understanding and Simplifying One-Shot Architecture Search (Bender et al., ICML 2018)"
DROPOUT = 0.1  # r; with 6 candidates each is dropped with probability 0.68 in the end


def path_dropout(space: SearchSpace, seed: int, step: int, steps: int) -> Passes:
    """One pass with a mask for each decision."""
    rng = np.random.default_rng((seed, step))
    masks = []
    for decision in space.decisions:
        real = np.array([name != NONE for name in decision.candidates])
        dropped = rng.random(len(real)) < step / max(1, steps - 1) * DROPOUT ** (1 / real.sum())
        kept = real & ~dropped
        if not kept.any():
            kept[rng.choice(np.flatnonzero(real))] = True
        masks.append(torch.from_numpy(kept))
    return [masks]


METHOD = Method(passes=path_dropout, select=by_sampling)


def run(task: SearchTask) -> SearchResult:
    return search(task, METHOD)
