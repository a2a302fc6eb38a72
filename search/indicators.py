"""Batch-norm indicators: what the gamma of a candidate's last batch-norm says of the candidate.

BN-NAS (Chen et al., ICCV 2021): the mean of |gamma| over channels scores a candidate. DI-NAS adds to each layer that
keeps its shape a parallel identity with a batch-norm of its own, the layer indicator, which says how much of the
signal does not need the layer at all.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import nn

from bnas.profiles.workload import Workload

from .spaces import SearchSpace
from .spaces.wiring import Block, Choice, Step, Sum, Template
from .supernet import Supernet

WITH_NORM = ("binary_conv", "conv", "norm")


def with_indicators(space: SearchSpace, kind: str) -> SearchSpace:
    """The space with what a search measures and the found network does not have.

    kind "block": a candidate without a batch-norm of its own (pool, skip, identity) ends in one. "layer": in addition,
    the input of each choice that keeps its shape is added to the result, through a batch-norm.
    """
    shapes = {step.name: _result(step) for step in _all_steps(space.template)}
    shapes["image"] = space.shape
    template: list[Step | Choice | Sum] = []
    for item in space.template:
        if isinstance(item, Sum):
            shapes[item.name] = (item.channels, item.height, item.width)
        if not isinstance(item, Choice):
            template.append(item)
            continue
        shape = shapes[item.input]
        names = space.decisions[item.decision].candidates
        blocks = tuple(
            _ending_in_norm(block, f"{item.name}.{name}", item.input, shape)
            for block, name in zip(item.blocks, names, strict=True)
        )
        result = next(shapes[b[-1].name] if b else shape for b in item.blocks if b is not None)
        shapes[item.name] = result
        if kind == "layer" and result == shape:
            chosen = f"{item.name}.chosen"
            passed = _norm(f"{item.name}.layer", item.input, shape)
            template += [
                replace(item, name=chosen, blocks=blocks),
                passed,
                Sum(item.name, (chosen, passed.name), *shape),
            ]
        else:
            template.append(replace(item, blocks=blocks))
    return replace(space, template=tuple(template))


def _all_steps(template: Template) -> list[Step]:
    blocks = [b for item in template if isinstance(item, Choice) for b in item.blocks if b]
    return [item for item in template if isinstance(item, Step)] + [step for block in blocks for step in block]


def _result(step: Step) -> tuple[int, int, int]:
    return (step.unit.out_channels, step.unit.out_height, step.unit.out_width)


def _norm(name: str, source: str, shape: tuple[int, int, int]) -> Step:
    channels, height, width = shape
    return Step(name, Workload("norm", 32, channels, channels, height, width), (source,))


def _ending_in_norm(block: Block | None, path: str, source: str, shape: tuple[int, int, int]) -> Block | None:
    if block is None or any(step.unit.kind in WITH_NORM for step in block):
        return block
    last = block[-1] if block else None
    return (*block, _norm(f"{path}.indicator", last.name if last else source, _result(last) if last else shape))


class Indicators:
    """Reads the indicators of a supernet of a space that `with_indicators` made."""

    def __init__(self, supernet: Supernet, space: SearchSpace) -> None:
        self.supernet, self.space = supernet, space

    def blocks(self) -> tuple[np.ndarray, ...]:
        """s[d][k]: mean |gamma| of the last batch-norm of candidate k of decision d, over all cells; 0 for `none`."""
        totals = [np.zeros(len(decision.candidates)) for decision in self.space.decisions]
        counts = [0] * len(totals)
        for item in self.space.template:
            if isinstance(item, Choice):
                counts[item.decision] += 1
                for k, block in enumerate(item.blocks):
                    if block is not None:
                        totals[item.decision][k] += self._strength(last_norm(block))
        return tuple(total / count for total, count in zip(totals, counts, strict=True))

    def layers(self) -> tuple[float | None, ...]:
        """r[d]: mean |gamma| of the layer indicators of decision d; None where there are none."""
        found: list[list[float]] = [[] for _ in self.space.decisions]
        steps = {item.name: item for item in self.space.template if isinstance(item, Step)}
        for item in self.space.template:
            if isinstance(item, Choice) and item.name.endswith(".chosen"):
                step = steps[f"{item.name.removesuffix('.chosen')}.layer"]
                found[item.decision].append(self._strength(step))
        return tuple(float(np.mean(values)) if values else None for values in found)

    def _strength(self, step: Step) -> float:
        gamma = self.supernet.get_submodule(step.name).get_submodule("norm").get_parameter("weight")
        return float(gamma.detach().abs().mean())


def last_norm(block: Block) -> Step:
    """The step that holds the last batch-norm of a block. Raises StopIteration if it has none."""
    return next(step for step in reversed(block) if step.unit.kind in WITH_NORM)


def gene_scores(space: SearchSpace, scores: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """From a score for each candidate of each decision to one for each candidate of each gene: the sum of its parts."""
    return tuple(np.array([sum(scores[d][k] for d, k in taken) for taken in g.settings]) for g in space.genes)


def frozen_but(supernet: nn.Module, space: SearchSpace, trainable: str) -> None:
    """Let only some parameters be trained: "all"; "norms": all batch-norms; "last": the last of each candidate and the
    layer indicators. Whatever is frozen keeps its first value, the classifier too (BN-NAS's released code)."""
    if trainable == "all":
        return
    supernet.requires_grad_(False)
    if trainable == "norms":
        chosen: list[nn.Module] = [m for m in supernet.modules() if isinstance(m, nn.BatchNorm2d)]
    else:
        blocks = [b for item in space.template if isinstance(item, Choice) for b in item.blocks if b is not None]
        names = [last_norm(b).name for b in blocks]
        names += [item.name for item in space.template if isinstance(item, Step) and item.unit.kind == "norm"]
        chosen = [supernet.get_submodule(name).get_submodule("norm") for name in names]
    for module in chosen:
        for parameter in module.parameters():
            parameter.requires_grad_(True)
