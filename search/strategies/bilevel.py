"""The loop that gradient methods share: weights learn on one half of the images, alphas on the other, in turn.

A method fills the slots of `Method`; users may mix them. `Learner`, `Batches`, `repeat` and `derive` are the parts that
methods with another course (several supernets, several stages) put together in their own way.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnas.profiles.errors import InputError

from .. import checkpoint
from ..augment import DeviceSplit, augment, generator
from ..binary.layers import BinaryConv2d, set_progress
from ..expected_latency import ExpectedLatency, Hinge, LatencyLoss
from ..indicators import gene_scores
from ..latency import LatencyModel, check_limit
from ..relaxations import Alphas, Probabilities, Relaxation, Relaxed, Softmax, entropy
from ..second_order import constant, gradients
from ..selection.evolution import Trial
from ..selection.exact import Selection, several
from ..spaces import SearchSpace
from ..supernet import Supernet
from ..training.recipes import Recipe
from ..training.trainer import Progress, learning_rate, make_optimizer
from .task import SearchResult, SearchTask, Stopwatch, digest, relaxed_budget

SAVE_EVERY_S = 30.0
PROBABILITY = "sum of probabilities"


@dataclass(frozen=True)
class AlphaRecipe:
    """How alphas learn: Adam with decay in the gradient, with the values of DARTS.

    clip: largest norm of the gradient over all alphas together; None for any.
    """

    learning_rate: float = 3e-4
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = 1e-3
    clip: float | None = None


@dataclass(frozen=True)
class Problem:
    """What an architecture step sees. train() and validation() are losses at the present values of model and alphas.

    The same call gives the same loss: batch, augmentation and noise are those of the step. rate: the learning rate of
    the weights. notes: means over the epoch of what is put here become curves of the result.
    """

    train: Callable[[], Tensor]
    validation: Callable[[], Tensor]
    model: nn.Module
    alphas: list[Tensor]
    rate: float
    notes: dict[str, Tensor] = field(default_factory=dict)


SOFTMAX, HINGE = Softmax(), Hinge()
ArchGradient = Callable[[Problem], list[Tensor]]
Batch = tuple[Tensor, Tensor]  # images [B, C, H, W] and labels [B]
Trace = Sequence[Probabilities]  # after each epoch
Stop = Callable[[SearchSpace, Trace, int], int | None]  # (space, trace, epochs) -> the epoch to derive from, or go on
Settle = Callable[[Sequence[Tensor], Sequence[Tensor]], None]  # (alphas before a step, alphas after it), changes those
Regulariser = Callable[[Sequence[Tensor], float], Tensor]  # (weights of the candidates, share of the training done)
Worth = Callable[[SearchSpace, Probabilities], Probabilities]  # what candidates are derived by
Rank = Callable[[LatencyModel, tuple[np.ndarray, ...], float, int], list[Selection]]  # as selection.exact.several


def first_order(problem: Problem) -> list[Tensor]:
    """dL_val/dalpha with the weights as constants; no gradient of a weight is computed."""
    with constant(problem.model):
        return gradients(problem.validation(), problem.alphas)


def never(space: SearchSpace, trace: Trace, epochs: int) -> int | None:
    return None


def as_they_are(space: SearchSpace, kept: Probabilities) -> Probabilities:
    return kept


@dataclass(frozen=True)
class Method:
    """The slots of a gradient method.

    relaxation: alphas -> gates. paths: the gates under which weights learn, where they are others. gradient: how that
    of the alphas comes about. order: "alphas" or "weights" take the first step of the two, each on its half of the
    images, or both take it "together" from one backward pass on one batch of all images. warmup: share of the epochs in
    which only weights learn. every: alphas learn in each so many-th step after that. settle: changes alphas after
    their step. stop: asked after each epoch. latency_loss: joins cross-entropy and expected latency for the alphas;
    regulariser: is added to that. worth: probabilities -> scores to derive by. alphas, supernet: how they are made.
    autocast: bfloat16 on a GPU; never where a gradient comes from small differences of losses.
    """

    relaxation: Relaxation = SOFTMAX
    paths: Relaxation | None = None
    gradient: ArchGradient = first_order
    order: str = "alphas"
    warmup: float = 0.0
    every: int = 1
    settle: Settle | None = None
    stop: Stop = never
    latency_loss: LatencyLoss = HINGE
    regulariser: Regulariser | None = None
    worth: Worth = as_they_are
    alpha_recipe: AlphaRecipe = AlphaRecipe()
    alphas: Callable[[SearchSpace, int], Alphas] = Alphas
    supernet: Callable[[SearchSpace], nn.Module] = Supernet
    autocast: bool = False


class Learner:
    """A supernet and the alphas that gate it, each with an optimizer that does not know the other."""

    def __init__(self, supernet: nn.Module, alphas: Alphas, recipe: Recipe, alpha: AlphaRecipe) -> None:
        self.supernet, self.alphas, self.recipe, self.clip = supernet, alphas, recipe, alpha.clip
        self.weight_optimizer = make_optimizer(supernet, recipe)
        self.alpha_optimizer = torch.optim.Adam(
            alphas.parameters(), lr=alpha.learning_rate, betas=alpha.betas, weight_decay=alpha.weight_decay
        )
        convs = [module for module in supernet.modules() if isinstance(module, BinaryConv2d)]
        self.clipped = [conv for conv in convs if conv.weight.requires_grad]
        self.rate = recipe.learning_rate

    def at(self, step: int, steps: int) -> None:
        """What follows from the step number alone."""
        self.rate = learning_rate(self.recipe, step, steps)
        for group in self.weight_optimizer.param_groups:
            group["lr"] = self.rate
        set_progress(self.supernet, step / steps)

    def weight_step(self, loss: Tensor) -> None:
        """One step down the loss; what had no part in it keeps no gradient and does not move."""
        self.weight_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.weight_optimizer.step()
        for conv in self.clipped:
            conv.clip()

    def alpha_step(self, gradient: Sequence[Tensor]) -> None:
        """One step of Adam. gradient: of each of `alphas.parameters()`."""
        for parameter, value in zip(self.alphas.parameters(), gradient, strict=True):
            parameter.grad = value
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.alphas.parameters(), self.clip)
        self.alpha_optimizer.step()
        self.alpha_optimizer.zero_grad(set_to_none=True)

    def pack(self) -> dict[str, Tensor]:
        weights = checkpoint.pack(self.supernet, self.weight_optimizer)
        alphas = checkpoint.pack(self.alphas, self.alpha_optimizer)
        return {f"weights.{k}": t for k, t in weights.items()} | {f"alphas.{k}": t for k, t in alphas.items()}

    def unpack(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Raises InputError naming `path` if the checkpoint belongs to another network."""
        checkpoint.unpack(part(tensors, "weights."), self.supernet, self.weight_optimizer, path)
        checkpoint.unpack(part(tensors, "alphas."), self.alphas, self.alpha_optimizer, path)


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


