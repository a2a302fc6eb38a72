"""Initial weights as functions of a seed and of a parameter's name: Gaussian, orthogonal, Hadamard.

A function sets the weights of every convolution and linear layer of a model, in place, and zeroes the biases of the
latter. What it draws depends on the seed and on the parameter's name, on nothing else: a unit gets the same weights in
a supernet and in a network, and in whatever order they are made. The weights of a layer are read as one matrix
[out, in * k * k] for each group; a depthwise convolution is one vector of k * k numbers per channel. A batch-norm
follows every convolution of the spaces, so a gain would cancel, and there is none.

What DI-NAS calls triangular decomposition is `orthogonal`. The sign of an orthogonal matrix is not orthogonal, hence
`hadamard` for 1-bit weights.
"""

import hashlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import count
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from .binary.layers import BinaryConv2d
from .binary.quantizers import mean_magnitude

Layer: TypeAlias = nn.Conv2d | nn.Linear | BinaryConv2d
Draw = Callable[[Layer, tuple[int, int, int, int, int], np.random.Generator], np.ndarray]
"""(layer, (groups, out, in, k, k), random numbers) -> weights of that shape; out and in are those of one group."""


def gaussian(model: nn.Module, seed: int) -> None:
    """Independent normal weights of variance 1 / fan-in: He et al. 2015 with a gain of 1 instead of that of ReLU.

    Each output's weights then have an expected norm of 1, as orthogonal rows have.
    """
    _initialise(model, seed, lambda layer, shape, rng: rng.standard_normal(shape) / np.sqrt(np.prod(shape[2:])))


def orthogonal(model: nn.Module, seed: int) -> None:
    """Q of a Gaussian matrix W = QR, uniformly distributed: rows orthonormal, or columns where they are fewer.

    Source: DI-NAS, section 3.1.2; QR with the signs of R's diagonal, as Saxe et al. 2014. Each group of a grouped
    convolution is a matrix of its own, hence each channel of a depthwise one has norm 1.
    """
    _initialise(model, seed, _flat)


