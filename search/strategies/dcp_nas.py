"""DCP-NAS: a float Parent shows a 1-bit Child where to go (Li et al., IJCV 2023, arXiv 2306.15390).

Epochs of Parent and Child take turns and hand the alphas on to each other. The Child learns the Parent's outputs, and
its alphas also that their gradient should be the Parent's (`discrepancy`); after each step, alphas of candidates whose
weights are ahead are moved (`backtracking`). The architecture is derived from the Child's alphas.

No code of the search was published (the repository retrains one genotype): this follows the equations, as read in
docs/methods/dcp-nas.md. Both supernets run on batch statistics, as in their training.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnas.profiles.errors import InputError, unknown

from ..backtracking import Backtracking, Magnitudes, Rates
from ..binary.layers import BinaryConv2d, Style, reconstruction_loss
from ..discrepancy import CURVATURES, DISTANCES, Logits, child_loss, discrepant, flat, tangent, unflat
from ..expected_latency import ExpectedLatency, Hinge, LatencyLoss
from ..latency import check_limit
from ..parent import without_signs
from ..relaxations import Alphas, entropy
from ..spaces import SearchSpace
from ..supernet import Gate, Supernet
from . import bilevel
from .bilevel import (
    AlphaRecipe,
    Learner,
    Record,
    batches,
    constant,
    derive,
    halves,
    make_learner,
    repeat,
)
from .task import SearchResult, SearchTask, Stopwatch, digest, relaxed_budget

SOURCE = "DCP-NAS: Discrepant Child-Parent Neural Architecture Search for 1-bit CNNs (Li et al., IJCV 2023)"
TANGENTS = ("batch", "phase")
RATES, HINGE, ALPHA_RECIPE, STYLE = Rates(), Hinge(), AlphaRecipe(), Style(scale="learned")


@dataclass(frozen=True)
class Method:
    """discrepancy, reconstruction: lambda and mu of 4.32, as published; with lambda 0 the objective is CP-NAS's.

    distance, curvature: keys of DISTANCES and CURVATURES; chunks: of ggn_micro. tangent: the Parent's gradient on the
    Child's own "batch" and at the alphas that the Parent ended with, or its mean over the Parent's "phase", which costs
    nothing. rates: of the backtracking, or None for coupled optimisation; mean: see `Magnitudes`. latency_loss: joins
    l_C and the expected latency; it does not enter the discrepancy, nor the Parent. autocast: bfloat16 on a GPU, in
    both networks. Raises InputError for a name that there is not.
    """

    discrepancy: float = 5e-3
    reconstruction: float = 0.2
    distance: str = "frobenius"
    curvature: str = "ggn_micro"
    chunks: int = 8
    tangent: str = "batch"
    rates: Rates | None = RATES
    mean: bool = True
    latency_loss: LatencyLoss = HINGE
    alpha_recipe: AlphaRecipe = ALPHA_RECIPE
    style: Style = STYLE
    autocast: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("distance", self.distance, DISTANCES),
            ("curvature", self.curvature, CURVATURES),
            ("tangent", self.tangent, TANGENTS),
        ):
            if value not in known:
                raise unknown(name, value, known)


METHOD = Method()


def run(task: SearchTask, method: Method = METHOD) -> SearchResult:
    """Raises InputError if the limit cannot be met or the space has no 1-bit candidate."""
    check_limit(task.latency, task.limit_ms)
    task = relaxed_budget(task)
    course = Course(task, method)
    child = course.child.alphas
    initial = digest(child.state_dict())
    record = repeat(
        {"parent": course.parent, "child": course.child},
        course.step,
        course.epoch_end,
        steps=2 * course.phase * task.budget.supernet.epochs,
        per_epoch=2 * course.phase,
        path=task.folder / "supernet.safetensors",
        stage="supernet",
        progress=task.progress,
    )
    return derive(task, child.probabilities(), record, initial, digest(child.state_dict()), course.stopwatch)


class State(Alphas):
    """Alphas with what their decoupled optimisation remembers and, of a Parent, the sum of its tangents in a phase."""

    tangents: Tensor
    count: Tensor

    def __init__(self, space: SearchSpace, seed: int, rates: Rates | None) -> None:
        super().__init__(space, seed)
        sizes = [len(alpha) for alpha in self.values]
        self.backtracking = None if rates is None else Backtracking(sizes, rates)
        self.register_buffer("tangents", torch.zeros(sum(sizes)))
        self.register_buffer("count", torch.zeros(()))

    def tensors(self) -> list[Tensor]:
        """The alphas as constants; they change with them."""
        return [alpha.detach() for alpha in self.values]

    @torch.no_grad()
    def assign(self, vector: Tensor) -> None:
        for alpha, value in zip(self.values, unflat(vector, list(self.values)), strict=True):
            alpha.copy_(value)

    def inherit(self, other: "State") -> None:
        """Start a phase from the alphas of the other network. psi stays; the step that it judged is another's now."""
        self.assign(flat(other.tensors()))
        if self.backtracking is not None:
            self.backtracking.mask.zero_()
        self.tangents.zero_()
        self.count.zero_()

    def observe(self, t: Tensor) -> None:
        self.tangents += t
        self.count += 1


