"""TensorFlow Lite's `benchmark_model` and Larq's `lce_benchmark_model`, for .tflite files on a device without Python.

Options and output are those of tensorflow/lite/tools/benchmark, which both programs are built from: each call loads
the file, makes untimed and then timed runs, and prints their mean.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from bnas.profiles.errors import InputError

from . import elf
from .errors import DeviceError
from .transport import Result

OPTIONS = {"tflite": "--tflite-benchmark", "lce": "--lce-benchmark"}
RUNTIMES = {"tflite": "tflite", "lce": "larq-compute-engine"}
PROGRAMS = {"tflite": "benchmark_model", "lce": "lce_benchmark_model"}
_LCE_OPERATORS = (b"LceBconv2d", b"LceQuantize", b"LceDequantize", b"LceBMaxPool2d")
_NUMBER = r"([\d.]+(?:e[+-]?\d+)?)"
_TIMES = re.compile(rf"Inference timings in us: Init: {_NUMBER}, .*Inference \(avg\): {_NUMBER}")
_COUNT = re.compile(r"\bcount=(\d+) first=")
_PLAIN_COUNT = re.compile(r"\bcount=(\d+)\s+curr=")  # one run, whose statistics are a single value


@dataclass(frozen=True)
class Timings:
    """What a call printed: ms to load, mean ns of a timed run, how many those were."""

    load_ms: float
    mean_ns: int
    runs: int


def parse(text: str) -> Timings:
    """Raises ValueError if `text` is not what the programs print."""
    found = _TIMES.search(text)
    counts = _COUNT.findall(text) or _PLAIN_COUNT.findall(text)
    if not found or not counts:
        raise ValueError("no line 'Inference timings in us: ...'")
    return Timings(float(found[1]) / 1000, round(float(found[2]) * 1000), int(counts[-1]))


class Benchmark:
    """One of the programs, as a file on this machine for the device. Raises InputError if it cannot be."""

    def __init__(self, kind: str, path: Path, arch: str) -> None:
        option = OPTIONS[kind]
        if not path.is_file():
            raise InputError(f"{option} {path} is not there; name a benchmark_model program for {arch}")
        found = elf.read(path)
        if found and found.arch != arch:
            raise InputError(f"{option} {path} is built for {found.arch}, but the device is {arch}")
        self.kind = kind
        self.path = path
        self.runtime = RUNTIMES[kind]
        self.native = found is not None
        # The programs do not tell their version.
        self.version = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def choose(data: bytes, where: str, benchmarks: Sequence[Benchmark]) -> Benchmark:
    """The program for a file: Larq's where its operators are in it. Raises InputError, naming the option, without."""
    by_kind = {benchmark.kind: benchmark for benchmark in benchmarks}
    kind = "lce" if has_lce_operators(data) else "tflite"
    found = by_kind.get(kind) or by_kind.get("lce")  # Larq's has TensorFlow Lite's operators, too
    if found is None:
        has = "operators of Larq Compute Engine" if kind == "lce" else "operators of TensorFlow Lite alone"
        lacks = f", which the program of {OPTIONS['tflite']} does not know" if by_kind else ""
        raise InputError(
            f"{where} has {has}{lacks}; a device needs a benchmark program for it: add {OPTIONS[kind]} {PROGRAMS[kind]}"
        )
    return found


def has_lce_operators(data: bytes) -> bool:
    return any(name in data for name in _LCE_OPERATORS)


class BenchmarkSession:
    """A .tflite file, loaded anew by each call. A sample is the mean of the runs of a call."""

    operators: str | None = None
    input_layout = "NHWC"

    def __init__(
        self,
        run: Callable[[Sequence[str]], Result],
        model: str,
        benchmark: Benchmark,
        threads: int,
        name: str,
        where: str,
    ) -> None:
        self.name = name
        self.runtime, self.version = benchmark.runtime, benchmark.version
        self.threads = threads
        self.metadata: Mapping[str, Any] = {}
        self.means_of: int | None = None
        self._run = run
        self._arguments = [f"--graph={model}", f"--num_threads={threads}"]
        self._where, self._option = where, OPTIONS[benchmark.kind]
        self.load_ms = self._call(0, 1).load_ms

    @property
    def input_shape(self) -> tuple[int, int, int]:
        self._refuse("its input shape")

    def timed(self, untimed: int, timed: int) -> list[int]:
        taken = self._call(untimed, timed)
        self.means_of = taken.runs
        return [taken.mean_ns]

    def infer(self, x: np.ndarray) -> np.ndarray:
        self._refuse("its output")

    def close(self) -> None:
        """Nothing stays loaded."""

    def _call(self, untimed: int, timed: int) -> Timings:
        limits = [f"--num_runs={timed}", "--min_secs=0", f"--warmup_runs={untimed}", "--warmup_min_secs=0"]
        result = self._run([*self._arguments, *limits])
        try:
            return parse(result.text + result.err)
        except ValueError:
            raise DeviceError(f"{self._where}: the program of {self._option} fails: {result.reason}") from None

    def _refuse(self, what: str) -> NoReturn:
        raise InputError(f"{self._where}: a benchmark program times a .tflite file but does not show {what}; use .onnx")
