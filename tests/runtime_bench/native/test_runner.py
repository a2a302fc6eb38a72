"""bnas-runner: as a server, which takes commands on its standard input, and on its own."""

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnas
from bnas.runtime_bench import native_library

from .cases import conv_case
from .conftest import ROOT, built, emulator, here
from .definition import Geometry
from .operators import conv_nodes, model

PATIENCE = 30.0  # seconds until a server that does not answer or end is given up
METADATA = {"classes": '["a", "b"]', "empty": "", "lines": "one\ntwo\ttabs \\ \x7f", "letters": "äß∂𝄞"}


def product(batch: int | str, *, scale: int = 1, rows: int = 6) -> bytes:
    """A file with y [batch, 3] = x [batch, rows] times whole numbers, and METADATA."""
    weights = scale * np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(made, METADATA)
    return made.SerializeToString()


class Server:
    """A running server. `ask` sends one command and gives its answer."""

    def __init__(self, command: Sequence[str | Path], **more: Any) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115, a file because nobody would read a pipe
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen([*command, "--serve"], **(pipes | more))

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()

    def ask(self, *fields: object) -> dict[str, Any]:
        return self.ask_line("\t".join(map(str, fields)).encode())

    def ask_line(self, line: bytes) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line.endswith(b"\n"), self.said()
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def said(self) -> str:
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace")

    def end(self) -> None:
        """Quits; nothing but answers came, and sanitizers had nothing to say."""
        output, _ = self.process.communicate(b"quit\n", timeout=PATIENCE)
        assert (self.process.returncode, output, self.said()) == (0, b"", "")


def local_runtime() -> Path:
    return next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))


def installed() -> list[str | Path]:
    here()
    return [native_library.path_of(native_library.RUNNER), "--ort", local_runtime(), "--ops", bnas.ops_library_path()]


def sanitized() -> list[str | Path]:
    return [built("sanitize", "bnas-runner"), "--ort", local_runtime(), "--ops", built("sanitize", "libbnas_ort.so")]


@pytest.fixture(scope="module")
def commands(request: pytest.FixtureRequest) -> dict[str, Callable[[], list[str | Path]]]:
    """How each build is run, with its libraries."""

    def emulated() -> list[str | Path]:
        library, root = request.getfixturevalue("aarch64_runtime")
        program, ops = built("aarch64", "bnas-runner"), built("aarch64", "libbnas_ort.so")
        return [*emulator(root), program, "--ort", library, "--ops", ops]

    return {"here": installed, "sanitize": sanitized, "aarch64": emulated}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models product (of any batch), product1 and product4 and binary; x.npy, 600 samples for the products."""
    folder = tmp_path_factory.mktemp("files with 'blanks' $(and) ;more")
    (folder / "product.onnx").write_bytes(product("n"))
    (folder / "product1.onnx").write_bytes(product(1))
    (folder / "product4.onnx").write_bytes(product(4))
    case = conv_case(np.random.default_rng(0), (1, 33, 9, 8), 40, Geometry((3, 3), pads=(1, 1, 1, 1)), "one")
    node = conv_nodes(case, {}, np.zeros((40, 1, 1), np.int32))[0]
    binary = onnx.load_from_string(model(node, body=True))
    for axis, size in enumerate((1, 33, 9, 8)):
        binary.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    (folder / "binary.onnx").write_bytes(binary.SerializeToString())
    np.save(folder / "signs.npy", case.x)
    np.save(folder / "dots.npy", node.expected.y)  # type: ignore[union-attr]
    np.save(folder / "x.npy", np.random.default_rng(1).integers(-9, 10, (600, 6)).astype(np.float32))
    return folder


@pytest.fixture(scope="module", autouse=True)
def only_our_leaks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Some versions of onnxruntime lose a few bytes."""
    known = tmp_path_factory.mktemp("sanitizers") / "leaks"
    known.write_text("leak:libonnxruntime\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LSAN_OPTIONS", f"suppressions={known}:print_suppressions=0")
        yield


@pytest.fixture
def server() -> Iterator[Server]:
    """The one with sanitizers; it ends well."""
    with Server(sanitized()) as running:
        yield running
        running.end()