def orthogonal_delta(model: nn.Module, seed: int) -> None:
    """As `orthogonal`, but Q [out, in] at the centre tap of a k x k kernel and zeros elsewhere, where in <= out.

    Only then a k x k convolution is itself orthogonal, not just its matrix: with `orthogonal`, neighbouring windows
    overlap (Xiao et al. 2018, delta-orthogonal). Where in > out, and for 1-bit weights, whose sign turns zeros into
    ones, it is `orthogonal`.
    """

    def draw(layer: Layer, shape: tuple[int, int, int, int, int], rng: np.random.Generator) -> np.ndarray:
        groups, rows, columns, height, width = shape
        if columns > rows or isinstance(layer, BinaryConv2d):
            return _flat(layer, shape, rng)
        weight = np.zeros(shape)
        weight[..., height // 2, width // 2] = _orthogonal(groups, rows, columns, rng)
        return weight

    _initialise(model, seed, draw)


def hadamard(model: nn.Module, seed: int) -> None:
    """1-bit weights +-1 / sqrt(n) whose signs are part of a Hadamard matrix of order n; all others as `orthogonal`.

    Where out <= fan-in = n the signs are rows of H, H H^T = n I, so sign(W) sign(W)^T = n I exactly; else n = out, they
    are columns, and sign(W)^T sign(W) = n I. H is permuted and has random signs in both directions. Where
    `hadamard_matrix` gives none of order n, the signs are part of the next larger one: no longer exactly orthogonal,
    off its diagonal the product is at most as large as the orders differ. An extension beyond DI-NAS.
    """

    def draw(layer: Layer, shape: tuple[int, int, int, int, int], rng: np.random.Generator) -> np.ndarray:
        if not isinstance(layer, BinaryConv2d):
            return _flat(layer, shape, rng)
        groups, rows, *kernel = shape
        fan_in = int(np.prod(kernel))
        signs = np.stack([_hadamard_part(rows, fan_in, rng) for _ in range(groups)])
        return signs.reshape(shape) / np.sqrt(max(rows, fan_in))

    _initialise(model, seed, draw)


INITIALISERS: dict[str, Callable[[nn.Module, int], None]] = {
    "gaussian": gaussian,
    "orthogonal": orthogonal,
    "orthogonal_delta": orthogonal_delta,
    "hadamard": hadamard,
}


def weight_layers(model: nn.Module) -> Iterator[tuple[str, Layer]]:
    """(name, module) of every convolution and linear layer: float, 8 bits and 1 bit."""
    for name, module in model.named_modules():
        if isinstance(module, Layer):
            yield name, module


@torch.no_grad()
def _initialise(model: nn.Module, seed: int, draw: Draw) -> None:
    for name, layer in weight_layers(model):
        parameter = f"{name}.weight" if name else "weight"
        rng = np.random.default_rng([seed, int.from_bytes(hashlib.sha256(parameter.encode()).digest()[:8], "little")])
        out, per_group, *kernel = (*layer.weight.shape, 1, 1)[:4]
        groups = 1 if isinstance(layer, nn.Linear) else layer.groups
        weight = draw(layer, (groups, out // groups, per_group, *kernel), rng)
        layer.weight.copy_(torch.from_numpy(weight).reshape(layer.weight.shape))
        if isinstance(layer, BinaryConv2d):
            if layer.beta is not None:
                layer.beta.copy_(mean_magnitude(layer.weight))
        elif layer.bias is not None:
            layer.bias.zero_()


def _flat(layer: Layer, shape: tuple[int, int, int, int, int], rng: np.random.Generator) -> np.ndarray:
    groups, rows, *kernel = shape
    return _orthogonal(groups, rows, int(np.prod(kernel)), rng).reshape(shape)


def _orthogonal(groups: int, rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """[groups, rows, columns]. Without the signs of R's diagonal, Q would not be uniform over orthogonal matrices."""
    q, r = np.linalg.qr(rng.standard_normal((groups, max(rows, columns), min(rows, columns))))
    q = q * np.where(np.diagonal(r, axis1=1, axis2=2) < 0, -1.0, 1.0)[:, None, :]
    return q if rows >= columns else q.transpose(0, 2, 1)


# Hadamard matrices


def _hadamard_part(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """`rows` x `columns` of a permuted Hadamard matrix with random signs, int8: [rows, columns] of -1 and 1."""
    wanted = max(rows, columns)
    matrix = next(m for m in map(hadamard_matrix, count(wanted)) if m is not None)
    order = len(matrix)
    down, across = rng.permutation(order)[:rows], rng.permutation(order)[:columns]
    signs = (2 * rng.integers(2, size=size, dtype=np.int8) - 1 for size in ((rows, 1), (1, columns)))
    return matrix[np.ix_(down, across)] * next(signs) * next(signs)


@lru_cache(maxsize=32)
def hadamard_matrix(order: int) -> np.ndarray | None:
    """H [order, order], int8, of -1 and 1 with H H^T = order * I; None where none of the constructions gives one.

    Doubling (Sylvester 1867) and both of Paley (1933) over fields of p and p^2 elements, p an odd prime. Together
    they reach every multiple of 4 below 92.
    """
    matrix = _construct(order)
    if matrix is not None:
        matrix.flags.writeable = False
    return matrix


def _construct(order: int) -> np.ndarray | None:
    if order == 1:
        return np.ones((1, 1), np.int8)
    pair = np.array([[1, 1], [1, -1]], np.int8)
    if order % 2 == 0 and (half := hadamard_matrix(order // 2)) is not None:
        return np.kron(pair, half)
    if order % 4:
        return None
    if (character := _quadratic_character(order - 1)) is not None:
        skew = np.block([[np.zeros((1, 1)), np.ones((1, order - 1))], [-np.ones((order - 1, 1)), character]])
        return (skew + np.eye(order)).astype(np.int8)
    size = order // 2
    if size % 4 == 2 and (character := _quadratic_character(size - 1)) is not None:
        symmetric = np.block([[np.zeros((1, 1)), np.ones((1, size - 1))], [np.ones((size - 1, 1)), character]])
        return (np.kron(symmetric, pair) + np.kron(np.eye(size), [[1, -1], [-1, -1]])).astype(np.int8)
    return None


def _quadratic_character(q: int) -> np.ndarray | None:
    """[q, q] of chi(a - b) over all pairs of the field of q elements: 0 for 0, 1 for squares, else -1.

    None if q is neither an odd prime nor the square of one. The elements of the field of p^2 are u + v sqrt(r), where r
    is no square; such an element is a square just if its norm u^2 - r v^2 is one in the field of p.
    """
    root = round(q**0.5)
    p = root if root * root == q else q
    if p % 2 == 0 or p < 3 or any(p % divisor == 0 for divisor in range(3, round(p**0.5) + 1, 2)):
        return None
    chi = -np.ones(p, np.int8)
    chi[np.arange(p) ** 2 % p] = 1
    chi[0] = 0
    difference = (np.arange(p)[:, None] - np.arange(p)) % p
    if p == q:
        return chi[difference]
    r = int(np.flatnonzero(chi < 0)[0])
    u, v = np.divmod(np.arange(q), p)
    return chi[(difference[u[:, None], u] ** 2 - r * difference[v[:, None], v] ** 2) % p]
