"""The front door as a user meets it: subprocesses in an empty folder, and one finished run to look at or to spoil."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from bnas import cli

Command = Callable[..., subprocess.CompletedProcess[str]]
TINY = ("--budget", "smoke", "--supernet-epochs", "2", "--evaluations", "10", "--epochs", "2")
"""The smallest search in which everything happens: 18 supernet steps, two generations, 34 training steps."""


def bnas(*arguments: object, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`bnas ARGUMENTS` as its own process. Searches that are compared must run on equally many threads."""
    return subprocess.run(
        [sys.executable, "-m", "bnas", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"} if env is None else dict(env),
        text=True,
        capture_output=True,
        timeout=600,
    )


@pytest.fixture(scope="session")
def command() -> Command:
    return bnas


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    return ("--profile", "rtx3080", *TINY)


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each command of the small path printed with --json, and the folder it was run in as "cwd"."""
    cwd = tmp_path_factory.mktemp("path")
    commands = {
        "search": ("search", "--profile", "rtx3080", *TINY),
        "export": ("export", "--format", "onnx"),
        "bench": ("bench", "--threads", "1", "--seconds", "0.2"),
        "report": ("report",),
    }
    printed: dict[str, Any] = {"cwd": cwd}
    for name, arguments in commands.items():
        done = bnas(*arguments, "--json", cwd=cwd)
        assert done.returncode == 0, done.stderr
        printed[name] = json.loads(done.stdout)
    printed["train"] = printed["search"].pop("train")
    return printed


@pytest.fixture
def finished(documents: dict[str, Any], tmp_path: Path) -> Path:
    """A run of its own: searched, trained, exported to ONNX and timed."""
    run = tmp_path / "finished"
    shutil.copytree(documents["cwd"] / documents["search"]["run"], run)
    return run


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything under `folder`, hidden or not; None stands for a folder."""
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


class Failure:
    """Runs commands inside this process that must fail, and says how; they may leave nothing behind."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: object, code: int = 2) -> str:
        """The one line on stderr that begins with `error: `; nothing may be on stdout."""
        self.capsys.readouterr()
        before = contents(Path())
        assert cli.run([str(a) for a in arguments]) == code
        out, err = self.capsys.readouterr()
        assert contents(Path()) == before
        assert out == ""
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and err.endswith(f"{lines[0]}\n"), err
        assert "Traceback" not in err
        return lines[0]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Failure:
    """fails(*arguments) -> the error line of a command run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return Failure(capsys)
