"""CP-NAS: candidates are drawn, trained in a float Parent and a 1-bit Child, judged by both, and the worst leave.

Child-Parent Neural Architecture Search for 1-bit CNNs (Zhuo et al., IJCAI 2020, arXiv 2005.00057), algorithm 9 of the
book chapter that holds DCP-NAS. In a round with K candidates for each decision, K draws use each of them once; a draw
is a network with one candidate for each decision, which learns for a while in both supernets and is then judged:

    z     = potential (A_P - A_C) + A_C          4.15: accuracies of Parent and Child on the validation images
    e(o)  = softmax over the K of mean z         4.16: the mean is over the draws of the round that used o

The worst of each decision leaves, until one is left. With potential 2, as published, z = 2 A_P - A_C: a good Child
counts against its candidates; with 1 it is the Parent alone that judges, with 0 the Child. No code was published; what
the paper leaves open is in docs/methods/cp-nas.md.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnas.profiles.errors import InputError

from ..augment import generator
from ..binary.layers import BinaryConv2d, Style
from ..expected_latency import ExpectedLatency
from ..latency import LatencyModel, check_limit
from ..parent import without_signs
from ..relaxations import Alphas, Probabilities
from ..second_order import undisturbed
from ..spaces import SearchSpace
from ..spaces.space import NONE
from ..spaces.wiring import Choice, Step
from ..supernet import Supernet
from ..training.trainer import accuracy
from . import bilevel
from .bilevel import Record, batches, derive, make_learner, repeat
from .task import SearchResult, SearchTask, Stopwatch, digest

SOURCE = "CP-NAS: Child-Parent Neural Architecture Search for 1-bit CNNs (Zhuo et al., IJCAI 2020)"
SCORE = "sum of rounds survived"
REPEATS = 3
STYLE = Style(scale="learned")


@dataclass(frozen=True)
class Method:
    """potential: beta_P of 4.15. repeats: T, how often a round uses each candidate; None: 3 times, or fewer where the
    budget has no step for each draw. kernel, compactness: the weights of the two parts of L_H (4.18). latency: how much
    of z the slowest candidate loses in a round whose candidates are expected to be over the limit; others in proportion
    to their latency.
    """

    potential: float = 2.0
    repeats: int | None = None
    kernel: float = 1.0
    compactness: float = 1e-3
    latency: float = 0.1
    style: Style = STYLE


METHOD = Method()


def run(task: SearchTask, method: Method = METHOD) -> SearchResult:
    """Raises InputError if the limit cannot be met or the space has no 1-bit candidate."""
    check_limit(task.latency, task.limit_ms)
    course = Course(task, method)
    initial = digest(course.tournament.state_dict())
    record = repeat(
        {"learner": course.learner},
        course.step,
        course.epoch_end,
        steps=course.steps,
        per_epoch=course.per_draw,
        path=task.folder / "supernet.safetensors",
        stage="supernet",
        progress=task.progress,
    )
    tournament = course.tournament
    kept, state = tournament.probabilities(), digest(tournament.state_dict())
    return replace(derive(task, kept, record, initial, state, course.stopwatch), score_name=SCORE)


class Pair(nn.Module):
    """Parent and Child, which start from the same values and share none: one backward pass serves the sum of losses."""

    def __init__(self, space: SearchSpace, style: Style) -> None:
        super().__init__()
        self.child = Supernet(space, style)
        self.parent = without_signs(copy.deepcopy(self.child))


class Tournament(Alphas):
    """Who is left. values: e(o) of each candidate in the last round that it took part in; nothing descends on them.

    survived [P]: rounds, over all candidates of all decisions; those that are left have survived `round` of them.
    total, uses [P]: of z in this round.
    """

    survived: Tensor
    total: Tensor
    uses: Tensor
    round: Tensor

    def __init__(self, space: SearchSpace, seed: int) -> None:
        super().__init__(space, seed, deviation=0.0)
        self.requires_grad_(False)
        self.sizes = [len(decision.candidates) for decision in space.decisions]
        for name in ("survived", "total", "uses"):
            self.register_buffer(name, torch.zeros(sum(self.sizes), dtype=torch.float64))
        self.register_buffer("round", torch.zeros(()))

    def alive(self) -> list[list[int]]:
        """For each decision the candidates that are left."""
        left = (self.survived == self.round).cpu().split(self.sizes)
        return [flags.nonzero().flatten().tolist() for flags in left]

    def credit(self, taken: Sequence[int], z: float) -> None:
        """z of a draw goes to every candidate in it."""
        starts = np.cumsum([0, *self.sizes[:-1]])
        places = torch.from_numpy(starts + np.array(taken)).to(self.total.device)
        self.total[places] += z
        self.uses[places] += 1

    @torch.no_grad()
    def eliminate(self, size: int, penalties: Sequence[Tensor]) -> None:
        """End a round: of each decision with `size` candidates left the worst leaves; of equals the first.

        penalties[d] [K]: what is taken from mean z.
        """
        means = (self.total / self.uses.clamp(min=1)).cpu().split(self.sizes)
        survived = self.survived.split(self.sizes)
        for value, rounds, mean, penalty, left in zip(
            self.values, survived, means, penalties, self.alive(), strict=True
        ):
            worth = mean[left] - penalty[left]
            value[left] = worth.softmax(0).to(value)
            staying = torch.ones(len(left), dtype=torch.bool)
            staying[worth.argmin()] = len(left) < size
            rounds[torch.tensor(left)[staying].to(rounds.device)] += 1
        self.round += 1
        self.total.zero_()
        self.uses.zero_()

    def probabilities(self) -> Probabilities:
        """Rounds survived, plus e(o): what the candidates of a derived network are chosen by.

        So of two candidates for a decision the one that stayed longer counts more, and of two edges whose candidates
        are left the one that beat its last rival more clearly.
        """
        last = torch.cat([value.double() for value in self.values])
        return self.split((self.survived + last).cpu())


class Course:
    """The draws of CP-NAS, each of `per_draw` steps: T times K in a round, K from the most candidates down to 2."""

    def __init__(self, task: SearchTask, method: Method) -> None:
        self.task, self.method, self.stopwatch = task, method, Stopwatch()
        slots = bilevel.Method(supernet=lambda space: Pair(space, method.style), alphas=Tournament)
        self.learner = make_learner(task, slots)
        pair, tournament = self.learner.supernet, self.learner.alphas
        assert isinstance(pair, Pair) and isinstance(tournament, Tournament)
        self.pair, self.tournament = pair, tournament
        if not any(isinstance(module, BinaryConv2d) for module in pair.modules()):
            raise InputError(f"cp-nas searches 1-bit networks, and space {task.space.id!r} has none; drop its bits=")
        self.expected = ExpectedLatency(task.latency)
        self.batches = batches(task, torch.arange(len(task.train)), 1)
        networks = 2 if task.budget.equal_cost else 1  # a step is one of each
        steps = task.budget.supernet.epochs * self.batches.per_epoch // networks
        sizes = range(max(tournament.sizes), 1, -1)
        repeats = method.repeats or max(1, min(REPEATS, steps // sum(sizes)))
        self.draws = [(k, t, i) for k in sizes for t in range(repeats) for i in range(k)]
        self.per_draw = max(1, steps // len(self.draws))
        self.steps = self.per_draw * len(self.draws)
        self._draw, self._gates = -1, tuple[int, ...]()

    def step(self, number: int) -> dict[str, Tensor]:
        """Both networks learn in the draw's path; after its last step they are judged, and a round may end."""
        draw, place = divmod(number, self.per_draw)
        self.learner.at(number, self.steps)
        if draw != self._draw:  # who is left lies on the device
            self._draw, self._gates = draw, self.gates(*self.draws[draw])
        notes = self.learn(self._gates, *self.batches(number))
        if place == self.per_draw - 1:
            notes |= self.judge(self._gates)
            if draw + 1 == len(self.draws) or self.draws[draw + 1][0] < self.draws[draw][0]:
                self.end_round(self.draws[draw][0])
        return notes

    def gates(self, size: int, repeat: int, place: int) -> tuple[int, ...]:
        """The draw number `place` of `size`: of each decision another candidate that is left, in an order of its own.

        A decision with fewer candidates begins anew with them.
        """
        noise = generator(self.task.seed, size, repeat, 6)
        taken = []
        for left in self.tournament.alive():
            turns = [torch.randperm(len(left), generator=noise) for _ in range(-(-size // len(left)))]
            taken.append(left[int(torch.cat(turns)[place])])
        return tuple(taken)

    def learn(self, gates: tuple[int, ...], images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Cross-entropy for both; for the Child also L_H, on what it ran."""
        method, smoothing = self.method, self.learner.recipe.label_smoothing
        with self.stopwatch.phase("weights"):
            parent = F.cross_entropy(self.pair.parent(images, gates), labels, label_smoothing=smoothing)
            logits, features = with_features(self.pair.child, self.task.space, images, gates)
            child = F.cross_entropy(logits, labels, label_smoothing=smoothing)
            kernel = kernel_loss(self.pair.child, self.task.space, gates)
            spread = compactness_loss(features, labels)
            self.learner.weight_step(parent + child + method.kernel * kernel + method.compactness * spread)
        return {
            "loss": child.detach(),
            "parent loss": parent.detach(),
            "kernel loss": kernel.detach(),
            "compactness loss": spread.detach(),
        }

    def judge(self, gates: tuple[int, ...]) -> dict[str, Tensor]:
        """z of the draw, from accuracies with batch statistics, which are those of its path and what it learnt with."""
        with self.stopwatch.phase("evaluation"), undisturbed(self.pair):
            parent = accuracy(lambda images: self.pair.parent(images, gates), self.task.validation)
            child = accuracy(lambda images: self.pair.child(images, gates), self.task.validation)
            self.tournament.credit(gates, self.method.potential * (parent - child) + child)
        return {"parent accuracy": torch.tensor(parent), "architecture accuracy": torch.tensor(child)}

    def end_round(self, size: int) -> None:
        left = self.tournament.alive()
        over = self.expected(even(self.task.space, left)) > self.task.limit_ms
        weight = self.method.latency if over else 0.0
        penalties = [weight * share for share in latency_shares(self.task.latency, left)]
        self.tournament.eliminate(size, penalties)

    def epoch_end(self, record: Record) -> None:
        """An epoch is a draw; the course goes on by rounds."""
        left = self.tournament.alive()
        record.curve("candidates left", float(np.mean([len(candidates) for candidates in left])))
        record.curve("expected latency ms", float(self.expected(even(self.task.space, left))))
        if self.tournament.round > len(record.trace):
            record.trace.append(torch.from_numpy(np.concatenate(self.tournament.probabilities())))


def even(space: SearchSpace, left: Sequence[Sequence[int]]) -> list[Tensor]:
    """For each decision the same weight for all candidates that are left."""
    weights = [torch.zeros(len(decision.candidates)) for decision in space.decisions]
    for weight, candidates in zip(weights, left, strict=True):
        weight[list(candidates)] = 1 / len(candidates)
    return weights


def latency_shares(model: LatencyModel, left: Sequence[Sequence[int]]) -> list[Tensor]:
    """For each decision [K] the latency of each candidate as a share of the largest of all.

    `none`, which is never derived, must not look fast: it has the mean of the others that are left.
    """
    largest = max(float(ms.max()) for ms in model.decision_ms)
    shares = []
    for decision, ms, candidates in zip(model.space.decisions, model.decision_ms, left, strict=True):
        share = torch.from_numpy(ms / largest) if largest > 0 else torch.zeros(len(ms), dtype=torch.float64)
        real = [k for k in candidates if decision.candidates[k] != NONE]
        if len(real) < len(candidates) and real:
            share[decision.candidates.index(NONE)] = share[real].mean()
        shares.append(share)
    return shares


def with_features(
    supernet: Supernet, space: SearchSpace, images: Tensor, gates: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Logits [N, classes], and the features [N, C] that the classifier reads: the last map's mean over its pixels."""
    seen: list[Tensor] = []
    head = supernet.get_submodule(space.template[-1].name)
    hook = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        logits = supernet(images, gates)
    finally:
        hook.remove()
    return logits, seen[0].mean(dim=(2, 3))


def compactness_loss(features: Tensor, labels: Tensor) -> Tensor:
    """1/2 mean over images of ||f_s - mean f of its class in the batch||^2, the means as constants (4.18).

    features: [N, C]; labels: [N].
    """
    same = (labels[:, None] == labels).to(features)
    means = (same / same.sum(1, keepdim=True)) @ features.detach()
    return 0.5 * (features - means).square().sum(1).mean()


def kernel_loss(supernet: Supernet, space: SearchSpace, gates: tuple[int, ...]) -> Tensor:
    """Sum over output channels of 1-bit convolutions that the path runs of MSE(w, beta sign(w)) (4.18); a scalar."""
    losses = [
        module.reconstruction_loss() / module.weight[0].numel()
        for step in on_path(space, gates)
        for module in supernet.get_submodule(step.name).modules()
        if isinstance(module, BinaryConv2d)
    ]
    return sum(losses, start=next(supernet.parameters()).new_zeros(()))


def on_path(space: SearchSpace, gates: tuple[int, ...]) -> Iterator[Step]:
    """The steps that the supernet runs under these gates."""
    for item in space.template:
        if isinstance(item, Step):
            yield item
        elif isinstance(item, Choice):
            yield from item.blocks[gates[item.decision]] or ()
