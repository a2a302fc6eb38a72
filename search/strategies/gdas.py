"""GDAS: one sampled candidate per decision runs, and the gradient passes through it (Dong and Yang, CVPR 2019).

In each step the weights go first, then the alphas, both on the same draw of candidates. The temperature falls by step
(the released code: by epoch). The code derives the two best pairs of edge and operation of a node, which may name one
edge twice; here the two edges differ, as in every architecture of our cells.
"""

from ..relaxations import HardGumbel
from .bilevel import Method, search
from .task import SearchResult, SearchTask

SOURCE = "Searching for a Robust Neural Architecture in Four GPU Hours (Dong and Yang, CVPR 2019)"

METHOD = Method(relaxation=HardGumbel(first=10.0, last=0.1), order="weights")


def run(task: SearchTask, method: Method = METHOD) -> SearchResult:
    return search(task, method)
