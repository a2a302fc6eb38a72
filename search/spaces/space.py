"""`SearchSpace`: a template, the decisions in it, and the architectures that can be derived from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from bnas.profiles.errors import InputError
from bnas.profiles.workload import Workload

from .architecture import Architecture, Decision
from .wiring import Choice, Step, Sum, Template, resolve, units

if TYPE_CHECKING:
    from torch import nn

    from bnas.search.binary.layers import Style

NONE = "none"


@dataclass(frozen=True)
class Gene:
    """One independent part of an architecture. A chain has one for each decision, a cell one for each node.

    settings[k] are the (decision, candidate) pairs that candidate k of the gene stands for; a decision that no gene
    sets takes its candidate `none`.
    """

    id: str
    candidates: tuple[str, ...]
    settings: tuple[tuple[tuple[int, int], ...], ...]


@dataclass(frozen=True)
class SearchSpace:
    """A frozen description. shape: (channels, height, width) of the image; options: (name, value) pairs of its id.

    decisions are what a supernet is gated by and a relaxation has weights for: layers of a chain, edges of a cell type.
    genes are what an architecture consists of, and any combination of them is one.
    """

    name: str
    instance: str
    shape: tuple[int, int, int]
    classes: int
    options: tuple[tuple[str, str], ...]
    decisions: tuple[Decision, ...]
    genes: tuple[Gene, ...]
    template: Template

    @property
    def id(self) -> str:
        options = [",".join(f"{name}={value}" for name, value in self.options)] if self.options else []
        return ":".join([self.name, self.instance, "x".join(map(str, self.shape)), str(self.classes), *options])

    @property
    def size(self) -> int:
        """How many architectures there are; exact."""
        return math.prod(len(gene.candidates) for gene in self.genes)

    def architecture(self, indices: Sequence[int] | np.ndarray) -> Architecture:
        """The architecture that takes candidate `indices[g]` of gene g."""
        return Architecture(self.id, tuple(g.candidates[int(i)] for g, i in zip(self.genes, indices, strict=True)))

    @cached_property
    def _places(self) -> tuple[dict[str, int], ...]:
        return tuple({c: i for i, c in enumerate(gene.candidates)} for gene in self.genes)

    def indices(self, arch: Architecture) -> tuple[int, ...]:
        self.check(arch)
        return tuple(places[c] for places, c in zip(self._places, arch.choices, strict=True))

    def gates(self, indices: Sequence[int]) -> tuple[int, ...]:
        """For each decision the candidate that the architecture with these indices takes."""
        taken = {d: k for gene, i in zip(self.genes, indices, strict=True) for d, k in gene.settings[i]}
        return tuple(
            taken[d] if d in taken else decision.candidates.index(NONE) for d, decision in enumerate(self.decisions)
        )

    def contains(self, arch: Architecture) -> bool:
        return (
            arch.space == self.id
            and len(arch.choices) == len(self.genes)
            and all(c in places for places, c in zip(self._places, arch.choices, strict=True))
        )

    def check(self, arch: Architecture) -> None:
        if not self.contains(arch):
            raise InputError(f"architecture {arch.name!r} of space {arch.space!r} is not a point of {self.id!r}")

    def random(self, rng: np.random.Generator) -> Architecture:
        """Uniform over all architectures."""
        return self.architecture([rng.integers(len(gene.candidates)) for gene in self.genes])

    def mutate(self, arch: Architecture, rng: np.random.Generator, probability: float = 0.1) -> Architecture:
        """Each gene is redrawn uniformly with `probability`."""
        indices = [
            int(rng.integers(len(gene.candidates))) if rng.random() < probability else i
            for gene, i in zip(self.genes, self.indices(arch), strict=True)
        ]
        return self.architecture(indices)

    def crossover(self, a: Architecture, b: Architecture, rng: np.random.Generator) -> Architecture:
        """Each gene comes from either parent with probability 1/2."""
        pairs = zip(self.indices(a), self.indices(b), strict=True)
        return self.architecture([x if rng.random() < 0.5 else y for x, y in pairs])

    def steps(self, arch: Architecture) -> tuple[Step, ...]:
        """The network of `arch`, unit by unit."""
        return resolve(self.template, self.gates(self.indices(arch)))

    def workloads(self, arch: Architecture) -> tuple[Workload, ...]:
        """Every fused unit of the network, in order; what the latency table, the costs and the exporter see."""
        return tuple(step.unit for step in self.steps(arch))

    def all_workloads(self) -> tuple[Workload, ...]:
        """Every distinct unit any architecture can contain, sorted: the rows a latency table needs."""
        return tuple(sorted(set(units(self.template))))

    def fixed_workloads(self) -> tuple[Workload, ...]:
        """The units that every architecture has. Every sum of an architecture has two inputs."""
        return tuple(item.unit for item in self.template if isinstance(item, Step | Sum))

    def candidate_workloads(self, decision: int, candidate: int) -> tuple[Workload, ...]:
        """The units that come in with one candidate, in all cells that share the decision."""
        choices = (item for item in self.template if isinstance(item, Choice) and item.decision == decision)
        return tuple(step.unit for choice in choices for step in choice.blocks[candidate] or ())

    def build(self, arch: Architecture, style: Style | None = None) -> nn.Module:
        """The network of `arch` with fresh weights, taking [N, C, H, W] and giving [N, classes]."""
        from bnas.search.network import Network

        return Network(self.steps(arch), style)


def chain_genes(decisions: Sequence[Decision]) -> tuple[Gene, ...]:
    """One gene for each decision."""
    return tuple(
        Gene(decision.id, decision.candidates, tuple(((d, k),) for k in range(len(decision.candidates))))
        for d, decision in enumerate(decisions)
    )
