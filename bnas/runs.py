"""Run folders: what was asked for, its hash, one lock, and the results of the stages beside it.

run.yaml               the resolved configuration and its hash
search.json            what the search found (trials.db or trials.json, supernet.safetensors and, of p-darts,
                       stage1.safetensors to stage3.safetensors are its state)
scores.json            what candidates add to a score, where scores add up: what bnas pick selects by
study.json             the name of the study, where trials lie in a storage that many may share
seconds.json           what the search took, by phase
architecture.yaml      the architecture found (architecture.svg: drawn by bnas show)
train.json             accuracies (model.safetensors: the network; training.safetensors: the state)
profile.yaml           the profile the search was guided by
model.onnx, ...        what `bnas export` wrote, with export-onnx.json, export-tflite.json
bench.json             what `bnas bench` measured, raw samples included
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from bnas.profiles import atomic
from bnas.profiles.errors import InputError

from . import __version__
from .console import say

FORMAT = 1
ROOT = Path("runs")
OWN = (  # run.yaml last: a kill while restarting must leave a run
    *("search.json", "scores.json", "seconds.json", "trials.db", "trials.db-journal", "trials.lock", "trials.json"),
    *("study.json", "supernet.safetensors", "stage1.safetensors", "stage2.safetensors", "stage3.safetensors"),
    *("architecture.yaml", "architecture.svg", "profile.yaml"),
    *("train.json", "training.safetensors", "model.safetensors", "export-onnx.json", "export-tflite.json"),
    *("model.onnx", "model.tflite", "model.fp32.onnx", "model.int8.onnx", "bench.json", "report.json", "report.html"),
    ".bench.partial.json",
    "events.out.tfevents.bnas",
    "run.yaml",
)
HALF_WRITTEN = (".*.tmp", ".*.partial.onnx", ".*.partial.tflite")


@dataclass(frozen=True)
class Run:
    """An opened run folder; config is the resolved configuration it was started with."""

    folder: Path
    config: dict

    def path(self, name: str) -> Path:
        return self.folder / name

    def read(self, name: str) -> dict | None:
        """The JSON result `name`, None if that stage has not finished. Raises InputError if the file is corrupt.

        Its "run" is where the run lies now: folders are moved, and other commands start elsewhere.
        """
        path = self.path(name)
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text())
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict) or "run" not in content:
            raise InputError(f"{path} is not what bnas wrote; delete it to do that stage again")
        return {**content, "run": str(self.folder)}

    def write(self, name: str, content: dict) -> None:
        atomic.write_text(self.path(name), json.dumps(content, indent=2) + "\n")


def config_hash(config: dict) -> str:
    """Eight hex digits over the canonical form of `config`."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]


def start(config: dict, name: str, *, out: Path | None, restart: bool) -> Run:
    """Open the run of `config`, new or to be continued; default folder runs/<name>-<hash>.

    Raises InputError if the folder holds a run of another configuration, listing the keys that differ.
    """
    folder = out or ROOT / f"{name}-{config_hash(config)}"
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; choose another folder with --out")
    left = [folder / name for name in OWN if (folder / name).exists()]
    if left and restart:
        with locked(folder):
            for path in left:  # what else lies here is the user's
                path.unlink()
        left = []
    if (folder / "run.yaml").exists():
        run = open_run(folder)
        if differing := _differing(run.config, config):
            raise InputError(
                f"{folder} holds another run (differing: {', '.join(differing)}); choose another folder with --out, "
                "or throw that run away with --restart"
            )
        (folder / "run.yaml").touch()
        return run
    if left:
        raise InputError(
            f"{folder} holds {left[0].name} of a run, but no run.yaml; choose another folder with --out, "
            "or throw that run away with --restart"
        )
    folder.mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, "bnas": __version__, "hash": config_hash(config), "config": config}
    atomic.write_text(folder / "run.yaml", yaml.safe_dump(content, sort_keys=False))
    return Run(folder, config)


def _differing(old: dict, new: dict, prefix: str = "") -> list[str]:
    names: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            names += _differing(a, b, f"{prefix}{key}.")
        elif a != b:
            names.append(f"{prefix}{key}: {a} -> {b}")
    return names


def open_run(folder: Path) -> Run:
    """Raises InputError if `folder` is not a run or its run.yaml is damaged."""
    path = folder / "run.yaml"
    if not path.is_file():
        raise InputError(f"{folder} is not a run folder (no run.yaml); make one with: bnas search --profile rtx3080")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not valid YAML ({' '.join(str(error).split())}); start again with --restart"
        ) from None
    if not isinstance(content, dict) or set(content) != {"format", "bnas", "hash", "config"}:
        raise InputError(f"{path}: expected exactly the keys format, bnas, hash and config; start again with --restart")
    if content["format"] != FORMAT:
        raise InputError(f"{path}: format {content['format']!r} is not supported; this version reads format {FORMAT}")
    if content["hash"] != config_hash(content["config"]):
        raise InputError(f"{path} was changed by hand: its hash does not match; start again with --restart")
    return Run(folder, content["config"])


def find(run: str | None) -> Run:
    """The run a command works on: a folder, a name under runs/, or the newest run when none is given."""
    if run is None:
        found = sorted(ROOT.glob("*/run.yaml"), key=lambda p: p.stat().st_mtime_ns)
        if not found:
            raise InputError(f"there is no run under {ROOT}/; make one with: bnas search --profile rtx3080")
        say(f"run: {found[-1].parent} (the newest)")
        return open_run(found[-1].parent)
    folder = Path(run)
    if not folder.exists() and (ROOT / run).exists():
        folder = ROOT / run
    if not folder.exists():
        known = sorted(p.parent.name for p in ROOT.glob("*/run.yaml"))
        raise InputError(f"there is no run {run!r}; runs here: {', '.join(known) or 'none'}")
    return open_run(folder)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run for this process; the operating system frees it when the process dies.

    What killed processes left half-written in it is removed. Raises InputError if another living process holds it.
    """
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / "lock", timeout=0):
            for pattern in HALF_WRITTEN:
                for path in folder.glob(pattern):
                    path.unlink(missing_ok=True)
            yield
    except Timeout:
        raise InputError(
            f"{folder} is in use by another bnas process; wait for it, or take another folder with --out"
        ) from None