class Course:
    """The steps of DCP-NAS: `phase` of the Parent, then as many of the Child, and so on."""

    def __init__(self, task: SearchTask, method: Method) -> None:
        self.task, self.method, self.stopwatch = task, method, Stopwatch()
        self.parent = self._learner(lambda space: without_signs(Supernet(space, method.style)))
        self.child = self._learner(lambda space: Supernet(space, method.style))
        if not any(isinstance(module, BinaryConv2d) for module in self.child.supernet.modules()):
            raise InputError(f"dcp-nas searches 1-bit networks, and space {task.space.id!r} has none; drop its bits=")
        self.magnitudes = {
            learner: Magnitudes(learner.supernet, task.space, mean=method.mean) for learner in (self.parent, self.child)
        }
        self.expected = ExpectedLatency(task.latency, task.device)
        for_weights, for_alphas = halves(task.train, task.seed)
        self.train_batches, self.alpha_batches = batches(task, for_weights, 1), batches(task, for_alphas, 2)
        self.phase = self.train_batches.per_epoch

    def _learner(self, supernet: Callable[[SearchSpace], nn.Module]) -> Learner:
        method = bilevel.Method(
            supernet=supernet,
            alphas=lambda space, seed: State(space, seed, self.method.rates),
            alpha_recipe=self.method.alpha_recipe,
        )
        return make_learner(self.task, method)

    def step(self, number: int) -> dict[str, Tensor]:
        turn, place = divmod(number, 2 * self.phase)
        its_turn = self.parent_step if place < self.phase else self.child_step
        return its_turn(turn * self.phase + place % self.phase, first=place % self.phase == 0)

    def parent_step(self, number: int, first: bool) -> dict[str, Tensor]:
        """Cross-entropy for the weights on their half of the images, then for the alphas on theirs."""
        learner, alphas = self.parent, state(self.parent)
        if first:
            alphas.inherit(state(self.child))
        learner.at(number, self.phase * self.task.budget.supernet.epochs)
        images, labels = self.train_batches(number)
        with self.stopwatch.phase("parent weights"):
            logits = self.on(learner, images)(alphas.tensors())
            loss = F.cross_entropy(logits, labels, label_smoothing=learner.recipe.label_smoothing)
            learner.weight_step(loss)
        images, labels = self.alpha_batches(number)
        with self.stopwatch.phase("parent architecture"), constant(learner.supernet):
            t, logits = tangent(self.on(learner, images), alphas.tensors(), labels)
            alphas.observe(t)
            self.move(learner, t)
        return {"parent loss": loss.detach(), "parent accuracy": accuracy(logits, labels)}

    def child_step(self, number: int, first: bool) -> dict[str, Tensor]:
        """l_C + mu L_R for the weights; for the alphas grad l_C + lambda grad D, and the latency's gradient."""
        learner, alphas = self.child, state(self.child)
        if first:
            alphas.inherit(state(self.parent))
        learner.at(number, self.phase * self.task.budget.supernet.epochs)
        return self.child_weights(self.train_batches(number)[0]) | self.child_alphas(*self.alpha_batches(number))

    def child_weights(self, images: Tensor) -> dict[str, Tensor]:
        with self.stopwatch.phase("child weights"):
            with torch.no_grad():
                target = self.on(self.parent, images)(state(self.parent).tensors())
            divergence = child_loss(self.on(self.child, images)(state(self.child).tensors()), target)
            residual = reconstruction_loss(self.child.supernet)
            self.child.weight_step(divergence + self.method.reconstruction * residual)
        return {"loss": divergence.detach(), "reconstruction": residual.detach()}

    def child_alphas(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        method, alphas = self.method, state(self.child)
        with self.stopwatch.phase("tangent"):
            t, target = self.direction(images, labels)
        with self.stopwatch.phase("child architecture"), constant(self.child.supernet):
            slope = CURVATURES[method.curvature](self.on(self.child, images), alphas.tensors(), target, method.chunks)
            distance, gradient = discrepant(slope, t, method.discrepancy, method.distance)
            share = (gradient - slope.gradient).norm() / slope.gradient.norm()
            gradient, expected_ms = self.with_latency(slope.loss, gradient)
            self.move(self.child, gradient)
        return {
            "architecture loss": slope.loss,
            "discrepancy": distance,
            "discrepancy share": share,
            "tangent cosine": F.cosine_similarity(slope.gradient, t, dim=0),
            "expected latency ms": expected_ms,
        }

    def direction(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(t [P], the Parent's logits of the batch), at the alphas that the Parent ended its phase with."""
        parent = state(self.parent)
        if self.method.tangent == "batch":
            with constant(self.parent.supernet):
                return tangent(self.on(self.parent, images), parent.tensors(), labels)
        with torch.no_grad():
            return parent.tangents / parent.count, self.on(self.parent, images)(parent.tensors())

    def with_latency(self, loss: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of latency_loss(l_C, E[T]) where that of l_C is `gradient` [P], and E[T] in ms."""
        leaves = [loss.clone().requires_grad_(), *(a.requires_grad_() for a in state(self.child).tensors())]
        expected_ms = self.expected([alpha.softmax(0) for alpha in leaves[1:]])
        total = self.method.latency_loss(leaves[0], expected_ms, self.task.limit_ms)
        by_loss, *by_alphas = torch.autograd.grad(total, leaves)
        return by_loss * gradient + flat(by_alphas), expected_ms.detach()

    def on(self, learner: Learner, images: Tensor) -> Logits:
        """A network as a function of its alphas alone."""
        enabled = self.method.autocast and images.device.type == "cuda"

        def logits(alphas: Sequence[Tensor]) -> Tensor:
            with torch.autocast(images.device.type, torch.bfloat16, enabled=enabled):
                return learner.supernet(images, gates(alphas)).float()

        return logits

    def move(self, learner: Learner, gradient: Tensor) -> None:
        """A step of Adam down the gradient [P], then the backtracking."""
        alphas = state(learner)
        before = flat(alphas.tensors()).clone()
        if alphas.backtracking is not None:
            alphas.backtracking.learn(gradient)
        learner.alpha_step(unflat(gradient, alphas.tensors()))
        if alphas.backtracking is not None:
            after = flat(alphas.tensors())
            alphas.assign(alphas.backtracking.backtrack(before, after, self.magnitudes[learner]()))

    def epoch_end(self, record: Record) -> None:
        kept = self.child.alphas.probabilities()
        record.trace.append(torch.from_numpy(np.concatenate(kept)))
        record.curve("alpha entropy", entropy(kept))
        for name, learner in (("child psi", self.child), ("parent psi", self.parent)):
            if (backtracking := state(learner).backtracking) is not None:
                record.curve(name, float(backtracking.psi.mean()))


def state(learner: Learner) -> State:
    assert isinstance(learner.alphas, State)
    return learner.alphas


def gates(alphas: Sequence[Tensor]) -> list[Gate]:
    """softmax of each alpha [K]; of alphas [N, K] for each image, [K, N, 1, 1, 1], which weighs images one by one."""
    weights = [alpha.softmax(-1) for alpha in alphas]
    return [w if w.dim() == 1 else w.t()[:, :, None, None, None] for w in weights]


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(1) == labels).float().mean()
