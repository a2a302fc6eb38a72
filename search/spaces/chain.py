"""Chains: a stem, layers with one decision each, and a head. A plain description; torch is only touched by `build`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bnas.profiles.errors import InputError
from bnas.profiles.workload import Workload

from .architecture import Architecture, Decision

if TYPE_CHECKING:
    from torch import nn

IDENTITY = "identity"
_BLOCK = re.compile(r"k(\d+)e(\d+)")


def kernel_and_expansion(candidate: str) -> tuple[int, int]:
    """(3, 2) of `k3e2`."""
    match = _BLOCK.fullmatch(candidate)
    if not match:
        raise InputError(f"candidate {candidate!r} is neither {IDENTITY!r} nor of the form k3e1")
    return int(match[1]), int(match[2])


@dataclass(frozen=True)
class Layer:
    """One decision at a concrete shape. height, width: input pixels; stride 2 layers also change the channels."""

    decision: Decision
    in_channels: int
    out_channels: int
    stride: int
    height: int
    width: int

    def workloads(self, candidate: str) -> tuple[Workload, ...]:
        """The fused units of `candidate` here, in the order `search.binary.blocks` runs them."""
        if candidate == IDENTITY:
            return ()
        kernel, expansion = kernel_and_expansion(candidate)
        c, h, w = self.in_channels, self.height, self.width
        if expansion == 1:
            glue = (
                (Workload("downsample", 32, c, self.out_channels, h, w, kernel=2, stride=2),)
                if self.stride == 2
                else ()
            )
            return (*glue, _unit(c, self.out_channels, h, w, kernel, self.stride))
        wide = expansion * c
        return (
            Workload("duplicate", 32, c, wide, h, w),
            _unit(c, wide, h, w, kernel, 1),
            Workload("average", 32, wide, c, h, w),
            _unit(wide, c, h, w, 1, 1),
        )


def _unit(in_channels: int, out_channels: int, height: int, width: int, kernel: int, stride: int) -> Workload:
    return Workload(
        "binary_conv", 1, in_channels, out_channels, height, width, kernel, stride, epilogue=("residual", "rprelu")
    )


@dataclass(frozen=True)
class ChainSpace:
    """A frozen description of a chain. shape: (channels, height, width) of the image; stem: the first convolution."""

    name: str
    shape: tuple[int, int, int]
    classes: int
    stem: Workload
    layers: tuple[Layer, ...]

    @property
    def id(self) -> str:
        return f"{self.name}:{'x'.join(map(str, self.shape))}:{self.classes}"

    @property
    def decisions(self) -> tuple[Decision, ...]:
        return tuple(layer.decision for layer in self.layers)

    @property
    def size(self) -> int:
        """How many architectures there are; exact."""
        return math.prod(len(d.candidates) for d in self.decisions)

    @property
    def head(self) -> Workload:
        last = self.layers[-1]
        height, width = -(-last.height // last.stride), -(-last.width // last.stride)
        return Workload("head", 32, last.out_channels, self.classes, height, width)

    def architecture(self, indices: tuple[int, ...] | list[int] | np.ndarray) -> Architecture:
        """The architecture that takes candidate `indices[d]` at decision d."""
        return Architecture(self.id, tuple(d.candidates[int(i)] for d, i in zip(self.decisions, indices, strict=True)))

    def indices(self, arch: Architecture) -> tuple[int, ...]:
        self.check(arch)
        return tuple(d.candidates.index(c) for d, c in zip(self.decisions, arch.choices, strict=True))

    def contains(self, arch: Architecture) -> bool:
        return (
            arch.space == self.id
            and len(arch.choices) == len(self.layers)
            and all(c in d.candidates for d, c in zip(self.decisions, arch.choices, strict=True))
        )

    def check(self, arch: Architecture) -> None:
        if not self.contains(arch):
            raise InputError(f"architecture {arch.name!r} of space {arch.space!r} is not a point of {self.id!r}")

    def random(self, rng: np.random.Generator) -> Architecture:
        """Uniform over all architectures."""
        return self.architecture([rng.integers(len(d.candidates)) for d in self.decisions])

    def mutate(self, arch: Architecture, rng: np.random.Generator, probability: float = 0.1) -> Architecture:
        """Each choice is redrawn uniformly with `probability`."""
        indices = [
            int(rng.integers(len(d.candidates))) if rng.random() < probability else i
            for d, i in zip(self.decisions, self.indices(arch), strict=True)
        ]
        return self.architecture(indices)

    def crossover(self, a: Architecture, b: Architecture, rng: np.random.Generator) -> Architecture:
        """Each choice comes from either parent with probability 1/2."""
        pairs = zip(self.indices(a), self.indices(b), strict=True)
        return self.architecture([x if rng.random() < 0.5 else y for x, y in pairs])

    def workloads(self, arch: Architecture) -> tuple[Workload, ...]:
        """Every fused unit of the network, in order; what the latency table, the costs and the exporter see."""
        self.check(arch)
        blocks = (w for layer, c in zip(self.layers, arch.choices, strict=True) for w in layer.workloads(c))
        return (self.stem, *blocks, self.head)

    def all_workloads(self) -> tuple[Workload, ...]:
        """Every distinct unit any architecture can contain, sorted: the rows a latency table needs."""
        blocks = {w for layer in self.layers for c in layer.decision.candidates for w in layer.workloads(c)}
        return tuple(sorted({self.stem, self.head, *blocks}))

    def build(self, arch: Architecture) -> nn.Module:
        """The network of `arch` with fresh weights, taking [N, C, H, W] and giving [N, classes]."""
        from bnas.search.network import Network

        self.check(arch)
        return Network(self, arch)
