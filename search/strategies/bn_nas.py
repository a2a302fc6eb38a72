"""BN-NAS: only batch-norms are trained, and their gammas score the candidates (Chen et al., ICCV 2021).

As in the released code, the last batch-norm of every candidate is trained and everything else, the classifier included,
stays at its random values. The score of an architecture is the sum of mean |gamma|; the paper maximises it by
evolution under a FLOPs limit, here it is maximised exactly under the latency limit. There, four layers are fixed to
identity by hand; here depth is decided like the rest, by a batch-norm on the identity.
"""

from ..indicators import Indicators
from .selecting import by_indicators
from .single_path import Method, search
from .spos import uniform
from .task import SearchResult, SearchTask

SOURCE = "BN-NAS: Neural Architecture Search with Batch Normalization (Chen et al., ICCV 2021)"

METHOD = Method(passes=uniform, select=by_indicators(Indicators.blocks), trainable="last", indicators="block")


def run(task: SearchTask) -> SearchResult:
    return search(task, METHOD)
