"""DCP-NAS's discrepancy: on a model whose Hessian is known, in float64, and on small networks and supernets."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bnas.search.binary.layers import Style
from bnas.search.discrepancy import (
    CURVATURES,
    DISTANCES,
    Logits,
    child_loss,
    cosine,
    discrepant,
    flat,
    tangent,
    unflat,
)
from bnas.search.spaces import make_space
from bnas.search.supernet import Supernet

SIZES = (3, 2, 4)  # of three decisions, P = 9
CLASSES, IMAGES = 5, 24
EVERY_CURVATURE = pytest.mark.parametrize("curvature", CURVATURES)
EVERY_DISTANCE = pytest.mark.parametrize("distance", DISTANCES)


class Toy:
    """logits = A alpha with a random A for each image: l_C is convex, and its Hessian is the Fisher matrix."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.matrix = normal(IMAGES, CLASSES, sum(SIZES))
        self.alphas = list(normal(sum(SIZES)).split(SIZES))
        self.parent = normal(IMAGES, CLASSES)
        self.t = normal(sum(SIZES))
        self.v = normal(sum(SIZES))
        self.labels = torch.randint(0, CLASSES, (IMAGES,), generator=generator)

    def logits(self, alphas: Sequence[Tensor]) -> Tensor:
        vectors = [a.expand(IMAGES, -1) for a in alphas]
        return torch.einsum("bcp,bp->bc", self.matrix, torch.cat(vectors, dim=1))

    def gradient(self, alpha: np.ndarray, chosen: slice = slice(None)) -> np.ndarray:
        """grad l_C of the images chosen, by hand: mean over b of A_b^T (p^_b - p_b)."""
        matrix = self.matrix.numpy()[chosen]
        off = softmax(matrix @ alpha) - softmax(self.parent.numpy()[chosen])
        return np.einsum("bcp,bc->p", matrix, off) / len(matrix)

    def fisher(self, alpha: np.ndarray) -> np.ndarray:
        """1/N sum_b sum_n p^_bn g_bn g_bn^T with g_bn = A_b^T (e_n - p^_b), term by term."""
        total = np.zeros((len(alpha), len(alpha)))
        for matrix in self.matrix.numpy():
            p = softmax(matrix @ alpha)
            for n in range(CLASSES):
                g = matrix.T @ (np.eye(CLASSES)[n] - p)
                total += p[n] * np.outer(g, g) / IMAGES
        return total


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def distances(g: np.ndarray, t: np.ndarray) -> dict[str, float]:
    return {
        "frobenius": float(((g - t) ** 2).sum()),
        "cosine": float(1 - g @ t / np.sqrt((g @ g) * (t @ t))),
        "l1": float(np.abs(g - t).sum()),
    }


def differences(f: Callable[[np.ndarray], float], at: np.ndarray, h: float = 1e-6) -> np.ndarray:
    """The gradient of f by central differences."""
    return np.array([(f(at + h * e) - f(at - h * e)) / (2 * h) for e in np.eye(len(at))])


