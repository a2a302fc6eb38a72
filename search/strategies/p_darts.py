"""P-DARTS: a search in three stages, deeper from stage to stage, with ever fewer candidates (Chen et al., ICCV 2019).

After each stage the least probable candidates of each decision are dropped; the next begins anew, with fresh weights
and alphas. Deeper networks favour skips, so skips suffer dropout, more from stage to stage and less in the course of
each, and the normal cell may keep two. Where we differ: depths are shares of the depth that is deployed (the paper's 5,
11 and 17 of 20 cells), a chain keeps its depth, and a stage has half of the budget's epochs (25 of the 50 of DARTS).
Where the paper removes the weakest skip until two are left, we take the best architecture with at most two, exactly;
only where no such one meets the limit, it has more. What was dropped has probability 0: it comes back only if the limit
asks for it.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from bnas.profiles.workload import Workload

from ..augment import generator
from ..latency import LatencyModel, check_limit
from ..relaxations import Probabilities
from ..selection.exact import Ceiling, Selection, several
from ..spaces import SPACES, SearchSpace, space_of
from ..spaces.space import Gene
from ..spaces.wiring import Choice, Step
from ..supernet import Supernet
from . import bilevel
from .bilevel import AlphaRecipe, Course, Record, derive, follow, make_learner
from .darts_plus import SKIPS
from .task import SearchResult, SearchTask, Stopwatch, digest, relaxed_budget

SOURCE = "Progressive Differentiable Architecture Search: Bridging the Depth Gap (Chen et al., ICCV 2019)"
Names = tuple[tuple[str, ...], ...]  # for each decision the candidates that take part
LEARNING = bilevel.Method(warmup=0.4, alpha_recipe=AlphaRecipe(learning_rate=6e-4, clip=5.0))


@dataclass(frozen=True)
class Stage:
    """depth: share of the cells that are deployed. candidates: share of them that take part. dropout: of skips."""

    depth: float
    candidates: float
    dropout: float


@dataclass(frozen=True)
class Method:
    """epochs: of a stage, as a share of the budget's. skips: the most in the normal cell. learning: the slots of each
    stage's loop, but for the supernet; its warmup is a share of the stage."""

    stages: tuple[Stage, ...] = (Stage(5 / 20, 1, 0.0), Stage(11 / 20, 5 / 8, 0.4), Stage(17 / 20, 3 / 8, 0.7))
    epochs: float = 0.5
    skips: int = 2
    learning: bilevel.Method = LEARNING


METHOD = Method()


def run(task: SearchTask, method: Method = METHOD) -> SearchResult:
    """Raises InputError if the limit cannot be met.

    Each stage has a checkpoint of its own, from which follows what takes part in the next.
    """
    check_limit(task.latency, task.limit_ms)
    task = relaxed_budget(task)
    record, stopwatch, hashes = Record(), Stopwatch(), []
    scores: Probabilities = tuple(np.ones(len(decision.candidates)) for decision in task.space.decisions)
    for number, stage in enumerate(method.stages, start=1):
        names = survivors(task.space, scores, stage.candidates)
        course = StageCourse(task, method, stage, names, stopwatch)
        alphas = course.learner.alphas
        hashes.append(digest(alphas.state_dict()))
        ended = follow(course, f"stage{number}")
        trace = [np.concatenate(spread(task.space, names, alphas.split(flat))) for flat in ended.trace]
        record = continued(record, replace(ended, trace=list(map(torch.from_numpy, trace))))
        scores = spread(task.space, names, alphas.probabilities())
    learnt = digest(alphas.state_dict() | {"scores": torch.from_numpy(np.concatenate(scores))})
    return derive(task, scores, record, hashes[0], learnt, stopwatch, partial(few_skips, most=method.skips))


