"""Tasks that take a second: a few digits and a micro space."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bnas.profiles.schema import load_profile
from bnas.profiles.table import LatencyTable
from bnas.search.augment import default_augmentation, on_device
from bnas.search.data import load_images
from bnas.search.data.image_set import ImageSet
from bnas.search.latency import LatencyModel, latency_model, median_ms
from bnas.search.spaces import SearchSpace, make_space
from bnas.search.strategies.task import SearchTask
from bnas.search.training.recipes import Budget, Recipe


@cache
def digits() -> ImageSet:
    return load_images("digits")


@cache
def model(text: str) -> LatencyModel:
    return latency_model(make_space(text, (1, 8, 8), 10), LatencyTable(load_profile("rtx3080")))


@pytest.fixture
def task_of(tmp_path: Path) -> Callable[..., SearchTask]:
    """(space, epochs, batch, images, stop, folder) -> a task; after `stop` steps the user interrupts it."""

    def make(
        text: str, *, epochs: int = 1, batch: int = 16, images: int = 64, stop: int = -1, folder: str = "run"
    ) -> SearchTask:
        calls = 0

        def progress(stage: str, done: int, total: int) -> None:
            nonlocal calls
            calls += 1
            if calls == stop:
                raise KeyboardInterrupt

        split = on_device(digits().train, "cpu", digits().mean, digits().std)
        some = type(split)(split.images[:images], split.labels[:images], split.mean, split.std)
        (tmp_path / folder).mkdir(exist_ok=True)
        return SearchTask(
            latency=model(text),
            limit_ms=median_ms(model(text)),
            train=some,
            validation=some,
            augmentation=default_augmentation(digits()),
            budget=Budget(
                Recipe(epochs, batch), evaluations=4, population=4, calibration_images=16, training=Recipe(1)
            ),
            seed=0,
            device=torch.device("cpu"),
            folder=tmp_path / folder,
            progress=progress,
        )

    return make


class Flat(nn.Module):
    """In place of a supernet, so that cells take no time: logits in which every gate has a part."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor, gates: list[Tensor]) -> Tensor:
        return self.linear(x.flatten(1)) * torch.cat(gates).square().sum()


@pytest.fixture
def flat() -> type:
    return Flat
