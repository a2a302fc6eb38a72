"""What is compiled: where it is found, what it exports, what it is compiled for, and what its Python module refuses."""

import json
import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnas
from bnas.profiles.errors import InputError
from bnas.runtime_bench import native_library

SOURCES = Path(native_library.__file__).parent / "native"
IMAGE = np.random.default_rng(0).standard_normal((2, 37, 6, 5), np.float32)
WEIGHTS = np.random.default_rng(1).integers(0, 256, (4, 3, 3, 5), np.uint8)
WORDS = np.zeros((2, 2, 6, 5), np.uint32)


@pytest.fixture
def native(require: Callable[[str], None]) -> Any:
    require("bnas.runtime_bench.native._native")
    from bnas.runtime_bench.native import _native

    return _native


def tool(name: str, missing: Callable[[str], None]) -> str:
    path = shutil.which(name)
    if path is None:
        missing(f"needs {name}")
    return str(path)


@pytest.fixture
def missing() -> Callable[[str], None]:
    """Skips, or fails under BNAS_REQUIRE_ALL=1, as `require` does."""
    import os

    return pytest.fail if os.environ.get("BNAS_REQUIRE_ALL") == "1" else pytest.skip


def test_the_library_is_found_and_registers(native: Any) -> None:
    import onnxruntime

    onnxruntime.SessionOptions().register_custom_ops_library(bnas.ops_library_path())
    assert native_library.version() == native.version == bnas.__version__


def test_the_library_exports_four_functions_and_needs_no_onnxruntime(
    native: Any, missing: Callable[[str], None]
) -> None:
    library = bnas.ops_library_path()
    names = lines(tool("nm", missing), "-D", "--defined-only", "--format=just-symbols", library)
    assert sorted(names) == ["RegisterCustomOps", "bnas_bound_gmacs", "bnas_isa", "bnas_native_version"]
    needed = [line for line in lines(tool("readelf", missing), "-d", library) if "NEEDED" in line]
    assert needed and not any("onnxruntime" in line or "python" in line for line in needed)


def test_the_operators_are_those_that_the_library_registers(native: Any) -> None:
    from bnas.export.onnx_functions import INPUTS

    content = Path(bnas.ops_library_path()).read_bytes()
    assert {name for name in INPUTS if b"\0" + name.encode() + b"\0" in content} == native_library.OPERATORS


