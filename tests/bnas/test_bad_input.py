"""Bad input: one line with the value and what to do about it, exit code 2, and nothing half-written."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from bnas import cli, runs

Fails = Callable[..., str]
Spoil = Callable[[Path], object]

SEARCH = ("search", "--profile", "rtx3080", "--budget", "smoke")
MISTAKES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # what is typed, and what the error must say: the value and the remedy
    "profile": (("search", "--profile", "rtx380"), ("'rtx380'", "did you mean 'rtx3080'?")),
    "profile path": (("search", "--profile", "rtx3080:int9"), ("'int9'", "did you mean 'int8'?")),
    "profile file": (("search", "--profile", "nothing.yaml"), ("'nothing.yaml'", "bnas profiles list")),
    "profile shown": (("profiles", "show", "rpi4"), ("'rpi4'", "did you mean 'rpi4b'?")),
    "space": ((*SEARCH, "--space", "tini"), ("'tini'", "did you mean 'tiny'?")),
    "strategy": ((*SEARCH, "--strategy", "spoos"), ("'spoos'", "did you mean 'spos'?")),
    "budget": (("search", "--profile", "rtx3080", "--budget", "smoky"), ("'smoky'", "did you mean 'smoke'?")),
    "data": ((*SEARCH, "--data", "digit"), ("'digit'", "did you mean 'digits'?")),
    "data nowhere": ((*SEARCH, "--data", "/no/such/folder"), ("'/no/such/folder'", "give")),
    "data empty": ((*SEARCH, "--data", ""), ("''", "give")),
    "limit negative": ((*SEARCH, "--max-latency", "-1ms"), ("'-1ms'", "write for example 8ms")),
    "limit zero": ((*SEARCH, "--max-latency", "0"), ("'0'", "write for example 8ms")),
    "limit nan": ((*SEARCH, "--max-latency", "nan"), ("'nan'", "write for example 8ms")),
    "limit infinite": ((*SEARCH, "--max-latency", "1e999"), ("'1e999'", "write for example 8ms")),
    "limit unit": ((*SEARCH, "--max-latency", "8 days"), ("'8 days'", "write for example 8ms")),
    "limit below the fastest": ((*SEARCH, "--max-latency", "1us"), ("0.001 ms", "the fastest", "raise --max-latency")),
    "seed negative": ((*SEARCH, "--seed", "-1"), ("-1", "from 0")),
    "seed huge": ((*SEARCH, "--seed", str(2**64)), (str(2**64), f"to {2**32 - 1}")),
    "seed text": ((*SEARCH, "--seed", "abc"), ("'abc'", "integer", "--help")),
    "accelerator": ((*SEARCH, "--accelerator", "tpu"), ("'tpu'", "auto, cpu")),
    "accelerator number": ((*SEARCH, "--accelerator", "cuda:99"), ("cuda:99", "use --accelerator auto")),
    "evaluations": ((*SEARCH, "--evaluations", "0"), ("--evaluations 0", "at least 1")),
    "epochs": ((*SEARCH, "--epochs", "-3"), ("--epochs -3", "at least 1")),
    "supernet epochs": ((*SEARCH, "--supernet-epochs", "0"), ("--supernet-epochs 0", "at least 1")),
    "image size": ((*SEARCH, "--image-size", "0"), ("--image-size 0", "at least 1")),
    "image size of a space": ((*SEARCH, "--data", "good", "--image-size", "9"), ("9x9", "with --image-size")),
    "out is a file": ((*SEARCH, "--out", "a.txt"), ("a.txt", "choose another folder")),
    "out under a file": ((*SEARCH, "--out", "a.txt/run"), ("a.txt/run", "choose another path")),
    "out unwritable": ((*SEARCH, "--out", "/proc/run"), ("/proc/run", "choose another path")),
    "no option": (("search",), ("--profile", "--help")),
    "unknown option": ((*SEARCH, "--sped", "1"), ("--sped", "--help")),
    "unknown command": (("serch",), ("'serch'", "Did you mean 'search'")),
    "train without a run": (("train",), ("runs/", "bnas search")),
    "export without a run": (("export",), ("runs/", "bnas search")),
    "bench without a run": (("bench",), ("runs/", "bnas search")),
    "report without a run": (("report",), ("runs/", "bnas search")),
    "run name": (("train", "monday"), ("'monday'", "runs here")),
    "no run folder": (("bench", "empty"), ("empty", "bnas search")),
    "threads": (("bench", "--threads", "0"), ("--threads 0", "from 1")),
    "threads more than cores": (("bench", "--threads", "99999"), ("--threads 99999", "cores")),
    "seconds": (("bench", "--seconds", "-2"), ("--seconds -2", "positive")),
    "seconds nan": (("bench", "--seconds", "nan"), ("--seconds nan", "positive")),
    "seconds infinite": (("bench", "--seconds", "inf"), ("--seconds inf", "finite")),
    "bench device": (("bench", "--device", "pi"), ("'pi'", "local")),
    "bench missing file": (("bench", "net.onnx"), ("net.onnx does not exist", "bnas export")),
    "bench empty file": (("bench", "empty.onnx"), ("empty.onnx", "export it again")),
    "build suffix": (("profiles", "build", "--out", "a.txt"), ("a.txt", "end with .yaml")),
    "build folder": (("profiles", "build", "--out", "no/a.yaml"), ("no/a.yaml", "make it first")),
    "build threads": (("profiles", "build", "--threads", "0"), ("--threads 0", "from 1")),
    "build seconds": (("profiles", "build", "--seconds", "nan"), ("--seconds nan", "positive")),
    "build networks": (("profiles", "build", "--networks", "2"), ("--networks 2", "at least 5")),
    "build space": (("profiles", "build", "--space", "tinny"), ("'tinny'", "did you mean 'tiny'?")),
    "no images": ((*SEARCH, "--data", "empty"), ("empty", "no images", "expected")),
    "images without a class": ((*SEARCH, "--data", "flat"), ("flat", "one sub-folder per class")),
    "one class": ((*SEARCH, "--data", "lone"), ("lone", "at least 2")),
    "unreadable image": ((*SEARCH, "--data", "broken"), ("broken/b/3.png", "repair or remove it")),
    "a file as data": ((*SEARCH, "--data", "a.txt"), ("a.txt", "give")),
}


def image_set(folder: Path, *classes: str, size: int = 9) -> None:
    from PIL import Image

    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(np.full((size, size), i, np.uint8)).save(folder / name / f"{i}.png")


@pytest.fixture
def things(tmp_path: Path) -> None:
    """What the mistakes need to lie in the folder."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "a.txt").write_text("text")
    image_set(tmp_path / "good", "a", "b")
    image_set(tmp_path / "lone", "a")
    image_set(tmp_path, "flat")
    image_set(tmp_path / "broken", "a", "b")
    damaged = tmp_path / "broken" / "b" / "3.png"
    damaged.write_bytes(damaged.read_bytes()[:40])


