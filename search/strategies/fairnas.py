"""FairNAS: strictly fair supernet training, evolutionary selection (Chu et al., ICCV 2021).

In every step each candidate of each decision runs in exactly one of m passes on the same batch; one step of the
optimizer follows. The released code holds models only. Where decisions differ in their number of candidates, m is the
largest, and a decision with fewer draws again: its counts then differ by at most one within a step. In cells a pass
takes one operation on each of the 14 edges, `none` included, but never `none` on all edges of a node: what reads that
node would not run.
"""

from functools import cache

import numpy as np

from ..spaces import SearchSpace
from ..spaces.space import NONE
from .selecting import by_evolution
from .single_path import Method, Passes, search
from .task import SearchResult, SearchTask

SOURCE = "FairNAS: Rethinking Evaluation Fairness of Weight Sharing Neural Architecture Search (Chu et al., ICCV 2021)"


def strictly_fair(space: SearchSpace, seed: int, step: int, steps: int = 0) -> Passes:
    """m passes in which each decision goes through a permutation of its candidates, drawn anew for each decision."""
    rng = np.random.default_rng((seed, step))
    most = max(len(decision.candidates) for decision in space.decisions)

    def turns(decision: int) -> np.ndarray:
        count = len(space.decisions[decision].candidates)
        return np.concatenate([rng.permutation(count) for _ in range(-(-most // count))])[:most]

    columns = [turns(d) for d in range(len(space.decisions))]
    for edges, none in nodes(space):
        while (np.stack([columns[d] for d in edges]) == none).all(0).any():
            for d in edges:
                columns[d] = turns(d)
    return [[int(column[k]) for column in columns] for k in range(most)]


@cache
def nodes(space: SearchSpace) -> list[tuple[list[int], int]]:
    """(edges, index of `none` on them) of each node that `none` can cut off; no entry in chains."""
    edges = [sorted({d for setting in gene.settings for d, _ in setting}) for gene in space.genes]
    none = [space.decisions[e[0]].candidates for e in edges]
    return [(e, names.index(NONE)) for e, names in zip(edges, none, strict=True) if NONE in names]


METHOD = Method(passes=strictly_fair, select=by_evolution)


def run(task: SearchTask) -> SearchResult:
    return search(task, METHOD)
