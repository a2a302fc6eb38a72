"""ONNX Runtime as an engine for .onnx files."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bnas.profiles.errors import InputError

from . import native_library, network_file

OPERATOR_DOMAIN = "ai.bnas"
FUNCTION_FLOAT = "function-float"  # our operators by their function bodies: float arithmetic
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(uint32)": np.uint32,
    "tensor(int64)": np.int64,
}


class OrtEngine:
    """ONNX Runtime on the CPU. If the file holds our operators, they run on our kernels (`native-avx512` and so on);
    without those, or with kernels=False, their function bodies are run (`function-float`)."""

    runtime = "onnxruntime"

    def __init__(
        self,
        data: bytes,
        where: str,
        threads: int,
        extra_outputs: Sequence[str] = (),
        *,
        kernels: bool = True,
        path: Path | None = None,
        profile: Path | None = None,
    ) -> None:
        import onnxruntime

        model = _parse_onnx(data, where)
        ours = {node.op_type for node in _nodes(model) if node.domain == OPERATOR_DOMAIN}
        library = native_library.library_for(ours) if kernels else None
        self.name = native_library.engine_name() if library else FUNCTION_FLOAT if ours else "onnxruntime"
        self.version: str = onnxruntime.__version__
        self.operators = native_library.version() if library else None
        self.threads = threads
        self.metadata: dict[str, Any] = {entry.key: entry.value for entry in model.metadata_props}
        self._where = where
        if extra_outputs:
            data, path = _with_outputs(model, extra_outputs), None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        # Idle threads of one session would otherwise spin for milliseconds on the cores the next session needs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if profile:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        if library:
            options.register_custom_ops_library(str(library))
        source = data if path is None else str(path)  # from the file, weights stored beside it are found
        started = time.perf_counter()
        try:
            self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's errors share no base class
            raise network_file.damaged(where, "onnxruntime cannot load it", error) from None
        self.load_ms = 1e3 * (time.perf_counter() - started)
        self._inputs = self._session.get_inputs()
        self._shapes = [network_file.fixed_shape(node.shape, where) for node in self._inputs]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return network_file.image_shape(self._shapes[0], self.input_layout, self._where)

    @property
    def input_layout(self) -> str:
        return network_file.onnx_layout(self._shapes[0])

    def run(self, x: np.ndarray) -> np.ndarray:
        return next(iter(self.run_all(x).values()))

    def run_all(self, x: np.ndarray) -> dict[str, np.ndarray]:
        network_file.check_images(x, self._shapes, self._where)
        names = [node.name for node in self._session.get_outputs()]
        feed = self._inputs[0].name
        batch = self._inputs[0].shape[0]
        step = batch if isinstance(batch, int) else len(x)
        results = [self._session.run(None, {feed: x[i : i + step]}) for i in range(0, len(x), step)]
        return {name: np.concatenate(parts) for name, parts in zip(names, zip(*results, strict=True), strict=True)}

    def random_input(self, rng: np.random.Generator) -> np.ndarray:
        return self._random_feeds(rng)[self._inputs[0].name]

    def call(self, rng: np.random.Generator) -> Callable[[], object]:
        run, feeds = self._session.run, self._random_feeds(rng)
        return lambda: run(None, feeds)

    def end_profiling(self) -> Path:
        """onnxruntime's trace so far, of an engine made with `profile`, which its name begins with."""
        return Path(self._session.end_profiling())

    def _random_feeds(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        feeds = {}
        for node, shape in zip(self._inputs, self._shapes, strict=True):
            if node.type not in _DTYPES:
                raise InputError(f"{self._where}: input {node.name!r} is {node.type}, expected float or integers")
            feeds[node.name] = network_file.random_tensor(shape, np.dtype(_DTYPES[node.type]), rng)
        return feeds


def _nodes(model: Any) -> Iterator[Any]:
    """Every node that may run: of the graph, of graphs in it, of functions that are not the bodies of our operators."""
    pending = [list(model.graph.node)]
    pending += [list(function.node) for function in model.functions if function.domain != OPERATOR_DOMAIN]
    while pending:
        for node in pending.pop():
            yield node
            for attribute in node.attribute:
                pending += [list(graph.node) for graph in (attribute.g, *attribute.graphs)]


def _parse_onnx(data: bytes, where: str) -> Any:
    import onnx

    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's DecodeError is not importable from one place in all its versions
        raise network_file.damaged(where, "not a whole ONNX file", error) from None
    if not model.graph.input or not model.graph.output:
        raise InputError(f"{where}: not a whole ONNX file (no inputs or outputs); export it again")
    return model


def _with_outputs(model: Any, names: Sequence[str]) -> bytes:
    import onnx

    known = {value for node in model.graph.node for value in node.output}
    present = {value.name for value in model.graph.output}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for name in network_file.new_outputs(names, known, present):
        copy.graph.output.append(onnx.ValueInfoProto(name=name))
    return copy.SerializeToString()