def test_the_path_can_be_forced(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BNAS_ISA", raising=False)
    assert native_library.engine_name() == f"native-{native.paths()[-1]}"
    assert {"reference", "portable"} < set(native.paths())
    for path in native.paths():
        monkeypatch.setenv("BNAS_ISA", path)
        assert native_library.engine_name() == f"native-{native.selected()}" == f"native-{path}"
    monkeypatch.setenv("BNAS_ISA", "avx1024")
    with pytest.raises(InputError) as caught:
        native_library.engine_name()
    known = ", ".join(native.paths())
    assert str(caught.value) == f"BNAS_ISA=avx1024 is not one of {known}; leave it unset for the fastest"


def test_what_was_not_built_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnas.runtime_bench.native.__path__", [])
    assert native_library.operator_library() is None
    for ask in (bnas.ops_library_path, native_library.engine_name, native_library.version):
        with pytest.raises(InputError, match=r"libbnas_ort.so is missing: .* install a C\+\+17 compiler"):
            ask()


def test_every_path_computes_the_same_integers(native: Any) -> None:
    signs = np.where(IMAGE < 0, -1, 1)
    bits = np.unpackbits(WEIGHTS, axis=3, bitorder="little")[..., :37]
    weights = np.where(bits, -1, 1).transpose(0, 3, 1, 2)
    padded = np.pad(signs, ((0, 0), (0, 0), (1, 1), (0, 1)), constant_values=1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    dots = np.einsum("nchwij,ocij->nohw", windows, weights)
    words = np.zeros((2, 2, 6, 5), np.uint32)
    for channel in range(37):
        words[:, channel // 32] |= (IMAGE[:, channel] < 0).astype(np.uint32) << np.uint32(channel % 32)
    thresholds = np.array([-8, 0, 1, 30], np.int32)
    minus = dots < thresholds[:, None, None]
    expected_bits = (minus.astype(np.uint32) << np.arange(4, dtype=np.uint32)[:, None, None]).sum(axis=1, keepdims=True)
    for path in native.paths():
        np.testing.assert_array_equal(native.conv(path, IMAGE, WEIGHTS, pads=(1, 0, 1, 1)), dots)
        np.testing.assert_array_equal(native.pack_signs(path, IMAGE), words)
        found = native.conv_bits(path, words, 37, WEIGHTS, thresholds, pads=(1, 0, 1, 1))
        np.testing.assert_array_equal(found, expected_bits)
    pooled = words.reshape(2, 2, 3, 2, 5)[..., :4].reshape(2, 2, 3, 2, 2, 2)
    expected = np.bitwise_and.reduce(np.bitwise_and.reduce(pooled, axis=5), axis=3)
    np.testing.assert_array_equal(native.max_pool_bits(words, (2, 2), strides=(2, 2)), expected)


@pytest.mark.parametrize(
    ("said", "call"),
    [
        ("BNAS_ISA=mmx is not one of reference", lambda n: n.conv("mmx", IMAGE, WEIGHTS)),
        ("x must be float32", lambda n: n.conv("", IMAGE.astype(np.float64), WEIGHTS)),
        ("x must be contiguous", lambda n: n.conv("", IMAGE[:, :, ::2], WEIGHTS)),
        ("x must have 4 axes, has 3", lambda n: n.conv("", IMAGE[0], WEIGHTS)),
        ("w_packed must be uint8", lambda n: n.conv("", IMAGE, WEIGHTS.astype(np.int8))),
        (r"w_packed must be \[4, 3, 3, 5\], is \[4, 3, 3, 6\]",
         lambda n: n.conv("", IMAGE, np.zeros((4, 3, 3, 6), np.uint8))),
        ("group 2 does not divide 37", lambda n: n.conv("", IMAGE, WEIGHTS, groups=2)),
        ("group is 0, expected 1", lambda n: n.conv("", IMAGE, WEIGHTS, groups=0)),
        ("stride is -1", lambda n: n.conv("", IMAGE, WEIGHTS, strides=(-1, 1))),
        ("pad is -1", lambda n: n.conv("", IMAGE, WEIGHTS, pads=(0, 0, -1, 0))),
        ("the kernel spans 7 pixels", lambda n: n.conv("", IMAGE, WEIGHTS, dilations=(3, 1))),
        ("scale must have 1 or 4 values, has 3", lambda n: n.conv("", IMAGE, WEIGHTS, scale=np.ones(3, np.float32))),
        ("shift must have 1 or 37 values", lambda n: n.conv("", IMAGE, WEIGHTS, shift=np.zeros(4, np.float32))),
        (r"residual must be \[2, 4, 4, 3\]",
         lambda n: n.conv("", IMAGE, WEIGHTS, residual=np.zeros((2, 4, 3, 4), np.float32))),
        (r"x must be \[2, 2, 6, 5\]",
         lambda n: n.conv_bits("", WORDS[:, :1].copy(), 37, WEIGHTS, np.zeros(4, np.int32))),
        ("threshold must have 4 values", lambda n: n.conv_bits("", WORDS, 37, WEIGHTS, np.zeros(3, np.int32))),
        ("channels is 0", lambda n: n.pack_signs("", IMAGE[:, :0].copy())),
        ("pads must be smaller than the kernel", lambda n: n.max_pool_bits(WORDS, (2, 2), pads=(2, 0, 0, 0))),
        ("reference has no bound", lambda n: n.bound_gmacs("reference", 0.1)),
        ("seconds must be above 0", lambda n: n.bound_gmacs("", 0.0)),
    ],
)  # fmt: skip
def test_bad_arguments(native: Any, said: str, call: Callable[[Any], object]) -> None:
    with pytest.raises(ValueError, match=said):
        call(native)


def test_the_bound_is_positive_and_other_threads_run_meanwhile(native: Any) -> None:
    found: list[float] = []
    worker = threading.Thread(target=lambda: found.extend(native.bound_gmacs(path, 0.1) for path in native.paths()[1:]))
    worker.start()
    turns = 0
    while worker.is_alive():
        turns += 1
    assert min(found) > 0
    assert turns > 100  # one turn for each path, if the lock were held


@pytest.mark.parametrize("target", ["native", "aarch64"])
def test_nothing_leaks_out_of_the_files_of_one_instruction_set(
    target: str, tmp_path: Path, missing: Callable[[str], None]
) -> None:
    """An inline function compiled for AVX-512 must not become the one that all others call: only the table is seen."""
    options = []
    if target == "aarch64":
        tool("aarch64-linux-gnu-g++", missing)
        options = [f"-DCMAKE_TOOLCHAIN_FILE={SOURCES / 'aarch64.cmake'}"]
    lines(tool("cmake", missing), "-S", SOURCES, "-B", tmp_path, *options)
    commands = json.loads((tmp_path / "compile_commands.json").read_text())
    checked = []
    for command in commands:
        name = Path(command["file"]).name
        arguments = shlex.split(command["command"])
        assert not any(argument.startswith(("-march", "-mcpu")) for argument in arguments), name
        if not re.fullmatch(r"isa_\w+\.cpp", name):
            assert not any(argument.startswith("-m") for argument in arguments), name
            continue
        lines(*arguments, cwd=command["directory"])
        seen = lines(tool("nm", missing), "-C", "-g", "--defined-only", Path(command["directory"], output(arguments)))
        assert [line.split(maxsplit=2)[2] for line in seen] == [f"bnas::{table(name)}"], seen
        checked.append(name)
    assert {"isa_portable.cpp"} < set(checked)


def test_the_bound_is_that_of_the_chosen_path(monkeypatch: pytest.MonkeyPatch) -> None:
    if native_library.operator_library() is None:
        assert native_library.bound_gmacs() is None
        return
    monkeypatch.setenv("BNAS_ISA", "portable")
    plain = native_library.bound_gmacs(0.01)
    assert plain is not None and plain > 0
    monkeypatch.setenv("BNAS_ISA", "reference")
    assert native_library.bound_gmacs(0.01) is None


def table(file: str) -> str:
    return "k" + "".join(part.capitalize() for part in file.removeprefix("isa_").removesuffix(".cpp").split("_"))


def output(arguments: Sequence[str]) -> str:
    return arguments[arguments.index("-o") + 1]


def lines(*command: str | Path, cwd: str | None = None) -> list[str]:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