class StageCourse(Course):
    """The steps of one stage: the candidates `names`, at the stage's depth, with dropout of skips."""

    def __init__(self, task: SearchTask, method: Method, stage: Stage, names: Names, stopwatch: Stopwatch) -> None:
        recipe = task.budget.supernet
        epochs = method.epochs * recipe.epochs
        recipe = replace(recipe, epochs=max(1, round(epochs)))
        latency = restricted_latency(task.latency, names)  # of the depth that is deployed
        task = replace(task, latency=latency, budget=replace(task.budget, supernet=recipe))
        self.dropouts: list[SkipDropout] = []
        learning = replace(method.learning, supernet=lambda _: self._supernet(shallow, names))
        shallow = at_depth(space_of(latency.space.id), stage.depth)
        super().__init__(task, learning, make_learner(task, learning))
        self.stage, self.stopwatch, self.taking_part = stage, stopwatch, float(np.mean([len(n) for n in names]))
        if epochs < 1:
            self.per_epoch = self.steps = math.ceil(epochs * self.steps)

    def _supernet(self, space: SearchSpace, names: Names) -> Supernet:
        supernet = Supernet(restricted(with_skip_dropout(space), names))
        for unit in supernet.modules():
            if hasattr(unit, DROPOUT):
                unit.get_submodule(DROPOUT).norm = SkipDropout()
        self.dropouts = [module for module in supernet.modules() if isinstance(module, SkipDropout)]
        return supernet

    def step(self, number: int) -> dict[str, Tensor]:
        seed = generator(self.task.seed, number, 7).initial_seed()
        noise = torch.Generator(self.task.device).manual_seed(seed)
        for dropout in self.dropouts:
            dropout.rate, dropout.noise = self.dropout(number), noise
        return super().step(number)

    def dropout(self, number: int) -> float:
        """Falls to 0 while only weights learn, then from the stage's rate to e^-5 of that if all of a stage were left
        (the released code: exp(-0.2) for each of 25 epochs)."""
        share, cold = number / self.steps, self.cold / self.steps
        return self.stage.dropout * (1 - share if share < cold else math.exp(-5 * (share - cold)))

    def epoch_end(self, record: Record) -> None:
        super().epoch_end(record)
        record.curve("candidates", self.taking_part)
        record.curve("skip dropout", self.dropout(record.step - 1))


def continued(before: Record, after: Record) -> Record:
    """Both one after the other. A curve that begins later in a stage stays until then where it was in the last."""
    curves = {}
    for name, values in after.curves.items():
        earlier = before.curves.get(name, [])
        waiting = len(after.losses) - len(values) if earlier else 0
        curves[name] = [*earlier, *(earlier[-1:] * waiting), *values]
    losses, trace = [*before.losses, *after.losses], [*before.trace, *after.trace]
    return Record(before.step + after.step, losses, curves, trace)


# The space of a stage


def at_depth(space: SearchSpace, share: float) -> SearchSpace:
    """The same decisions in a network of `share` of the cells, two at least; a chain as it is."""
    module = SPACES[space.name]
    if "layers" not in module.OPTIONS:
        return space
    others = tuple(option for option in space.options if option[0] != "layers")
    layers = int(dict(space.options).get("layers", module.LAYERS[space.instance]))
    return space_of(replace(space, options=(*others, ("layers", str(max(2, round(share * layers)))))).id)


def survivors(space: SearchSpace, scores: Probabilities, share: float) -> Names:
    """The best `share` of each decision's candidates, two at least, in their order: of 8 candidates 5 for 5/8."""
    kept = []
    for decision, values in zip(space.decisions, scores, strict=True):
        count = max(2, math.floor(share * len(values) + 0.5))
        best = sorted(np.argsort(-values, kind="stable")[:count])
        kept.append(tuple(decision.candidates[k] for k in best))
    return tuple(kept)


def spread(space: SearchSpace, names: Names, kept: Probabilities) -> Probabilities:
    """The probabilities of the candidates `names`, and 0 for all others."""
    places = positions(space, names)
    scores = tuple(np.zeros(len(decision.candidates)) for decision in space.decisions)
    for values, place, p in zip(scores, places, kept, strict=True):
        values[place] = p
    return scores


