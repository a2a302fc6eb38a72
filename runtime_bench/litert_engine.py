"""LiteRT, or TensorFlow Lite, with our delegate as an engine for .tflite files."""

import importlib
import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from bnas.profiles.errors import InputError

from . import native_library, network_file, tflite_bytes

# Where an interpreter may come from, the smallest first: package, the module with Interpreter and load_delegate.
HOSTS = {
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
    "tensorflow": "tensorflow",
}
BUILTIN = "litert"  # the engine's name where a file has no operators of ours
_OURS = "Lce"  # what the names of our operators begin with


class LiteRtEngine:
    """Stock LiteRT for .tflite. Operators of Larq Compute Engine run on our kernels, by an external delegate
    (`litert-native-avx512` and so on); the others, and files without any (`litert`), as they always do: mostly XNNPACK.

    Raises InputError for a damaged file, and where there is no LiteRT or the delegate was not built.
    """

    input_layout = "NHWC"
    operators: str | None
    shapes: list[tuple[int, ...]]  # of the inputs, with 1 for a free batch axis
    outputs: list[str]  # their names, the extra ones included

    def __init__(self, data: bytes, where: str, threads: int, extra_outputs: Sequence[str] = ()) -> None:
        host = find_host()
        if host is None:
            raise InputError(f"{where} {_no_host()}")
        content = tflite_bytes.parse(data, where)
        ours = any(name.startswith(_OURS) for name in content.operators)
        self.name = native_library.litert_engine_name() if ours else BUILTIN
        interpreter_class, load_delegate, self.version = _host(host)
        self.runtime = host
        self.operators = native_library.litert_version() if ours else None
        self.threads = threads
        self.metadata = content.metadata
        self._where = where
        new = network_file.new_outputs(extra_outputs, content.tensors, content.outputs)
        self.outputs = [*content.outputs, *new]
        if new:
            data = content.with_outputs(new)
        started = time.perf_counter()
        try:
            delegates = [load_delegate(str(native_library.path_of(native_library.LITERT)))] if ours else None
            self._interpreter = interpreter_class(
                model_content=data, num_threads=threads, experimental_delegates=delegates
            )
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError, TypeError) as error:
            raise network_file.damaged(where, f"{host} cannot load it", error) from None
        self.load_ms = 1e3 * (time.perf_counter() - started)
        self._input_details, self._output_details = (
            self._interpreter.get_input_details(),
            self._interpreter.get_output_details(),
        )
        self.shapes = [network_file.fixed_shape(_shape(entry), where) for entry in self._input_details]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return network_file.image_shape(self.shapes[0], self.input_layout, self._where)

    def run(self, x: np.ndarray) -> np.ndarray:
        return next(iter(self.run_all(x).values()))

    def run_all(self, x: np.ndarray) -> dict[str, np.ndarray]:
        network_file.check_images(x, self.shapes, self._where)
        expected = np.dtype(self._input_details[0]["dtype"])
        if x.dtype != expected:
            raise InputError(f"{self._where} takes values of {expected.name}, got {x.dtype.name}")
        return dict(zip(self.outputs, self.predict([x]), strict=True))

    def predict(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Every output for `inputs` [N, ...], one array for each input of the file."""
        step, results = self.shapes[0][0], []
        for first in range(0, len(inputs[0]), step):
            self._set_inputs([x[first : first + step] for x in inputs])
            self._interpreter.invoke()
            results.append([self._interpreter.get_tensor(entry["index"]) for entry in self._output_details])
        return [np.concatenate(parts) for parts in zip(*results, strict=True)]

    def operator_types(self) -> list[tuple[str, str]]:
        """(name, type of the first input) of each operator; "DELEGATE" stands for what delegates have taken over, which
        is listed, too."""
        types = {entry["index"]: np.dtype(entry["dtype"]).name for entry in self._interpreter.get_tensor_details()}
        details = self._interpreter._get_ops_details()
        return [(entry["op_name"], types.get(int(entry["inputs"][0]), "")) for entry in details if len(entry["inputs"])]

    def random_input(self, rng: np.random.Generator) -> np.ndarray:
        return self._random_inputs(rng)[0]

    def call(self, rng: np.random.Generator) -> Callable[[], object]:
        self._set_inputs(self._random_inputs(rng))  # the interpreter keeps its inputs
        return self._interpreter.invoke

    def _random_inputs(self, rng: np.random.Generator) -> list[np.ndarray]:
        return [
            network_file.random_tensor(shape, np.dtype(entry["dtype"]), rng)
            for shape, entry in zip(self.shapes, self._input_details, strict=True)
        ]

    def _set_inputs(self, values: Sequence[np.ndarray]) -> None:
        for entry, value in zip(self._input_details, values, strict=True):
            self._interpreter.set_tensor(entry["index"], np.ascontiguousarray(value))


def _shape(entry: dict[str, Any]) -> list[int]:
    """An input's, with -1 for free axes but the first, which the interpreter takes as 1 or as the file says."""
    shape, signature = entry["shape"].tolist(), entry["shape_signature"].tolist()
    return [*shape[:1], *signature[1:]] if len(shape) == len(signature) else shape


def find_host() -> str | None:
    """The first package of HOSTS whose interpreter can be imported; None if there is none."""
    return next((package for package in HOSTS if _installed(package) and _import_error(package) is None), None)


def host_version(package: str) -> str:
    """Of a package that `find_host` found."""
    return _host(package)[2]


def _no_host() -> str:
    """What is said of a file where `find_host` finds none."""
    for package in filter(_installed, HOSTS):
        reason = " ".join(str(_import_error(package)).split())
        return f"needs LiteRT, and {package} cannot be imported ({reason}); install a version for this system"
    return "needs LiteRT: pip install 'bnas[litert]'"


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(HOSTS[package].partition(".")[0]) is not None
    except ValueError:  # half removed from sys.modules
        return False


def _import_error(package: str) -> Exception | None:
    try:
        _host(package)
    except Exception as error:  # a missing or older library of the system's, another numpy, ...: whatever they raise
        return error
    return None


def _host(package: str) -> tuple[Callable[..., Any], Callable[..., Any], str]:
    """Interpreter, load_delegate and the version of a package of HOSTS."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # tensorflow's start-up messages
    module = importlib.import_module(HOSTS[package])
    if package == "tensorflow":
        return module.lite.Interpreter, module.lite.experimental.load_delegate, str(module.__version__)
    return module.Interpreter, module.load_delegate, metadata.version(package)