@pytest.mark.parametrize("build", ["here", "sanitize", "aarch64"])
def test_every_command(build: str, commands: dict[str, Any], files: Path, tmp_path: Path) -> None:
    emulating = build == "aarch64"
    x = np.load(files / "x.npy")[: 24 if emulating else None]
    np.save(tmp_path / "x.npy", x)
    expected = x @ np.arange(18, dtype=np.float32).reshape(6, 3)  # of whole numbers, so exact
    with Server(commands[build]()) as server:
        hello = server.ask("hello")
        assert hello["runner"] == hello["operators"] == bnas.__version__
        assert hello["onnxruntime"] == onnxruntime.__version__
        assert hello["arch"] == ("aarch64" if emulating else os.uname().machine)
        assert set(hello["cpus"]) == os.sched_getaffinity(0)
        isa = hello["isa"]
        assert isa == ("neon" if emulating else here().selected())

        for name, batch in {"product": -1, "product1": 1, "product4": 4}.items():
            opened = server.ask("open", "any word", files / f"{name}.onnx", 1, 1)  # replaces the one before
            assert opened.pop("load_ms") > 0
            assert opened == {
                "engine": "onnxruntime",
                "isa": None,
                "inputs": [{"name": "x", "type": "float32", "shape": [batch, 6]}],
                "outputs": [{"name": "y", "type": "float32", "shape": [batch, 3]}],
                "metadata": METADATA,
            }
            found = server.ask("infer", "any word", tmp_path / "x.npy", tmp_path / "y.npy")
            assert found["shape"] == [len(x), 3] and found["ms"] > 0
            np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected)
            samples = server.ask("time", "any word", 2, 7)["samples_ns"]
            assert len(samples) == 7 and min(samples) > 0

        for name, kernels, engine in (("bits", 1, f"native-{isa}"), ("floats", 0, "function-float")):
            opened = server.ask("open", name, files / "binary.onnx", 2, kernels)
            assert (opened["engine"], opened["isa"]) == (engine, isa if kernels else None)
            server.ask("infer", name, files / "signs.npy", tmp_path / "y.npy")
            np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), np.load(files / "dots.npy"))
        assert server.ask("close", "floats") == {}
        assert "nothing is open" in server.ask("time", "floats", 0, 1)["error"]
        assert len(server.ask("time", "bits", 0, 1)["samples_ns"]) == 1

        memory = server.ask("memory")
        assert memory["peak_bytes"] >= memory["resident_bytes"] > 2**20
        if not emulating:
            assert memory["peak_bytes"] < 2**30
        trace = Path(server.ask("profile", files / "product1.onnx", 1, 1, 3, tmp_path / "trace")["file"])
        assert trace.parent == tmp_path and trace.name.startswith("trace") and trace.suffix == ".json"
        runs = [event for event in json.loads(trace.read_text()) if event["name"] == "model_run"]
        assert len(runs) == 3
        assert server.ask("bound", 0.05)["gmac_s"] > 0
        server.end()


