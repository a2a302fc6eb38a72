"""A small profile, spaces of every kind, and digits on the CPU."""

import numpy as np
import pytest

from bnas.profiles.schema import load_profile
from bnas.profiles.table import LatencyTable
from bnas.search.latency import LatencyModel, latency_model
from bnas.search.spaces import SPACES, ChainSpace, make_space

SHAPES = {"small": ((1, 8, 8), 10), "colour": ((3, 16, 12), 4), "large": ((3, 32, 32), 10)}


@pytest.fixture(params=[(name, shape) for name in SPACES for shape in SHAPES], ids="-".join)
def space(request: pytest.FixtureRequest) -> ChainSpace:
    """Every space at every size: a new entry in SPACES is tested by being there."""
    name, shape = request.param
    return make_space(name, *SHAPES[shape])


@pytest.fixture(scope="session")
def latency() -> LatencyModel:
    return latency_model(make_space("tiny", (1, 8, 8), 10), LatencyTable(load_profile("rtx3080")))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
