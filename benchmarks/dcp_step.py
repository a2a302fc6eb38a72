"""What a step of DCP-NAS costs beside a step of DARTS: `python benchmarks/dcp_step.py --json FILE`.

A step of DARTS is one of the weights and one of the alphas, first order, on the 1-bit supernet of the space. A step of
DCP-NAS is that of the Parent and that of the Child together, with `ggn_micro`: once with the tangent on the Child's own
batch, once with that of the Parent's phase. The three take turns in one process, with batches of random images of the
same size; medians over the rounds are compared, and each phase is timed on the way. Then each runs alone in a process
of its own, whose peak memory is read: that of the process or, on a GPU, of its tensors there.
The targets are 3.2 and 2.5 times a step of DARTS.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bnas.profiles import atomic
from bnas.profiles.schema import load_profile
from bnas.profiles.table import LatencyTable
from bnas.runtime_bench import machine
from bnas.search.augment import DeviceSplit
from bnas.search.latency import latency_model, median_ms
from bnas.search.spaces import make_space
from bnas.search.strategies import bilevel, dcp_nas
from bnas.search.strategies.task import SearchTask, Stopwatch
from bnas.search.training.recipes import Budget, Recipe

CLASSES, ROUNDS, ALONE = 10, 5, 2  # ALONE: steps of a process whose memory is read
SHAPES = {"micro": (1, 8, 8), "cifar": (3, 32, 32), "imagenet": (3, 224, 224)}
TARGETS = {"dcp-nas, tangent per batch": 3.2, "dcp-nas, tangent per phase": 2.5}
Step = Callable[[int], Any]


class Synchronised(Stopwatch):
    """Seconds by phase, where the device has done all that it was given."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        wait_for(self.device)
        with super().phase(name):
            yield
            wait_for(self.device)


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def task_of(text: str, batch: int, device: torch.device, folder: Path) -> SearchTask:
    """A search on random images, as many as make one batch for weights and one for alphas."""
    instance = text.split(":")[1] if ":" in text else "cifar"
    channels, height, width = shape = SHAPES[instance]
    torch.manual_seed(0)
    images = torch.randint(256, (2 * batch, channels, height, width), dtype=torch.uint8)
    labels = torch.randint(CLASSES, (2 * batch,))
    middle = torch.full((channels, 1, 1), 0.5, device=device)
    split = DeviceSplit(images.to(device), labels.to(device), middle, middle)
    latency = latency_model(make_space(text, shape, CLASSES), LatencyTable(load_profile("rtx3080")))
    recipe = Recipe(1000, batch)
    return SearchTask(
        latency=latency, limit_ms=median_ms(latency), train=split, validation=split,
        augmentation={"flip": True, "shift": height // 8}, seed=0, device=device, folder=folder,
        budget=Budget(recipe, 1, 1, batch, recipe), progress=lambda stage, done, total: None,
    )  # fmt: skip


def darts_step(task: SearchTask) -> tuple[Step, Stopwatch]:
    method = bilevel.Method(autocast=True)
    course = bilevel.Course(task, method, bilevel.make_learner(task, method))
    course.stopwatch = Synchronised(task.device)
    return course.step, course.stopwatch


def dcp_step(task: SearchTask, tangent: str) -> tuple[Step, Stopwatch]:
    course = dcp_nas.Course(task, dcp_nas.Method(tangent=tangent, autocast=True))
    course.stopwatch = Synchronised(task.device)

    def step(number: int) -> None:
        course.parent_step(number, first=number == 0)
        course.child_step(number, first=number == 0)

    return step, course.stopwatch


VARIANTS: dict[str, Callable[[SearchTask], tuple[Step, Stopwatch]]] = {
    "darts": darts_step,
    "dcp-nas, tangent per batch": lambda task: dcp_step(task, "batch"),
    "dcp-nas, tangent per phase": lambda task: dcp_step(task, "phase"),
}


def alternate(task: SearchTask, rounds: int) -> dict[str, dict[str, list[float]]]:
    """For each variant the seconds of each round, of the whole step and of each phase; a first round is not counted."""
    made = {name: make(task) for name, make in VARIANTS.items()}
    taken: dict[str, dict[str, list[float]]] = {name: {} for name in VARIANTS}
    for number in range(rounds + 1):
        for name, (step, stopwatch) in made.items():
            stopwatch.seconds.clear()
            start = time.perf_counter()
            step(number)
            wait_for(task.device)
            whole = time.perf_counter() - start
            if number:
                for phase, seconds in {"step": whole, **stopwatch.seconds}.items():
                    taken[name].setdefault(phase, []).append(seconds)
    return taken


def alone(name: str, task: SearchTask) -> float:
    """Peak MiB of this process, or on a GPU of its tensors there, after some steps of one variant."""
    step, _ = VARIANTS[name](task)
    for number in range(ALONE):
        step(number)
    if task.device.type == "cuda":
        return torch.cuda.max_memory_allocated(task.device) / 2**20
    return peak_rss_kib() / 2**10


def peak_rss_kib() -> int:
    """Of this process on Linux. getrusage would say no less than the process had that started it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1])


def peak_mib(name: str, options: argparse.Namespace) -> float:
    """What `alone` says in a fresh process."""
    own = ("--space", options.space, "--batch", options.batch, "--device", options.device, "--threads", options.threads)
    command = [sys.executable, __file__, *map(str, own), "--alone", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def show(result: Mapping[str, Any]) -> None:
    darts = median(result["seconds"]["darts"]["step"])
    for name, seconds in result["seconds"].items():
        whole = median(seconds["step"])
        target = f", target at most {TARGETS[name]}" if name in TARGETS else ""
        print(
            f"{name}: median {whole:.3f} s, {whole / darts:.2f} times darts{target}; "
            f"peak {result['peak_mib'][name]:.0f} MiB"
        )
        for phase, parts in seconds.items():
            if phase != "step":
                print(f"    {phase:20} {median(parts):.3f} s, {median(parts) / whole:5.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="cells:cifar:layers=4", help="the shape of images is that of its instance")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--alone", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        task = task_of(options.space, options.batch, torch.device(options.device), Path(folder))
        if options.alone:
            print(alone(options.alone, task))
            return
        load = [os.getloadavg()[0]]
        taken = alternate(task, options.rounds)
        load.append(os.getloadavg()[0])
    result = {
        "command": " ".join(["python", "benchmarks/dcp_step.py", *sys.argv[1:]]), "space": task.space.id,
        "batch": options.batch, "threads": options.threads, "device": options.device, "load": load,
        "torch": torch.__version__, "machine": machine.describe(), "targets": TARGETS, "seconds": taken,
        "peak_mib": {name: peak_mib(name, options) for name in VARIANTS},
    }  # fmt: skip
    if options.device == "cuda":
        result["gpu"] = torch.cuda.get_device_name()
    show(result)
    if options.json:
        atomic.write_text(options.json, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