BAD: dict[str, tuple[str, str]] = {  # the command with tabs as |, and {} for the folder of `files`: kind, what it says
    "": ("mistake", "'' is not one of the commands"),
    "hello ": ("mistake", "'hello ' is not one of"),
    "hello|": ("mistake", "expected, with tabs in between: hello"),
    "HELLO": ("mistake", "is not one of the commands bound, close, hello"),
    "quit|": ("mistake", "'quit' is not one of the commands"),
    "open": ("mistake", "open ID MODEL THREADS KERNELS"),
    "open||{}/product.onnx|1|1": ("mistake", "open ID MODEL THREADS KERNELS"),
    "open|b|{}/product.onnx|1|1|": ("mistake", "open ID MODEL THREADS KERNELS"),
    "open|b|{}/product.onnx|0|1": ("mistake", "THREADS is '0', expected a number from 1 to 256"),
    "open|b|{}/product.onnx|257|1": ("mistake", "THREADS is '257'"),
    "open|b|{}/product.onnx|1.5|1": ("mistake", "THREADS is '1.5'"),
    "open|b|{}/product.onnx|99999999999999999999|1": ("mistake", "THREADS is '99999999999999999999'"),
    "open|b|{}/product.onnx|1|2": ("mistake", "KERNELS is '2', expected a number from 0 to 1"),
    "open|b|{}/product.onnx|1|yes": ("mistake", "KERNELS is 'yes'"),
    "open|b|{}/none.onnx|1|1": ("mistake", "none.onnx cannot be read: No such file"),
    "open|b|{}|1|1": ("mistake", "cannot be read: Is a directory"),
    "open|b|{}/x.npy|1|1": ("mistake", "x.npy is not a whole .onnx file"),
    "open|b|/dev/null|1|1": ("mistake", "cannot be read"),
    "open|b|{}/\0product.onnx|1|1": ("mistake", "a byte of zero"),
    "time|b|1|1": ("mistake", "nothing is open as 'b'"),
    "time|a|-1|1": ("mistake", "UNTIMED is '-1', expected a number from 0"),
    "time|a|1|0": ("mistake", "TIMED is '0', expected a number from 1"),
    "time|a|1|10000001": ("mistake", "TIMED is '10000001', expected a number from 1 to 10000000"),
    "infer|b|{}/x.npy|{}/y.npy": ("mistake", "nothing is open as 'b'"),
    "infer|a|{}/none.npy|{}/y.npy": ("mistake", "none.npy cannot be read: No such file"),
    "infer|a|{}/product.onnx|{}/y.npy": ("mistake", "product.onnx cannot be used: it is no .npy file"),
    "infer|a|{}/signs.npy|{}/y.npy": ("mistake", "signs.npy is float32 [1, 33, 9, 8]"),
    "infer|a|{}/x.npy|{}/none/y.npy": ("mistake", "none/y.npy cannot be written: No such file"),
    "infer|a|{}/x.npy|{}": ("mistake", "cannot be written: Is a directory"),
    "close|b": ("mistake", "nothing is open as 'b'"),
    "profile|{}/product.onnx|1|1|0|{}/trace": ("mistake", "RUNS is '0'"),
    "profile|{}/product.onnx|1|1|1|{}/none/trace": ("mistake", "none/trace cannot be written: No such file"),
    "profile|{}/none.onnx|1|1|1|{}/trace": ("mistake", "none.onnx cannot be read"),
    "bound|0": ("mistake", "SECONDS is '0', expected a number above 0, at most 60"),
    "bound|-1": ("mistake", "SECONDS is '-1'"),
    "bound|nan": ("mistake", "SECONDS is 'nan'"),
    "bound|inf": ("mistake", "SECONDS is 'inf'"),
    "bound|1e9": ("mistake", "SECONDS is '1e9'"),
    "bound|1s": ("mistake", "SECONDS is '1s'"),
}


def test_what_is_wrong_is_said_and_the_server_goes_on(server: Server, files: Path) -> None:
    before = set(files.iterdir())
    server.ask("open", "a", files / "product.onnx", 1, 1)
    for text, (kind, says) in BAD.items():
        answer = server.ask_line(text.replace("|", "\t").replace("{}", str(files)).encode())
        assert set(answer) == {"error", "kind"}, text
        assert answer["kind"] == kind and says in answer["error"] and "\n" not in answer["error"], (text, answer)
    assert set(files.iterdir()) == before  # nothing half-written
    assert len(server.ask("time", "a", 0, 2)["samples_ns"]) == 2


def test_arrays_that_do_not_fit_the_network(server: Server, files: Path, tmp_path: Path) -> None:
    arrays = {
        "five": (np.zeros((5, 6), np.float32), "five.npy has 5 samples, .* takes a multiple of 4"),
        "none": (np.zeros((0, 6), np.float32), "none.npy is float32 .0, 6., .* takes float32 .4, 6."),
        "flat": (np.zeros(24, np.float32), "flat.npy is float32 .24."),
        "one": (np.float32(1), "one.npy is float32"),
        "bytes": (np.zeros((4, 6), np.uint8), "bytes.npy is uint8 .4, 6."),
        "doubles": (np.zeros((4, 6)), "doubles.npy is float64 .4, 6."),
        "complex": (
            np.zeros((4, 6), np.complex64),
            "complex.npy cannot be used: its elements are '<c8', expected one of",
        ),
        "fortran": (np.asfortranarray(np.zeros((4, 6), np.float32)), "Fortran order"),
    }
    server.ask("open", "a", files / "product4.onnx", 1, 1)
    for name, (array, says) in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
        answer = server.ask("infer", "a", tmp_path / f"{name}.npy", tmp_path / "y.npy")
        with pytest.raises(ValueError, match=says):
            raise ValueError(answer["error"])
        assert answer["kind"] == "mistake"
    assert not (tmp_path / "y.npy").exists()


