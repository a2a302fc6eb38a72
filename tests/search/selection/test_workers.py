"""Several processes on one study, of which some die: every trial is scored once, and none is missing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest

from bnas.profiles.errors import InputError
from bnas.search.selection.evolution import connected

HERE = Path(__file__).parent
EVALUATIONS = 10  # of the workers


def start(folder: Path, name: str, seconds: float, *url: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, HERE / "worker.py", folder / "trials.db", folder / name, str(seconds), *url],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run(folder: Path, *url: str) -> list[dict]:
    """What a worker that nobody kills comes to."""
    worker = start(folder, "log", 0.0, *url)
    out, err = worker.communicate(timeout=60)
    assert worker.returncode == 0, err
    return json.loads(out)


def lines(folder: Path, name: str) -> list[str]:
    path = folder / name
    return path.read_text().splitlines() if path.is_file() else []


def wait_for(folder: Path, name: str, count: int) -> None:
    until = time.monotonic() + 60
    while len(lines(folder, name)) < count:
        assert time.monotonic() < until, f"{name} has not scored {count}"
        time.sleep(0.01)


@pytest.mark.parametrize("where", ["beside the run", "in a storage"])
def test_one_of_two_is_killed_while_it_scores(where: str, tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path / 'other.db'}"
    url = () if where == "beside the run" else (address,)
    survivor, victim = start(tmp_path, "survivor", 0.05, *url), start(tmp_path, "victim", 0.05, *url)
    wait_for(tmp_path, "victim", 2)
    wait_for(tmp_path, "survivor", 2)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    _, err = survivor.communicate(timeout=60)
    assert survivor.returncode == 0, err
    storage, name = (address, "shared") if url else (f"sqlite:///{tmp_path / 'trials.db'}", "search")
    trials = optuna.load_study(study_name=name, storage=storage).trials
    assert {t.state.name for t in trials} <= {"COMPLETE", "FAIL"}  # failed: killed before its genome was stored
    complete = [tuple(int(t.params[f"d{d}"]) for d in range(3)) for t in trials if t.state.name == "COMPLETE"]
    assert len(complete) == EVALUATIONS
    scored = Counter(lines(tmp_path, "survivor") + lines(tmp_path, "victim"))
    assert set(scored) == set(map(str, complete))
    # What the victim was at when it died is begun twice; nothing else, were it not in `complete` only once.
    twice = [genome for genome, times in scored.items() if times > 1]
    assert len(twice) <= 1 and all(genome == lines(tmp_path, "victim")[-1] for genome in twice)
    assert len(lines(tmp_path, "survivor")) > 2 and not list(tmp_path.glob("trials.*.lock"))


def test_what_one_process_left_is_taken_up_by_the_next(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    expected = run(whole)
    for _ in range(2):
        victim = start(tmp_path, "log", 0.3)
        wait_for(tmp_path, "log", len(lines(tmp_path, "log")) + 2)
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
    assert run(tmp_path) == expected
    assert len(optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path / 'trials.db'}").trials) <= 12


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("nonsense", "is no address"),
        ("sqlite:////no/such/folder/x.db", "cannot be used"),
        ("postgresql://me:secret@localhost:1/db", "postgresql://me:***@localhost"),
    ],
)
def test_a_storage_that_is_none_is_named_without_its_password(address: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        connected(address)
    assert words in str(error.value) and "secret" not in str(error.value) and "\n" not in str(error.value)
