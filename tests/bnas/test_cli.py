"""The command line itself: help, JSON, exit codes, runs that are found, moved, locked and done, and what it imports."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnas import __version__, cli, runs
from bnas.export.units import unit_model
from bnas.profiles.schema import Profile, load_profile, save_profile
from bnas.profiles.workload import Workload
from bnas.runtime_bench import machine
from bnas.runtime_bench.engines import onnx_engine
from bnas.search.strategies import p_darts

Command = Callable[..., subprocess.CompletedProcess[str]]

COMMANDS = (
    ("search",), ("train",), ("export",), ("bench",), ("run",), ("report",), ("demo",), ("show",), ("spaces",),
    ("strategies",), ("isometry",), ("pick",), ("devices", "list"), ("devices", "check"),
    ("profiles", "list"), ("profiles", "show"), ("profiles", "build"), ("profiles", "calibrate"),
)  # fmt: skip
HEAVY = {"torch", "tensorflow", "onnx", "onnxruntime", "optuna", "numpy", "sklearn", "pyarrow", "plotly", "pydantic"}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_an_example_and_json(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*command, "--help"]) == 0
    out, err = capsys.readouterr()
    text = re.sub(r"[\s│]+", " ", re.sub(r"\x1b\[[\d;]*m", "", out))
    assert f"Example: bnas {' '.join(command)}" in text or ("Example: bnas search" in text and command == ("train",))
    assert "--json" in text and err == ""


def test_help_version_and_exit_codes(command: Command, tmp_path: Path) -> None:
    help = command("--help", cwd=tmp_path)
    assert help.returncode == 0 and "Example: bnas search" in help.stdout and help.stderr == ""
    assert all(name in help.stdout for name in ("search", "train", "export", "bench", "profiles", "report", "demo"))
    assert command("--version", cwd=tmp_path).stdout == f"bnas {__version__}\n"
    assert command(cwd=tmp_path).returncode == 2
    wrong = command("serch", cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "") and wrong.stderr.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_the_front_door_is_light(tmp_path: Path) -> None:
    """Rooms are imported by the commands that enter them, and are no packages of their own."""
    code = "import sys, bnas.cli; bnas.cli.run(['--help']); print(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    modules = set(ast.literal_eval(done.stderr))
    assert modules & HEAVY == set()
    assert modules & {"search", "export", "runtime_bench", "profiles"} == set()


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (("profiles", "list"), {"profiles"}),
        (("profiles", "show", "rtx3080"), {"name", "error", "error_source", "hash", "cost_model", "engine"}),
        (("profiles", "show", "rtx3080:popcount"), {"name", "cost_model"}),
    ],
)
def test_json_of_profiles(arguments: tuple[str, ...], keys: set[str], command: Command, tmp_path: Path) -> None:
    done = command(*arguments, "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert keys <= document.keys()
    if "profiles" in document:
        assert {"rtx3080", "rpi4b"} <= {p["name"] for p in document["profiles"]}


def test_json_of_the_whole_path(documents: dict[str, Any]) -> None:
    """That each stdout was one document is checked where it was printed."""
    search, train, export, bench = (documents[name] for name in ("search", "train", "export", "bench"))
    run = documents["cwd"] / search["run"]
    assert re.fullmatch(r"runs/rtx3080-tiny-spos-[0-9a-f]{8}", search["run"])
    assert search["predicted_ms"] <= search["limit_ms"] and len(search["trials"]) == 10
    assert "median of 200" in search["limit_source"] and "±" in search["prediction"]
    assert train["architecture"] == search["architecture"] and train["test_images"] == 360
    assert 0.3 < train["test_accuracy"] <= 1 and len(train["losses"]) == 2
    assert export["path"] == f"{search['run']}/model.onnx" and (documents["cwd"] / export["path"]).is_file()
    assert export["binary_convs"] > 0 and export["argmax_agreement"] >= 0.997 and export["images"] >= 300
    assert {conv["kind"] for conv in export["convolutions"]} == {"binary", "float"}
    assert [(row["label"], row["threads"]) for row in bench["results"]] == [
        ("onnx", 1), ("fp32 twin", 1), ("int8 twin", 1),
    ]  # fmt: skip
    assert all(0 < row["p10_ms"] <= row["p50_ms"] <= row["p90_ms"] for row in bench["results"])
    assert bench["predicted"]["comparable"] is False and bench["predicted"]["ms"] == search["predicted_ms"]
    assert bench["results"][0]["engine"] == onnx_engine().name
    if onnx_engine().operators:
        assert [gain["label"] for gain in bench["speedups"]] == ["onnx"] and bench["no_speedup_reason"] is None
        assert export["kernels"]["engine"] == onnx_engine().name
    else:
        assert bench["speedups"] == [] and "install a C++17 compiler" in bench["no_speedup_reason"]
    report = documents["report"]
    assert report["search"] == search and report["train"] == train and report["onnx"] == export
    assert report["config"]["max_latency_ms"] == search["limit_ms"]
    assert (run / "report.html").read_text().startswith("<!doctype html>")


def state(run: Path) -> dict[str, tuple[int, bytes]]:
    """Name -> when written, and content; run.yaml is touched on purpose: it marks the newest run."""
    files = (path for path in run.iterdir() if path.name not in ("run.yaml", "lock", "profile.yaml"))
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_finished_run_is_printed_not_made_again(
    finished: Path, tiny: tuple[str, ...], documents: dict[str, Any], tmp_path: Path, command: Command
) -> None:
    before = state(finished)
    done = command("search", *tiny, "--out", "finished", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    here = {"run": "finished"}
    assert json.loads(done.stdout) == documents["search"] | here | {"train": documents["train"] | here}
    assert state(finished) == before


@pytest.mark.parametrize("command", ["train", "report", "bench"])
def test_json_is_all_there_is_on_stdout(command: str, finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    more = ("--threads", "1", "--seconds", "0.1") if command == "bench" else ()
    assert cli.run([command, str(finished), *more, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["run"] == str(finished)


def test_a_run_is_found_by_folder_by_name_and_by_being_newest(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("old", "new")):
        shutil.copytree(finished, tmp_path / "runs" / name)
        os.utime(tmp_path / "runs" / name / "run.yaml", ns=(age, age))
    assert runs.find(None).folder == Path("runs/new")
    assert runs.find("old").folder == Path("runs/old") == runs.find("runs/old").folder
    assert runs.find(str(finished)).folder == finished
    found = runs.find("old").read("search.json")
    assert found and found["run"] == "runs/old"


def test_another_configuration_is_refused_key_by_key(
    finished: Path, tiny: tuple[str, ...], fails: Callable[..., str]
) -> None:
    line = fails("search", *tiny, "--out", "finished", "--seed", 5, "--evaluations", 3, "--max-latency", "30us")
    for part in ("budget.evaluations: 10 -> 3", "seed: 0 -> 5", "max_latency_ms: ", "-> 0.03", "--out", "--restart"):
        assert part in line
    assert "profile" not in line.partition("differing: ")[2].partition(")")[0]


def test_restart_throws_the_old_run_away(finished: Path, tiny: tuple[str, ...], tmp_path: Path) -> None:
    (finished / "mine.txt").write_text("notes of the user stay")
    command = ["search", *tiny, "--out", str(finished), "--seed", "5", "--no-train", "--restart"]
    assert cli.run(command) == 0
    assert {p.name for p in finished.iterdir()} == {
        "run.yaml", "lock", "mine.txt", "profile.yaml", "supernet.safetensors", "trials.db", "architecture.yaml",
        "search.json", "seconds.json",
    }  # fmt: skip
    assert runs.open_run(finished).config["seed"] == 5


def test_restart_throws_all_stages_of_a_search_away(tmp_path: Path) -> None:
    """Else the finished stages of the old search would be taken for those of the new one."""
    runs.start({"seed": 0}, "name", out=tmp_path, restart=False)
    stages = [tmp_path / f"stage{n}.safetensors" for n in range(1, len(p_darts.METHOD.stages) + 1)]
    for path in stages:
        path.touch()
    runs.start({"seed": 0}, "name", out=tmp_path, restart=True)
    assert not any(path.exists() for path in stages)


def test_a_stop_during_restart_leaves_the_old_run_named(
    finished: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    """Else what is left of it would be taken for the state of the new one."""
    deleted: list[str] = []
    real = Path.unlink

    def stops(path: Path, missing_ok: bool = False) -> None:
        if len(deleted) == 9:
            raise KeyboardInterrupt
        deleted.append(path.name)
        real(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", stops)
    assert cli.run(["search", *tiny, "--out", "finished", "--seed", "5", "--restart"]) == 130
    monkeypatch.undo()
    assert "run.yaml" not in deleted and runs.open_run(finished).config["seed"] == 0


def test_two_processes_cannot_write_one_run(
    finished: Path, tiny: tuple[str, ...], tmp_path: Path, fails: Callable[..., str]
) -> None:
    code = f"from bnas.runs import *\nwith locked(Path({str(finished)!r})): print('held', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"held\n"
        for arguments in (("search", *tiny, "--out", "finished"), ("train", "finished"), ("export", "finished")):
            line = fails(*arguments)
            assert "finished is in use by another bnas process" in line and "wait" in line
        assert "in use" in fails("search", *tiny, "--out", "finished", "--restart")
        (finished / ".model.onnx.abc.tmp").touch()
        other.kill()  # a dead process holds nothing
    assert cli.run(["search", *tiny, "--out", str(finished)]) == 0
    assert not (finished / ".model.onnx.abc.tmp").exists()


def test_works_without_a_home_and_without_a_network(
    documents: dict[str, Any], tmp_path: Path, command: Command
) -> None:
    """The environment holds nothing but a home that is not there and proxies that lead nowhere."""
    nowhere = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
    env = {"HOME": "/nonexistent", "OMP_NUM_THREADS": "1", **nowhere}
    arguments = ("search", "--profile", "rtx3080", "--supernet-epochs", "1", "--evaluations", "2", "--no-train")
    done = command(*arguments, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    done = command("bench", documents["cwd"] / documents["export"]["path"], "--seconds", "0.1", cwd=tmp_path, env={})
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_results_without_their_configuration_are_not_taken_for_another_run(
    finished: Path, tiny: tuple[str, ...], fails: Callable[..., str]
) -> None:
    (finished / "run.yaml").unlink()
    line = fails("search", *tiny, "--out", "finished", "--seed", "9")
    assert "no run.yaml" in line and "--restart" in line
    assert cli.run(["search", *tiny, "--out", "finished", "--seed", "9", "--no-train", "--restart"]) == 0
    assert runs.open_run(finished).config["seed"] == 9


def test_ctrl_c_says_how_to_go_on(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """A real signal, sent when the progress says that the search is under way."""
    command = [sys.executable, "-m", "bnas", "search", *tiny, "--supernet-epochs", "500"]

    def hear_signals() -> None:
        """A test run in the background of a script would hand down that Ctrl-C is to be ignored."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=hear_signals) as process:
        assert process.stderr
        for line in process.stderr:
            if line.startswith("supernet:"):
                process.send_signal(signal.SIGINT)
                break
        last = process.stderr.read().strip().splitlines()[-1]
        assert process.wait(timeout=60) == 130
    assert last == "error: interrupted; the same command continues where it stopped"