def test_networks_that_cannot_be_inferred_or_timed(
    server: Server, sum_of_two: bytes, conv: Callable[..., bytes], tmp_path: Path
) -> None:
    (tmp_path / "two.onnx").write_bytes(sum_of_two)
    np.save(tmp_path / "x.npy", np.zeros((1, 2, 3, 3), np.float32))
    server.ask("open", "two", tmp_path / "two.onnx", 1, 1)
    assert "has 2 inputs" in server.ask("infer", "two", tmp_path / "x.npy", tmp_path / "y.npy")["error"]
    assert len(server.ask("time", "two", 0, 1)["samples_ns"]) == 1

    free = onnx.load_from_string(conv(2, 4))
    free.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    del free.graph.output[0].type.tensor_type.shape.dim[2]
    free.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 4
    (tmp_path / "free.onnx").write_bytes(free.SerializeToString())
    answer = server.ask("open", "free", tmp_path / "free.onnx", 1, 1)
    assert answer["kind"] == "mistake" and "[1, 2, -1, 4] with free axes" in answer["error"]

    mean = helper.make_graph(
        [helper.make_node("ReduceMean", ["x"], ["y"], keepdims=1)],
        "mean",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])],
    )
    made = helper.make_model(mean, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (tmp_path / "mean.onnx").write_bytes(made.SerializeToString())
    np.save(tmp_path / "x.npy", np.zeros((5, 6), np.float32))
    server.ask("open", "mean", tmp_path / "mean.onnx", 1, 1)
    answer = server.ask("infer", "mean", tmp_path / "x.npy", tmp_path / "y.npy")
    assert answer["kind"] == "failed" and "[1, 1] for 5 samples" in answer["error"]
    assert not (tmp_path / "y.npy").exists()


# ONNX's number for each type of elements, and numpy's name of it
KINDS = {"float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "bool": 9}
KINDS |= {"float16": 10, "float64": 11, "uint32": 12, "uint64": 13}


@pytest.mark.parametrize("name", KINDS)
def test_elements_of_every_type(server: Server, name: str, tmp_path: Path) -> None:
    ports = [helper.make_tensor_value_info(port, KINDS[name], ["n", 5]) for port in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "same", ports[:1], ports[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (tmp_path / "same.onnx").write_bytes(made.SerializeToString())
    opened = server.ask("open", "a", tmp_path / "same.onnx", 1, 1)
    assert opened["inputs"] == [{"name": "x", "type": name, "shape": [-1, 5]}]
    assert len(server.ask("time", "a", 0, 2)["samples_ns"]) == 2
    x = np.random.default_rng(0).integers(0, 2, (300, 5)).astype(name)
    np.save(tmp_path / "x.npy", x)
    assert server.ask("infer", "a", tmp_path / "x.npy", tmp_path / "y.npy")["shape"] == [300, 5]
    y = np.load(tmp_path / "y.npy")
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, x)

    # What it times on: the same numbers every time, as floats of both signs, as integers 0 or 1.
    made.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1000
    made.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1000
    (tmp_path / "same.onnx").write_bytes(made.SerializeToString())
    given = []
    for turn in range(2):
        command = [
            *sanitized(),
            tmp_path / "same.onnx",
            "--runs",
            "1",
            "--warmup",
            "0",
            "--output",
            tmp_path / f"{turn}.npy",
        ]
        subprocess.run(command, check=True, capture_output=True)
        given.append(np.load(tmp_path / f"{turn}.npy"))
    np.testing.assert_array_equal(given[0], given[1])
    assert given[0].shape == (1, 1000) and given[0].dtype == x.dtype
    floating = np.issubdtype(x.dtype, np.floating)
    assert set(np.sign(given[0].astype(np.float64)).flat) <= ({-1, 0, 1} if floating else {0, 1})
    assert abs(given[0].astype(np.float64).mean() - (0 if floating else 0.5)) < 0.2
    assert abs(given[0].astype(np.float64).std() - (1 if floating else 0.5)) < 0.2


def test_a_model_that_does_not_load_leaves_the_open_one(server: Server, files: Path, tmp_path: Path) -> None:
    server.ask("open", "a", files / "product1.onnx", 1, 1)
    unknown = onnx.load_from_string(product(1))
    unknown.graph.node[0].op_type = "NoSuchOperator"
    (tmp_path / "unknown.onnx").write_bytes(unknown.SerializeToString())
    answer = server.ask("open", "a", tmp_path / "unknown.onnx", 1, 1)
    assert answer["kind"] == "failed" and "NoSuchOperator" in answer["error"]
    assert len(server.ask("time", "a", 0, 3)["samples_ns"]) == 3


def test_a_full_disk(files: Path, tmp_path: Path) -> None:
    """Files may not grow beyond 4 KiB, which is an error in the same places."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    # The signal that comes with the limit stays ignored, as Python has it.
    with Server(sanitized(), preexec_fn=limit, restore_signals=False) as server:
        server.ask("open", "a", files / "product.onnx", 1, 1)
        answer = server.ask("infer", "a", files / "x.npy", tmp_path / "y.npy")
        assert answer["error"].endswith("y.npy cannot be written: File too large")
        assert answer["kind"] == "mistake"
        # Wherever the disk ends: some of these traces end with a bracket of an event.
        for size in range(3896, 4096):
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size, 4096))
            answer = server.ask("profile", files / "product.onnx", 1, 1, 100, tmp_path / "trace")
            assert answer["kind"] == "failed" and answer["error"].endswith("is not whole; is the disk full?")
        assert not list(tmp_path.iterdir())
        server.end()


def test_truncated_files(server: Server, files: Path, tmp_path: Path) -> None:
    """Of every length: what is cut is an error, or what is left is a network or an array."""
    whole, cut = (files / "product1.onnx").read_bytes(), tmp_path / "cut.onnx"
    refused = 0
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        answer = server.ask("open", "a", cut, 1, 1)
        refused += "error" in answer
        assert answer.get("kind", "mistake") in ("mistake", "failed")
    assert refused >= len(whole) - 8 - len(METADATA)  # a cut between two of the last fields goes unseen
    server.ask("open", "b", files / "product.onnx", 1, 1)
    np.save(tmp_path / "x.npy", np.zeros((2, 6), np.float32))
    array = (tmp_path / "x.npy").read_bytes()
    for length in range(len(array)):
        (tmp_path / "cut.npy").write_bytes(array[:length])
        answer = server.ask("infer", "b", tmp_path / "cut.npy", tmp_path / "y.npy")
        assert answer["kind"] == "mistake" and "cut.npy cannot be used" in answer["error"]
    assert server.ask("hello")["isa"]


def test_long_lines(server: Server) -> None:
    longest = 64 << 10
    assert "is not one of" in server.ask_line(b"a" * longest)["error"]
    for length in (longest + 1, 2 * longest, 20 * longest):
        answer = server.ask_line(b"a" * length)
        assert answer == {"error": "a line has more than 65536 bytes", "kind": "mistake"}
        assert server.ask("hello")["runner"] == bnas.__version__


def test_any_lines_are_answered(files: Path, tmp_path: Path) -> None:
    """Thousands of lines made of what commands are made of, and of any bytes: an answer each, in order."""
    names = b"hello open time infer close memory profile bound quit HELLO".split()
    models = [os.fsencode(files / f"{name}.onnx") for name in ("product", "product4", "binary", "none")]
    arrays = [os.fsencode(files / "x.npy"), os.fsencode(tmp_path / "y.npy"), os.fsencode(tmp_path)]
    numbers = b"0 1 2 3 -1 257 1e-3 0.001 nan 0x1 18446744073709551616".split()
    words = [*names, *models, *arrays, *numbers, b"a", b"b", b"", b" ", b"\xff\xfe", "é".encode(), b"\\", b'"']
    shapes = [
        [[b"open"], [b"a", b"b"], models, [b"1", b"2"], [b"0", b"1"]],
        [[b"time"], [b"a", b"b"], numbers, numbers],
        [[b"infer"], [b"a", b"b"], arrays, arrays],
        [[b"close"], [b"a", b"b"]],
        [[b"profile"], models, [b"1"], [b"0", b"1"], numbers, [os.fsencode(tmp_path / "trace")]],
        [[b"bound"], [b"0.001", b"0", b"nan"]],
        [[b"memory"]],
    ]
    draw = random.Random(0)
    lines = []
    for _ in range(3000):
        kind = draw.random()
        if kind < 0.4:
            fields = [draw.choice(choices) for choices in draw.choice(shapes)]
        elif kind < 0.8:
            fields = [draw.choice(words) for _ in range(draw.randrange(7))]
        else:
            fields = [draw.randbytes(draw.randrange(30)).replace(b"\n", b"")]
        if draw.random() < 0.1 and fields:
            fields[draw.randrange(len(fields))] = draw.choice(words)
        line = b"\t".join(fields)
        lines.append(line if line != b"quit" else b"hello")
    with Server(sanitized(), cwd=tmp_path) as server:  # any word may become the name of a trace
        succeeded = 0
        for line in lines:
            answer = server.ask_line(line)
            if "error" in answer:
                assert set(answer) == {"error", "kind"} and answer["kind"] in ("mistake", "failed")
                assert answer["error"] and not any(ord(c) < 32 for c in answer["error"])
            succeeded += "error" not in answer
        assert succeeded > 300
        server.end()


# --- how it ends ----------------------------------------------------------------------------------------------------

# Starts a server and gives it commands, then waits to be killed.
PARENT = """
import subprocess, sys, time
server = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
server.stdin.write(sys.argv[1].encode())
server.stdin.flush()
print(server.stdout.readline().decode(), flush=True)
time.sleep(600)
"""


def make_folder(where: Path) -> tuple[Path, Path]:
    """(a folder to remove, one beside it that links in the first lead to)"""
    outside, folder = where / "outside", where / "bnas-folder"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (folder / "a" / "b c").mkdir(parents=True)
    (folder / "a" / "b c" / "file").write_text("x")
    (folder / "link").symlink_to(outside)
    (folder / "a" / "file link").symlink_to(outside / "kept")
    (folder / "a" / "broken").symlink_to("nowhere")
    return folder, outside


def gone(folder: Path) -> bool:
    deadline = time.monotonic() + PATIENCE
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not folder.exists()


ENDS: dict[str, Callable[[Server], None]] = {
    "quit": lambda s: s.process.stdin.write(b"quit\n"),  # type: ignore[union-attr, func-returns-value]
    "half a command": lambda s: s.process.stdin.write(b"hel"),  # type: ignore[union-attr, func-returns-value]
    "end of input": lambda s: None,
    "nobody reads": lambda s: s.process.stdout.close(),  # type: ignore[union-attr]
    "SIGTERM": lambda s: s.process.send_signal(signal.SIGTERM),
    "SIGHUP": lambda s: s.process.send_signal(signal.SIGHUP),
    "SIGINT": lambda s: s.process.send_signal(signal.SIGINT),
}


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "timing"])
@pytest.mark.parametrize("end", ENDS)
def test_every_end_removes_the_folder(end: str, busy: bool, files: Path, tmp_path: Path) -> None:
    folder, outside = make_folder(tmp_path)
    with Server([*sanitized(), "--remove-at-end", folder]) as server:
        assert server.process.stdin
        server.ask("open", "a", files / "product1.onnx", 1, 1)
        if busy:
            server.process.stdin.write(b"time\ta\t0\t10000000\n")  # minutes
            server.process.stdin.flush()
            time.sleep(0.2)
        assert folder.exists()
        ENDS[end](server)
        if end in ("quit", "half a command", "end of input"):
            server.process.stdin.close()
        assert server.process.wait(PATIENCE) == 0, server.said()
        assert not folder.exists() and (outside / "kept").read_text() == "kept"
        assert server.said() == ""


@pytest.mark.parametrize("command", ["hello", "time\ta\t0\t10000000"], ids=["idle", "timing"])
def test_it_ends_with_its_parent(command: str, files: Path, tmp_path: Path) -> None:
    folder, outside = make_folder(tmp_path)
    sent = f"open\ta\t{files / 'product1.onnx'}\t1\t1\n{command}\n"
    line = [sys.executable, "-c", PARENT, sent, *sanitized(), "--serve", "--remove-at-end", str(folder)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        assert "engine" in parent.stdout.readline() and folder.exists()
        parent.kill()
    assert gone(folder) and (outside / "kept").exists()


def test_a_socket_that_is_half_closed_still_gets_its_answer_and_one_that_is_closed_ends_it(
    files: Path, tmp_path: Path
) -> None:
    """As where sshd runs it: input and output are one socket."""
    folder, _ = make_folder(tmp_path)
    mine, theirs = socket.socketpair()
    with mine, Server([*sanitized(), "--remove-at-end", folder], stdin=theirs, stdout=theirs) as server:
        theirs.close()
        mine.settimeout(PATIENCE)
        lines = mine.makefile("rb")
        mine.sendall(f"open\ta\t{files / 'product1.onnx'}\t1\t1\n".encode())
        assert b"engine" in lines.readline()
        mine.sendall(b"time\ta\t0\t30000\n")  # more than the time between two looks at the connection
        mine.shutdown(socket.SHUT_WR)
        assert len(json.loads(lines.readline())["samples_ns"]) == 30000
        assert lines.read() == b"" and server.process.wait(PATIENCE) == 0
        assert not folder.exists()

    folder.mkdir()
    mine, theirs = socket.socketpair()
    with Server([*sanitized(), "--remove-at-end", folder], stdin=theirs, stdout=theirs) as server:
        theirs.close()
        mine.sendall(f"open\ta\t{files / 'product1.onnx'}\t1\t1\ntime\ta\t0\t10000000\n".encode())
        assert b"engine" in mine.recv(1 << 16)
        mine.close()
        assert server.process.wait(PATIENCE) == 0 and not folder.exists()


def test_only_folders_of_ours_are_removed(files: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "bnas-file").write_text("x")
    (tmp_path / "bnas-link").symlink_to(tmp_path / "mine")
    (tmp_path / "bnas-folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    refused = ["mine", "bnas-file", "bnas-link", "bnas-link/", "bnas-none", "bnas-folder/..", "bnas-folder/.", "."]
    for name in refused:
        command = [*sanitized(), "--serve", "--remove-at-end", f"{tmp_path}/{name}"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE)
        assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1), name
        assert done.stderr.startswith(f"bnas-runner: --remove-at-end is {tmp_path}/{name}".encode())
        assert sorted(tmp_path.rglob("*")) == before
    done = subprocess.run([*sanitized(), files / "product1.onnx", "--remove-at-end", tmp_path / "bnas-folder"])
    assert done.returncode == 2 and sorted(tmp_path.rglob("*")) == before
    with Server([*sanitized(), "--remove-at-end", f"{tmp_path}/bnas-folder//"]) as server:
        server.end()
    assert sorted(tmp_path.rglob("*")) == [path for path in before if path.name != "bnas-folder"]


def test_a_server_that_cannot_start_removes_the_folder(tmp_path: Path) -> None:
    folder, _ = make_folder(tmp_path)
    command = [built("sanitize", "bnas-runner"), "--serve", "--ort", tmp_path / "none", "--remove-at-end", folder]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE)
    assert done.returncode == 2 and not done.stdout and b"none cannot be read: No such file" in done.stderr
    assert not folder.exists()


# --- processors, paths, memory --------------------------------------------------------------------------------------


def test_it_keeps_to_the_processors_it_is_told(files: Path) -> None:
    there = sorted(os.sched_getaffinity(0))
    for wanted in {str(there[0]), str(there[-1]), ",".join(map(str, there)), f"{there[0]}-{there[0]},{there[-1]}"}:
        with Server([*sanitized(), "--cpus", wanted]) as server:
            asked = {int(number) for part in wanted.split(",") for number in part.split("-")}
            assert server.ask("hello")["cpus"] == sorted(asked)
            server.ask("open", "a", files / "product1.onnx", 4, 1)
            for task in Path(f"/proc/{server.process.pid}/task").iterdir():
                assert os.sched_getaffinity(int(task.name)) == asked
            server.end()


def test_processors_that_are_not_there(files: Path) -> None:
    for wanted in (
        "1023",
        "0,1023",
        "1024",
        "99999999999999999999",
        ",",
        "0,",
        "0-",
        "-0",
        "1-0",
        "a",
        "0 1",
        "0x0",
    ):
        for mode in (["--serve"], [files / "product1.onnx"]):
            command = [*sanitized(), *mode, f"--cpus={wanted}"]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
            assert (done.returncode, done.stdout) == (2, b""), wanted
            message = done.stderr.decode()
            assert message.startswith(f"bnas-runner: --cpus is '{wanted}'") and message.count("\n") == 1
            named = {int(number) for number in message.rsplit(":", 1)[1].split(",")}
            assert os.sched_getaffinity(0) <= named


def test_the_bound_is_that_of_the_path(files: Path) -> None:
    if "avx2" in here().paths():
        with Server([*installed(), "--isa", "avx2"]) as server:
            assert server.ask("hello")["isa"] == "avx2"
            bounds = server.ask("bound", 0.3)["gmac_s"], here().bound_gmacs("avx2", 0.3)
            assert 0.5 < bounds[0] / bounds[1] < 2
    for options in (["--isa", "reference"], ["--no-ops"]):
        base = installed()[: 3 if "--no-ops" in options else None]
        with Server([*base, *options]) as server:
            assert server.ask("bound", 0.1) == {"gmac_s": None}
    done = subprocess.run(
        [*installed(), "--serve", "--isa", "mmx"], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "BNAS_ISA=mmx is not one of " + ", ".join(here().paths()) in done.stderr


def test_without_the_library_a_file_runs_by_its_definitions_only_if_that_is_wanted(files: Path) -> None:
    with Server([*sanitized()[:3], "--no-ops"]) as server:
        hello = server.ask("hello")
        assert hello["isa"] is None and hello["operators"] is None
        answer = server.ask("open", "a", files / "binary.onnx", 1, 1)
        assert answer["kind"] == "mistake" and "KERNELS 0" in answer["error"]
        assert server.ask("open", "a", files / "binary.onnx", 1, 0)["engine"] == "function-float"
        server.end()


def test_one_model_tells_what_memory_it_takes(files: Path, tmp_path: Path) -> None:
    rows = 2 << 20
    (tmp_path / "large.onnx").write_bytes(product(1, rows=rows))
    taken = {}
    for name, file in {"small": files / "product1.onnx", "large": tmp_path / "large.onnx"}.items():
        done = subprocess.run([*installed(), file, "--runs", "1", "--warmup", "0", "--json"], capture_output=True)
        report = json.loads(done.stdout)
        assert 2**20 < report["base_bytes"] < 2**28 and report["base_bytes"] <= report["peak_bytes"]
        taken[name] = report["peak_bytes"] - report["base_bytes"]
    assert taken["small"] < 2**24
    assert 4 * rows * 3 < taken["large"] < 10 * (4 * rows * 3)  # the weights, and copies while they are loaded


def test_options_of_one_model_and_of_a_server_do_not_mix(files: Path) -> None:
    for options, says in {
        (str(files / "product.onnx"),): "product.onnx is given with --serve",
        ("--threads", "2"): "--threads is given with --serve",
        ("--json",): "--json is given with --serve",
        ("--no-ops", "--ops", "x"): "--ops and --no-ops exclude each other",
        ("--remove-at-end=",): "--remove-at-end needs a value",
        ("--cpus", ""): "--cpus needs a value",
    }.items():
        command = [built("sanitize", "bnas-runner"), "--serve", *options]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "") and says in done.stderr, options


@pytest.mark.slow
def test_the_toolchain_for_older_systems_needs_no_newer_glibc(tmp_path: Path) -> None:
    """Than 2.28, which onnxruntime needs; the files' own words, as there is no such system here."""
    if shutil.which("python-zig") is None:
        pytest.skip("needs the package ziglang")
    sources = ROOT / "runtime_bench" / "native"
    toolchain = "-DCMAKE_TOOLCHAIN_FILE=aarch64_zig.cmake"
    subprocess.run(["cmake", "-S", sources, "-B", tmp_path, toolchain], check=True, capture_output=True)
    targets = {"bnas-runner": "bnas-runner", "bnas_ort": "libbnas_ort.so"}
    subprocess.run(["cmake", "--build", tmp_path, "--target", *targets], check=True, capture_output=True)
    for name in targets.values():
        wanted = subprocess.run(["readelf", "-V", tmp_path / name], check=True, capture_output=True, text=True).stdout
        versions = {tuple(map(int, found.split("."))) for found in re.findall(r"GLIBC_([\d.]+)", wanted)}
        assert versions and max(versions) <= (2, 28), name
        assert "GLIBCXX" not in wanted
    done = subprocess.run(
        [*emulator(), tmp_path / "bnas-runner", "--version"], check=True, capture_output=True, text=True
    )
    assert done.stdout == f"bnas-runner {bnas.__version__}\n"
