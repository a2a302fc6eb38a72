"""What every test may ask for."""

import importlib.util
import os
from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def require() -> Callable[[str], None]:
    """require("tensorflow") skips the test if the package is not installed; under BNAS_REQUIRE_ALL=1 it fails."""

    def check(module: str) -> None:
        if importlib.util.find_spec(module) is None:
            if os.environ.get("BNAS_REQUIRE_ALL") == "1":
                pytest.fail(f"needs the package {module}")
            pytest.skip(f"needs the package {module}")

    return check
