"""Latency limits as a user sets them: every one is obeyed, by what is found and by every architecture ever stored."""

import json
import re
import sqlite3
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bnas import cli
from bnas.commands.settings import parse_limit_ms
from bnas.profiles.schema import load_profile
from bnas.profiles.table import LatencyTable
from bnas.search.latency import LatencyModel, check_limit, latency_model
from bnas.search.spaces import make_space

PROFILES = ("rtx3080", "rpi4b")


def search(profile: str, limit_ms: float, folder: Path, *options: str) -> dict:
    command = ["search", "--profile", profile, "--budget", "smoke", "--max-latency", f"{limit_ms!r}ms", *options]
    assert cli.run([*command, "--out", str(folder), "--no-train"]) == 0
    return json.loads((folder / "search.json").read_text())


def predicted(profile: str) -> tuple[LatencyModel, np.ndarray]:
    """The latency model of digits networks, and what it predicts for 500 random ones."""
    space = make_space("tiny", (1, 8, 8), 10)
    latency = latency_model(space, LatencyTable(load_profile(profile)))
    rng = np.random.default_rng(0)
    return latency, np.array([latency.ms(space.random(rng)) for _ in range(500)])


def assert_obeyed(document: dict, folder: Path, limit_ms: float, latency: LatencyModel) -> None:
    """Every stored trial: in the document, and in the database with its parameters as they were sampled."""
    assert document["limit_ms"] == limit_ms
    assert document["predicted_ms"] <= limit_ms
    assert all(trial["latency_ms"] <= limit_ms for trial in document["trials"])
    genes = latency.space.genes
    with sqlite3.connect(folder / "trials.db") as database:
        rows = database.execute("SELECT trial_id, param_name, param_value FROM trial_params").fetchall()
    stored: dict[int, dict[str, int]] = {}
    for trial, name, value in rows:
        stored.setdefault(trial, {})[name] = int(value)
    assert len(stored) >= len(document["trials"])
    assert all(latency.ms_of(tuple(genome[g.id] for g in genes)) <= limit_ms for genome in stored.values())


@pytest.mark.parametrize("profile", ["rtx3080", pytest.param("rpi4b", marks=pytest.mark.slow)])
def test_tighter_limits_give_faster_networks(profile: str, tmp_path: Path) -> None:
    latency, ms = predicted(profile)
    found = []
    for percentile in (80, 40, 20):
        limit = float(np.percentile(ms, percentile))
        folder = tmp_path / str(percentile)
        found.append(search(profile, limit, folder))
        assert_obeyed(found[-1], folder, limit, latency)
    assert all(tighter["predicted_ms"] <= looser["predicted_ms"] for looser, tighter in pairwise(found))
    assert len({tuple(document["architecture"]["choices"]) for document in found}) >= 2


@pytest.mark.parametrize("profile", PROFILES)
def test_a_limit_close_to_the_fastest_is_obeyed(profile: str, tmp_path: Path) -> None:
    latency, ms = predicted(profile)
    fastest = latency.ms(latency.fastest())
    limit = float(fastest + 0.1 * (ms.mean() - fastest))
    document = search(profile, limit, tmp_path / "run", "--supernet-epochs", "1")
    assert_obeyed(document, tmp_path / "run", limit, latency)


def test_the_fastest_itself_can_be_asked_for(tmp_path: Path) -> None:
    latency, _ = predicted("rpi4b")
    limit = latency.ms(latency.fastest())
    document = search("rpi4b", limit, tmp_path / "run", "--supernet-epochs", "1")
    assert document["architecture"]["choices"] == list(latency.fastest().choices)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_limit_below_the_fastest_names_it(profile: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    latency, _ = predicted(profile)
    limit = 0.999 * latency.ms(latency.fastest())
    assert cli.run(["search", "--profile", profile, "--max-latency", str(limit), "--out", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and latency.fastest().name in err and f"{limit:.6g} ms" in err
    advice = re.search(r"--max-latency to at least ([\d.]+)ms", err)
    assert advice and float(advice[1]) == pytest.approx(latency.ms(latency.fastest()), rel=1e-4)
    check_limit(latency, float(advice[1]))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "ms"), [("800us", 0.8), ("8ms", 8.0), ("0.5s", 500.0), ("0.25", 0.25), ("30µs", 0.03), ("2e-2 MS", 0.02)]
)
def test_units_of_a_limit(text: str, ms: float) -> None:
    assert parse_limit_ms(text) == pytest.approx(ms)
