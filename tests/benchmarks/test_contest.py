"""Rows of the two comparisons are whole, are not done twice, and differences are claimed only where intervals part."""

import inspect
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import contest
import gradient_methods
import numpy as np
import pytest
import search_methods
from contest import Interval, Scale, Setting, interval, verdict

from bnas.profiles.errors import InputError
from bnas.search.spaces import make_space
from bnas.search.strategies import STRATEGIES, cp_nas
from bnas.search.training.recipes import Budget, Recipe

TINY = Scale(
    image_size=8, images=64, validation=32, training_images=64, test=64,
    budget=Budget(Recipe(1, 32), 2, 2, 32, Recipe(1, 32), Recipe(1, 32)), seeds=2, shared=4, spaces=("tiny:micro",),
)  # fmt: skip
SETTING = Setting("digits", TINY)


# Statistics


def test_an_interval_is_that_of_a_table() -> None:
    found = interval([0.1, 0.2, 0.3])
    # mean 0.2, standard deviation 0.1; the 97.5 % quantile of Student's t with 2 degrees of freedom is 4.3027
    assert found.mean == pytest.approx(0.2) and found.half == pytest.approx(4.3027 * 0.1 / math.sqrt(3), rel=1e-4)
    assert interval([0.5]) == Interval(0.5, math.inf, 1)


@pytest.mark.parametrize(
    ("own", "other", "claimed"),
    [((0.5, 0.1), (0.2, 0.1), "+30.0"), ((0.2, 0.1), (0.5, 0.1), "-30.0"), ((0.5, 0.2), (0.2, 0.1), None)],
)
def test_a_difference_is_claimed_where_intervals_part(own, other, claimed: str | None) -> None:
    said = verdict(Interval(*own, 3), Interval(*other, 3), "x")
    assert said == ("not separable at this scale" if claimed is None else f"{claimed} points against x")


def test_two_seeds_claim_nothing() -> None:
    assert verdict(Interval(0.9, 0.0, 2), Interval(0.1, 0.0, 3), "x") == "too few seeds"


def test_kendall_counts_pairs() -> None:
    rows = [{"kind": "shared", "number": n, "test_accuracy": a} for n, a in enumerate([0.1, 0.2, 0.3, 0.4])]
    assert search_methods.kendall(rows, [1, 2, 3, 4]) == 1
    assert search_methods.kendall(rows, [4, 3, 2, 1]) == -1
    assert search_methods.kendall(rows, [1, 2, 4, 3]) == pytest.approx((5 - 1) / 6)
    assert search_methods.kendall(rows[:2], [1, 2, 3, 4]) is None


# Rows


def test_the_shared_set_is_the_same_for_all_and_has_no_twins() -> None:
    space = make_space("tiny", (1, 8, 8), 10)
    shared = contest.shared_set(space, 30)
    assert (
        shared == contest.shared_set(space, 30)
        and len(set(shared)) == 30
        and shared[:5] == contest.shared_set(space, 5)
    )


@pytest.mark.parametrize("module", [search_methods, gradient_methods])
@pytest.mark.parametrize("scale", ["small", "gpu"])
def test_jobs_differ_and_cover_the_seeds(module, scale: str) -> None:
    setting = Setting("digits", module.SCALES[scale])
    jobs = [json.dumps(job, sort_keys=True) for job in module.jobs(setting)]
    assert len(jobs) == len(set(jobs))
    seeds = {job["seed"] for job in module.jobs(setting) if "seed" in job}
    assert seeds == set(range(setting.scale.seeds)) and len(seeds) >= 3


def test_every_strategy_is_compared() -> None:
    single = {search_methods.RANDOM, *search_methods.METHODS}
    assert single | set(gradient_methods.methods()) >= set(STRATEGIES)
    assert single >= set(gradient_methods.NOT_GRADIENT)


@pytest.mark.parametrize("method", ["random", "spos", "di-nas"])
def test_a_search_row(method: str) -> None:
    job = {"kind": "search", "space": "tiny:micro", "method": method, "seed": 0}
    row = contest.work(search_methods.do, SETTING, job)
    assert row.items() >= job.items() and row["predicted_ms"] <= row["limit_ms"]
    assert 0 <= row["test_accuracy"] <= 1 and row["seconds"] >= row["search_seconds"]
    assert row["scores"] is None if method == "random" else np.isfinite(row["scores"]).all() and len(row["scores"]) == 4


def test_a_shared_row_names_its_architecture() -> None:
    job = {"kind": "shared", "space": "tiny:micro", "number": 2}
    row = contest.work(search_methods.do, SETTING, job)
    space = contest.space_of(SETTING, "tiny:micro")
    assert row["architecture"] == contest.shared_set(space, 4)[2].name


