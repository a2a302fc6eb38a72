"""SPOS: uniform single-path supernet, batch-norm recalibration, evolutionary selection (Guo et al., ECCV 2020).

Where we differ from the released code: validation is a fixed slice of the training images (there: the reported test
split, other images for each candidate), statistics are rebuilt with cumulative averages (there: momentum 0.1), and
selection is NSGA-II on accuracy and latency with the limit held by repair (there: rejection under a FLOPs limit).
"""

import numpy as np

from ..spaces import SearchSpace
from .selecting import by_evolution
from .single_path import Method, Passes, search
from .task import SearchResult, SearchTask

SOURCE = "Single Path One-Shot Neural Architecture Search with Uniform Sampling (Guo et al., ECCV 2020)"


def uniform(space: SearchSpace, seed: int, step: int, steps: int = 0) -> Passes:
    """One path, uniform over all architectures, in cells over those that can be derived; of (seed, step) alone."""
    rng = np.random.default_rng((seed, step))
    return [space.gates([int(rng.integers(len(gene.candidates))) for gene in space.genes])]


METHOD = Method(passes=uniform, select=by_evolution)


def run(task: SearchTask) -> SearchResult:
    return search(task, METHOD)
