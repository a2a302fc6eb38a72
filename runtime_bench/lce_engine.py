"""Larq Compute Engine's interpreter as an engine for .tflite files."""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnas.profiles.errors import InputError

from . import machine, network_file

METADATA_NAME = "bnas"


class LceEngine:
    """Larq Compute Engine's interpreter for .tflite. Its kernels are written for 64-bit ARM (`lce`); elsewhere portable
    C++ runs (`lce-portable`), which says nothing about speed. Source: the interpreter's own documentation."""

    runtime = "larq-compute-engine"
    input_layout = "NHWC"
    operators: str | None = None

    def __init__(self, data: bytes, where: str, threads: int, extra_outputs: Sequence[str] = ()) -> None:
        interpreter_class, self.version = _lce(where)
        file = _parse(data, where)
        self.name = "lce" if machine.is_arm64() else "lce-portable"
        self.threads = threads
        self.metadata = file.metadata
        self._where = where
        new = network_file.new_outputs(extra_outputs, file.tensors, file.outputs)
        self._names = [*file.outputs, *new]
        if new:
            data = file.with_outputs(new)
        started = time.perf_counter()
        try:
            self._interpreter = interpreter_class(data, num_threads=threads, use_indirect_bgemm=file.grouped)
        except Exception as error:  # whatever the binding raises
            raise network_file.damaged(where, "Larq Compute Engine cannot load it", error) from None
        self.load_ms = 1e3 * (time.perf_counter() - started)
        self._shapes = [network_file.fixed_shape(shape, where) for shape in self._interpreter.input_shapes]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return network_file.image_shape(self._shapes[0], self.input_layout, self._where)

    def run(self, x: np.ndarray) -> np.ndarray:
        return next(iter(self.run_all(x).values()))

    def run_all(self, x: np.ndarray) -> dict[str, np.ndarray]:
        network_file.check_images(x, self._shapes, self._where)
        predict = self._interpreter.interpreter.predict
        results = [predict([x[i : i + 1]]) for i in range(len(x))]
        return {
            name: np.concatenate(parts) for name, parts in zip(self._names, zip(*results, strict=True), strict=True)
        }

    def random_input(self, rng: np.random.Generator) -> np.ndarray:
        return self._random_inputs(rng)[0]

    def call(self, rng: np.random.Generator) -> Callable[[], object]:
        predict, inputs = self._interpreter.interpreter.predict, self._random_inputs(rng)  # one sample, no generator
        return lambda: predict(inputs)

    def _random_inputs(self, rng: np.random.Generator) -> list[np.ndarray]:
        types = self._interpreter.input_types
        return [
            network_file.random_tensor(shape, np.dtype(kind), rng)
            for shape, kind in zip(self._shapes, types, strict=True)
        ]


def _lce(where: str) -> tuple[Any, str]:
    """The interpreter class and its version."""
    if int(np.__version__.partition(".")[0]) >= 2:
        raise InputError(
            f"{where}: Larq Compute Engine needs numpy < 2, found {np.__version__}: pip install 'bnas[tflite]'"
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # tensorflow's start-up messages
    try:
        from importlib import metadata

        from larq_compute_engine.tflite.python.interpreter import Interpreter

        return Interpreter, metadata.version("larq-compute-engine")
    except ModuleNotFoundError:
        raise InputError(f"{where} needs Larq Compute Engine: pip install 'bnas[tflite]'") from None


@dataclass(frozen=True, eq=False)
class _File:
    """What the engine needs of a parsed file. grouped: some binary convolution has groups, which only the indirect
    kernels of the interpreter can run."""

    model: Any
    tensors: tuple[str, ...]
    outputs: tuple[str, ...]
    grouped: bool
    metadata: dict[str, Any]

    def with_outputs(self, names: Sequence[str]) -> bytes:
        """The file's bytes with more outputs; `model` is changed, too."""
        import flatbuffers

        graph = self.model.subgraphs[0]
        graph.outputs = [*graph.outputs, *(self.tensors.index(name) for name in names)]
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), network_file.TFLITE_IDENTIFIER)
        return bytes(builder.Output())


def _parse(data: bytes, where: str) -> _File:
    """Done before the interpreter sees the file, because it crashes on a truncated one."""
    from tensorflow.lite.python import schema_py_generated as schema

    try:
        if data[4:8] != network_file.TFLITE_IDENTIFIER:
            raise ValueError("no TFL3 identifier")
        model = schema.ModelT.InitFromPackedBuf(data, 0)
        graph = model.subgraphs[0]
        tensors = tuple(tensor.name.decode() for tensor in graph.tensors)
        return _File(
            model=model,
            tensors=tensors,
            outputs=tuple(tensors[index] for index in graph.outputs),
            grouped=any(_is_grouped(operator, model) for operator in graph.operators),
            metadata=_metadata(model),
        )
    except Exception as error:  # struct, index, type and memory errors, depending on where the damage is
        raise network_file.damaged(where, "not a whole TFLite file", error) from None


def _is_grouped(operator: Any, model: Any) -> bool:
    if model.operatorCodes[operator.opcodeIndex].customCode != b"LceBconv2d":
        return False
    tensors = model.subgraphs[0].tensors
    words, filter_words = (tensors[index].shape[-1] for index in operator.inputs[:2])
    return bool(words != filter_words)


def _metadata(model: Any) -> dict[str, Any]:
    for entry in model.metadata or ():
        if entry.name == METADATA_NAME.encode():
            found = json.loads(bytes(model.buffers[entry.buffer].data).decode())
            return found if isinstance(found, dict) else {}
    return {}
