"""This machine by the engines of this process: no runner, nothing pushed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bnas.profiles.errors import InputError
from bnas.profiles.schema import EngineInfo

from .. import machine, native_library, network_file
from ..engines import Engine, onnx_engine, open_engine, tflite_engine
from ..measure import timer
from ..ort_engine import OrtEngine
from . import trace
from .benchmark_binary import OPTIONS
from .errors import DeviceError
from .target import ISA, Format


@contextmanager
def open_local(
    *, cpus: Sequence[int] | None, isa: str | None, benchmarks: Sequence[Path | None] = ()
) -> Iterator[LocalTarget]:
    """See `open_device`. The CPUs and the path hold for this process while the target is open."""
    if any(benchmarks):
        raise InputError(f"{' and '.join(OPTIONS.values())} are for other devices; here, Python runs .tflite files")
    before = machine.usable_cpus(), os.environ.get(ISA)
    if cpus:
        if not hasattr(os, "sched_setaffinity"):
            raise InputError("this system cannot keep a process on chosen CPUs; leave --cpus out")
        if wrong := sorted(set(cpus) - set(before[0])):
            raise InputError(f"there is no CPU {wrong[0]} to run on; choose from {','.join(map(str, before[0]))}")
        os.sched_setaffinity(0, cpus)
    if isa:
        os.environ[ISA] = isa
    try:
        yield LocalTarget()
    finally:
        if cpus:
            os.sched_setaffinity(0, before[0])
        if isa and before[1] is None:
            del os.environ[ISA]
        elif isa and before[1] is not None:
            os.environ[ISA] = before[1]


class LocalTarget:
    """See `target.Target`."""

    url = "local"
    local = True
    emulated = False

    def describe(self) -> dict[str, Any]:
        return machine.describe()

    def state(self) -> dict[str, Any]:
        return machine.state()

    def fingerprint(self) -> str:
        return machine.fingerprint()

    def usable_cores(self) -> int:
        return machine.usable_cores()

    def bound_gmacs(self) -> float | None:
        return native_library.bound_gmacs()

    def engine(self, format: Format = "onnx") -> EngineInfo:
        return onnx_engine() if format == "onnx" else tflite_engine()

    def open(self, source: Path | bytes, threads: int = 1, *, kernels: bool = True) -> LocalSession:
        return LocalSession(open_engine(source, threads, kernels=kernels))

    def memory(self, source: Path | bytes, threads: int) -> dict[str, int] | None:
        with _as_file(source) as path, tempfile.TemporaryDirectory(prefix="bnas-") as folder:
            command = [sys.executable, "-m", f"{__package__}.memory", str(path.absolute()), str(threads)]
            # `-m` imports from the current folder first: not from the user's, where files may be called as modules are.
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", cwd=folder
            )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise DeviceError(
                f"a process that runs {path} by itself failed: {lines[-1][:200] if lines else 'silently'}"
            )
        found = json.loads(done.stdout.splitlines()[-1])
        return found if isinstance(found, dict) else None

    def unit_profile(self, source: Path | bytes, threads: int, runs: int) -> list[dict[str, Any]]:
        data, where, suffix = network_file.read(source)
        if suffix == ".tflite":
            return []
        path = None if isinstance(source, bytes) else source
        with tempfile.TemporaryDirectory(prefix="bnas-") as folder:
            engine = OrtEngine(data, where, threads, path=path, profile=Path(folder, "trace"))
            run = engine.call(np.random.default_rng(0))
            for _ in range(runs + trace.UNTIMED):
                run()
            return trace.node_times(engine.end_profiling().read_bytes(), runs)


class LocalSession:
    """A file in an engine of this process. See `target.Session`."""

    means_of: int | None = None

    def __init__(self, engine: Engine) -> None:
        self._engine: Engine | None = engine
        self.name, self.runtime, self.version = engine.name, engine.runtime, engine.version
        self.operators, self.threads, self.load_ms = engine.operators, engine.threads, engine.load_ms
        self.metadata: Mapping[str, Any] = engine.metadata
        self._timer = timer(engine.call(np.random.default_rng(0)))

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return self._loaded.input_shape

    @property
    def input_layout(self) -> str:
        return self._loaded.input_layout

    def timed(self, untimed: int, timed: int) -> list[int]:
        return self._timer(untimed, timed)

    def infer(self, x: np.ndarray) -> np.ndarray:
        return self._loaded.run(x)

    def close(self) -> None:
        self._engine = None
        self._timer = timer(lambda: None)

    @property
    def _loaded(self) -> Engine:
        if self._engine is None:
            raise ValueError("the session is closed")
        return self._engine


@contextmanager
def _as_file(source: Path | bytes) -> Iterator[Path]:
    data, _, suffix = network_file.read(source)
    if not isinstance(source, bytes):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="bnas-") as folder:
        path = Path(folder, "model" + suffix)
        path.write_bytes(data)
        yield path
