"""The delegate in other runtimes than the one beside us: their structures must lie where we think."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from bnas.runtime_bench import native_library

from .conftest import ROOT, built, here, missing
from .litert_files import Case
from .test_litert import RUN_TFLITE, SEED, cases

# package and version (None: the newest), and what to install beside it
RUNTIMES = {
    "oldest": ("ai-edge-litert==1.4.0", "numpy>=2"),
    "newest": ("ai-edge-litert", "numpy>=2"),
}


@pytest.fixture(scope="module", params=list(RUNTIMES))
def other_python(request: pytest.FixtureRequest) -> str:
    """A Python with one of RUNTIMES: BNAS_LITERT_PYTHON_OLDEST and so on, or an environment made once under build/."""
    name = request.param
    if given := os.environ.get(f"BNAS_LITERT_PYTHON_{name.upper()}"):
        return given
    folder = ROOT / "build" / f"litert-{name}"
    python, complete = folder / "bin" / "python", folder / "complete"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # of the processes that run tests, one makes it and the others wait
        if not complete.exists():
            install = [str(python), "-m", "pip", "install", "--quiet", *RUNTIMES[name]]
            for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], install):
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    missing(f"cannot make an environment with {RUNTIMES[name][0]}: {done.stderr.strip()[-200:]}")
            complete.touch()
    return str(python)


def write(folder: Path, found: dict[str, Case]) -> None:
    for number, case in enumerate(found.values()):
        (folder / f"{number:03}.tflite").write_bytes(case.network.file())
        np.savez(folder / f"{number:03}.npz", **case.feeds)


def test_every_operator_in_other_runtimes(other_python: str, tmp_path: Path) -> None:
    here()
    library = native_library.litert_library() or built("native", native_library.LITERT)
    print("seed", SEED)
    found = dict(cases(np.random.default_rng(SEED)))
    write(tmp_path, found)
    command = [other_python, str(RUN_TFLITE), str(library), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    for number, (name, case) in enumerate(found.items()):
        error, output = tmp_path / f"{number:03}.error", tmp_path / f"{number:03}.out.npz"
        assert not error.exists(), f"{name}: {error.read_text()}"
        case.check(np.load(output)["arr_0"], name)
