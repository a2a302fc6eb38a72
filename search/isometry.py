"""Dynamical isometry: how evenly a candidate passes signals on, as squared singular values of its Jacobian.

J [outputs, inputs] is the derivative of a block's result by its input, at one image of Gaussian numbers. Batch-norms
have the statistics of a batch of such images, as in a search, and hold them: the derivative treats them as constants
(DI-NAS, eq. 14). Of 1-bit convolutions J contains the surrogate derivative instead of the sign's, which is zero: it is
what gradients are multiplied by, no derivative of what the block computes.

Isometry is phi(J J^T) = 1 and varphi(J J^T) = phi((J J^T)^2) - phi(J J^T)^2 = 0 (DI-NAS, eq. 11), where phi is the
trace per dimension: mean and variance of the squared singular values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .binary.layers import BinaryConv2d, Quantize, QuantizedConv2d, Style, same_padding
from .binary.quantizers import xnor
from .initialisers import INITIALISERS, weight_layers
from .network import Network
from .spaces.space import SearchSpace
from .spaces.wiring import IMAGE, Block, Choice

LARGEST_EXACT = 512  # outputs of a block up to which all of J is computed
PROBES = 64
STATISTICS = 4096  # values of each channel, at least, that batch-norms take their statistics from
CHUNK = 2**15  # input values that go through a block at once


@dataclass(frozen=True)
class Spectrum:
    """min(outputs, inputs) squared singular values of a matrix [outputs, inputs].

    mean and spread are phi and varphi, per dimension of the smaller side: where it is the inputs, J J^T has as many
    further zeros as there are more outputs. The errors are half widths of 95% intervals, 0 if exact. values: all of
    them, ascending, or None if mean and spread are estimates.
    """

    outputs: int
    inputs: int
    mean: float
    spread: float
    mean_error: float = 0.0
    spread_error: float = 0.0
    values: np.ndarray | None = None

    @property
    def exact(self) -> bool:
        return self.values is not None


@dataclass(frozen=True)
class Candidate:
    """A block that can be chosen, at one shape. decision: the id of the first one it is found in; bits: of its
    convolutions, the lowest; block: its steps, reading `wiring.IMAGE` of `shape` (channels, height, width)."""

    decision: str
    name: str
    bits: int
    shape: tuple[int, int, int]
    block: Block

    @property
    def has_weights(self) -> bool:
        return any(step.unit.kind in ("conv", "binary_conv") for step in self.block)


@dataclass(frozen=True)
class Isometry:
    """What one initialiser makes of one candidate. bits: those it was computed with; linear: of its weight matrices
    alone, together, None if it has none; initialiser: None if it has none."""

    candidate: Candidate
    initialiser: str | None
    bits: int
    block: Spectrum
    linear: Spectrum | None


def candidates(space: SearchSpace, decision: str | None = None) -> list[Candidate]:
    """The candidates of one decision, by its id, or of all, each that differs in name, shape or units once.

    Those without any unit, whose J is the identity or zero, are left out.
    """
    found: dict[tuple, Candidate] = {}
    for item in space.template:
        if not isinstance(item, Choice) or decision not in (None, space.decisions[item.decision].id):
            continue
        names = space.decisions[item.decision]
        for name, block in zip(names.candidates, item.blocks, strict=True):
            if block:
                units = tuple(step.unit for step in block)
                bits = min(u.bits for u in units if u.kind in ("conv", "binary_conv") or u is units[-1])
                shape = (units[0].in_channels, units[0].height, units[0].width)
                read = tuple(replace(s, inputs=tuple(IMAGE if i == item.input else i for i in s.inputs)) for s in block)
                found.setdefault((name, units), Candidate(names.id, name, bits, shape, read))
    return list(found.values())


def isometries(
    candidate: Candidate, initialiser: str | None, seed: int, style: Style | None = None
) -> Iterator[Isometry]:
    """The candidate as it is, and if it has less than 32 bits, also with the same weights but no rounding at all.

    initialiser: a name of INITIALISERS, None for a candidate without weights. Images, weights and random probes depend
    on the seed alone, so that all that is compared is at the same point.
    """
    for bits in sorted({candidate.bits, 32}):
        model = Network(candidate.block, style)
        if initialiser is not None:
            INITIALISERS[initialiser](model, seed)
        if bits > candidate.bits:
            _unround(model)
        random = torch.Generator().manual_seed(seed)
        x = _settled(model, candidate, random)
        yield Isometry(candidate, initialiser, bits, jacobian_spectrum(model, x, random), weight_spectrum(model))


def weight_spectrum(model: nn.Module) -> Spectrum | None:
    """Of all convolutions and linear layers together, as matrices [out, in * k * k] for each group; None without any.

    A 1-bit weight counts as mean|w| o sign(w), the matrix of that form that is nearest to w (XNOR-Net).
    """
    values, outputs, inputs = [], 0, 0
    for _, layer in weight_layers(model):
        weight = layer.weight.detach()
        if isinstance(layer, BinaryConv2d):
            weight = xnor(weight, None).detach()
        groups = 1 if isinstance(layer, nn.Linear) else layer.groups
        matrices = weight.reshape(groups, len(weight) // groups, -1)
        values.append(squared_singular_values(matrices))
        outputs += groups * matrices.shape[1]
        inputs += groups * matrices.shape[2]
    return _exact(np.concatenate(values), outputs, inputs) if values else None


def jacobian_spectrum(model: nn.Module, x: Tensor, random: torch.Generator) -> Spectrum:
    """Of the Jacobian of `model` at x [1, C, H, W]; images of a batch must not see each other (eval mode).

    Exact up to LARGEST_EXACT outputs, else estimated with PROBES random vectors.
    """
    outputs = model(x).numel()
    if outputs > LARGEST_EXACT:
        return estimate(model, x, PROBES, random)
    return _exact(squared_singular_values(jacobian(model, x)), outputs, x.numel())


def jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """[outputs, inputs] of `model` at x [1, C, H, W]: row by row, as gradients of one copy of x for each output."""
    rows = []
    for unit in torch.eye(model(x).numel(), dtype=x.dtype).split(_chunk(x)):
        copies, y = _copies(model, x, len(unit))
        (gradient,) = torch.autograd.grad(y, copies, unit.reshape(y.shape))
        rows.append(gradient.flatten(1))
    return torch.cat(rows)


def estimate(model: nn.Module, x: Tensor, probes: int, random: torch.Generator) -> Spectrum:
    """Mean and spread by random vectors v of signs: E |J^T v|^2 = tr J J^T and E |J J^T v|^2 = tr (J J^T)^2.

    The intervals are of the choice of v: a mean and a variance of `probes` >= 2 values each, normally distributed.
    Source: Hutchinson 1990. J J^T v is the derivative of J^T v by v in the direction J^T v.
    """
    outputs = model(x).numel()
    traces, squares = [], []
    for start in range(0, probes, _chunk(x)):
        copies, y = _copies(model, x, min(_chunk(x), probes - start))
        v = torch.randint(2, y.shape, generator=random).to(y).mul_(2).sub_(1).requires_grad_()
        (back,) = torch.autograd.grad(y, copies, v, create_graph=True)
        (forth,) = torch.autograd.grad(back, v, back.detach())
        traces.append(back.detach().flatten(1).square().sum(1))
        squares.append(forth.flatten(1).square().sum(1))
    dimensions = min(outputs, x.numel())
    first = torch.cat(traces).double().numpy() / dimensions
    second = torch.cat(squares).double().numpy() / dimensions
    mean = float(first.mean())
    # The square of an estimated mean is too large by the variance of the estimate.
    spread = float(second.mean()) - mean**2 + first.var(ddof=1) / probes
    influence = second - 2 * mean * first  # of each probe on the spread
    half = 1.96 / math.sqrt(probes)
    return Spectrum(
        outputs, x.numel(), mean, spread, half * float(first.std(ddof=1)), half * float(influence.std(ddof=1))
    )


def squared_singular_values(matrices: Tensor) -> np.ndarray:
    """[..., outputs, inputs] -> all squared singular values, ascending: eigenvalues of the smaller Gram matrix."""
    m = matrices.double()
    gram = m @ m.mT if m.shape[-2] <= m.shape[-1] else m.mT @ m
    return np.sort(torch.linalg.eigvalsh(gram).clamp(min=0).flatten().numpy())


def _exact(values: np.ndarray, outputs: int, inputs: int) -> Spectrum:
    return Spectrum(outputs, inputs, float(values.mean()), float(values.var()), values=np.sort(values))


def _settled(model: nn.Module, candidate: Candidate, random: torch.Generator) -> Tensor:
    """One Gaussian image [1, C, H, W]; `model` gets the statistics of a batch of them and then holds them."""
    last = candidate.block[-1].unit
    images = max(2, -(-STATISTICS // (last.out_height * last.out_width)))
    batch = torch.randn(images, *candidate.shape, generator=random)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(batch)
    model.eval().requires_grad_(False)
    return batch[:1]


def _copies(model: nn.Module, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    copies = x.expand(count, *x.shape[1:]).clone().requires_grad_()
    return copies, model(copies)


def _chunk(x: Tensor) -> int:
    return max(1, CHUNK // x.numel())


class _RealConv2d(nn.Conv2d):
    """A 1-bit convolution without its signs: its latent weights as they are, zeros around the image, no shift."""

    def __init__(self, binary: BinaryConv2d) -> None:
        out, per_group, *kernel = binary.weight.shape
        sizes = (binary.stride, 0, binary.dilation, binary.groups)
        super().__init__(per_group * binary.groups, out, kernel, *sizes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = (
            same_padding(size, self.kernel_size[0], self.stride[0], self.dilation[0]) for size in x.shape[2:]
        )
        return super().forward(F.pad(x, (*width, *height)))


def _unround(model: nn.Module) -> None:
    """Replace, in place, what rounds weights or values by the same without rounding."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BinaryConv2d):
                real: nn.Module = _RealConv2d(child)
            elif isinstance(child, QuantizedConv2d):
                sizes = (child.kernel_size, child.stride, child.padding, child.dilation, child.groups)
                real = nn.Conv2d(child.in_channels, child.out_channels, *sizes, bias=False)
            elif isinstance(child, Quantize):
                real = nn.Identity()
            else:
                continue
            if hasattr(child, "weight"):
                real.weight = child.weight
            setattr(parent, name, real)
