"""The loop that single-path methods share: train a supernet by passes through it, score, select under the limit.

A method fills the slots of `Method`; users may mix them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnas.profiles.errors import InputError

from .. import checkpoint
from ..indicators import Indicators, frozen_but, with_indicators
from ..latency import check_limit
from ..spaces import SearchSpace
from ..supernet import Gate, Supernet
from ..training.recipes import Recipe
from ..training.trainer import Learn, fit
from .task import SearchResult, SearchTask, Stopwatch, digest

Passes = Sequence[Sequence[Gate]]


@dataclass(frozen=True)
class Method:
    """The slots of a single-path method.

    passes: (space, seed, step, steps) -> the gates of every pass of one optimizer step; the gradients of the passes add
        up, and those of shared parameters are divided by the number of passes.
    select: (task, supernet, space, stopwatch) -> how the trained supernet becomes a result, see `selection` below.
    trainable: which parameters are trained: "all", or of the batch-norms "last" (of each candidate) or "norms" (all).
    indicators: "" (batch-norms without gamma: candidates share scale), "block" (each candidate ends in a batch-norm
        whose gamma scores it), or "layer" (in addition, a parallel batch-norm on the input of layers that keep shape).
    initialiser: a key of initialisers.INITIALISERS, or "" for the layers' own.
    """

    passes: Callable[[SearchSpace, int, int, int], Passes]
    select: Callable[[SearchTask, "Trained"], SearchResult]
    trainable: str = "all"
    indicators: str = ""
    initialiser: str = ""


@dataclass(frozen=True, eq=False)
class Trained:
    """The supernet after training. space: the task's, with the indicators that the method asked for."""

    supernet: Supernet
    space: SearchSpace
    losses: tuple[float, ...]
    steps: int
    initial_hash: str
    stopwatch: Stopwatch

    def indicators(self) -> Indicators:
        return Indicators(self.supernet, self.space)


def search(task: SearchTask, method: Method) -> SearchResult:
    """Raises InputError if the limit cannot be met."""
    check_limit(task.latency, task.limit_ms)
    stopwatch = Stopwatch()
    trained = train(task, method, stopwatch)
    return method.select(task, trained)


def prepare(task: SearchTask, method: Method) -> tuple[Supernet, SearchSpace]:
    """The supernet before training, and the task's space with the indicators that the method asked for."""
    space = with_indicators(task.space, method.indicators) if method.indicators else task.space
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        supernet = Supernet(space, affine=bool(method.indicators)).to(task.device)
        if method.initialiser:
            from ..initialisers import INITIALISERS

            INITIALISERS[method.initialiser](supernet, task.seed)
    frozen_but(supernet, space, method.trainable)
    return supernet, space


def train(task: SearchTask, method: Method, stopwatch: Stopwatch) -> Trained:
    supernet, space = prepare(task, method)
    initial = digest(dict(supernet.named_parameters()))
    recipe, steps = course(task, method, space)
    with stopwatch.phase("supernet"):
        losses = fit(
            supernet,
            passing(supernet, space, method, task.seed, steps, recipe.label_smoothing),
            task.train,
            recipe,
            seed=task.seed,
            augmentation=task.augmentation,
            path=task.folder / "supernet.safetensors",
            stage="supernet",
            progress=task.progress,
        )
    return Trained(supernet, space, tuple(losses), steps, initial, stopwatch)


def course(task: SearchTask, method: Method, space: SearchSpace) -> tuple[Recipe, int]:
    """How the supernet is trained, and in how many steps. Methods of several passes take as many fewer epochs."""
    recipe = task.budget.supernet
    passes = len(method.passes(space, task.seed, 0, 1)) if task.budget.equal_cost else 1
    recipe = replace(recipe, epochs=max(1, recipe.epochs // passes))
    return recipe, recipe.epochs * -(-len(task.train) // recipe.batch_size)


def trained_supernet(task: SearchTask, method: Method) -> Supernet:
    """The supernet as another process trained it. Raises InputError if it has not, or not to the end."""
    supernet, space = prepare(task, method)
    path = task.folder / "supernet.safetensors"
    step, steps = 0, course(task, method, space)[1]
    if path.is_file():
        tensors, header = checkpoint.load(path)
        step = header["step"]
        checkpoint.unpack_model(tensors, supernet, path)
    if step < steps:
        raise InputError(f"the supernet in {task.folder} is trained to step {step} of {steps}; join when that is done")
    return supernet


def passing(
    supernet: Supernet, space: SearchSpace, method: Method, seed: int, steps: int, label_smoothing: float
) -> Learn:
    """One step of the optimizer: a forward and a backward pass for each element of `method.passes`, on the same batch.

    Parameters outside of all choices get the mean of the passes' gradients (FairNAS, Chu et al. 2021, algorithm 1,
    sums them; the sum would make their step m times as large as a candidate's).
    """
    shared = shared_parameters(supernet, space)

    def learn(images: Tensor, labels: Tensor, step: int) -> Tensor:
        passes = method.passes(space, seed, step, steps)
        total = torch.zeros((), device=labels.device)
        for gates in passes:
            loss = F.cross_entropy(supernet(images, gates), labels, label_smoothing=label_smoothing)
            loss.backward()
            total += loss.detach()
        if len(passes) > 1:
            for parameter in shared:
                if parameter.grad is not None:
                    parameter.grad /= len(passes)
        return total / len(passes)

    return learn


def shared_parameters(supernet: nn.Module, space: SearchSpace) -> list[nn.Parameter]:
    """The parameters that every path runs: those of no candidate."""
    from ..spaces.wiring import Choice

    candidates = {
        step.name for item in space.template if isinstance(item, Choice) for b in item.blocks for step in b or ()
    }
    inside = {id(p) for name in candidates for p in supernet.get_submodule(name).parameters()}
    return [p for p in supernet.parameters() if id(p) not in inside]
