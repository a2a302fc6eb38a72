"""`bnas pick`: the best known or, where scores add up, the best there is under new limits, in a run of its own."""

import itertools
import json
import shutil
from pathlib import Path

import pytest

from bnas import cli, found, runs
from bnas.commands.pick import do_pick
from bnas.commands.search import do_search
from bnas.profiles.errors import InputError
from bnas.profiles.schema import load_profile
from bnas.profiles.table import LatencyTable
from bnas.search.latency import LatencyModel, latency_model
from bnas.search.spaces import space_of
from bnas.search.strategies import selecting

DATA = {"source": "digits", "image_size": None, "image_column": None, "label_column": None}


def searched(folder: Path, strategy: str) -> dict:
    return do_search(
        profile="rtx3080", data=DATA, strategy=strategy, budget="smoke", supernet_epochs=1, evaluations=6, epochs=1,
        pareto=5, out=folder, report=lambda *_: None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained_twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with finished searches: `additive`, whose scores add up, and `scored`, a list of accuracies."""
    folder = tmp_path_factory.mktemp("pick")
    searched(folder / "additive", "bn-nas")
    searched(folder / "scored", "one-shot")
    return folder


@pytest.fixture
def here(trained_twice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained_twice, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def model_of(run: runs.Run) -> LatencyModel:
    return latency_model(space_of(run.config["space"]), LatencyTable(load_profile(str(run.path("profile.yaml")))))


def everything(run: runs.Run) -> list[tuple[float, float, int, tuple[str, ...]]]:
    """Score, ms, bytes and choices of all architectures of the space, one by one."""
    latency, scores = model_of(run), found.read_scores(run)
    rows = []
    for indices in itertools.product(*(range(len(g.candidates)) for g in latency.space.genes)):
        arch = latency.space.architecture(indices)
        score = sum(values[i] for values, i in zip(scores, indices, strict=True))
        rows.append((score, latency.ms_of(indices), found.bytes_of(latency, arch), arch.choices))
    return rows


def test_where_scores_add_up_it_is_the_optimum_of_the_space(here: Path) -> None:
    run = runs.open_run(here / "additive")
    before = {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()}
    rows = everything(run)
    limit = run.config["max_latency_ms"]
    for limit_ms, most in ((0.9 * limit, None), (1.3 * limit, None), (limit, 14_000), (1.3 * limit, 12_000)):
        picked = do_pick(run, limit_ms, most)
        met = [row for row in rows if row[1] <= limit_ms and (most is None or row[2] <= most)]
        best = max(met)
        assert picked["score"] == pytest.approx(best[0], abs=1e-9)
        assert picked["predicted_ms"] <= limit_ms and picked["certificate"].startswith("optimal under profile ")
        assert most is None or (picked["costs"]["model_bytes"] <= most and f"{most:,} bytes" in picked["certificate"])
        assert all(row["predicted_ms"] <= limit_ms for row in picked["front"])
    assert {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()} == before


def test_the_front_of_a_search_is_beaten_by_no_architecture(here: Path) -> None:
    run = runs.open_run(here / "additive")
    front, rows = run.read("search.json")["front"], everything(run)
    assert len(front) == 5
    assert [row["predicted_ms"] for row in front] == sorted(row["predicted_ms"] for row in front)
    for point in front:
        arch = point["architecture"]["choices"]
        score, ms, size, _ = next(row for row in rows if list(row[3]) == arch)
        assert (score, ms, size) == pytest.approx((point["score"], point["predicted_ms"], point["model_bytes"]))
        assert not any(s > score + 1e-9 and m <= ms for s, m, _, _ in rows)


def test_of_scored_architectures_it_is_the_searchs_own_rule(here: Path) -> None:
    run = runs.open_run(here / "scored")
    document = run.read("search.json")
    assert document["certificate"] is None and not run.path("scores.json").is_file()
    again = do_pick(run, document["limit_ms"])
    assert again["architecture"] == document["architecture"]
    times = sorted(trial["latency_ms"] for trial in document["trials"])
    picked = do_pick(run, times[0])
    assert picked["predicted_ms"] == times[0] and [t["latency_ms"] for t in picked["trials"]] == [times[0]]
    with pytest.raises(InputError, match=r"none of the 6 architectures that one-shot scored meets .* and 10 bytes"):
        do_pick(run, document["limit_ms"], 10)


def test_what_was_picked_does_not_stand_for_its_search(here: Path) -> None:
    """A limit above that of a picked run finds less there than in the search, and is another run."""
    run = runs.open_run(here / "scored")
    document = run.read("search.json")
    fastest = do_pick(run, min(trial["latency_ms"] for trial in document["trials"]))
    limit_ms = document["limit_ms"]
    poorer = do_pick(runs.open_run(Path(fastest["run"])), limit_ms)
    assert poorer["architecture"] == fastest["architecture"] and poorer["run"] != fastest["run"]
    assert do_pick(run, limit_ms)["architecture"] == document["architecture"]


def test_of_sums_that_do_not_tell_all_it_is_the_greatest(here: Path) -> None:
    """As of P-DARTS: a sum may be above 1, where an accuracy has no standard error."""
    run = runs.open_run(here / "additive")
    document = run.read("search.json")
    times = sorted(trial["latency_ms"] for trial in document["trials"])
    for limit_ms in (times[len(times) // 2], times[-1]):
        best, proof = found.pick(model_of(run), (), document, limit_ms, None)
        assert best.score == max(t["score"] for t in document["trials"] if t["latency_ms"] <= limit_ms) > 1
        assert best.latency_ms <= limit_ms and proof is None


def test_accuracies_go_by_the_name_that_strategies_give_them() -> None:
    assert found.ACCURACY == selecting.ACCURACY


def test_bytes_add_up_over_genes(here: Path) -> None:
    latency = model_of(runs.open_run(here / "additive"))
    ceiling = found.byte_ceiling(latency, 0)
    for indices in itertools.islice(itertools.product(*(range(len(g.candidates)) for g in latency.space.genes)), 50):
        assert ceiling.of(indices) == found.bytes_of(latency, latency.space.architecture(indices))


def test_a_pick_is_a_run_that_is_trained_next_and_stays(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = runs.open_run(here / "additive")
    limit = f"{0.8 * source.config['max_latency_ms']}ms"
    assert cli.run(["pick", str(here / "additive"), "--max-latency", limit, "--json"]) == 0
    picked = json.loads(capfd.readouterr().out)
    assert Path(picked["run"]).resolve().parent == here and picked["run"] != str(source.folder)
    assert cli.run(["train", "--json"]) == 0  # the newest run
    trained = json.loads(capfd.readouterr().out)
    assert (trained["run"], trained["architecture"]) == (picked["run"], picked["architecture"])
    assert not source.path("train.json").is_file()
    again = do_pick(source, float(limit.removesuffix("ms")))
    assert again == {**picked, "run": again["run"]}
    assert cli.run(["report", picked["run"], "--json"]) == 0
    page = (Path(picked["run"]) / "report.html").read_text()
    assert "<svg" in page and "Front of bn-nas on rtx3080" in page


def test_another_number_of_architectures_on_the_front_needs_no_other_search(here: Path) -> None:
    before = runs.open_run(here / "additive").read("search.json")
    after = do_search(
        profile="rtx3080", data=DATA, strategy="bn-nas", budget="smoke", supernet_epochs=1, evaluations=6, epochs=1,
        pareto=2, out=here / "additive", report=lambda *_: pytest.fail("it searches"),
    )  # fmt: skip
    assert len(after["front"]) == 2 and after["front"] == [before["front"][0], before["front"][-1]]
    assert {**after, "front": 0, "seconds": 0} == {**before, "front": 0, "seconds": 0}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--max-latency", "1ns"), "not a positive time"),
        (("--max-latency", "1e-9ms"), "raise --max-latency"),
        (("--max-latency", "1ms", "--max-bytes", "0"), "--max-bytes 0"),
        (("--max-latency", "1ms", "--max-bytes", "9"), "meets 1 ms and 9 bytes together"),
    ],
)
def test_what_cannot_be_picked(
    arguments: tuple[str, ...], words: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(here.rglob("*"))
    assert cli.run(["pick", str(here / "additive"), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert sorted(here.rglob("*")) == before