def angle(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_losses_against_numpy() -> None:
    toy = Toy()
    p, q = softmax(toy.parent.numpy()), softmax(toy.logits(toy.alphas).numpy())
    assert child_loss(toy.logits(toy.alphas), toy.parent).item() == pytest.approx((p * np.log(p / q)).sum() / IMAGES)
    assert child_loss(toy.parent, toy.parent).item() == pytest.approx(0, abs=1e-12)
    parent = toy.parent.clone().requires_grad_()
    child = toy.logits(toy.alphas).requires_grad_()
    child_loss(child, parent).backward()
    assert parent.grad is None


def test_tangent_is_the_gradient_of_the_log_likelihood_and_the_printed_one_is_zero() -> None:
    toy = Toy()
    alpha = flat(toy.alphas).numpy()

    def cross_entropy(alpha: np.ndarray) -> float:
        p = softmax(toy.matrix.numpy() @ alpha)
        return float(-np.log(p[np.arange(IMAGES), toy.labels.numpy()]).mean())

    t, logits = tangent(toy.logits, toy.alphas, toy.labels)
    np.testing.assert_allclose(t.numpy(), differences(cross_entropy, alpha), rtol=1e-6, atol=1e-9)
    assert t.norm() > 0.1
    torch.testing.assert_close(logits, toy.logits(toy.alphas))
    leaf = flat(toy.alphas).requires_grad_()
    (printed,) = torch.autograd.grad(toy.logits(leaf.split(SIZES)).softmax(1).sum(), leaf)
    assert printed.abs().max() < 1e-12


@EVERY_DISTANCE
def test_a_distance_and_its_derivative(distance: str) -> None:
    toy = Toy()
    g, t = toy.v.numpy(), toy.t.numpy()
    value, outward = DISTANCES[distance](toy.v, toy.t)
    assert value.item() == pytest.approx(distances(g, t)[distance])
    np.testing.assert_allclose(
        outward.numpy(), differences(lambda x: distances(x, t)[distance], g), rtol=1e-6, atol=1e-8
    )


def test_the_cosine_of_a_zero_gradient_is_finite() -> None:
    zero, t = torch.zeros(4), torch.randn(4)
    assert all(value.isfinite().all() for value in (*cosine(zero, t), *cosine(t, zero)))


@EVERY_CURVATURE
def test_every_curvature_reports_the_same_loss_and_gradient_and_is_symmetric(curvature: str) -> None:
    toy = Toy()
    slope = CURVATURES[curvature](toy.logits, toy.alphas, toy.parent, 6)
    torch.testing.assert_close(slope.loss, child_loss(toy.logits(toy.alphas), toy.parent))
    np.testing.assert_allclose(slope.gradient.numpy(), toy.gradient(flat(toy.alphas).numpy()), rtol=1e-9, atol=1e-12)
    assert not slope.loss.requires_grad
    assert not slope.gradient.requires_grad
    matrix = torch.stack([slope.curvature(e) for e in torch.eye(sum(SIZES), dtype=torch.float64)])
    torch.testing.assert_close(matrix, matrix.T)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-9
    assert matrix.norm() > 0.01


@pytest.mark.parametrize("curvature", ["fisher_class", "exact"])
def test_where_logits_are_linear_in_alpha_the_fisher_matrix_is_the_hessian(curvature: str) -> None:
    toy = Toy()
    expected = toy.fisher(flat(toy.alphas).numpy()) @ toy.v.numpy()
    product = CURVATURES[curvature](toy.logits, toy.alphas, toy.parent, 1).curvature(toy.v)
    np.testing.assert_allclose(product.numpy(), expected, rtol=1e-8)


@EVERY_DISTANCE
@pytest.mark.parametrize("curvature", ["fisher_class", "exact"])
def test_what_the_discrepancy_adds_is_the_gradient_of_the_discrepancy(curvature: str, distance: str) -> None:
    toy = Toy()
    alpha, t = flat(toy.alphas).numpy(), toy.t.numpy()
    slope = CURVATURES[curvature](toy.logits, toy.alphas, toy.parent, 1)
    value, gradient = discrepant(slope, toy.t, 0.7, distance)
    true = differences(lambda a: distances(toy.gradient(a), t)[distance], alpha)
    added = (gradient - slope.gradient).numpy() / 0.7
    assert value.item() == pytest.approx(distances(toy.gradient(alpha), t)[distance])
    assert angle(added, true) > 0.99999
    np.testing.assert_allclose(added, true, rtol=1e-4, atol=1e-7)


def test_the_sign_trap_the_equation_as_printed_with_the_fisher_matrix_for_the_hessian_climbs() -> None:
    toy = Toy()
    alpha, t = flat(toy.alphas).numpy(), toy.t.numpy()
    true = differences(lambda a: distances(toy.gradient(a), t)["frobenius"], alpha)
    maximised = -toy.gradient(alpha)  # dG / d alpha^, beside df^P / d alpha = -t
    printed = 2 * toy.fisher(alpha) @ (maximised - -t)
    assert angle(printed, true) < -0.99999
    slope = CURVATURES["fisher_class"](toy.logits, toy.alphas, toy.parent, 1)
    ours = (discrepant(slope, toy.t, 1.0)[1] - slope.gradient).numpy()
    assert angle(ours, true) > 0.99999


def test_rank_one_only_rescales_the_gradient() -> None:
    toy = Toy()
    slope = CURVATURES["ggn_rank1"](toy.logits, toy.alphas, toy.parent, 1)
    _, gradient = discrepant(slope, toy.t, 0.3)
    g, t = slope.gradient.numpy(), toy.t.numpy()
    np.testing.assert_allclose(gradient.numpy(), (1 + 2 * 0.3 * g @ (g - t)) * g, rtol=1e-9)


@pytest.mark.parametrize("chunks", [1, 4, 7, IMAGES, 10 * IMAGES])
def test_micro_is_the_sum_over_gradients_of_chunks(chunks: int) -> None:
    toy = Toy()
    alpha, v = flat(toy.alphas).numpy(), toy.v.numpy()
    count = min(chunks, IMAGES)
    larger, size = IMAGES % count, IMAGES // count  # the first chunks take one image more where it does not divide
    ends = np.cumsum([size + 1] * larger + [size] * (count - larger))
    expected = np.zeros_like(alpha)
    for start, end in itertools.pairwise([0, *ends]):
        g = toy.gradient(alpha, slice(int(start), int(end)))
        expected += (end - start) / IMAGES * g * (g @ v)
    product = CURVATURES["ggn_micro"](toy.logits, toy.alphas, toy.parent, chunks).curvature(toy.v).numpy()
    np.testing.assert_allclose(product, expected, rtol=1e-8)
    along = abs(angle(product, toy.gradient(alpha)))
    assert along == pytest.approx(1) if chunks == 1 else along < 0.999


@EVERY_CURVATURE
@EVERY_DISTANCE
def test_weight_zero_leaves_the_objective_of_cp_nas(curvature: str, distance: str) -> None:
    toy = Toy()
    slope = CURVATURES[curvature](toy.logits, toy.alphas, toy.parent, 4)
    assert torch.equal(discrepant(slope, toy.t, 0.0, distance)[1], slope.gradient)


def test_unflat_undoes_flat() -> None:
    alphas = [torch.randn(3), torch.randn(1), torch.randn(4)]
    assert all(map(torch.equal, unflat(flat(alphas), alphas), alphas))


# On supernets


def supernet_on(name: str, style: Style, images: int = 6) -> tuple[Logits, list[Tensor], Tensor]:
    """(the network as a function of its alphas, alphas, a Parent's logits), float64, by batch statistics."""
    torch.manual_seed(0)
    space = make_space(name, (1, 8, 8), 4)
    supernet = Supernet(space, style).double()
    x = torch.randn(images, *space.shape, dtype=torch.float64)
    alphas = [0.5 * torch.randn(len(d.candidates), dtype=torch.float64) for d in space.decisions]

    def logits(alphas: Sequence[Tensor]) -> Tensor:
        rows = [a.softmax(-1) for a in alphas]
        return supernet(x, [r if r.dim() == 1 else r.t()[:, :, None, None, None] for r in rows])

    return logits, alphas, torch.randn(images, 4, dtype=torch.float64)


FLOAT, BINARY = "mobilenet:micro:bits=32", "mobilenet:micro"


def gradient_at(logits: Logits, alphas: list[Tensor], parent: Tensor, v: Tensor, h: float) -> Tensor:
    """grad l_C at alphas + h v."""
    moved = [a.requires_grad_() for a in unflat(flat(alphas) + h * v, alphas)]
    loss = F.kl_div(logits(moved).log_softmax(1), parent.softmax(1), reduction="batchmean")
    return flat(torch.autograd.grad(loss, moved))


@pytest.mark.parametrize("name", [FLOAT, "shufflenet:micro:bits=32", "cells:micro:bits=32"])
def test_exact_products_equal_differences_of_the_gradient_of_a_supernet(name: str) -> None:
    logits, alphas, parent = supernet_on(name, Style())
    v = torch.randn(len(flat(alphas)), dtype=torch.float64)
    h = 1e-7  # larger, and some ReLU of the supernet changes sides in between
    expected = (gradient_at(logits, alphas, parent, v, h) - gradient_at(logits, alphas, parent, v, -h)) / (2 * h)
    product = CURVATURES["exact"](logits, alphas, parent, 1).curvature(v)
    torch.testing.assert_close(product, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("curvature", ["fisher_class", "exact"])
def test_products_pass_through_1_bit_layers(curvature: str) -> None:
    """Symmetric, and not what they would be with signs that let no second derivative through."""
    logits, alphas, parent = supernet_on(BINARY, Style(scale="learned"))
    slope = CURVATURES[curvature](logits, alphas, parent, 1)
    u, v = torch.randn(2, len(flat(alphas)), dtype=torch.float64)
    torch.testing.assert_close(u @ slope.curvature(v), v @ slope.curvature(u))
    assert slope.curvature(v).norm() > 1e-6


def test_the_fisher_matrix_of_a_supernet_is_the_sum_over_classes_and_images() -> None:
    logits, alphas, parent = supernet_on(FLOAT, Style())
    leaves = [a.clone().requires_grad_() for a in alphas]
    z = logits(leaves)
    v = torch.randn(len(flat(alphas)), dtype=torch.float64)
    expected = torch.zeros_like(v)
    for log_p in z.log_softmax(1):
        for value in log_p:
            g = flat(torch.autograd.grad(value, leaves, retain_graph=True))
            expected += value.detach().exp() * g * (g @ v) / len(z)
    torch.testing.assert_close(CURVATURES["fisher_class"](logits, alphas, parent, 1).curvature(v), expected)


@pytest.mark.parametrize("name", ["cells:micro", BINARY, "shufflenet:micro"])
def test_alphas_of_each_image_give_the_gradient_of_the_shared_ones(name: str) -> None:
    logits, alphas, parent = supernet_on(name, Style(scale="learned"))
    shared = CURVATURES["ggn_rank1"](logits, alphas, parent, 1)
    apart = CURVATURES["ggn_micro"](logits, alphas, parent, 3)
    torch.testing.assert_close(apart.loss, shared.loss)
    torch.testing.assert_close(apart.gradient, shared.gradient)


def test_without_batch_statistics_the_chunks_are_those_of_separate_batches() -> None:
    torch.manual_seed(0)
    space = make_space(FLOAT, (1, 8, 8), 4)
    supernet = Supernet(space).double().eval()
    x, parent = torch.randn(6, *space.shape, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    alphas = [0.5 * torch.randn(len(d.candidates), dtype=torch.float64) for d in space.decisions]
    v = torch.randn(len(flat(alphas)), dtype=torch.float64)

    def logits(alphas: Sequence[Tensor]) -> Tensor:
        return supernet(x, [a.softmax(-1).t()[:, :, None, None, None] for a in alphas])

    expected = torch.zeros_like(v)
    for part, target in zip(x.split(2), parent.split(2), strict=True):
        leaves = [a.clone().requires_grad_() for a in alphas]
        z = supernet(part, [a.softmax(0) for a in leaves])
        loss = F.kl_div(z.log_softmax(1), target.softmax(1), reduction="batchmean")
        g = flat(torch.autograd.grad(loss, leaves))
        expected += g * (g @ v) / 3
    product = CURVATURES["ggn_micro"](logits, alphas, parent, 3).curvature(v)
    torch.testing.assert_close(product, expected)
