"""FairNAS: strictly fair supernet training, evolutionary selection (Chu et al., ICCV 2021).

In every step each candidate of each decision runs in exactly one of m passes on the same batch; one step of the
optimizer follows. The released code holds models only. Where decisions differ in their number of candidates, m is the
largest, and a decision with fewer draws again: its counts then differ by at most one within a step. In cells a pass
takes one operation on each of the 14 edges, `none` included.
"""

import numpy as np

from ..spaces import SearchSpace
from .selecting import by_evolution
from .single_path import Method, Passes, search
from .task import SearchResult, SearchTask

SOURCE = "FairNAS: Rethinking Evaluation Fairness of Weight Sharing Neural Architecture Search (Chu et al., ICCV 2021)"


def strictly_fair(space: SearchSpace, seed: int, step: int, steps: int = 0) -> Passes:
    """m passes in which each decision goes through a permutation of its candidates, drawn anew for each decision."""
    rng = np.random.default_rng((seed, step))
    most = max(len(decision.candidates) for decision in space.decisions)
    columns = []
    for decision in space.decisions:
        rounds = -(-most // len(decision.candidates))
        columns.append(np.concatenate([rng.permutation(len(decision.candidates)) for _ in range(rounds)])[:most])
    return [[int(column[k]) for column in columns] for k in range(most)]


METHOD = Method(passes=strictly_fair, select=by_evolution)


def run(task: SearchTask) -> SearchResult:
    return search(task, METHOD)
