"""DARTS, second order: alphas learn from the loss after one virtual step of the weights (Liu et al., ICLR 2019).

The virtual step is one of plain gradient descent with the weights' present learning rate xi, the paper's equation 6
without momentum and decay (the released code has them) and without the scaling of Adam (which makes our real steps), so
that equation 7 holds as written. Its second derivative is taken exactly: the paper's difference of two gradients
(equation 8) is mostly noise in networks with signs or ReLUs, see `second_order.Difference`.
"""

from collections.abc import Callable

from torch import Tensor, nn

from ..quick_backward import QuickBackward
from ..second_order import Exact, Loss, Products, gradients, length, moved, trained, undisturbed
from .bilevel import Method, Problem, search
from .task import SearchResult, SearchTask

SOURCE = "DARTS: Differentiable Architecture Search (Liu et al., ICLR 2019), with its second-order gradient"


def unrolled(problem: Problem, products: Callable[[Loss, nn.Module], Products] = Exact) -> list[Tensor]:
    """dL_val(w', alpha)/dalpha - xi * (d2L_train(w, alpha)/dalpha dw) v (equation 7).

    w' = w - xi dL_train/dw, v = dL_val(w', alpha)/dw', xi = problem.rate. products: one of second_order.PRODUCTS.
    """
    weights, alphas = trained(problem.model), problem.alphas
    with undisturbed(problem.model):
        training = products(problem.train, problem.model)
        with moved(weights, training.slope(), -problem.rate):
            with QuickBackward():
                held_out = problem.validation()
            found = gradients(held_out, [*alphas, *weights])
        direct, v = found[: len(alphas)], found[len(alphas) :]
        mixed = training(v, alphas)
    problem.notes["second order"] = problem.rate * length(mixed) / length(direct).clamp(min=1e-12)
    return [g - problem.rate * m for g, m in zip(direct, mixed, strict=True)]


METHOD = Method(gradient=unrolled)


def run(task: SearchTask, method: Method = METHOD) -> SearchResult:
    return search(task, method)
