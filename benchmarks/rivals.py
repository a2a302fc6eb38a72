"""A network on our engine and on each rival, loaded and ready to be timed; shared by kernels.py and networks.py.

The rivals are built from the same Graph. ort-fp32, ort-int8, tflite-fp32 and tflite-int8 run its twin without signs,
with zero padding (export/twins.py); lce and lce-indirect run the binary network itself, with their own kernels and, for
what is float, XNNPACK. Ours are bnas, in onnxruntime, and litert-native, which is the file of lce in stock LiteRT.
Every rival is called as cheaply as its interface allows: LiteRT is timed without copying its result out, as ours is
there, Larq Compute Engine without the Python generator around each sample.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bnas.export.graph import Graph
from bnas.export.onnx_writer import to_onnx
from bnas.export.tflite_writer import to_int8_tflite, to_tflite
from bnas.export.twins import FLOAT_CONVS, INTEGER_CONVS, float_graph, fp32_twin, int8_twin, optimised_nodes
from bnas.profiles.errors import InputError
from bnas.runtime_bench import native_library
from bnas.runtime_bench.engines import open_engine
from bnas.runtime_bench.litert_engine import LiteRtEngine
from bnas.runtime_bench.measure import Run

ENGINES = ("bnas", "litert-native", "ort-fp32", "ort-int8", "tflite-fp32", "tflite-int8", "lce", "lce-indirect")
OURS = ("bnas", "litert-native")
EPILOGUES = ("prelu", "relu")
OWN = "own"  # the "isa" of a rival: what its runtime chooses
FUNCTION_FLOAT = "function-float"  # the "isa" of ours where no operator library is: float arithmetic, for trying out
CALIBRATION_IMAGES = 16
# What onnxruntime runs on bytes. Transpose and Max only move or compare them.
INTEGER_OPERATORS = {*INTEGER_CONVS, "QLinearAdd", "QLinearAveragePool", "QLinearGlobalAveragePool", "QGemm"}


@dataclass(frozen=True, eq=False)
class Contender:
    """One engine with one network. run: the timed call. output: float32 [1, C, H, W] in -> the result, NCHW too."""

    engine: str  # of ENGINES
    isa: str  # the path of our kernels, FUNCTION_FLOAT, or OWN
    epilogue: str  # of EPILOGUES
    run: Run
    output: Callable[[np.ndarray], np.ndarray]
    notes: dict[str, Any] = field(default_factory=dict)  # more entries of its JSON rows

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.engine, self.isa, self.epilogue)

    @property
    def name(self) -> str:
        return " ".join(self.key)


def contenders(
    graph: Graph,
    epilogue: str,
    images: np.ndarray,
    *,
    engines: Sequence[str] = ENGINES,
    isas: Sequence[str] = (),
    threads: int = 1,
) -> Iterator[Contender]:
    """Each of `engines` with this network; OURS once per path of `isas`.

    images: float32 [N, C, H, W], what really flows into this network, to calibrate the int8 twin. Raises RuntimeError
    if a convolution of an int8 twin did not stay integer, or LiteRT left XNNPACK out.
    """
    if "bnas" in engines:
        yield from _ours(graph, epilogue, isas, threads)
    if "ort-fp32" in engines or "ort-int8" in engines:
        fp32 = fp32_twin(graph, {})
        if "ort-fp32" in engines:
            yield _onnxruntime("ort-fp32", epilogue, fp32, threads, {})
        if "ort-int8" in engines:
            int8 = int8_twin(fp32, images)
            notes = integer_notes([operator for operator, _ in optimised_nodes(int8)])
            if notes["integer_convs"] != len(float_graph(graph).float_convs):
                raise RuntimeError(f"int8 twin: {notes}, expected {len(float_graph(graph).float_convs)} integer ones")
            yield _onnxruntime("ort-int8", epilogue, int8, threads, notes)
    if "tflite-fp32" in engines:
        yield _tflite("tflite-fp32", "float32", graph, epilogue, to_tflite(float_graph(graph), {}), threads)
    if "tflite-int8" in engines:
        int8_file = to_int8_tflite(float_graph(graph), images)
        yield _tflite("tflite-int8", "int8", graph, epilogue, int8_file, threads)
    if {"litert-native", "lce", "lce-indirect"}.intersection(engines):
        binary = to_tflite(graph, {})
        if "litert-native" in engines:
            yield from _litert(epilogue, binary, isas, threads)
        for engine in ("lce", "lce-indirect"):
            if engine in engines:
                yield _lce(engine, graph, epilogue, binary, threads)


def native_paths() -> tuple[str, ...]:
    """Our paths on this processor that use its vectors, the fastest first; the portable one if there is no other.

    None where nothing is compiled. The portable path takes some twenty times as long as AVX-512; it is timed when it
    is asked for.
    """
    native = native_module()
    paths = () if native is None else tuple(name for name in reversed(native.paths()) if name != "reference")
    return paths[:-1] or paths


@cache
def native_module() -> Any:
    """The Python module of the kernels, None where it is not compiled."""
    try:
        from bnas.runtime_bench.native import _native

        return _native
    except ImportError:
        return None


def integer_notes(operators: Sequence[str]) -> dict[str, Any]:
    """What an optimised int8 twin really computes in integers, and which operators besides ("other")."""
    count = Counter(operators)
    other = {name: n for name, n in count.items() if name not in INTEGER_OPERATORS}
    return {
        "integer_convs": sum(count[name] for name in INTEGER_CONVS),
        "float_convs": sum(count[name] for name in FLOAT_CONVS),
        "integer_adds": count["QLinearAdd"],
        "float_adds": count["Add"],
        "other": other,
    }


@cache
def real_images(height: int, width: int, count: int = CALIBRATION_IMAGES) -> np.ndarray:
    """float32 [count, 3, height, width], levelled per channel: CIFAR-10 if it is there (BNAS_CIFAR10), else digits."""
    from bnas.search.data import load_images

    folder = Path(os.environ.get("BNAS_CIFAR10", Path(__file__).parents[2] / "shared/data/cifar10"))
    cifar = folder / "test.parquet"  # the small one
    images = load_images(str(cifar) if cifar.is_file() else "digits").train.images[:count].astype(np.float32)
    rows, columns = (np.arange(size) * images.shape[axis] // size for size, axis in ((height, 2), (width, 3)))
    images = images[:, :, rows][:, :, :, columns]
    return _levelled(np.repeat(images, 3 // images.shape[1], axis=1))


def real_activations(channels: int, height: int, width: int) -> np.ndarray:
    """float32 [N, channels, height, width]: `real_images` behind a random 3x3 convolution and a batch-norm."""
    images = real_images(height, width)
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    weight = np.random.default_rng(channels).standard_normal((channels, 3, 3, 3)).astype(np.float32)
    return _levelled(np.einsum("nchwij,ocij->nohw", windows, weight, optimize=True))


def _levelled(x: np.ndarray) -> np.ndarray:
    """Mean 0 and variance 1 per channel."""
    mean, deviation = (f(x, axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.std))
    return np.ascontiguousarray((x - mean) / (deviation + 1e-3), dtype=np.float32)


@contextmanager
def forced(isa: str) -> Iterator[None]:
    """BNAS_ISA for the sessions made inside; the operator library reads it when it is registered."""
    before = os.environ.get("BNAS_ISA")
    os.environ["BNAS_ISA"] = isa
    try:
        yield
    finally:
        if before is None:
            del os.environ["BNAS_ISA"]
        else:
            os.environ["BNAS_ISA"] = before


def function_body(graph: Graph) -> Callable[[np.ndarray], np.ndarray]:
    """The network by the definition that its file carries: what ours must compute. [1, C, H, W] -> the result."""
    return open_engine(to_onnx(graph, {}).SerializeToString(), kernels=False).run


def agreement(found: np.ndarray, wanted: np.ndarray) -> float:
    """Share of values that differ by at most 1e-4 of the largest.

    Not all have to: a value next to its threshold may get the other sign by rounding, and that spreads.
    """
    if found.shape != wanted.shape:
        return 0.0
    return float(np.mean(np.abs(found - wanted) <= 1e-4 * np.abs(wanted).max()))


def _ours(graph: Graph, epilogue: str, isas: Sequence[str], threads: int) -> Iterator[Contender]:
    data = to_onnx(graph, {}).SerializeToString()
    for isa in isas or ("",):
        with forced(isa):
            engine = open_engine(data, threads)
        ran = engine.name.removeprefix("native-")
        if isa and ran not in (isa, FUNCTION_FLOAT):
            raise RuntimeError(f"BNAS_ISA={isa} was asked for, {engine.name} runs")
        run = engine.call(np.random.default_rng(0))
        yield Contender("bnas", ran, epilogue, run, engine.run, {"runs": engine.name})
        if ran == FUNCTION_FLOAT:
            return


def _onnxruntime(engine: str, epilogue: str, model: Any, threads: int, notes: dict[str, Any]) -> Contender:
    opened = open_engine(model.SerializeToString(), threads)
    return Contender(engine, OWN, epilogue, opened.call(np.random.default_rng(0)), opened.run, notes)


def _litert(epilogue: str, data: bytes, isas: Sequence[str], threads: int) -> Iterator[Contender]:
    for isa in isas or ("",):
        with forced(isa):
            engine = LiteRtEngine(data, "the binary network", threads)
        ran = engine.name.removeprefix(native_library.LITERT_PREFIX)
        notes = {"runs": engine.name, "runtime": f"{engine.runtime} {engine.version}"}
        run = engine.call(np.random.default_rng(0))
        yield Contender("litert-native", ran, epilogue, run, _in_litert(engine), notes)


def _tflite(engine: str, kind: str, graph: Graph, epilogue: str, data: bytes, threads: int) -> Contender:
    """A twin in stock LiteRT, whose convolutions must all be of `kind`."""
    opened = LiteRtEngine(data, engine, threads)
    operators = opened.operator_types()
    delegates = sum(name == "DELEGATE" for name, _ in operators)
    convolutions = sum(name in ("CONV_2D", "DEPTHWISE_CONV_2D") and of == kind for name, of in operators)
    if not delegates:
        raise RuntimeError(f"{opened.runtime} runs {engine} without XNNPACK")
    if convolutions != len(float_graph(graph).float_convs):
        raise RuntimeError(f"{engine}: {convolutions} of {len(float_graph(graph).float_convs)} convolutions are {kind}")
    notes = {"delegates": delegates, "runtime": f"{opened.runtime} {opened.version}"}
    return Contender(engine, OWN, epilogue, opened.call(np.random.default_rng(0)), _in_litert(opened), notes)


def _in_litert(engine: LiteRtEngine) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: _channels_first(engine.run(_channels_last(x)))


def _lce(engine: str, graph: Graph, epilogue: str, data: bytes, threads: int) -> Contender:
    if int(np.__version__.partition(".")[0]) >= 2:
        raise InputError(f"Larq Compute Engine needs numpy < 2, found {np.__version__}: pip install 'bnas[tflite]'")
    from larq_compute_engine.tflite.python.interpreter import Interpreter

    interpreter = Interpreter(
        data, num_threads=threads, use_indirect_bgemm=engine == "lce-indirect", use_xnnpack=True
    ).interpreter
    inputs = [_channels_last(_random_image(graph))]

    def output(x: np.ndarray) -> np.ndarray:
        return _channels_first(interpreter.predict([_channels_last(x)])[0])

    return Contender(engine, OWN, epilogue, lambda: interpreter.predict(inputs), output)


def _random_image(graph: Graph) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, *graph.input_shape)).astype(np.float32)


def _channels_last(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def _channels_first(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if x.ndim == 4 else x
