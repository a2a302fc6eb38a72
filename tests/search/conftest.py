"""A small profile, the spaces to test over, and digits on the CPU."""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

from bnas.profiles.schema import load_profile
from bnas.profiles.table import LatencyTable
from bnas.search.latency import LatencyModel, latency_model
from bnas.search.spaces import SPACES, SearchSpace, make_space

IMAGES = {  # case -> (instance, shape, classes)
    "micro": ("micro", (1, 8, 8), 10),
    "colour": ("micro", (3, 16, 12), 4),
    "cifar": ("cifar", (3, 32, 32), 10),
    "imagenet": ("imagenet", (3, 64, 64), 10),
}
COMBINED = {"cells": ("ops=separable,depthwise=int8", "ops=separable,depthwise=grouped", "bits=1+8,ops=separable")}


def option_texts(name: str) -> Iterator[str]:
    """The defaults, each other value of each option that lists its values, and options that depend on each other."""
    yield ""
    for option, values in SPACES[name].OPTIONS.items():
        yield from (f"{option}={value}" for value in values[1:])
    yield from COMBINED.get(name, ())


TEXTS = {  # id -> (what make_space takes)
    f"{name}-{case}{'-' if options else ''}{options}": (f"{name}:{instance}{':' if options else ''}{options}", *image)
    for name in SPACES
    for case, (instance, *image) in IMAGES.items()
    for options in option_texts(name)
}


cached_space = cache(make_space)


def with_long_tail(names: Iterable[str]) -> list[Any]:
    """Options in the smallest and the largest instance; in the two between them, which are wired alike, when slow."""
    tail = {name for name in names if "=" in name and re.search("-(colour|cifar)-", name)}
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in tail)) for name in names]


@pytest.fixture(params=with_long_tail(TEXTS))
def space(request: pytest.FixtureRequest) -> SearchSpace:
    """Every space, in every size and with every option: a new entry in SPACES is tested by being there."""
    return cached_space(*TEXTS[request.param])


@pytest.fixture(params=[name for name in TEXTS if "=" not in name])
def plain(request: pytest.FixtureRequest) -> SearchSpace:
    """Every space in every size, without options."""
    return cached_space(*TEXTS[request.param])


@pytest.fixture(params=SPACES)
def micro(request: pytest.FixtureRequest) -> SearchSpace:
    """The micro instance of every space."""
    return make_space(request.param, (1, 8, 8), 10)


@pytest.fixture(scope="session")
def latency() -> LatencyModel:
    return latency_model(make_space("tiny", (1, 8, 8), 10), LatencyTable(load_profile("rtx3080")))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
