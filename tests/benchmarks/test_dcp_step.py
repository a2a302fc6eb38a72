"""The benchmark of a step of DCP-NAS: what it runs is what it says, and what it writes can be read."""

import json
import subprocess
import sys
from pathlib import Path

import dcp_step
import pytest
import torch


@pytest.mark.parametrize("number", [0, 1])
def test_a_step_moves_weights_and_alphas_of_all_its_networks(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """darts has one network, dcp-nas two; each learns weights and alphas once in every step."""
    seen: list[str] = []
    for name in ("weight_step", "alpha_step"):
        real = getattr(dcp_step.bilevel.Learner, name)
        monkeypatch.setattr(
            dcp_step.bilevel.Learner, name, lambda self, *a, name=name, real=real: (seen.append(name), real(self, *a))
        )
    task = dcp_step.task_of("tiny:micro", 8, torch.device("cpu"), tmp_path)
    for variant, make in dcp_step.VARIANTS.items():
        step, _ = make(task)
        for before in range(number):
            step(before)
        seen.clear()
        step(number)
        networks = 1 if variant == "darts" else 2
        assert sorted(seen) == ["alpha_step"] * networks + ["weight_step"] * networks


def test_the_peak_is_that_of_the_process_alone() -> None:
    """A child of a process that held 400 MiB more than it needs does not say so."""
    held = bytearray(b"x" * 400 * 2**20)
    folder = str(Path(dcp_step.__file__).parent)
    code = f"import sys; sys.path.append({folder!r}); import dcp_step; print(dcp_step.peak_rss_kib())"
    peak = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    grown = bytearray(b"x" * 200 * 2**20)
    assert dcp_step.peak_rss_kib() > max(peak, len(held + grown) // 2**10)


def test_the_result_has_all_phases_of_every_round_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dcp_step, "peak_mib", lambda name, options: 7.0)  # a process for each takes its time
    file = tmp_path / "result.json"
    arguments = ["--space", "tiny:micro", "--batch", "8", "--rounds", "2", "--device", "cpu", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["dcp_step.py", *arguments])
    dcp_step.main()
    result = json.loads(file.read_text())
    assert set(result["seconds"]) == set(dcp_step.VARIANTS) == set(result["peak_mib"])
    assert set(result["targets"].values()) == {3.2, 2.5}
    for name, phases in result["seconds"].items():
        assert all(len(taken) == 2 for taken in phases.values())
        parts = [sum(taken[i] for phase, taken in phases.items() if phase != "step") for i in range(2)]
        assert all(0 < part <= whole for part, whole in zip(parts, phases["step"], strict=True))
        assert ("tangent" in phases) == (name != "darts")
    assert capsys.readouterr().out.count("times darts") == 3
