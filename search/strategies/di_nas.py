"""DI-NAS: dynamical isometry by orthogonal initialisation, fair sampling, block and layer indicators.

Weights are orthogonal, for 1-bit convolutions rows of Hadamard matrices, and stay as they are; all batch-norms are
trained with strictly fair passes. The paper does not say how block and layer indicators combine. Here, with s the block
indicators of a layer and r its layer indicator, a candidate's score is S * s_k / sum(s) with S = max(s) / (max(s) + r):
how much of the signal goes through the layer at all, shared among its candidates. Without further limits each layer
takes its largest block indicator, as the paper does. The classifier is frozen, as in BN-NAS's code.
"""

import numpy as np

from ..indicators import Indicators
from .fairnas import strictly_fair
from .selecting import by_indicators
from .single_path import Method, search
from .task import SearchResult, SearchTask

SOURCE = "Dynamical Isometry based Rigorous Fair Neural Architecture Search (Luo et al., 2023)"


def importance(indicators: Indicators) -> tuple[np.ndarray, ...]:
    """The score of each candidate of each decision."""
    scores = []
    for s, r in zip(indicators.blocks(), indicators.layers(), strict=True):
        through = 1.0 if r is None else s.max() / max(s.max() + r, 1e-12)
        scores.append(through * s / max(s.sum(), 1e-12))
    return tuple(scores)


METHOD = Method(
    passes=strictly_fair,
    select=by_indicators(importance),
    trainable="norms",
    indicators="layer",
    initialiser="hadamard",
)


def run(task: SearchTask) -> SearchResult:
    return search(task, METHOD)
