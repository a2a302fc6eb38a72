"""A device at the end of a transport: the kit is pushed, its runner is talked to, and nothing stays behind."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np

from bnas.profiles.errors import InputError
from bnas.profiles.schema import EngineInfo

from .. import health, machine, native_library, network_file
from ..ort_engine import FUNCTION_FLOAT
from . import benchmark_binary, emulation, kit, probe, trace
from .address import Address
from .benchmark_binary import Benchmark, BenchmarkSession
from .errors import ConnectionLost, DeviceError
from .runner import WORK_S, Runner
from .target import ISA, Format
from .transport import Result, Transport
from .workplace import Workplace

INFER_BYTES, INFER_SAMPLES = 16 * 2**20, 256  # the most that is pushed at a time
BOUND_S = 0.2
# Of inputs. The runner knows more, but a file shall run on every device or on none.
TYPES = ("float32", "uint8", "int8", "int32", "uint32", "int64")


def connect(address: Address) -> Transport:
    """The transport to where `address` points; emulated programs will be run there."""
    if address.kind == "ssh":
        from .ssh import Ssh

        return Ssh(address)
    if address.kind == "adb":
        from .adb import Adb

        return Adb(address)
    return Transport()


@contextmanager
def open_remote(
    address: Address,
    *,
    keep: bool = False,
    cpus: Sequence[int] | None = None,
    isa: str | None = None,
    tflite_benchmark: Path | None = None,
    lce_benchmark: Path | None = None,
) -> Iterator[RemoteTarget]:
    """See `open_device`."""
    with ExitStack() as stack:
        stack.enter_context(_ending_in_order())
        transport = stack.enter_context(connect(address))
        host = probe.facts(transport)
        emulator = emulation.find(transport, host) if address.emulated else None
        facts = emulator.facts if emulator else host
        check_cpus(cpus, facts, transport.name)
        found = kit.find(facts, transport.name, emulated=address.emulated)
        given = {"tflite": tflite_benchmark, "lce": lce_benchmark}
        benchmarks = [Benchmark(kind, path, found.arch) for kind, path in given.items() if path]
        place = stack.enter_context(Workplace(transport, keep=keep))
        programs = place.put_kit(found.files)
        launch = emulator.launch(transport, place) if emulator else []
        command = [*launch, *_loader(programs, found), programs[native_library.RUNNER]]
        options = ["--ort", programs[kit.ONNXRUNTIME]]
        options += ["--ops", programs[native_library.LIBRARY]] if found.operators else ["--no-ops"]
        for name, value in (("--isa", isa or os.environ.get(ISA)), ("--cpus", cpus and ",".join(map(str, cpus)))):
            options += [name, value] if value else []
        runner = Runner(transport, [*command, "--serve", *options, "--remove-at-end", place.folder])
        stack.callback(runner.close)
        yield RemoteTarget(address, transport, place, facts, runner, [*command, *options], launch, benchmarks)


def check_cpus(cpus: Sequence[int] | None, facts: machine.Facts, name: str) -> None:
    """Raises InputError if there are others than those that may be used."""
    if wrong := sorted(set(cpus or ()) - set(facts.cpus)):
        raise InputError(f"{name} has no CPU {wrong[0]} to run on; choose from {','.join(map(str, facts.cpus))}")


class RemoteTarget:
    """See `target.Target`. `one_shot`: the command of the runner to which a model is added; `launch`: what runs a
    program of the device's processor."""

    local = False

    def __init__(
        self,
        address: Address,
        transport: Transport,
        place: Workplace,
        facts: machine.Facts,
        runner: Runner,
        one_shot: Sequence[str],
        launch: Sequence[str],
        benchmarks: Sequence[Benchmark],
    ) -> None:
        self.url, self.emulated = address.url, address.emulated
        if address.kind == "adb":
            self.url = transport.name  # with the serial number of the only device
        self._transport, self._place, self._facts, self._runner = transport, place, facts, runner
        self._one_shot, self._launch, self._benchmarks = one_shot, launch, benchmarks
        self._cpus: list[int] = runner.hello["cpus"]
        self._kernels = runner.hello["isa"] is not None  # without them, files run by their function bodies, as here
        self._names = (f"n{number}" for number in itertools.count())

    def describe(self) -> dict[str, Any]:
        state = self.state()
        return self._facts.describe() | {
            "cpus": self._cpus,
            "onnxruntime": self._runner.hello["onnxruntime"],
            "governor": state["governor"],
            "clock_mhz": state["clock_mhz"][0] if state["clock_mhz"] else self._facts.describe()["clock_mhz"],
            "temperature_c": state["temperature_c"],
        }

    def state(self) -> dict[str, Any]:
        return health.state(probe.state_files(self._transport), self._cpus)

    def fingerprint(self) -> str:
        return self._facts.fingerprint

    def usable_cores(self) -> int:
        return len(self._cpus)

    def bound_gmacs(self) -> float | None:
        if self.emulated:
            return None
        found = self._runner.ask("bound", BOUND_S)["gmac_s"]
        return None if found is None else float(found)

    def engine(self, format: Format = "onnx") -> EngineInfo:
        if format != "onnx":
            raise InputError(
                f"{self.url}: nothing of ours runs .tflite files on a device without Python; use --engine onnx there"
            )
        hello = self._runner.hello
        return EngineInfo(
            name=native_library.PREFIX + hello["isa"] if self._kernels else FUNCTION_FLOAT,
            runtime="onnxruntime",
            version=hello["onnxruntime"],
            operators=hello["operators"],
        )

    def open(self, source: Path | bytes, threads: int = 1, *, kernels: bool = True) -> RemoteSession | BenchmarkSession:
        data, where, suffix = whole_file(source)
        check_threads(threads)
        if suffix == ".tflite":
            return self._open_tflite(data, where, threads)
        with self._named(where, model := self._place.put("model.onnx", data)):
            return RemoteSession(self, self._runner, self._place, self._transport, next(self._names), where, model,
                                 threads, kernels and self._kernels)  # fmt: skip

    def memory(self, source: Path | bytes, threads: int) -> dict[str, int] | None:
        data, where, suffix = whole_file(source)
        if self.emulated or suffix == ".tflite":
            return None
        model = self._place.put("model.onnx", data)
        options = ["--threads", str(threads), "--runs", "1", "--warmup", "0", "--json"]
        result = self._transport.run([*self._one_shot, model, *options], timeout=WORK_S)
        if result.code:
            raise DeviceError(f"{where} does not run by itself on {self._transport.name}: {result.reason}")
        found = json.loads(result.text.splitlines()[-1])
        sizes = {key: found.get(key) for key in ("base_bytes", "peak_bytes")}
        return None if None in sizes.values() else {key: int(value) for key, value in sizes.items()}

    def unit_profile(self, source: Path | bytes, threads: int, runs: int) -> list[dict[str, Any]]:
        data, where, suffix = whole_file(source)
        if suffix == ".tflite":
            return []
        with self._named(where, model := self._place.put("model.onnx", data)):
            prefix = self._place.path(next(self._names))
            file = self._runner.ask("profile", model, threads, int(self._kernels), runs + trace.UNTIMED, prefix)["file"]
            found = trace.node_times(self._transport.pull(file), runs)
            self._place.drop(file)
            return found

    def _open_tflite(self, data: bytes, where: str, threads: int) -> BenchmarkSession:
        benchmark = benchmark_binary.choose(data, where, self._benchmarks)
        program = self._place.put("benchmark", benchmark.path)
        model = self._place.put("model.tflite", data)
        launch = [*(self._launch if benchmark.native else ()), program]

        def run(arguments: Sequence[str]) -> Result:
            return self._transport.run([*self._pinned(), *launch, *arguments], timeout=WORK_S)

        name = "tflite"
        if benchmark_binary.has_lce_operators(data):
            name = "lce" if self._facts.arch == "aarch64" else "lce-portable"
        return BenchmarkSession(run, model, benchmark, threads, name, where)

    def _pinned(self) -> list[str]:
        """The command that keeps a program on the CPUs in use, where that means anything."""
        if set(self._cpus) == set(self._facts.cpus):
            return []
        return ["taskset", f"{sum(1 << number for number in self._cpus):x}"]  # Android's takes a mask only

    @contextmanager
    def _named(self, where: str, path: str) -> Iterator[None]:
        """The runner's messages, with the user's name of a file in place of the device's."""
        try:
            yield
        except ConnectionLost:
            raise
        except (InputError, DeviceError) as error:
            raise type(error)(str(error).replace(path, where)) from None


