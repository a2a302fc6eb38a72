"""Isometry: Jacobians against differences and formulas, spectra against theory, estimates against what is exact."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from bnas.search.binary.layers import BinaryConv2d, Style
from bnas.search.binary.quantizers import SURROGATES
from bnas.search.initialisers import INITIALISERS
from bnas.search.isometry import (
    Candidate,
    candidates,
    estimate,
    isometries,
    jacobian,
    jacobian_spectrum,
    squared_singular_values,
    weight_spectrum,
)
from bnas.search.network import Network
from bnas.search.spaces import SPACES, SearchSpace, make_space
from bnas.search.spaces.wiring import IMAGE, Choice

FLOAT_SPACES = [f"{name}:bits=32" for name in SPACES if "bits" in SPACES[name].OPTIONS]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smallest(space: SearchSpace) -> list[Candidate]:
    """The candidates of the last decision, whose images are the smallest, with weights."""
    return [c for c in candidates(space, space.decisions[-1].id) if c.has_weights]


def points(*widths: int, initialiser: str, seed: int = 0) -> nn.Sequential:
    """A linear network of 1x1 convolutions."""
    model = nn.Sequential(*(nn.Conv2d(a, b, 1, bias=False) for a, b in pairwise(widths)))
    INITIALISERS[initialiser](model, seed)
    return model


# Spectra


@pytest.mark.parametrize("shape", [(5, 5), (4, 9), (9, 4), (3, 2, 6)])
def test_squared_singular_values_are_those_of_the_svd(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, generator=generator())
    expected = np.sort(np.linalg.svd(matrix.double().numpy(), compute_uv=False).ravel() ** 2)
    assert np.allclose(squared_singular_values(matrix), expected, atol=1e-12)


PUBLISHED = {  # initialiser and layer of n = 256 -> smallest and largest singular value, standard deviation
    ("gaussian", "float"): (0.01, 1.96, 0.53),
    ("orthogonal", "float"): (1.0, 1.0, 0.0),
    ("orthogonal", "1 bit"): (0.09, 1.39, 0.33),
    ("hadamard", "1 bit"): (1.0, 1.0, 0.0),
}


@pytest.mark.parametrize(("initialiser", "bits"), PUBLISHED)
def test_what_signs_do_to_an_orthogonal_matrix(initialiser: str, bits: str) -> None:
    """Signs of an orthogonal matrix are nearly as uneven as a Gaussian one, those of a Hadamard matrix not at all."""
    layer = nn.Conv2d(256, 256, 1) if bits == "float" else BinaryConv2d(256, 256, 1)
    INITIALISERS[initialiser](layer, 0)
    spectrum = weight_spectrum(layer)
    assert spectrum is not None and spectrum.values is not None
    least, most, deviation = PUBLISHED[initialiser, bits]
    singular = np.sqrt(spectrum.values)
    exact = 1e-5 if deviation == 0 else 1
    assert singular.min() == pytest.approx(least, abs=0.03 * exact)
    assert singular.max() == pytest.approx(most, abs=0.06 * exact)
    assert singular.std() == pytest.approx(deviation, abs=0.015 * exact)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_linear_networks_spread_by_their_depth_unless_they_are_orthogonal(depth: int) -> None:
    """Gaussian: mean 1, spread L / p with p = 1 (Pennington et al. 2017); orthogonal: 1 and 0, whatever the depth."""
    x = torch.randn(1, 200, 1, 1, generator=generator())
    results = {}
    for initialiser in ("gaussian", "orthogonal"):
        spectra = [
            jacobian_spectrum(points(*[200] * (depth + 1), initialiser=initialiser, seed=seed), x, generator())
            for seed in range(5)
        ]
        results[initialiser] = [np.mean([s.mean for s in spectra]), np.mean([s.spread for s in spectra])]
    assert results["orthogonal"] == pytest.approx([1, 0], abs=1e-5)
    assert results["gaussian"] == pytest.approx([1, depth], rel=0.1)


def test_each_group_counts_in_the_spectrum_of_weights() -> None:
    """A depthwise kernel is one number per channel, its squared norm; a widening matrix has as many as inputs."""
    depthwise = nn.Conv2d(4, 4, 3, groups=4, bias=False)
    widening = nn.Conv2d(3, 5, 1, bias=False)
    model = nn.Sequential(depthwise, nn.BatchNorm2d(4), widening)
    spectrum = weight_spectrum(model)
    assert spectrum is not None and spectrum.values is not None
    norms = depthwise.weight.detach().double().numpy().reshape(4, 9)
    singular = np.linalg.svd(widening.weight.detach().double().numpy().reshape(5, 3), compute_uv=False)
    assert np.allclose(spectrum.values, np.sort([*(norms**2).sum(1), *singular**2]))
    assert weight_spectrum(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4))) is None


# Jacobians


@pytest.mark.parametrize("text", FLOAT_SPACES)
def test_jacobians_of_float_blocks_are_their_differences(text: str) -> None:
    """J d = (f(x + h d) - f(x - h d)) / 2h in double precision, where no ReLU changes sides in between."""
    for candidate in smallest(make_space(text, (1, 8, 8), 10)):
        model = Network(candidate.block).double().eval()
        x, direction = (torch.randn(1, *candidate.shape, generator=generator(s), dtype=torch.float64) for s in (1, 2))
        with torch.no_grad():
            difference = (model(x + 1e-7 * direction) - model(x - 1e-7 * direction)) / 2e-7
        product = jacobian(model, x) @ direction.flatten()
        assert torch.allclose(product, difference.flatten(), atol=1e-5), candidate.name


DERIVATIVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "polynomial": lambda x: np.maximum(2 - 2 * np.abs(x), 0),
    "clipped": lambda x: (np.abs(x) <= 1) * 1.0,
    "growing": lambda x: 1 - np.tanh(0.1 * x) ** 2,
}


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_jacobians_of_signs_are_those_of_the_surrogate(surrogate: str) -> None:
    """sign(W) diag(S'(x - shift)) for a 1x1 convolution, at each pixel alone."""
    conv = BinaryConv2d(6, 4, 1, style=Style(surrogate=surrogate))
    assert conv.shift is not None
    nn.init.normal_(conv.shift, generator=generator(1))
    x = torch.randn(1, 6, 1, 2, generator=generator(2))
    found = jacobian(conv, x).reshape(4, 2, 6, 2).numpy()
    slope = DERIVATIVES[surrogate]((x - conv.shift).detach().numpy())[0, :, 0, :]
    signs = np.where(conv.weight.detach().numpy().reshape(4, 6) < 0, -1.0, 1.0)
    for pixel in range(2):
        assert np.allclose(found[:, pixel, :, pixel], signs * slope[:, pixel], atol=1e-6)
        assert (found[:, pixel, :, 1 - pixel] == 0).all()


# Estimates


@pytest.mark.parametrize("text", [*SPACES, *FLOAT_SPACES])
def test_estimates_agree_with_what_is_exact(text: str) -> None:
    """Within five standard errors, at the same image, for every kind of block."""
    for candidate in smallest(make_space(text, (1, 8, 8), 10)):
        model = Network(candidate.block)
        INITIALISERS["gaussian"](model, 0)
        x = torch.randn(1, *candidate.shape, generator=generator())
        model(torch.randn(64, *candidate.shape, generator=generator(1)))
        model.eval()
        exact, estimated = jacobian_spectrum(model, x, generator()), estimate(model, x, 64, generator())
        assert exact.exact and not estimated.exact and 0 < estimated.mean_error < 0.2 * exact.mean
        assert abs(estimated.mean - exact.mean) < 5 / 1.96 * estimated.mean_error, candidate.name
        assert abs(estimated.spread - exact.spread) < 5 / 1.96 * estimated.spread_error, candidate.name


def test_intervals_hold_what_they_promise() -> None:
    """95% of them contain the exact value: of 200, at least 176 do with a probability of 99.99%, and not all."""
    model = points(48, 40, initialiser="gaussian")
    x = torch.zeros(1, 48, 1, 1)
    exact = jacobian_spectrum(model, x, generator())
    found = [estimate(model, x, 64, generator(seed)) for seed in range(200)]
    for name in ("mean", "spread"):
        inside = sum(abs(getattr(e, name) - getattr(exact, name)) <= getattr(e, f"{name}_error") for e in found)
        assert 176 <= inside < 200, name
    assert np.mean([e.spread for e in found]) == pytest.approx(exact.spread, rel=0.02)


def test_large_blocks_are_estimated() -> None:
    x = torch.randn(1, 16, 6, 6, generator=generator())
    assert jacobian_spectrum(points(16, 14, initialiser="orthogonal"), x, generator()).exact
    large = jacobian_spectrum(points(16, 15, initialiser="orthogonal"), x, generator())
    assert large.outputs == 540 and not large.exact
    assert (large.mean, large.spread) == pytest.approx((1, 0), abs=1e-4)


# Candidates


def test_candidates_are_the_blocks_of_the_space(micro: SearchSpace) -> None:
    """Each distinct one once, and each runs alone on an image of its shape."""
    found = candidates(micro)
    expected = set()
    for item in micro.template:
        if isinstance(item, Choice):
            names = micro.decisions[item.decision].candidates
            expected |= {(n, tuple(s.unit for s in b)) for n, b in zip(names, item.blocks, strict=True) if b}
    assert len(found) == len(expected)
    assert {(c.name, tuple(s.unit for s in c.block)) for c in found} == expected
    for candidate in found:
        last = candidate.block[-1].unit
        result = Network(candidate.block)(torch.zeros(2, *candidate.shape))
        assert result.shape == (2, last.out_channels, last.out_height, last.out_width)
        assert IMAGE in candidate.block[0].inputs


def test_candidates_of_one_decision(micro: SearchSpace) -> None:
    for decision in (micro.decisions[0], micro.decisions[-1]):
        found = candidates(micro, decision.id)
        assert {c.decision for c in found} == {decision.id}
        assert {c.name for c in found} <= set(decision.candidates)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("initialiser", INITIALISERS)
def test_isometries_are_those_of_the_seed(name: str, initialiser: str) -> None:
    """Again the same; another with another seed. Blocks below 32 bits come twice."""
    candidate = smallest(make_space(name, (1, 8, 8), 10))[-1]
    first, again, other = (list(isometries(candidate, initialiser, seed)) for seed in (0, 0, 1))
    assert [one.bits for one in first] == [1, 32]
    for a, b, c in zip(first, again, other, strict=True):
        assert (a.block.mean, a.block.spread) == (b.block.mean, b.block.spread) != (c.block.mean, c.block.spread)
        assert a.linear is not None and b.linear is not None
        assert (a.linear.mean, a.linear.spread) == (b.linear.mean, b.linear.spread)


@pytest.mark.parametrize("name", SPACES)
def test_only_1_bit_blocks_depend_on_the_surrogate(name: str) -> None:
    candidate = smallest(make_space(name, (1, 8, 8), 10))[0]
    by_surrogate = [[one.block.mean for one in isometries(candidate, "hadamard", 0, Style(s))] for s in SURROGATES]
    assert len({bits1 for bits1, _ in by_surrogate}) == len(SURROGATES)
    assert len({bits32 for _, bits32 in by_surrogate}) == 1


@pytest.mark.parametrize("text", ["mobilenet:bits=32", "cells:bits=32", "tiny"])
def test_batch_norms_cancel_a_gain(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the statistics are those of the very block; with a tenth of the weights nothing changes."""

    def loud(model: nn.Module, seed: int) -> None:
        INITIALISERS["gaussian"](model, seed)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.Conv2d | BinaryConv2d):
                    module.weight.mul_(7)

    monkeypatch.setitem(INITIALISERS, "loud", loud)
    for candidate in smallest(make_space(text, (1, 8, 8), 10)):
        for usual, scaled in zip(isometries(candidate, "gaussian", 0), isometries(candidate, "loud", 0), strict=True):
            assert scaled.block.mean == pytest.approx(usual.block.mean, rel=1e-3)
            assert scaled.block.spread == pytest.approx(usual.block.spread, rel=1e-3)


def test_held_statistics_are_those_of_the_batch_and_differ_little_from_the_full_derivative() -> None:
    """The derivative through the statistics of n images changes that by its own image by a share of about 1 / n."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6, momentum=1.0))
    batch = torch.randn(256, 6, 4, 4, generator=generator())
    full = torch.autograd.functional.jacobian(lambda x: model(torch.cat([x, batch[1:]]))[0], batch[:1]).reshape(96, 96)
    with torch.no_grad():
        model.train()(batch)
    held = jacobian(model.eval(), batch[:1])
    assert (full - held).norm() < 0.02 * held.norm()
