"""What every test may ask for."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
OLDEST = "1.17.3"  # of onnxruntime, that files and the operator library must work with


@pytest.fixture(scope="session")
def require() -> Callable[[str], None]:
    """require("tensorflow") skips the test if the package is not installed; under BNAS_REQUIRE_ALL=1 it fails."""

    def check(module: str) -> None:
        if importlib.util.find_spec(module) is None:
            if os.environ.get("BNAS_REQUIRE_ALL") == "1":
                pytest.fail(f"needs the package {module}")
            pytest.skip(f"needs the package {module}")

    return check


@pytest.fixture(scope="session")
def old_python() -> str:
    """A Python with the oldest onnxruntime: BNAS_OLD_ORT_PYTHON, or an environment made once under build/."""
    if given_python := os.environ.get("BNAS_OLD_ORT_PYTHON"):
        return given_python
    folder = ROOT / "build" / f"ort-{OLDEST}"
    python = folder / "bin" / "python"
    complete = folder / "complete"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # of the processes that run tests, one makes it and the others wait
        if complete.exists():
            return str(python)
        install = [str(python), "-m", "pip", "install", "--quiet", f"onnxruntime=={OLDEST}", "numpy<2"]
        for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], install):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                reason = f"cannot make an environment with onnxruntime {OLDEST}: {done.stderr.strip()[-200:]}"
                if os.environ.get("BNAS_REQUIRE_ALL") == "1":
                    pytest.fail(reason)
                pytest.skip(reason)
        complete.touch()
    return str(python)
