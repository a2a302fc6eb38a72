"""Engines: one interface to a network file, whichever runtime executes it, with the name of what really runs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bnas.profiles.errors import InputError
from bnas.profiles.schema import EngineInfo

from . import native_library, network_file
from .lce_engine import LceEngine
from .ort_engine import FUNCTION_FLOAT, OrtEngine

# They stand in for a fast one: float function bodies, LCE's portable kernels, and ours that are the specification.
FALLBACKS = frozenset({FUNCTION_FLOAT, "lce-portable", native_library.REFERENCE})


class Engine(Protocol):
    """A loaded network file. Arrays are in the file's own layout, the batch axis first."""

    name: str  # what computes: native-avx512 (or another path), function-float, onnxruntime, lce, lce-portable
    runtime: str
    version: str
    operators: str | None  # version of our operator library where it computes
    threads: int
    metadata: dict[str, Any]
    load_ms: float

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the image input. Raises InputError if the file takes something else."""

    @property
    def input_layout(self) -> str:
        """NCHW or NHWC."""

    def run(self, x: np.ndarray) -> np.ndarray:
        """The first output, for x float32 [N, ...] of any N."""

    def run_all(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Every output by name, the extra ones included."""

    def random_input(self, rng: np.random.Generator) -> np.ndarray:
        """One random sample [1, ...] for the first input."""

    def call(self, rng: np.random.Generator) -> Callable[[], object]:
        """A function that runs the network once on fixed random inputs, with as little around it as possible."""


def open_engine(
    source: network_file.Source, threads: int = 1, *, extra_outputs: Sequence[str] = (), kernels: bool = True
) -> Engine:
    """Load a .onnx or .tflite file, or its bytes, on `threads` threads. Raises InputError naming a file that is bad,
    or a path in BNAS_ISA that this processor does not have.

    extra_outputs: names of inner tensors that `run_all` shall return too. kernels: whether a .onnx with our operators
    runs on our kernels, where they were built; otherwise the function bodies in the file are run.
    """
    if threads < 1:
        raise InputError(f"threads must be at least 1, got {threads}")
    data, where, suffix = network_file.read(source)
    if suffix == ".tflite":
        return LceEngine(data, where, threads, extra_outputs)
    path = None if isinstance(source, bytes) else Path(source)
    return OrtEngine(data, where, threads, extra_outputs, kernels=kernels, path=path)


def onnx_engine() -> EngineInfo:
    """What executes `ai.bnas` units in .onnx files on this machine: the key of a latency table measured here."""
    import onnxruntime

    built = native_library.operator_library() is not None
    return EngineInfo(
        name=native_library.engine_name() if built else FUNCTION_FLOAT,
        runtime="onnxruntime",
        version=onnxruntime.__version__,
        operators=native_library.version() if built else None,
    )


def may_claim_speedup(engine_name: str) -> bool:
    """Only kernels meant to be fast may be compared for speed: ours but the naive ones, and LCE's on ARM."""
    ours = engine_name.startswith(native_library.PREFIX) and engine_name != native_library.REFERENCE
    return ours or engine_name == "lce"