@pytest.mark.parametrize(
    "other",
    [
        {"version": "0.0.1"},
        {"operators": "0.0.1"},
        {"name": "function-float", "operators": None},  # as if the kernels had not been built then, or
        {"name": "native-mmx", "operators": "0.0.1"},  # not now
    ],
)
def test_a_profile_of_another_engine_is_refused(
    other: dict[str, Any], tiny: tuple[str, ...], tmp_path: Path, fails: Callable[..., str]
) -> None:
    if other.get("name") == onnx_engine().name:
        pytest.skip("the kernels were not built")
    engine = {**onnx_engine().model_dump(), **other}
    known = load_profile("rpi4b").model_dump()
    here = {"name": "local", "fingerprint": machine.fingerprint()}
    save_profile(Profile.model_validate({**known, "device": here, "engine": engine}), tmp_path / "old.yaml")
    line = fails("search", "--profile", "old.yaml", *tiny[2:])
    assert f"measured with {engine['name']} (onnxruntime {engine['version']}" in line
    assert f"here runs {onnx_engine().text}" in line
    assert line.rstrip().endswith("bnas profiles build --device local --space tiny --threads 1 --out old.yaml")
    assert not (tmp_path / "runs").exists()


def test_bench_takes_a_file_whatever_its_name_and_names_one_that_does_not_run(
    tmp_path: Path, fails: Callable[..., str]
) -> None:
    model = unit_model(Workload("head", 32, 4, 2, 2, 2)).SerializeToString()
    (tmp_path / "UP.ONNX").write_bytes(model)
    assert cli.run(["bench", str(tmp_path / "UP.ONNX"), "--seconds", "0.1", "--threads", "1"]) == 0
    (tmp_path / "model.pb").write_bytes(model)
    assert "model.pb: unknown file type" in fails("bench", "model.pb")
