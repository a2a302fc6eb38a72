"""BNAS: DARTS in which alphas start out wanting to be diverse, and zeroise competes (Kim et al., ECCV 2020).

Early in the search parameter-free operations look better than 1-bit convolutions, which learn slowly. A bonus for the
entropy of softmax(alpha), which fades, keeps the choice open meanwhile. Where we differ: 1-bit layers are those of our
spaces, whose shortcuts around every convolution do what the paper's shortcut from cell to cell is for; an architecture
of our cells has two edges for each node, so zeroise cannot empty an edge, but sets it back behind the others; the bonus
fades by share of the search, so that it means the same in any budget. The released code counts the entropy of one
edge of the reduction cell only, and divides by gamma the weights of an edge instead of those of zeroise; here all
decisions count, and gamma is zeroise's, as in the paper.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..relaxations import Probabilities
from ..spaces import SearchSpace
from ..spaces.space import NONE
from .bilevel import Method, search
from .task import SearchResult, SearchTask

SOURCE = "BNAS: Learning Architectures for Binary Networks (Kim et al., ECCV 2020)"


@dataclass(frozen=True)
class Diversity:
    """-weight exp(-progress / fade) * the mean over decisions of the entropy of `weights`, in nats; a scalar.

    fade: share of the search; the paper's is 7.7 of 50 epochs.
    """

    weight: float = 1.0
    fade: float = 7.7 / 50

    def __call__(self, weights: Sequence[Tensor], progress: float) -> Tensor:
        entropies = [-(p * p.clamp(min=torch.finfo(p.dtype).tiny).log()).sum() for p in weights]
        return -self.weight * math.exp(-progress / self.fade) * torch.stack(entropies).mean()


@dataclass(frozen=True)
class Zeroise:
    """p_k - p_none / gamma for each candidate; p_k where there is no `none`.

    An edge at which zeroise wins is then derived only in want of better ones; the order of its candidates stays. gamma:
    the paper's 1 for CIFAR-10 and 3 for ImageNet.
    """

    gamma: float = 1.0

    def __call__(self, space: SearchSpace, kept: Probabilities) -> Probabilities:
        return tuple(
            p - p[decision.candidates.index(NONE)] / self.gamma if NONE in decision.candidates else p
            for decision, p in zip(space.decisions, kept, strict=True)
        )


METHOD = Method(regulariser=Diversity(), worth=Zeroise())


def run(task: SearchTask, method: Method = METHOD) -> SearchResult:
    return search(task, method)
