"""Engines: one interface to a network file, whichever runtime executes it, with the name of what really runs."""

import importlib.util
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from bnas.profiles.errors import InputError
from bnas.profiles.schema import EngineInfo

from . import machine, native_library, network_file
from .lce_engine import LceEngine
from .litert_engine import LiteRtEngine, find_host, host_version
from .ort_engine import FUNCTION_FLOAT, OrtEngine

# They stand in for a fast one: float function bodies, LCE's portable kernels, and ours that are the specification.
FALLBACKS = frozenset({FUNCTION_FLOAT, "lce-portable", native_library.REFERENCE, native_library.LITERT_REFERENCE})

TfliteEngine = Literal["litert", "lce"]


class Engine(Protocol):
    """A loaded network file. Arrays are in the file's own layout, the batch axis first."""

    # What computes: native-avx512 or litert-native-avx512 (or another path), function-float, onnxruntime, litert, lce,
    # lce-portable.
    name: str
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


TFLITE_ENGINES: dict[TfliteEngine, type[LiteRtEngine] | type[LceEngine]] = {"litert": LiteRtEngine, "lce": LceEngine}


def open_engine(
    source: network_file.Source,
    threads: int = 1,
    *,
    extra_outputs: Sequence[str] = (),
    kernels: bool = True,
    tflite: TfliteEngine | None = None,
) -> Engine:
    """Load a .onnx or .tflite file, or its bytes, on `threads` threads. Raises InputError naming a file that is bad,
    or a path in BNAS_ISA that this processor does not have.

    extra_outputs: names of inner tensors that `run_all` shall return too. kernels: whether a .onnx with our operators
    runs on our kernels, where they were built; otherwise the function bodies in the file are run. tflite: what runs a
    .tflite; None is LiteRT with our kernels, or Larq Compute Engine where one of the two is missing and that is there.
    """
    if threads < 1:
        raise InputError(f"threads must be at least 1, got {threads}")
    data, where, suffix = network_file.read(source)
    if suffix == ".tflite":
        engine = TFLITE_ENGINES[tflite or _tflite_runtime()]
        return engine(data, where, threads, extra_outputs)
    path = None if isinstance(source, bytes) else Path(source)
    return OrtEngine(data, where, threads, extra_outputs, kernels=kernels, path=path)


def _tflite_runtime() -> TfliteEngine:
    ready = find_host() is not None and native_library.litert_library() is not None
    return "lce" if not ready and importlib.util.find_spec("larq_compute_engine") is not None else "litert"


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


def tflite_engine() -> EngineInfo:
    """What executes Larq's operators in .tflite files in this process. Raises InputError if nothing does."""
    if _tflite_runtime() == "lce":
        name = "lce" if machine.is_arm64() else "lce-portable"
        return EngineInfo(name=name, runtime=LceEngine.runtime, version=metadata.version(LceEngine.runtime))
    host = find_host()
    if host is None:
        raise InputError(
            "nothing here runs .tflite files: pip install 'bnas[litert]', or 'bnas[tflite]', which writes them, too"
        )
    return EngineInfo(
        name=native_library.litert_engine_name(),
        runtime=host,
        version=host_version(host),
        operators=native_library.litert_version(),
    )


def may_claim_speedup(engine_name: str) -> bool:
    """Only kernels meant to be fast may be compared for speed: ours but the naive ones, and LCE's on ARM."""
    ours = engine_name.startswith((native_library.PREFIX, native_library.LITERT_PREFIX))
    return (ours and engine_name not in FALLBACKS) or engine_name == "lce"
