"""`kill -9` at chosen steps and inside writes: the same command goes on, and ends where it would have ended anyway."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
RESULTS = ("search.json", "train.json", "architecture.yaml", "model.safetensors")

# What is killed: (function, text among its arguments, count of such calls, settings). Step 13 of 18 is inside an epoch.
RATE, SAVE_EVERY = "bnas.search.training.trainer.learning_rate", "bnas.search.training.trainer.SAVE_EVERY_S=0"
COMMIT = "sqlalchemy.engine.default.DefaultDialect.do_commit"
PARENTS = "optuna.samplers.NSGAIISampler.get_parent_population"
Command = Callable[..., subprocess.CompletedProcess[str]]
KILLS = {
    "inside the write of run.yaml": ("os.fsync", ".run.yaml.", 1),
    "before run.yaml is renamed": ("os.replace", "run.yaml", 1),
    "supernet, first step": (RATE, " 0 18", 1),
    "supernet, inside an epoch, after a timed checkpoint": (RATE, " 4 18", 1, SAVE_EVERY),
    "supernet, inside a checkpoint write": ("os.fsync", ".supernet.safetensors.", 1),
    "supernet, before a checkpoint is renamed": ("os.replace", "supernet.safetensors", 1),
    "supernet, inside the second epoch": (RATE, " 13 18", 1),
    "scoring, before a commit": (COMMIT, "", 30),
    "scoring, third candidate": ("bnas.search.strategies.selecting.score", "", 3),
    "scoring, before the result is stored": ("optuna.storages.RDBStorage.set_trial_state_values", "", 4),
    "scoring, at the boundary of two generations": (PARENTS, " 1", 1),
    "before the architecture is written": ("os.replace", "architecture.yaml", 1),
    "inside the write of search.json": ("os.fsync", ".search.json.", 1),
    "training, inside an epoch": (RATE, " 11 34", 1),
    "training, inside a checkpoint write": ("os.fsync", ".training.safetensors.", 1),
    "training, last step": (RATE, " 33 34", 1),
    "inside the write of the network": ("os.fsync", ".model.safetensors.", 1),
    "before train.json is renamed": ("os.replace", "train.json", 1),
}


def killed(points: Iterable[tuple[object, ...]], *arguments: str, cwd: Path) -> None:
    """Run the command once for each point, at which it dies."""
    done = subprocess.run(
        [sys.executable, HERE / "killer.py", json.dumps(list(points)), *arguments],
        cwd=cwd, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def results(cwd: Path) -> dict[str, bytes]:
    """What the only run in `cwd` came to."""
    (run,) = (cwd / "runs").iterdir()
    return {name: (run / name).read_bytes() for name in RESULTS}


@pytest.fixture(scope="module")
def search(tiny: tuple[str, ...]) -> tuple[str, ...]:
    return ("search", *tiny)


@pytest.fixture(scope="module")
def whole(documents: dict[str, Any]) -> dict[str, bytes]:
    """The results of the same command when nobody kills it."""
    return results(documents["cwd"])


def test_killed_everywhere_in_turn(
    search: tuple[str, ...], whole: dict[str, bytes], command: Command, tmp_path: Path
) -> None:
    killed(KILLS.values(), *search, cwd=tmp_path)
    done = command(*search, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path) == whole
    assert list(tmp_path.glob("runs/*/.*")) == []
    found, trained = (json.loads(whole[name]) for name in ("search.json", "train.json"))
    assert len(found["trials"]) == 10 and trained["architecture"] == found["architecture"]


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLS)
def test_killed_once(
    name: str, search: tuple[str, ...], whole: dict[str, bytes], command: Command, tmp_path: Path
) -> None:
    killed([KILLS[name]], *search, cwd=tmp_path)
    assert command(*search, cwd=tmp_path).returncode == 0
    assert results(tmp_path) == whole