class Batches:
    """Augmented batches of some images of a split, without end; of (seed, tag, step) alone, so any step can be asked.

    All are of one size: the last of an epoch is filled up with the first of its images. tag: 1 or more; different for
    what should be drawn differently.
    """

    def __init__(
        self, data: DeviceSplit, indices: Tensor, batch_size: int, *, seed: int, tag: int, augmentation: dict
    ) -> None:
        self.data, self.indices, self.seed, self.tag, self.augmentation = data, indices, seed, tag, augmentation
        self.size = min(batch_size, len(indices))
        self.per_epoch = -(-len(indices) // self.size)
        self._epoch, self._order = -1, indices

    def __call__(self, step: int) -> Batch:
        """Images [B, C, H, W] and labels [B] on the data's device."""
        epoch, batch = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            shuffled = torch.randperm(len(self.indices), generator=generator(self.seed, epoch, 1, self.tag))
            self._epoch, self._order = epoch, self.indices[shuffled]
        places = torch.arange(batch * self.size, (batch + 1) * self.size) % len(self._order)
        images, labels = self.data.batch(self._order[places])
        images = augment(images, generator(self.seed, step, 2, self.tag), **self.augmentation)
        return images.contiguous(memory_format=torch.channels_last), labels  # see trainer.fit; GPUs like it, too


def halves(data: DeviceSplit, seed: int) -> tuple[Tensor, Tensor]:
    """The images that weights learn from, and those that alphas learn from: a function of the seed.

    Raises InputError if there are not two images.
    """
    if len(data) < 2:
        raise InputError(f"a gradient method needs 2 or more training images, got {len(data)}; give it more --data")
    shuffled = torch.randperm(len(data), generator=generator(seed, 1, 3))
    return shuffled[: len(data) // 2], shuffled[len(data) // 2 :]


@dataclass
class Record:
    """How a search went.

    losses: of the weights, per epoch. curves: other means per epoch, shorter where they began later. trace: after each
    epoch all probabilities behind each other. chosen: the epoch that a stop rule derives from.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    curves: dict[str, list[float]] = field(default_factory=dict)
    trace: list[Tensor] = field(default_factory=list)
    chosen: int | None = None
    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Scalars of one step; they stay on their device until the epoch ends."""
        for name, value in values.items():
            value = value.detach().clone()  # the same scalar may come under two names
            self.sums[name] = self.sums[name].to(value.device) + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def end_epoch(self) -> None:
        means = {name: total.item() / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        self.losses.append(means.pop("loss"))
        for name, value in means.items():
            self.curve(name, value)

    def curve(self, name: str, value: float) -> None:
        self.curves.setdefault(name, []).append(value)

    def save(self, path: Path, learners: Mapping[str, Learner]) -> None:
        tensors = {f"sums.{name}": total for name, total in self.sums.items()}
        tensors |= {f"trace.{epoch}": kept for epoch, kept in enumerate(self.trace)}
        for name, learner in learners.items():
            tensors |= {f"{name}.{key}": t for key, t in learner.pack().items()}
        header = {"step": self.step, "losses": self.losses, "curves": self.curves, "chosen": self.chosen}
        checkpoint.save(path, tensors, header | {"counts": self.counts})

    @classmethod
    def load(cls, path: Path, learners: Mapping[str, Learner]) -> "Record":
        tensors, header = checkpoint.load(path)
        for name, learner in learners.items():
            learner.unpack(part(tensors, f"{name}."), path)
        trace = part(tensors, "trace.")
        return cls(**header, trace=[trace[str(i)] for i in range(len(trace))], sums=part(tensors, "sums."))


def repeat(
    learners: Mapping[str, Learner],
    step: Callable[[int], Mapping[str, Tensor]],
    epoch_end: Callable[[Record], None],
    *,
    steps: int,
    per_epoch: int,
    path: Path,
    stage: str,
    progress: Progress,
) -> Record:
    """Call step(n) for n = 0, 1, ... `steps`; checkpoint to `path` after each epoch and every 30 s; go on from there.

    step(n) changes nothing but the learners, depends on nothing but them and n, and returns scalars on the device of
    which one is "loss"; they are read once per epoch. epoch_end(record) may set record.chosen, which ends the search.
    """
    record = Record.load(path, learners) if path.is_file() else Record()
    saved = time.monotonic()
    for learner in learners.values():
        learner.supernet.train()
    while record.step < steps and record.chosen is None:
        record.add(step(record.step))
        record.step += 1
        ended = record.step % per_epoch == 0
        if ended:
            record.end_epoch()
            epoch_end(record)
        if ended or time.monotonic() - saved > SAVE_EVERY_S:
            record.save(path, learners)
            saved = time.monotonic()
        progress(stage, record.step, steps)
    return record


def search(task: SearchTask, method: Method) -> SearchResult:
    """Raises InputError if the limit cannot be met."""
    check_limit(task.latency, task.limit_ms)
    task = relaxed_budget(task)
    learner = make_learner(task, method)
    initial = digest(learner.alphas.state_dict())
    course = Course(task, method, learner)
    record = follow(course, "supernet")
    trace = [method.worth(task.space, learner.alphas.split(flat)) for flat in record.trace]
    record = replace(record, trace=[torch.from_numpy(np.concatenate(kept)) for kept in trace])
    kept = trace[-1 if record.chosen is None else record.chosen]
    state = learner.alphas.state_dict()
    if method.stop is not never:  # how long alphas learned is then a thing that the method found
        state["epochs"] = torch.tensor(len(record.trace))
    return derive(task, kept, record, initial, digest(state), course.stopwatch)


def follow(course: "Course", stage: str) -> Record:
    """Take the course to its end, from where its checkpoint is; `stage` names that and the progress."""
    return repeat(
        {"learner": course.learner},
        course.step,
        course.epoch_end,
        steps=course.steps,
        per_epoch=course.per_epoch,
        path=course.task.folder / f"{stage}.safetensors",
        stage=stage,
        progress=course.task.progress,
    )


def make_learner(task: SearchTask, method: Method) -> Learner:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        supernet = method.supernet(task.space).to(task.device)
    if task.device.type == "cuda":
        supernet = supernet.to(memory_format=torch.channels_last)
    alphas = method.alphas(task.space, task.seed).to(task.device)
    return Learner(supernet, alphas, task.budget.supernet, method.alpha_recipe)


class Course:
    """The steps of a method with one supernet."""

    def __init__(self, task: SearchTask, method: Method, learner: Learner) -> None:
        self.task, self.method, self.learner = task, method, learner
        self.recipe, self.stopwatch = task.budget.supernet, Stopwatch()
        self.expected = ExpectedLatency(task.latency, task.device)
        whole = torch.arange(len(task.train))
        for_weights, for_alphas = (whole, whole) if method.order == "together" else halves(task.train, task.seed)
        self.train_batches, self.alpha_batches = batches(task, for_weights, 1), batches(task, for_alphas, 2)
        self.per_epoch = self.train_batches.per_epoch
        self.steps = self.recipe.epochs * self.per_epoch
        self.cold = round(method.warmup * self.recipe.epochs) * self.per_epoch

    def step(self, number: int) -> dict[str, Tensor]:
        """What happens in step `number`; its scalars, of which "loss" is the weights'."""
        self.learner.at(number, self.steps)
        train = self.train_batches(number)
        if number < self.cold or (number - self.cold) % self.method.every:
            return self.weights_learn(number, train)
        if self.method.order == "together":
            return self.both_learn(number, train)
        if self.method.order == "weights":
            return self.weights_learn(number, train) | self.alphas_learn(number, train)
        return self.alphas_learn(number, train) | self.weights_learn(number, train)

    def weights_learn(self, number: int, train: Batch) -> dict[str, Tensor]:
        with self.stopwatch.phase("weights"):
            alphas = [alpha.detach() for alpha in self.learner.alphas.parameters()]
            loss = self.cross_entropy(train, self.path(number, alphas))
            self.learner.weight_step(loss)
        return {"loss": loss.detach()}

    def alphas_learn(self, number: int, train: Batch) -> dict[str, Tensor]:
        held_out = self.alpha_batches(number)
        with self.stopwatch.phase("architecture"):
            notes: dict[str, Tensor] = {}
            alphas = list(self.learner.alphas.parameters())
            problem = Problem(
                train=lambda: self.cross_entropy(train, self.relax(number, alphas)),
                validation=lambda: self.objective(number, alphas, held_out, notes),
                model=self.learner.supernet,
                alphas=alphas,
                rate=self.learner.rate,
                notes=notes,
            )
            before = [alpha.detach().clone() for alpha in alphas]
            self.learner.alpha_step(self.method.gradient(problem))
            if self.method.settle is not None:
                self.method.settle(before, [alpha.detach() for alpha in alphas])
        return notes

    def both_learn(self, number: int, train: Batch) -> dict[str, Tensor]:
        with self.stopwatch.phase("both"):
            notes: dict[str, Tensor] = {}
            alphas = list(self.learner.alphas.parameters())
            self.learner.weight_step(self.objective(number, alphas, train, notes))
            self.learner.alpha_step([torch.zeros_like(a) if a.grad is None else a.grad for a in alphas])
        return {"loss": notes["architecture loss"], **notes}

    def relax(self, number: int, alphas: Sequence[Tensor]) -> Relaxed:
        """All passes of one step see the same noise."""
        return self.method.relaxation(alphas, self.share(number), generator(self.task.seed, number, 4))

    def path(self, number: int, alphas: Sequence[Tensor]) -> Relaxed:
        """What the weights of one step learn under."""
        if self.method.paths is None:
            return self.relax(number, alphas)
        return self.method.paths(alphas, self.share(number), generator(self.task.seed, number, 5))

    def share(self, number: int) -> float:
        """0 in the first step, 1 in the last."""
        return number / max(1, self.steps - 1)

    def logits(self, images: Tensor, relaxed: Relaxed) -> Tensor:
        enabled = self.method.autocast and images.device.type == "cuda"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=enabled):
            return self.learner.supernet(images, relaxed.gates).float()

    def cross_entropy(self, batch: Batch, relaxed: Relaxed) -> Tensor:
        """The weights' loss."""
        logits = self.logits(batch[0], relaxed)
        return F.cross_entropy(logits, batch[1], label_smoothing=self.recipe.label_smoothing)

    def objective(self, number: int, alphas: Sequence[Tensor], batch: Batch, notes: dict[str, Tensor]) -> Tensor:
        """The alphas' loss, of cross-entropy, expected latency and the method's regulariser.

        Notes it, and the share of images that are right.
        """
        relaxed = self.relax(number, alphas)
        logits = self.logits(batch[0], relaxed)
        expected_ms = self.expected(relaxed.weights, relaxed.survival)
        loss = self.method.latency_loss(F.cross_entropy(logits, batch[1]), expected_ms, self.task.limit_ms)
        if self.method.regulariser is not None:
            loss = loss + self.method.regulariser(relaxed.weights, self.share(number)).to(loss)
        notes["architecture loss"] = loss.detach()
        notes["expected latency ms"] = expected_ms.detach()
        notes["architecture accuracy"] = (logits.detach().argmax(1) == batch[1]).float().mean()
        return loss

    def epoch_end(self, record: Record) -> None:
        kept = self.learner.alphas.probabilities()
        record.trace.append(torch.from_numpy(np.concatenate(kept)))
        record.curve("alpha entropy", entropy(kept))
        record.curve("temperature", self.method.relaxation.temperature(self.share(record.step - 1)))
        trace = [self.learner.alphas.split(flat) for flat in record.trace]
        record.chosen = self.method.stop(self.task.space, trace, self.recipe.epochs)


def batches(task: SearchTask, indices: Tensor, tag: int) -> Batches:
    size = task.budget.supernet.batch_size
    return Batches(task.train, indices, size, seed=task.seed, tag=tag, augmentation=task.augmentation)


def derive(
    task: SearchTask,
    kept: Probabilities,
    record: Record,
    initial_hash: str,
    state_hash: str,
    stopwatch: Stopwatch,
    rank: Rank = several,
) -> SearchResult:
    """The architectures under the limit that keep most probability, exactly. kept[d][k]: of candidate k of decision d.

    Without a limit that is DARTS's rule: for each node the two edges whose largest probability but that of `none` is
    largest, with that candidate; for each layer of a chain the most probable candidate. rank: what finds them.
    """
    with stopwatch.phase("derive"):
        count = min(task.budget.population, task.space.size)
        scores = gene_scores(task.space, kept)
        chosen = rank(task.latency, scores, task.limit_ms, count)
    trials = tuple(Trial(task.space.architecture(s.indices), s.score, s.latency_ms) for s in chosen)
    return SearchResult(
        best=trials[0],
        trials=trials,
        score_name=PROBABILITY,
        losses=tuple(record.losses),
        steps=record.step,
        initial_hash=initial_hash,
        state_hash=state_hash,
        certificate=chosen[0].certificate("{profile}"),
        curves=record.curves,
        course=tuple(task.space.architecture(unlimited(task.space, split(task.space, flat))) for flat in record.trace),
        scores=tuple(tuple(values.tolist()) for values in scores) if rank is several else (),
        seconds=stopwatch.seconds,
    )


def split(space: SearchSpace, flat: Tensor) -> Probabilities:
    """A vector of values for all candidates of all decisions, taken apart by decision."""
    return tuple(part.numpy() for part in flat.split([len(decision.candidates) for decision in space.decisions]))


def unlimited(space: SearchSpace, kept: Probabilities) -> tuple[int, ...]:
    """The indices of the architecture that keeps most probability when latency does not matter."""
    return tuple(int(np.argmax(scores)) for scores in gene_scores(space, kept))
