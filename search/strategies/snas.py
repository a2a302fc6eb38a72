"""SNAS: weights and alphas learn together, from one batch and one backward pass (Xie et al., ICLR 2019).

Every candidate runs, weighted by a draw from the Concrete distribution whose temperature falls. One level: all training
images serve both, and an epoch has twice the steps of a bilevel one with as many images. The cost in the objective is
the expected latency under the draw. The released code lets `none` win and keeps all edges of a cell; an architecture of
our cells has two edges for each node, so edges compete by the probability of their best operation, as in DARTS.
"""

from functools import partial

from ..relaxations import Alphas, Concrete
from .bilevel import AlphaRecipe, Method, search
from .task import SearchResult, SearchTask

SOURCE = "SNAS: Stochastic Neural Architecture Search (Xie et al., ICLR 2019)"

METHOD = Method(
    relaxation=Concrete(first=1.0, last=0.03),
    order="together",
    alphas=partial(Alphas, mean=1.0, deviation=0.01),
    alpha_recipe=AlphaRecipe(clip=10.0),
)


def run(task: SearchTask, method: Method = METHOD) -> SearchResult:
    return search(task, method)