def test_times_of_steps_are_those_of_all_methods(monkeypatch) -> None:
    monkeypatch.setattr(search_methods, "STEPS", 1)
    row = search_methods.do(SETTING, {"kind": "steps", "space": "tiny:micro"})
    assert set(row["ms_per_pass"]) == {*search_methods.METHODS, *search_methods.VARIANTS}
    assert min(row["ms_per_pass"].values()) > 0


@pytest.mark.parametrize("method", ["spos", "darts", "dcp-nas, no discrepancy"])
def test_a_gradient_row(method: str) -> None:
    row = contest.work(gradient_methods.do, SETTING, {"space": "tiny:micro", "method": method, "seed": 1})
    assert row["predicted_ms"] <= row["limit_ms"] and 0 <= row["test_accuracy"] <= 1
    assert (row["expected_ms"] is None) == (method == "spos")


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"cp-nas"}))
def test_all_alphas_learn_at_the_same_rate(name: str) -> None:
    module = STRATEGIES[name]
    if "method" not in inspect.signature(module.run).parameters:
        assert name in (*gradient_methods.BASELINES, *gradient_methods.NOT_GRADIENT)
        return
    method = gradient_methods.with_rate(module.METHOD, 0.125)
    assert getattr(method, "learning", method).alpha_recipe.learning_rate == 0.125


def test_a_method_without_alphas_has_no_rate() -> None:
    assert gradient_methods.with_rate(cp_nas.METHOD, 0.125) == cp_nas.METHOD


def test_skips_are_counted_among_operations() -> None:
    space = make_space("cells:micro", (3, 16, 16), 10)
    arch = space.random(np.random.default_rng(0))
    expected = sum(choice.count("skip_connect") for choice in arch.choices) / (2 * len(arch.choices))
    assert gradient_methods.skips(arch) == pytest.approx(expected) and expected > 0


def test_a_row_that_fails_costs_no_other(monkeypatch, capsys) -> None:
    def do(setting: Setting, job: contest.Job) -> contest.Row:
        return {"inverse": 1 / job["number"]}

    monkeypatch.setattr(contest, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers))
    document: contest.Row = {"rows": []}
    contest.run_jobs(do, SETTING, [{"number": n} for n in (0, 1, 2)], document, lambda: None, workers=1)
    assert sorted(row["number"] for row in document["rows"]) == [1, 2]
    assert "0: ZeroDivisionError" in capsys.readouterr().out


# The command


def finished(module, document: dict) -> None:
    """Rows of all jobs without work, so that every cell of the table is filled."""
    for number, job in enumerate(module.jobs(SETTING)):
        row = {"architecture": "a", "test_accuracy": 0.1 + number / 1000, "predicted_ms": 1.0, "limit_ms": 2.0}
        row |= {"search_seconds": 1.0, "seconds": 2.0, "training_seconds": 1.0, "expected_ms": 1.5, "skips": 0.25}
        row |= {"steps": 3, "scores": [1.0, 2.0, 3.0, 4.0]}
        row |= {"ms_per_pass": dict.fromkeys([*search_methods.METHODS, *search_methods.VARIANTS], 1.0)}
        document["rows"].append(row | job)


@pytest.mark.parametrize("module", [search_methods, gradient_methods])
def test_finished_rows_are_not_done_again(module, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(module.SCALES, "small", TINY)
    path = tmp_path / "found.json"
    document = contest.opened(path, SETTING)
    finished(module, document)
    path.write_text(json.dumps(document))
    module.main(["--data", "digits", "--json", str(path), "--workers", "1"])
    count = len(document["rows"])
    assert f"{count} of {count} rows are there" in capsys.readouterr().out
    assert json.loads(path.read_text()) == json.loads(json.dumps(document))
    text = path.with_suffix(".md").read_text()
    assert all(f"| {job['method']} |" in text for job in module.jobs(SETTING) if "method" in job)
    assert "too few seeds" in text


def test_one_row_is_done_and_kept_by_a_process_of_its_own(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(search_methods.SCALES, "small", TINY)
    path = tmp_path / "found.json"
    search_methods.main(["--data", "digits", "--json", str(path), "--workers", "1", "--rows", "shared", "1"])
    (row,) = json.loads(path.read_text())["rows"]
    assert row["number"] == 1 and row["seconds"] > 0
    with pytest.raises(InputError, match="another scale"):
        contest.opened(path, replace(SETTING, scale=replace(TINY, seeds=7)))
