"""The promise of the README: three lines in an empty folder, with nothing added, end with a measured table."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.slow
def test_three_lines(command: Command, require: Callable[[str], None], tmp_path: Path) -> None:
    require("larq_compute_engine")
    search = command("search", "--profile", "rtx3080", cwd=tmp_path)
    assert search.returncode == 0, search.stderr
    assert "median of 200 random architectures" in search.stdout and "test accuracy" in search.stdout
    export = command("export", "--format", "tflite", cwd=tmp_path)
    assert export.returncode == 0, export.stderr
    bench = command("bench", cwd=tmp_path)
    assert bench.returncode == 0, bench.stderr
    table = [line.split("│") for line in bench.stdout.splitlines() if line.startswith("│")]
    assert {row[1].strip() for row in table} == {"tflite", "fp32 twin", "int8 twin"}
    (run,) = (tmp_path / "runs").iterdir()
    trained, measured = (json.loads((run / name).read_text()) for name in ("train.json", "bench.json"))
    assert trained["test_accuracy"] >= 0.95
    assert all(row["p50_ms"] > 0 for row in measured["results"])
    assert measured["predicted"]["comparable"] is False
