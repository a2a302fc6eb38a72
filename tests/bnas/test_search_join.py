"""`bnas search --join`: further processes score candidates of one search; nothing is lost with one that dies."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]
KILLER = Path(__file__).parent / "killer.py"
SCORE = "bnas.search.strategies.selecting.score"
EVALUATIONS = 12
SEARCH = ("search", "--profile", "rtx3080", "--budget", "smoke", "--supernet-epochs", "1", "--evaluations",
          str(EVALUATIONS), "--no-train", "--out", "run")  # fmt: skip


def dies_at(count: int, *arguments: str, cwd: Path) -> subprocess.Popen:
    """A process that runs the command and is killed as it begins to score its `count`-th architecture."""
    return subprocess.Popen(
        [sys.executable, KILLER, json.dumps([[SCORE, "", count]]), *arguments],
        cwd=cwd, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def states(folder: Path, storage: str | None) -> Counter[str]:
    storage = storage or f"sqlite:///{folder / 'trials.db'}"
    (name,) = optuna.get_all_study_names(storage)
    return Counter(t.state.name for t in optuna.load_study(study_name=name, storage=storage).trials)


@pytest.mark.parametrize(
    "stored", [pytest.param(False, id="in the run"), pytest.param(True, id="in a storage", marks=pytest.mark.slow)]
)
def test_the_search_and_one_who_joined_are_killed(stored: bool, command: Command, tmp_path: Path) -> None:
    search = (*SEARCH, "--storage", "sqlite:///shared.db") if stored else SEARCH
    storage = f"sqlite:///{tmp_path / 'shared.db'}" if stored else None
    run = tmp_path / "run"
    first = dies_at(3, *search, cwd=tmp_path)
    _, err = first.communicate(timeout=600)
    assert first.returncode == 0, err
    assert states(run, storage) == {"COMPLETE": 2, "RUNNING": 1}
    victim = dies_at(2, "search", "--join", "run", cwd=tmp_path)
    joined = command("search", "--join", "run", "--json", cwd=tmp_path)
    victim.communicate(timeout=600)  # it is killed, or the other was done before it could
    assert joined.returncode == 0, joined.stderr
    after = command("search", "--join", "run", "--json", cwd=tmp_path)  # what the victim left, if it was the last
    assert after.returncode == 0 and json.loads(joined.stdout)["scored"] > 0
    assert states(run, storage) == {"COMPLETE": EVALUATIONS}
    assert not (run / "search.json").exists() and not (run / "architecture.yaml").exists()
    done = command(*search, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    choices = [tuple(trial["choices"]) for trial in document["trials"]]
    assert len(choices) == EVALUATIONS == len(set(choices))
    assert states(run, storage) == {"COMPLETE": EVALUATIONS}
    assert run.joinpath("trials.db").exists() is not stored
    late = command("search", "--join", "run", cwd=tmp_path)
    assert late.returncode == 2 and "the search has ended" in late.stderr


def test_what_cannot_be_joined(command: Command, tmp_path: Path) -> None:
    """A search without an evolution, and one whose supernet is not trained."""
    halfway = subprocess.run(
        [sys.executable, KILLER, json.dumps([["bnas.search.training.trainer.learning_rate", " 2 9", 1]]), *SEARCH],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert halfway.returncode == 0, halfway.stderr
    early = command("search", "--join", "run", cwd=tmp_path)
    assert early.returncode == 2 and "is trained to step 0 of 9; join when that is done" in early.stderr
    (tmp_path / "run" / "profile.yaml").unlink()
    assert "the search has not begun" in command("search", "--join", "run", cwd=tmp_path).stderr
