"""Amended DARTS: the inverse Hessian in the gradient of alpha is replaced by the Hessian (Bi et al., arXiv 1910.11831).

No code of the authors was found. At w*(alpha) the gradient is g1 - M H^-1 v, with M = d2L_train/dalpha dw,
H = d2L_train/dw2 and v = dL_val/dw; DARTS puts xi in the place of H^-1, this method eta H. The paper says that the
amended term always has a positive product with the true one. That does not hold for every M and H (there is a
counterexample with two weights in the tests), so nothing here builds on it. H v grows with the sharpness of the loss:
the gradient is clipped, and the length of the amendment relative to g1 is a curve of the result. The paper's other
proposal, to search and to train under the same settings, is the user's choice of budget and space.
"""

from functools import partial

from torch import Tensor

from ..second_order import gradients, length, product, trained, undisturbed
from .bilevel import AlphaRecipe, Method, Problem, search
from .darts_second import mixed_product
from .task import SearchResult, SearchTask

SOURCE = "Stabilizing DARTS with Amended Gradient Estimation on Architectural Parameters (Bi et al., 2019)"


def amended(problem: Problem, eta: float) -> list[Tensor]:
    """g1 - eta M H v. The validation loss is taken at the present weights; M and H are of one batch of training."""
    weights, alphas = trained(problem.model), problem.alphas
    found = gradients(problem.validation(), [*alphas, *weights])
    direct, v = found[: len(alphas)], found[len(alphas) :]
    with undisturbed(problem.model):
        curved = product(lambda: gradients(problem.train(), weights), weights, v)
        amendment = mixed_product(problem, curved)
    problem.notes["amendment"] = eta * length(amendment) / length(direct).clamp(min=1e-12)
    return [g - eta * m for g, m in zip(direct, amendment, strict=True)]


METHOD = Method(gradient=partial(amended, eta=0.1), alpha_recipe=AlphaRecipe(clip=5.0))


def run(task: SearchTask, method: Method = METHOD) -> SearchResult:
    return search(task, method)
