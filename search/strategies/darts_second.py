"""DARTS, second order: alphas learn from the loss after one virtual step of the weights (Liu et al., ICLR 2019).

The virtual step is one of plain gradient descent with the weights' present learning rate xi, the paper's equation 6
without momentum and decay (the released code has them) and without the scaling of Adam (which makes our real steps), so
that equation 7 holds as written.
"""

from torch import Tensor

from ..second_order import constant, gradients, moved, product, trained, undisturbed
from .bilevel import Method, Problem, search
from .task import SearchResult, SearchTask

SOURCE = "DARTS: Differentiable Architecture Search (Liu et al., ICLR 2019), with its second-order gradient"


def unrolled(problem: Problem) -> list[Tensor]:
    """dL_val(w', alpha)/dalpha - xi * (d2L_train(w, alpha)/dalpha dw) v (equation 7).

    w' = w - xi dL_train/dw, v = dL_val(w', alpha)/dw', xi = problem.rate.
    """
    weights, alphas = trained(problem.model), problem.alphas
    with undisturbed(problem.model):
        downhill = gradients(problem.train(), weights)
        with moved(weights, downhill, -problem.rate):
            found = gradients(problem.validation(), [*alphas, *weights])
        direct, v = found[: len(alphas)], found[len(alphas) :]
        mixed = mixed_product(problem, v)
    return [g - problem.rate * m for g, m in zip(direct, mixed, strict=True)]


def mixed_product(problem: Problem, direction: list[Tensor]) -> list[Tensor]:
    """(d2L_train/dalpha dw) direction, at the present weights; one tensor for each alpha."""

    def slope() -> list[Tensor]:
        with constant(problem.model):
            return gradients(problem.train(), problem.alphas)

    return product(slope, trained(problem.model), direction)


METHOD = Method(gradient=unrolled)


def run(task: SearchTask, method: Method = METHOD) -> SearchResult:
    return search(task, method)
