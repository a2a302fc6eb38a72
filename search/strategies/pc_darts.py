"""PC-DARTS: candidates see a part of the channels, the rest passes by; edges have weights of their own.

Xu et al., ICLR 2020. A K-th of the channels costs a K-th of the time and memory, and lets parameter-free operations win
less easily, because most of the signal does not depend on the choice. Edges of a node compete through beta, which is
steadier than alpha. Where we differ: instead of taking the first channels and shuffling the result, we take every K-th
and put what was made of them in front, which is the same up to the order of channels; at stride 2 the rest passes
through a 2x2 mean, as all shortcuts of our spaces (there a maximum); an edge survives with the chance that it is one of
two drawn by beta. Where channels do not divide, K is smaller. Chains have no edges, so no beta.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from bnas.profiles.errors import InputError
from bnas.profiles.workload import Workload

from ..augment import generator
from ..relaxations import Alphas, Probabilities, Relaxed
from ..spaces import SearchSpace
from ..spaces.wiring import IMAGE, Block, Choice, Step, Sum, Value, Wiring
from ..supernet import Gate, Supernet
from .bilevel import AlphaRecipe, Method, search
from .task import SearchResult, SearchTask

SOURCE = "PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search (Xu et al., ICLR 2020)"


# Partial channels


def supernet(space: SearchSpace, share: int = 4) -> Supernet:
    """The supernet in which candidates see one of `share` channels. Its gates are those of `EdgeNormalised`."""
    return Supernet(with_partial_channels(space, share))


def with_partial_channels(space: SearchSpace, share: int) -> SearchSpace:
    """f(x) = weight * concat(sum over k of g_k o_k(S x), (1 - S) x): each choice on one of `share` channels.

    Decision D + d of the template, of D decisions, has one candidate, which passes f of decision d on, so its gate is
    the weight of the edge. Only for a supernet: latency and derivation are of the space itself. share: a power of two.
    """
    if share < 1 or share & (share - 1):
        raise InputError(f"pc-darts takes one of K channels, K a power of two, got {share}; take 4")
    w, values = Wiring(), {IMAGE: Value(IMAGE, *space.shape)}
    for item in space.template:
        if isinstance(item, Choice):
            result = _partly(w, item, values[item.input], share)
            w.items.append(Choice(item.name, len(space.decisions) + item.decision, result.name, ((),)))
            values[item.name] = replace(result, name=item.name)
        else:
            w.items.append(item)
            values[item.name] = _result(item)
    return replace(space, template=w.template)


def _result(item: Step | Sum) -> Value:
    unit = item.unit
    return Value(item.name, unit.out_channels, unit.out_height, unit.out_width)


def _partly(w: Wiring, choice: Choice, x: Value, share: int) -> Value:
    """Describes concat(choice(S x), (1 - S) x)."""
    steps = [step for block in choice.blocks for step in block or ()]
    result = next(_result(block[-1]) if block else x for block in choice.blocks if block is not None)
    share = math.gcd(share, x.channels, *(n for step in steps for n in (step.unit.in_channels, step.unit.out_channels)))
    if result.channels % x.channels and x.channels % result.channels:
        share = 1  # the rest cannot pass without weights
    part, kept, passed = w.at(choice.name), x, []
    for number in range(share.bit_length() - 1):
        rest = part.step(f"rest{number}", "odd_channels", kept, out=kept.channels // 2)
        kept = part.step(f"kept{number}", "even_channels", kept, out=kept.channels // 2)
        channels = result.channels * rest.channels // x.channels
        passed.append(part.shortcut(f"passed{number}", rest, channels, x.height // result.height))
    blocks = tuple(None if block is None else _narrowed(block, share, x.name, kept.name) for block in choice.blocks)
    chosen = replace(result, name=f"{choice.name}.chosen", channels=result.channels // share)
    w.items.append(Choice(chosen.name, choice.decision, kept.name, blocks))
    return part.step("joined", "concat", chosen, *reversed(passed)) if passed else chosen


def _narrowed(block: Block, share: int, source: str, kept: str) -> Block:
    """The block with a `share`-th of all its channels, reading `kept` instead of `source`."""
    return tuple(
        replace(step, unit=_narrow(step.unit, share), inputs=tuple(kept if n == source else n for n in step.inputs))
        for step in block
    )


def _narrow(unit: Workload, share: int) -> Workload:
    channels = (unit.in_channels // share, unit.out_channels // share)
    groups = math.gcd(max(1, unit.groups // share), *channels)
    return replace(unit, in_channels=channels[0], out_channels=channels[1], groups=groups)


# Edge normalisation


def nodes(space: SearchSpace) -> list[tuple[int, ...]]:
    """The decisions of the edges into each node, node by node; nothing for a chain."""
    choices = {item.name: item.decision for item in space.template if isinstance(item, Choice)}
    sums = [item.inputs for item in space.template if isinstance(item, Sum)]
    return sorted({tuple(choices[name] for name in inputs) for inputs in sums if choices.keys() >= set(inputs)})


class EdgeAlphas(Alphas):
    """alphas, and for each node a row beta [1, n] for its n incoming edges: 1e-3 N(0, 1), of (space, seed) alone."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        super().__init__(space, seed)
        sizes = [len(edges) for edges in nodes(space)]
        values = 1e-3 * torch.randn(1, sum(sizes), generator=generator(seed, 1, 6))
        self.betas = nn.ParameterList(values.split(sizes, dim=1))

    def probabilities(self) -> Probabilities:
        """softmax(alpha) softmax(beta): what DARTS's rule then derives from."""
        kept = super().probabilities()
        if not len(self.betas):
            return kept
        weights = np.concatenate([beta.detach().cpu().double().softmax(1)[0].numpy() for beta in self.betas])
        return tuple(p * weight for p, weight in zip(kept, weights, strict=True))


@dataclass(frozen=True)
class EdgeNormalised:
    """softmax(alpha) for the candidates of D decisions, then for their D edges softmax(beta) over those of a node.

    alphas [K] come first, then betas [1, n]; without any, edges have the weight 1, as in DARTS.
    """

    def temperature(self, progress: float) -> float:
        return 1.0

    def __call__(self, alphas: Sequence[Tensor], progress: float, noise: torch.Generator) -> Relaxed:
        weights = [alpha.softmax(0) for alpha in alphas if alpha.dim() == 1]
        shares = [beta[0].softmax(0) for beta in alphas if beta.dim() == 2]
        if not shares:
            return Relaxed([*weights, *([0] * len(weights))], weights)
        edges: list[Gate] = [(0, share) for share in torch.cat(shares)]
        return Relaxed([*weights, *edges], weights, torch.cat([among_two(share) for share in shares]))


def among_two(shares: Tensor) -> Tensor:
    """With what chance each of n is among two that are drawn by `shares` [n] without replacement; [n] float64, sum 2.

    P_i = b_i + sum over j != i of b_j b_i / (1 - b_j); 2 / n where all shares are equal.
    """
    b = shares.double()
    odds = b / (1 - b).clamp(min=1e-12)
    others = odds.expand(len(b), len(b)) * (1 - torch.eye(len(b), dtype=b.dtype, device=b.device))
    return b * (1 + others.sum(1))


METHOD = Method(
    relaxation=EdgeNormalised(),
    warmup=0.3,  # 15 of 50 epochs
    alphas=EdgeAlphas,
    supernet=partial(supernet, share=4),
    alpha_recipe=AlphaRecipe(learning_rate=6e-4),
)


def run(task: SearchTask, method: Method = METHOD) -> SearchResult:
    return search(task, method)