def positions(space: SearchSpace, names: Names) -> list[list[int]]:
    return [[d.candidates.index(name) for name in kept] for d, kept in zip(space.decisions, names, strict=True)]


def restricted(space: SearchSpace, names: Names) -> SearchSpace:
    """The space without all other candidates."""
    places = positions(space, names)
    renumbered = [{k: i for i, k in enumerate(place)} for place in places]

    def gene_of(gene: Gene) -> Gene:
        alive = [i for i, setting in enumerate(gene.settings) if all(k in renumbered[d] for d, k in setting)]
        settings = tuple(tuple((d, renumbered[d][k]) for d, k in gene.settings[i]) for i in alive)
        return Gene(gene.id, tuple(gene.candidates[i] for i in alive), settings)

    return replace(
        space,
        decisions=tuple(replace(d, candidates=kept) for d, kept in zip(space.decisions, names, strict=True)),
        genes=tuple(map(gene_of, space.genes)),
        template=tuple(
            replace(item, blocks=tuple(item.blocks[k] for k in places[item.decision]))
            if isinstance(item, Choice)
            else item
            for item in space.template
        ),
    )


def restricted_latency(model: LatencyModel, names: Names) -> LatencyModel:
    space, places = restricted(model.space, names), positions(model.space, names)
    decisions = tuple(ms[place] for ms, place in zip(model.decision_ms, places, strict=True))
    genes = tuple(np.array([sum(decisions[d][k] for d, k in taken) for taken in g.settings]) for g in space.genes)
    return LatencyModel(space, model.fixed_ms, decisions, genes)


# Skips

DROPOUT = "dropout"


class SkipDropout(nn.Module):
    """Each number is 0 with chance `rate`, else divided by 1 - rate. `noise`: what that is drawn from."""

    def __init__(self) -> None:
        super().__init__()
        self.rate, self.noise = 0.0, torch.Generator()

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(x.shape, generator=self.noise, device=x.device) >= self.rate
        return x * kept / (1 - self.rate)


def with_skip_dropout(space: SearchSpace) -> SearchSpace:
    """The space with a unit in each candidate that passes its input on. Skips that halve the image have weights or
    means, and no dropout. The unit is described as a batch-norm, whose place a SkipDropout takes."""
    template = []
    for item in space.template:
        if isinstance(item, Choice) and () in item.blocks:
            shape = next(block[-1].unit for block in item.blocks if block)
            unit = Workload("norm", 32, shape.out_channels, shape.out_channels, shape.out_height, shape.out_width)
            names = space.decisions[item.decision].candidates
            steps = [(Step(f"{item.name}.{name}.{DROPOUT}", unit, (item.input,)),) for name in names]
            blocks = tuple(step if block == () else block for block, step in zip(item.blocks, steps, strict=True))
            item = replace(item, blocks=blocks)
        template.append(item)
    return replace(space, template=tuple(template))


def few_skips(
    latency: LatencyModel, scores: tuple[np.ndarray, ...], limit_ms: float, count: int, most: int
) -> list[Selection]:
    """The `count` best architectures under the limit with at most `most` skips in the normal cell.

    If none of these meets the limit, with as few as can be. scores[g][k], and what is raised: as
    `selection.exact.several`. A chain has no normal cell.
    """
    skips = tuple(
        np.array([normal_skips(latency.space, setting) for setting in gene.settings]) for gene in latency.space.genes
    )
    for allowed in itertools.count(most):
        if found := several(latency, scores, limit_ms, count, Ceiling(0, skips, allowed)):
            return found
    raise AssertionError("some number of skips is enough for the fastest")


def normal_skips(space: SearchSpace, setting: Sequence[tuple[int, int]]) -> int:
    """How many of the (decision, candidate) pairs are skips in the normal cell."""
    chosen = [(space.decisions[d], k) for d, k in setting]
    return sum(decision.group == "normal" and decision.candidates[k] in SKIPS for decision, k in chosen)