class RemoteSession:
    """A .onnx file loaded by the runner."""

    means_of: int | None = None
    runtime = "onnxruntime"

    def __init__(
        self,
        target: RemoteTarget,
        runner: Runner,
        place: Workplace,
        transport: Transport,
        identity: str,
        where: str,
        model: str,
        threads: int,
        kernels: bool,
    ) -> None:
        self._runner, self._place, self._transport = runner, place, transport
        self._identity, self._where, self._model = identity, where, model
        answer = runner.ask("open", identity, model, threads, int(kernels))
        self.name: str = answer["engine"]
        self.version: str = runner.hello["onnxruntime"]
        self.operators: str | None = runner.hello["operators"] if answer["isa"] else None
        self.threads = threads
        self.load_ms: float = answer["load_ms"]
        self.metadata: Mapping[str, Any] = answer["metadata"]
        self._inputs = [tuple(given["shape"]) for given in answer["inputs"]]
        self._open = True
        try:
            check_ports(answer["inputs"], answer["outputs"], where)
        except InputError:
            self.close()
            raise

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return network_file.image_shape(self._shape, self.input_layout, self._where)

    @property
    def input_layout(self) -> str:
        return network_file.onnx_layout(self._shape)

    @property
    def _shape(self) -> tuple[int, ...]:
        return network_file.fixed_shape(self._inputs[0], self._where)

    def timed(self, untimed: int, timed: int) -> list[int]:
        return list(self._runner.ask("time", self._identity, untimed, timed)["samples_ns"])

    def infer(self, x: np.ndarray) -> np.ndarray:
        shapes = [network_file.fixed_shape(shape, self._where) for shape in self._inputs]
        network_file.check_images(x, shapes, self._where)
        batch = shapes[0][0]
        step = min(INFER_SAMPLES, max(1, INFER_BYTES // x[0].nbytes)) // batch * batch or batch
        return np.concatenate([self._infer(x[i : i + step]) for i in range(0, len(x), step)])

    def close(self) -> None:
        if self._open:
            self._open = False
            with contextlib.suppress(ConnectionLost):
                self._runner.ask("close", self._identity)

    def _infer(self, x: np.ndarray) -> np.ndarray:
        given, found = self._place.path("in.npy"), self._place.path("out.npy")
        content = io.BytesIO()
        np.save(content, np.ascontiguousarray(x, np.float32))
        self._transport.push(content.getvalue(), given)
        self._runner.ask("infer", self._identity, given, found)
        result = np.load(io.BytesIO(self._transport.pull(found)), allow_pickle=False)
        self._place.drop(given, found)
        return np.asarray(result)


def whole_file(source: Path | bytes) -> tuple[bytes, str, str]:
    """`network_file.read`, with weights that lie in files beside a .onnx taken into it."""
    data, where, suffix = network_file.read(source)
    if suffix == ".onnx" and not isinstance(source, bytes) and b"location" in data:
        import onnx
        from onnx.external_data_helper import uses_external_data

        try:
            model = onnx.load_model_from_string(data)
            if any(map(uses_external_data, model.graph.initializer)):
                data = onnx.load(str(source)).SerializeToString()
        except OSError as error:
            raise InputError(f"{where}: its weights cannot be read: {error.strerror or error}") from None
        except Exception as error:  # protobuf's errors share no importable base; too large for one file, too
            raise network_file.damaged(where, "not a whole ONNX file", error) from None
    return data, where, suffix


def check_ports(inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Any], where: str) -> None:
    """Raises InputError for a file that the engines of this process refuse. inputs: [{"name", "type", "shape"}]."""
    if not inputs or not outputs:
        raise InputError(f"{where}: not a whole ONNX file (no inputs or outputs); export it again")
    for given in inputs:
        network_file.fixed_shape(given["shape"], where)
        if 0 in given["shape"]:
            raise InputError(f"{where}: input shape {given['shape']} has no samples; export it again")
        if given["type"] not in TYPES:
            raise InputError(f"{where}: input {given['name']!r} is {given['type']}, expected float or integers")


def check_threads(threads: int) -> None:
    if threads < 1:
        raise InputError(f"threads must be at least 1, got {threads}")


def _loader(programs: Mapping[str, str], found: kit.Kit) -> list[str]:
    """The command by which glibc's own loader starts a program, with the libraries beside it."""
    if not found.loader:
        return []
    loader, *libraries = (programs[path.name] for path in found.loader)
    return [loader, "--library-path", ":".join(path.rpartition("/")[0] for path in libraries)]


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP end this process as Ctrl-C does, so that what was begun on a device is cleaned up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before: dict[signal.Signals, Any] = {}
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP, a program may have its own way
                before[number] = signal.signal(number, end)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
