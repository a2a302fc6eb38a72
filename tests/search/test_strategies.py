"""Every strategy: the limit holds, the same task gives the same result, and a stop changes nothing."""

from pathlib import Path

import pytest
import torch

from bnas.profiles.errors import InputError
from bnas.search.augment import default_augmentation, on_device
from bnas.search.data import load_images
from bnas.search.latency import LatencyModel, median_ms
from bnas.search.strategies import STRATEGIES
from bnas.search.strategies.single_path import SearchResult, SearchTask
from bnas.search.training.recipes import Budget, Recipe

BUDGET = Budget(Recipe(1, 256), evaluations=6, population=4, calibration_images=256, training=Recipe(1))


def run(
    name: str, latency: LatencyModel, folder: Path, limit_ms: float, stop: tuple[str, int] = ("", 0)
) -> SearchResult:
    images = load_images("digits")

    def progress(stage: str, done: int, total: int) -> None:
        if (stage, done) == stop:
            raise KeyboardInterrupt

    folder.mkdir(exist_ok=True)
    task = SearchTask(
        latency=latency,
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
    return STRATEGIES[name].search(task)


@pytest.mark.parametrize("name", STRATEGIES)
def test_limit_holds_and_the_result_repeats(name: str, latency: LatencyModel, tmp_path: Path) -> None:
    limit = median_ms(latency)
    found = run(name, latency, tmp_path / "a", limit)
    assert all(trial.latency_ms <= limit for trial in found.trials)
    assert latency.ms(found.best.architecture) == found.best.latency_ms
    assert run(name, latency, tmp_path / "b", limit) == found


@pytest.mark.parametrize("stop", [("supernet", 3), ("search", 2), ("search", 5)])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_stop_changes_nothing(name: str, stop: tuple[str, int], latency: LatencyModel, tmp_path: Path) -> None:
    limit = median_ms(latency)
    with pytest.raises(KeyboardInterrupt):
        run(name, latency, tmp_path / "cut", limit, stop)
    assert run(name, latency, tmp_path / "cut", limit) == run(name, latency, tmp_path / "whole", limit)


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_impossible_limit_is_refused_before_any_work(name: str, latency: LatencyModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no architecture"):
        run(name, latency, tmp_path / "a", latency.ms(latency.fastest()) / 2)
    assert list((tmp_path / "a").iterdir()) == []


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_names_its_source(name: str) -> None:
    assert any(character.isdigit() for character in STRATEGIES[name].SOURCE)
