"""Every strategy: the limit holds, it learns something of its own, the same task gives the same result, a stop changes
nothing. A new entry in STRATEGIES is tested by being there."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch

from bnas.profiles.errors import InputError
from bnas.profiles.schema import load_profile
from bnas.profiles.table import LatencyTable
from bnas.search.augment import default_augmentation, on_device
from bnas.search.data import load_images
from bnas.search.data.image_set import ImageSet, Split
from bnas.search.latency import LatencyModel, latency_model, median_ms
from bnas.search.spaces import make_space
from bnas.search.strategies import STRATEGIES
from bnas.search.strategies.fairnas import strictly_fair
from bnas.search.strategies.one_shot import path_dropout
from bnas.search.strategies.spos import uniform
from bnas.search.strategies.task import SearchResult, SearchTask
from bnas.search.training.recipes import Budget, Recipe

BUDGET = Budget(Recipe(2, 128), evaluations=6, population=4, calibration_images=128, training=Recipe(1))


@cache
def digits() -> ImageSet:
    """Of the training images the first 512: four steps an epoch, or two of each half."""
    images = load_images("digits")
    return replace(images, train=Split(images.train.images[:512], images.train.labels[:512]))


@cache
def model(space: str = "tiny") -> LatencyModel:
    return latency_model(make_space(space, (1, 8, 8), 10), LatencyTable(load_profile("rtx3080")))


def run(name: str, folder: Path, limit_ms: float, stop_at: int = 0) -> tuple[SearchResult, int]:
    """The result, and how often progress was reported; at the report number `stop_at` the user interrupts."""
    images, calls = digits(), 0

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise KeyboardInterrupt

    folder.mkdir(exist_ok=True)
    task = SearchTask(
        latency=model(),
        limit_ms=limit_ms,
        train=on_device(images.train, "cpu", images.mean, images.std),
        validation=on_device(images.validation, "cpu", images.mean, images.std),
        augmentation=default_augmentation(images),
        budget=BUDGET,
        seed=0,
        device=torch.device("cpu"),
        folder=folder,
        progress=progress,
    )
    return STRATEGIES[name].run(task), calls


@cache
def whole(name: str) -> tuple[SearchResult, int]:
    with TemporaryDirectory() as folder:
        return run(name, Path(folder), median_ms(model()))


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_limit_holds_and_something_was_learnt(name: str) -> None:
    found, _ = whole(name)
    limit, latency = median_ms(model()), model()
    assert found.best in found.trials and found.steps > 0
    assert all(trial.latency_ms <= limit for trial in found.trials)
    assert all(latency.ms(trial.architecture) == trial.latency_ms for trial in found.trials)
    assert found.initial_hash != found.state_hash


def test_no_two_strategies_end_in_the_same_state() -> None:
    states = [whole(name)[0].state_hash for name in STRATEGIES]
    assert len(set(states)) == len(states)


@pytest.mark.parametrize("share", [0.6, *(pytest.param(share, marks=pytest.mark.slow) for share in (0.1, 0.95))])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_stop_changes_nothing(name: str, share: float, tmp_path: Path) -> None:
    expected, calls = whole(name)
    limit = median_ms(model())
    with pytest.raises(KeyboardInterrupt):
        run(name, tmp_path / "cut", limit, stop_at=max(1, round(share * calls)))
    assert run(name, tmp_path / "cut", limit)[0] == expected


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_impossible_limit_is_refused_before_any_work(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no architecture"):
        run(name, tmp_path / "a", model().ms(model().fastest()) / 2)
    assert list((tmp_path / "a").iterdir()) == []


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_names_its_source(name: str) -> None:
    assert any(character.isdigit() for character in STRATEGIES[name].SOURCE) and STRATEGIES[name].__doc__


@pytest.mark.parametrize("name", ["tiny", "mobilenet", "shufflenet", "cells"])
def test_strictly_fair_passes_run_every_candidate_equally_often(name: str) -> None:
    """After each step, where all decisions have as many candidates; else within one."""
    space = model(name).space
    counts = [np.zeros(len(decision.candidates), int) for decision in space.decisions]
    most = max(map(len, counts))
    for step in range(5):
        passes = strictly_fair(space, 0, step)
        assert len(passes) == most
        for gates in passes:
            for count, gate in zip(counts, gates, strict=True):
                assert isinstance(gate, int)
                count[gate] += 1
        for count in counts:
            slack = 0 if len(count) == most else step + 1
            assert count.max() - count.min() <= slack and count.sum() == most * (step + 1)


@pytest.mark.parametrize("name", ["tiny", "mobilenet", "shufflenet", "cells"])
def test_uniform_paths_are_architectures_and_depend_on_seed_and_step_alone(name: str) -> None:
    space = model(name).space
    paths = [uniform(space, 3, step)[0] for step in range(300)]
    assert paths == [uniform(space, 3, step)[0] for step in range(300)]
    assert paths[0] != uniform(space, 4, 0)[0]
    for d, decision in enumerate(space.decisions):
        real = {k for k, candidate in enumerate(decision.candidates) if candidate != "none"}
        assert {path[d] for path in paths} >= real
    if name == "cells":  # of the edges into a node exactly two are there
        none = space.decisions[0].candidates.index("none")
        assert all(sum(gate != none for gate in path) == 16 for path in paths)


def test_path_dropout_begins_with_everything_and_never_drops_all() -> None:
    space = model("cells").space
    first, last = (path_dropout(space, 0, step, 100)[0] for step in (0, 99))
    real = len(space.decisions[0].candidates) - 1  # all but none
    assert all(isinstance(gate, list) and len(gate) == real for gate in first)
    sizes = [len(gate) for gate in last if isinstance(gate, list)]
    assert min(sizes) >= 1 and np.mean(sizes) < real / 2  # each is dropped with probability 0.1^(1/7) = 0.72
    assert all(sum(weight for _, weight in gate) == pytest.approx(1) for gate in last if isinstance(gate, list))
