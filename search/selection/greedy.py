"""The best candidate of every gene, then the swaps that cost least score per ms until the limit is met (DI-NAS)."""

import numpy as np

from ..latency import LatencyModel, check_limit, repair
from .exact import Selection, check_scores, score_of


def greedy(latency: LatencyModel, scores: tuple[np.ndarray, ...], limit_ms: float) -> Selection:
    """What the per-gene argmax becomes under the limit; of equal scores the faster candidate, then the earlier.

    scores as for `exact.select`. `bound` is the sum of the best scores, limit or no limit, so the gap is 0 where
    nothing had to be swapped. Raises InputError if no architecture meets the limit or a score is not finite.
    """
    check_scores(latency, scores)
    check_limit(latency, limit_ms)
    best = tuple(int(np.lexsort((ms, -values))[0]) for ms, values in zip(latency.candidate_ms, scores, strict=True))
    indices = repair(latency, best, limit_ms, scores)
    return Selection(indices, score_of(scores, indices), score_of(scores, best), latency.ms_of(indices), limit_ms)
