"""Amended DARTS: the inverse Hessian in the gradient of alpha is replaced by the Hessian (Bi et al., arXiv 1910.11831).

No code of the authors was found. At w*(alpha) the gradient is g1 - M H^-1 v, with M = d2L_train/dalpha dw,
H = d2L_train/dw2 and v = dL_val/dw; DARTS puts xi in the place of H^-1, this method eta H. The paper says that the
amended term always has a positive product with the true one. That does not hold for every M and H (there is a
counterexample with two weights in the tests), so nothing here builds on it. H v grows with the sharpness of the loss,
and M H v can be many times as long as g1, which it would silence: it gives its direction, and g1 its largest length.
The curve `amendment` of a result is their ratio before that. The paper's other proposal, to search and to train under
the same settings, is the user's choice of budget and space.
"""

import math
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from ..quick_backward import QuickBackward
from ..second_order import Exact, Loss, Products, gradients, length, trained, undisturbed
from .bilevel import Method, Problem, search
from .task import SearchResult, SearchTask

SOURCE = "Stabilizing DARTS with Amended Gradient Estimation on Architectural Parameters (Bi et al., 2019)"


def amended(
    problem: Problem,
    eta: float,
    most: float = math.inf,
    products: Callable[[Loss, nn.Module], Products] = Exact,
) -> list[Tensor]:
    """g1 - eta M H v, the latter shortened to at most `most` times the length of g1.

    The validation loss is taken at the present weights; M and H are of one batch of training. products: one of
    second_order.PRODUCTS.
    """
    weights, alphas = trained(problem.model), problem.alphas
    with QuickBackward():
        held_out = problem.validation()
    found = gradients(held_out, [*alphas, *weights])
    direct, v = found[: len(alphas)], found[len(alphas) :]
    with undisturbed(problem.model):
        training = products(problem.train, problem.model)
        amendment = training(training(v, weights), alphas)
    ratio = eta * length(amendment) / length(direct).clamp(min=1e-12)
    problem.notes["amendment"] = ratio
    share = eta * (most / ratio.clamp(min=1e-12)).clamp(max=1)
    return [g - share * m for g, m in zip(direct, amendment, strict=True)]


METHOD = Method(gradient=partial(amended, eta=0.1, most=1.0))


def run(task: SearchTask, method: Method = METHOD) -> SearchResult:
    return search(task, method)