@pytest.mark.usefixtures("things")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_on_the_command_line(mistake: str, fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    arguments, parts = MISTAKES[mistake]
    line = fails(*arguments)
    assert all(part in line for part in parts), line


SHIPPED = (resources.files("bnas.profiles") / "data" / "rpi4b.yaml").read_text(encoding="utf-8")
PROFILES: dict[str, tuple[str, tuple[str, ...]]] = {
    "corrupt": (SHIPPED.replace("device:", "device: {", 1), ("line ", "not valid YAML", "build it again")),
    "truncated": (SHIPPED[: len(SHIPPED) // 3], ("p.yaml", "is missing")),
    "empty": ("", ("None", "build it again")),
    "unknown key": (SHIPPED + "thread: 2\n", ("'thread'", "did you mean 'threads'?")),
    "format": (SHIPPED.replace("format: 1", "format: 7"), ("format 7", "expected 1", "bnas profiles build")),
    "wrong type": (SHIPPED.replace("threads: 1", "threads: many"), ("threads", "'many'")),
    "negative": (SHIPPED.replace("binary_ms_per_gmac: 22.9", "binary_ms_per_gmac: -1"), ("binary_ms_per_gmac", "-1")),
    "code": ("!!python/object/apply:os.system [exit]", ("not valid YAML", "build it again")),
}


@pytest.mark.parametrize("spoilt", PROFILES)
def test_profile_files(spoilt: str, fails: Fails, tmp_path: Path) -> None:
    text, parts = PROFILES[spoilt]
    (tmp_path / "p.yaml").write_text(text)
    for arguments in (("profiles", "show", "p.yaml"), ("search", "--profile", "p.yaml")):
        line = fails(*arguments)
        assert all(part in line for part in ("p.yaml", *parts)), line


def cut(name: str, share: float = 0.5) -> Spoil:
    """Leave only the first part of a file."""
    return lambda run: os.truncate(run / name, int(share * (run / name).stat().st_size))


def put(name: str, content: bytes) -> Spoil:
    return lambda run: (run / name).write_bytes(content)


def change(name: str, old: str, new: str) -> Spoil:
    def spoil(run: Path) -> None:
        text = (run / name).read_text()
        assert old in text
        (run / name).write_text(text.replace(old, new))

    return spoil


def unfinished(run: Path, *names: str) -> None:
    for name in names:
        (run / name).unlink()


SPOILT: dict[str, tuple[Spoil, str, tuple[str, ...]]] = {
    # what happens to a finished run, the command, and what the error must say
    "supernet": (cut("supernet.safetensors"), "search", ("supernet.safetensors", "truncated", "delete it")),
    "supernet empty": (cut("supernet.safetensors", 0), "search", ("supernet.safetensors", "truncated", "delete it")),
    "database": (cut("trials.db"), "search", ("trials.db", "delete it")),
    "database beginning": (cut("trials.db", 0.01), "search", ("trials.db", "delete it")),
    "database other": (put("trials.db", b"something else " * 999), "search", ("trials.db", "delete it")),
    "training": (cut("training.safetensors"), "train", ("training.safetensors", "truncated", "delete it")),
    "architecture": (cut("architecture.yaml", 0.2), "train", ("architecture.yaml", "expected")),
    "architecture format": (change("architecture.yaml", "format: 1", "format: 4"), "train", ("architecture.yaml", "4")),
    "network": (cut("model.safetensors"), "export", ("model.safetensors", "truncated", "delete it")),
    "network last byte": (cut("model.safetensors", 0.99999), "export", ("model.safetensors", "delete it")),
    "network gone": (lambda run: unfinished(run, "model.safetensors"), "export", ("not trained", "bnas train")),
    "onnx": (cut("model.onnx"), "bench", ("model.onnx", "export it again")),
    "onnx twin": (cut("model.int8.onnx"), "bench", ("model.int8.onnx", "export it again")),
    "nothing exported": (lambda run: unfinished(run, "model.onnx"), "bench", ("nothing is exported", "bnas export")),
    "profile": (cut("profile.yaml"), "bench", ("profile.yaml", "build it again")),
    "search result": (cut("search.json"), "report", ("search.json", "delete it")),
    "training result": (put("train.json", b"[1]"), "report", ("train.json", "delete it")),
    "configuration": (cut("run.yaml"), "report", ("run.yaml", "--restart")),
    "configuration empty": (put("run.yaml", b""), "train", ("run.yaml", "--restart")),
    "configuration corrupt": (put("run.yaml", b"a: [\n"), "export", ("run.yaml", "not valid YAML", "--restart")),
    "configuration binary": (put("run.yaml", b"\xff\x00\x01"), "export", ("run.yaml", "not valid YAML", "--restart")),
    "configuration deep": (put("run.yaml", b"[" * 99_999), "export", ("run.yaml", "not valid YAML", "--restart")),
    "configuration format": (change("run.yaml", "format: 1", "format: 3"), "bench", ("format 3", "reads format 1")),
    "configuration edited": (change("run.yaml", "seed: 0", "seed: 8"), "train", ("run.yaml", "changed by hand")),
}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_spoilt_runs(spoilt: str, finished: Path, tiny: tuple[str, ...], fails: Fails) -> None:
    spoil, command, parts = SPOILT[spoilt]
    if command == "search":
        unfinished(finished, "search.json")
    if command == "train":
        unfinished(finished, "train.json")
    spoil(finished)
    arguments = {"search": (*tiny, "--out", "finished"), "bench": ("finished", "--threads", 1, "--seconds", 0.1)}
    line = fails(command, *arguments.get(command, ("finished",)))
    assert all(part in line for part in parts), line


def test_what_an_error_advises_to_delete_is_made_again(finished: Path, tmp_path: Path, fails: Fails) -> None:
    before = (finished / "model.safetensors").read_bytes()
    cut("model.safetensors")(finished)
    fails("export", "finished")
    (finished / "model.safetensors").unlink()
    assert cli.run(["train", "finished"]) == 0
    assert (finished / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["net.onnx", "net.tflite"])
def test_network_files_cut_short(name: str, documents: dict, fails: Fails, tmp_path: Path) -> None:
    whole = (documents["cwd"] / documents["export"]["path"]).read_bytes()
    beginning = b"\x1c\0\0\0TFL3" if name.endswith(".tflite") else b""
    for size in (1, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / name).write_bytes((beginning + whole)[:size])
        line = fails("bench", name)
        assert name in line and "export it again" in line


def test_export_of_an_untrained_run(finished: Path, fails: Fails) -> None:
    unfinished(finished, "train.json", "model.safetensors", "training.safetensors")
    for format in ("onnx", "tflite"):
        line = fails("export", "finished", "--format", format)
        assert "finished" in line and "bnas train finished" in line


def test_train_before_the_search_has_finished(finished: Path, fails: Fails) -> None:
    unfinished(finished, "train.json", "search.json")
    assert "repeat the bnas search command" in fails("train", "finished")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("export", "finished", "--format", "onx"), ("'onx'", "did you mean 'onnx'?")),
        (("export", "finished", "--out", "no/model.onnx"), ("no/model.onnx", "make it first")),
        (("export", "finished", "--out", "model.txt"), ("model.txt", "must end with .onnx")),
        (("export", "finished", "--out", "/proc/model.onnx"), ("/proc", "choose another path")),
        (("report", "finished", "--html", "no/page.html"), ("no/page.html", "choose another path")),
        (("report", "finished", "--html", "/proc/page.html"), ("/proc/page.html", "choose another path")),
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("finished")
def test_outputs_that_cannot_be_written(arguments: tuple[str, ...], parts: tuple[str, ...], fails: Fails) -> None:
    line = fails(*arguments)
    assert all(part in line for part in parts), line


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """The full disk that every Unix has: writing beyond `size` bytes fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


STAGES = {
    # removed from a finished run; the command; the size at which the disk is full; the file named
    "run.yaml": (("run.yaml",), "search", 100, "run.yaml"),
    "supernet": (("search.json", "supernet.safetensors", "trials.db"), "search", 2_000_000, "supernet.safetensors"),
    "database": (("search.json", "trials.db"), "search", 60_000, "search database"),
    "trials": (("search.json", "trials.db"), "search", 118_000, "search database"),
    "profile": (("search.json", "profile.yaml"), "search", 1_000, "profile.yaml"),
    "training": (("train.json", "training.safetensors"), "train", 500_000, "training.safetensors"),
    "network": (("train.json", "model.safetensors"), "train", 100_000, "model.safetensors"),
    "onnx": (("model.onnx",), "export", 10_000, "model"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_full_disk(
    stage: str, finished: Path, tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    removed, command, size, named = STAGES[stage]
    unfinished(finished, *removed)
    if "run.yaml" in removed:  # a new run: results without their configuration are refused
        unfinished(finished, *(p.name for p in finished.iterdir() if p.name in runs.OWN))
    monkeypatch.chdir(tmp_path)
    arguments = [command, *(tiny if command == "search" else ("finished",))]
    arguments += ["--out", "finished", "--no-train"] if command == "search" else []
    with no_file_larger_than(size):
        code = cli.run(arguments)
    out, err = capsys.readouterr()
    assert (code, out) == (1, "")
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert lines == [err.splitlines()[-1]]
    assert "no space left" in lines[0] and named in lines[0] and "free some" in lines[0]
    assert not [p for p in finished.iterdir() if p.name.startswith(".")]
    assert not (set(removed) - {"trials.db"}) & {p.name for p in finished.iterdir()}
    assert cli.run(arguments) == 0
    assert all((finished / name).is_file() for name in removed)


def test_full_disk_of_its_own(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """A real one, 2 MB large, which then grows."""
    arguments = ["search", *tiny, "--no-train", "--out", "disk/run"]
    if not shutil.which("unshare"):
        missing = pytest.fail if os.environ.get("BNAS_REQUIRE_ALL") == "1" else pytest.skip
        missing("needs the system package util-linux")
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    (tmp_path / "disk").mkdir()
    code = f"""if True:
        import os, subprocess, sys
        from bnas import cli
        mount = ["mount", "-t", "tmpfs", "none", "disk", "-o"]
        if subprocess.run([*mount, "size=2m"]).returncode:
            sys.exit(77)
        print("code", cli.run({arguments!r}), sorted(os.listdir("disk/run")))
        subprocess.run([*mount, "remount,size=100m"], check=True)
        print("code", cli.run({[*arguments, "--json"]!r}))
    """
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    if done.returncode == 77:
        pytest.skip("needs the right to mount")
    first, *_, last = done.stdout.splitlines()
    assert (first, last) == ("code 1 ['lock', 'profile.yaml', 'run.yaml']", "code 0"), done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "no space left to write disk/run/supernet.safetensors" in errors[0]
