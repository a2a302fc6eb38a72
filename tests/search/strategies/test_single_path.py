"""What single-path methods train and what they leave alone, how often candidates learn, and that evolution finds the
proven optimum."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnas.search.evaluate import calibration_batches, score
from bnas.search.latency import LatencyModel
from bnas.search.selection.evolution import evolve
from bnas.search.selection.exact import score_of, select
from bnas.search.spaces import SPACES
from bnas.search.spaces.wiring import Choice
from bnas.search.strategies import STRATEGIES, single_path
from bnas.search.strategies.task import Stopwatch

METHODS = {
    name: module.METHOD
    for name, module in STRATEGIES.items()
    if isinstance(getattr(module, "METHOD", None), single_path.Method)
}


def norms_of(supernet: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {name: module for name, module in supernet.named_modules() if isinstance(module, nn.BatchNorm2d)}


def last_norms(supernet: nn.Module, space) -> set[str]:
    """Of each candidate, the batch-norm that runs last, by the order in which they are called."""
    called: list[str] = []
    for name, norm in norms_of(supernet).items():
        norm.register_forward_hook(lambda *_, name=name: called.append(name))
    x = torch.zeros(2, *space.shape)
    for candidate in range(max(len(d.candidates) for d in space.decisions)):
        supernet(x, [candidate % len(d.candidates) for d in space.decisions])
    last = set()
    for choice in (item for item in space.template if isinstance(item, Choice)):
        for block in filter(None, choice.blocks):
            prefixes = tuple(f"{step.name}." for step in block)
            last |= {[name for name in called if f"{name}.".startswith(prefixes)][-1]}
    return last


def test_there_are_five_methods() -> None:
    assert set(METHODS) == {"one-shot", "spos", "fairnas", "bn-nas", "di-nas"}


@pytest.mark.parametrize("space", ["tiny", "cells"])
@pytest.mark.parametrize("name", METHODS)
def test_only_what_may_learn_changes(name: str, space: str, task_of) -> None:
    the_task = task_of(space, images=128)
    before, _ = single_path.prepare(the_task, METHODS[name])
    trained = single_path.train(the_task, METHODS[name], Stopwatch())
    old = dict(before.named_parameters())
    changed = {key for key, p in trained.supernet.named_parameters() if not torch.equal(p, old[key])}
    allowed = {
        "bn-nas": last_norms(before, trained.space) if name == "bn-nas" else set(),
        "di-nas": set(norms_of(before)),
    }
    assert changed
    if name in allowed:
        assert {key.rpartition(".")[0] for key in changed} <= allowed[name]
        assert len(changed) > len(allowed[name]) / 2  # most do learn
    else:
        assert any("conv.weight" in key for key in changed) and not any("norm" in key for key in changed)


@pytest.mark.parametrize("space", SPACES)
def test_fairness_holds_at_every_step_of_the_optimizer(space: str, task_of) -> None:
    the_task = task_of(space)
    method = METHODS["fairnas"]
    supernet, _ = single_path.prepare(the_task, method)
    ran: dict[str, int] = {}
    most = max(len(d.candidates) for d in the_task.space.decisions)
    learning = [  # of each choice, steps that have parameters: others may be computed once for several candidates
        (len(item.blocks), [name for name in map(partial(learner, supernet), item.blocks) if name])
        for item in the_task.space.template
        if isinstance(item, Choice)
    ]
    for name in (name for _, names in learning for name in names):
        supernet.get_submodule(name).register_forward_hook(
            lambda *_, name=name: ran.__setitem__(name, ran.get(name, 0) + 1)
        )
    learn = single_path.passing(supernet, the_task.space, method, 0, 2, 0.0)
    images, labels = the_task.train.batch(torch.arange(4))
    for step in (1, 2, 3, 4):
        learn(images, labels, step - 1)
        for candidates, names in learning:
            counts = {ran.get(name, 0) for name in names}
            if candidates == most:
                assert counts <= {step}
            assert max(counts, default=0) - min(counts, default=0) <= step  # fewer candidates than passes: one apart


def learner(supernet: nn.Module, block) -> str | None:
    """The name of a step of the block that has parameters."""
    return next((s.name for s in block or () if list(supernet.get_submodule(s.name).parameters())), None)


def test_shared_weights_learn_the_mean_of_the_passes(task_of) -> None:
    the_task = task_of("tiny")
    method = METHODS["fairnas"]
    supernet, space = single_path.prepare(the_task, method)
    images, labels = the_task.train.batch(torch.arange(8))
    stem = next(p for name, p in supernet.named_parameters() if name.startswith("stem"))
    passes = method.passes(space, 5, 0, 1)
    each = [torch.autograd.grad(F.cross_entropy(supernet(images, gates), labels), stem)[0] for gates in passes]
    single_path.passing(supernet, space, method, 5, 1, 0.0)(images, labels, 0)
    assert stem.grad is not None
    torch.testing.assert_close(stem.grad, torch.stack(each).mean(0), rtol=1e-4, atol=1e-6)


def test_a_score_changes_nothing_but_running_statistics(task_of) -> None:
    the_task = task_of("cells")
    supernet, space = single_path.prepare(the_task, METHODS["spos"])
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    gates = space.gates(space.indices(space.random(np.random.default_rng(0))))
    score(supernet, gates, calibration_batches(the_task.train, 64), the_task.validation)
    changed = {name for name, value in supernet.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.rpartition(".")[2].startswith(("running_", "num_batches")) for name in changed)


@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
def test_the_optimum_of_the_evolution_is_the_proven_one(make_small, tmp_path: Path, share: float) -> None:
    model: LatencyModel = make_small(3, 3)
    scores = tuple(np.random.default_rng(7).random((3, 3)))
    slowest = model.ms_of(tuple(int(ms.argmax()) for ms in model.candidate_ms))
    fastest = model.ms(model.fastest())
    limit_ms = fastest + share * (slowest - fastest)
    trials = evolve(
        model, limit_ms, lambda genome: score_of(scores, genome), evaluations=40, population=6, seed=0,
        path=tmp_path / "t.db", progress=lambda *_: None,
    )  # fmt: skip
    best = max(trial.score for trial in trials)
    assert math.isclose(best, select(model, scores, limit_ms).score)


@pytest.fixture
def make_small():
    """make_small(genes, candidates) -> a latency model of random latencies."""
    from bnas.search.spaces.space import Decision, SearchSpace, chain_genes

    def make(genes: int, candidates: int) -> LatencyModel:
        decisions = tuple(Decision(f"d{d}", tuple(map(str, range(candidates)))) for d in range(genes))
        space = SearchSpace("toy", "micro", (1, 8, 8), 10, (), decisions, chain_genes(decisions), ())
        parts = tuple(np.random.default_rng(1).random((genes, candidates)))
        return LatencyModel(space, 0.0, parts, parts)

    return make
