"""Decoupled optimisation of DCP-NAS: after a step, alphas of candidates whose weights are ahead move away from zero.

A step on alpha ignores that the weights follow alpha. Equations 4.42 to 4.53 (Li et al., IJCV 2023, in its book
chapter) reduce what is missing to a factor psi_e for each decision e, which has no closed form and is learnt:

    alpha~_em = alpha_em(t+1) + eta psi_e alpha_em(t)   where mask_em, else alpha_em(t+1)          4.50, 4.52
    mask_em   = rank of R(w_m) among the candidates of e, over their number, is above tau          4.52
    R(w_m)    = ||w_m||^2                                                                          4.53
    psi_e     <- |psi_e - eta_psi dL/dpsi_e|, dL/dpsi_e = eta sum_m mask_em dL/dalpha~_em alpha_em(t)   4.51

The loss is evaluated at alpha~, so dL/dpsi follows from the gradient that the next step takes anyway. psi starts at 0:
the first step is an ordinary one. All alphas of all decisions are one vector [P] here, psi is [D].
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .binary.layers import BinaryConv2d
from .binary.quantizers import mean_magnitude
from .spaces import SearchSpace
from .spaces.wiring import Choice


@dataclass(frozen=True)
class Rates:
    """eta and eta_psi of 4.50 and 4.51; tau: 0 backtracks every candidate with weights, 1 none; limit: of psi.

    The paper gives none of them. eta is a product with the alphas' learning rate, and taken as that: psi only pushes
    away from zero, and where |alpha| is 1 by no more than a step of Adam. dL/dpsi is a product of three small numbers,
    so that with eta_psi = 1e-3 psi stays below 1e-7.
    """

    eta: float = 3e-4
    eta_psi: float = 1e3
    tau: float = 0.5
    limit: float = 1.0


class Backtracking(nn.Module):
    """What the decoupled optimisation remembers: psi [D], and of the last step alpha(t) [P] and its mask [P]."""

    psi: Tensor
    before: Tensor
    mask: Tensor
    members: Tensor

    def __init__(self, sizes: Sequence[int], rates: Rates = Rates()) -> None:
        """sizes: the number of candidates of each decision."""
        super().__init__()
        self.rates = rates
        self.register_buffer("psi", torch.zeros(len(sizes)))
        self.register_buffer("before", torch.zeros(sum(sizes)))
        self.register_buffer("mask", torch.zeros(sum(sizes)))
        owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        members = (owner == torch.arange(len(sizes))[:, None]).float()  # [D, P]
        self.register_buffer("members", members, persistent=False)

    @torch.no_grad()
    def learn(self, gradient: Tensor) -> None:
        """Move psi (4.51). gradient: dL/dalpha~ [P] at the alphas that `backtrack` left."""
        slope = self.rates.eta * (self.members @ (self.mask * gradient * self.before))
        self.psi.copy_((self.psi - self.rates.eta_psi * slope).abs().clamp(max=self.rates.limit))

    @torch.no_grad()
    def backtrack(self, before: Tensor, after: Tensor, magnitudes: Tensor) -> Tensor:
        """alpha~ [P] of alpha(t) and alpha(t+1) (4.52). magnitudes: R(w_m) [P], NaN for candidates without weights."""
        self.before.copy_(before)
        self.mask.copy_(self.ranked(magnitudes) > self.rates.tau)
        return after + self.rates.eta * self.mask * (self.psi @ self.members) * before

    def ranked(self, magnitudes: Tensor) -> Tensor:
        """[P]: rank of each candidate among those of its decision that have weights, smallest first, over their number.

        In (0, 1], and 0 for candidates without weights; of equals the first is the smaller.
        """
        real = ~magnitudes.isnan()
        together = (self.members.T @ self.members).bool() & real
        equal = (magnitudes == magnitudes[:, None]).tril()
        rank = (((magnitudes < magnitudes[:, None]) | equal) & together).sum(1)
        return torch.where(real, rank / together.sum(1).clamp(min=1), 0.0)


class Magnitudes:
    """R(w_m) of every candidate of every decision: [P], NaN for pools, skips and others without a convolution.

    w_m is what is deployed, so beta o sign(w) for 1 bit, and holds the candidate's weights in all cells that share the
    decision. mean: R over the number of weights, or 5x5 would always be ahead of 3x3; else the sum, as printed.
    """

    def __init__(self, supernet: nn.Module, space: SearchSpace, *, mean: bool = True) -> None:
        self.convolutions: list[nn.Conv2d | BinaryConv2d] = []
        owners: list[int] = []
        offsets = [0]
        for decision in space.decisions:
            offsets.append(offsets[-1] + len(decision.candidates))
        for item in (item for item in space.template if isinstance(item, Choice)):
            for k, block in enumerate(item.blocks):
                for step in block or ():
                    for module in supernet.get_submodule(step.name).modules():
                        if isinstance(module, nn.Conv2d | BinaryConv2d):
                            self.convolutions.append(module)
                            owners.append(offsets[item.decision] + k)
        device = self.convolutions[0].weight.device
        weights = torch.tensor([float(c.weight.numel()) for c in self.convolutions], device=device)
        repeats = weights / torch.tensor([float(_deployed(c).numel()) for c in self.convolutions], device=device)
        owned = torch.tensor(owners, device=device) == torch.arange(offsets[-1], device=device)[:, None]  # [P, n]
        counts = (owned * weights).sum(1)
        self.share = owned * repeats / (counts.clamp(min=1)[:, None] if mean else 1.0)
        self.share[counts == 0] = torch.nan

    @torch.no_grad()
    def __call__(self) -> Tensor:
        norms = torch.stack(torch._foreach_norm([_deployed(c) for c in self.convolutions]))
        return self.share @ norms.square().float()


def _deployed(convolution: nn.Conv2d | BinaryConv2d) -> Tensor:
    """The weights [O, I, kh, kw] or, where all of an output channel are of one magnitude, that: [O, 1, 1, 1]."""
    if isinstance(convolution, nn.Conv2d):
        return convolution.weight
    return mean_magnitude(convolution.weight) if convolution.beta is None else convolution.beta
