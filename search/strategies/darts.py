"""DARTS, first order: every candidate runs, weighted by softmax(alpha); alphas learn with the weights as constants.

Liu et al., ICLR 2019. Where we differ: the weights' optimizer is the recipe's (Adam; there SGD with momentum), because
1-bit weights learn badly with SGD; images are drawn without repetition within an epoch (the released code takes the
first batch of a fresh order for each alpha step); and the limit joins the loss of the alphas, see `expected_latency`.
"""

from .bilevel import Method, search
from .task import SearchResult, SearchTask

SOURCE = "DARTS: Differentiable Architecture Search (Liu et al., ICLR 2019)"

METHOD = Method()


def run(task: SearchTask, method: Method = METHOD) -> SearchResult:
    return search(task, method)
