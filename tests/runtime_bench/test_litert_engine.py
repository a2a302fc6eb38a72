"""Files of Larq Compute Engine in stock LiteRT on our kernels: as an engine, on threads, again and again."""

import importlib.util
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import bnas
from bnas.profiles.errors import InputError
from bnas.runtime_bench import litert_engine, native_library, tflite_bytes
from bnas.runtime_bench.engines import may_claim_speedup, open_engine
from bnas.runtime_bench.litert_engine import LiteRtEngine, find_host

from .native.conftest import missing
from .native.litert_files import Around, Case, Conv, Network, Op, Tensor, quantize_case, schema, unit_case

CYCLES = 300
MOST_GROWTH_KB = 1024  # over the second half of the cycles; a delegate that is kept holds more than 10 kB


@pytest.fixture(scope="module", autouse=True)
def need_delegate() -> None:
    if find_host() is None:
        missing("needs LiteRT: pip install 'bnas[litert]'")
    if native_library.litert_library() is None:
        missing("needs the delegate, which is built with the native kernels")


@pytest.fixture(scope="module")
def case() -> Case:
    """One image in, one unit; large enough for several tasks."""
    conv = Conv(channels=64, outputs=128, size=(40, 41))
    return unit_case(conv, Around(shift=True, activation="prelu"), np.random.default_rng(0))


def test_names_and_results(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    from bnas.runtime_bench.native import _native

    assert Path(bnas.litert_delegate_path()).name == native_library.LITERT
    file = case.network.file()
    for path in _native.paths():
        monkeypatch.setenv("BNAS_ISA", path)
        engine = open_engine(file)
        assert (engine.name, engine.operators) == (f"litert-native-{path}", _native.version)
        assert may_claim_speedup(engine.name) == (path != "reference")
        assert (engine.runtime, engine.input_layout, engine.input_shape) == (find_host(), "NHWC", (64, 40, 41))
        np.testing.assert_allclose(engine.run(case.feeds["x"]), case.expected, rtol=0, atol=case.tolerance)
    monkeypatch.setenv("BNAS_ISA", "sse9")
    with pytest.raises(InputError, match="BNAS_ISA=sse9 is not one of reference, portable"):
        open_engine(file)


def test_several_images_and_extra_outputs(case: Case) -> None:
    engine = open_engine(case.network.file(), extra_outputs=["conv", "bits"])
    x = np.concatenate([case.feeds["x"], -case.feeds["x"], case.feeds["x"]])
    found = engine.run_all(x)
    assert list(found) == [case.network.outputs[0], "conv", "bits"]
    together, bits = found[case.network.outputs[0]], found["bits"]
    assert bits.dtype == np.int32 and bits.shape == (3, 40, 41, 2)
    np.testing.assert_array_equal(together[0], together[2])
    np.testing.assert_allclose(together[:1], case.expected, rtol=0, atol=case.tolerance)
    np.testing.assert_array_equal(bits[0], bits[2])
    assert (bits[0] != bits[1]).any()


def test_threads_give_the_same(case: Case) -> None:
    file = case.network.file()
    one = open_engine(file).run(case.feeds["x"])
    for threads in (2, 3, 7):
        engine = open_engine(file, threads=threads)
        for _ in range(5):
            np.testing.assert_array_equal(engine.run(case.feeds["x"]), one)


def test_interpreters_on_threads_of_their_own(case: Case) -> None:
    """Each with two threads of its own, all at once."""
    file, expected = case.network.file(), open_engine(case.network.file()).run(case.feeds["x"])
    wrong: list[int] = []

    def work(number: int) -> None:
        engine = open_engine(file, threads=2)
        for _ in range(10):
            if not np.array_equal(engine.run(case.feeds["x"]), expected):
                wrong.append(number)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


FORK = """
import os, signal, sys
import numpy as np
from bnas.runtime_bench.litert_engine import LiteRtEngine

file, x = sys.argv[1], np.load(sys.argv[2])
engine = LiteRtEngine(open(file, "rb").read(), file, threads=3)
expected = engine.run(x)
child = os.fork()
if child == 0:
    signal.alarm(20)
    same = np.array_equal(engine.run(x), expected)
    del engine
    os._exit(0 if same else 1)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
sys.exit(status if np.array_equal(engine.run(x), expected) else 2)
"""


def test_a_fork_has_threads_of_its_own(case: Case, tmp_path: Path) -> None:
    """Those of the parent are gone there: nobody waits for them, neither to compute nor when the engine goes."""
    (tmp_path / "file.tflite").write_bytes(case.network.file())
    np.save(tmp_path / "x.npy", case.feeds["x"])
    arguments = [str(tmp_path / "file.tflite"), str(tmp_path / "x.npy")]
    done = subprocess.run([sys.executable, "-c", FORK, *arguments], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-1000:]


def resident_kb() -> int:
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def test_memory_stays_flat() -> None:
    case = unit_case(Conv(outputs=20), Around(residual=False), np.random.default_rng(0))
    file = case.network.file()
    held = []
    for _ in range(CYCLES):
        LiteRtEngine(file, "model", threads=2).run(case.feeds["x"])
        held.append(resident_kb())
    assert held[-1] - held[CYCLES // 2] < MOST_GROWTH_KB


def test_no_cut_of_a_file_gets_through(case: Case) -> None:
    whole = case.network.file()
    assert tflite_bytes.parse(whole, "model").operators == {"LceQuantize", "LceBconv2d"}
    for length in [*range(0, 600, 7), *range(600, len(whole), len(whole) // 50)]:
        try:
            tflite_bytes.parse(whole[:length], "model")
        except InputError as error:
            assert str(error).startswith("model: not a whole TFLite file (") and "\n" not in str(error)
            continue
        open_engine(whole[:length])  # what is cut off is nothing that the file points to


def test_spoilt_bytes_never_raise_anything_else(case: Case) -> None:
    rng = np.random.default_rng(0)
    head = case.network.file()
    outcomes = {"read": 0, "refused": 0}
    for _ in range(500):
        octets = np.frombuffer(head, np.uint8).copy()
        octets[rng.integers(len(octets) if rng.random() < 0.2 else 1500, size=rng.integers(1, 6))] = rng.integers(256)
        try:
            content = tflite_bytes.parse(octets.tobytes(), "model")
            content.with_outputs(content.tensors[:1])
            outcomes["read"] += 1
        except InputError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20, outcomes


def without_input(op: str, inputs: int, missing: int) -> bytes:
    """A file with one operator of `inputs` inputs, one of them absent."""
    names = [f"x{i}" for i in range(inputs)]
    tensors = {name: Tensor((1, 4, 4, 8)) for name in (*names, "y")}
    present = tuple(None if i == missing else name for i, name in enumerate(names))
    return Network(tensors, (Op(op, present, ("y",)),), tuple(names), ("y",)).file()


def test_absent_inputs_are_refused_where_runtimes_crash() -> None:
    """TensorFlow Lite's schema and kernels: only biases and parts of recurrent cells are optional."""
    optional = {"CONV_2D": {2}, "CONV_3D": {2}, "LceBconv2d": set(range(5))}
    counts = {"ADD": 2, "SUB": 2, "PRELU": 2, "RELU": 1, "CONV_2D": 3, "CONV_3D": 3, "LceBconv2d": 5}
    for op, count in counts.items():
        for missing_one in range(count):
            file = without_input(op, count, missing_one)
            if missing_one in optional.get(op, ()):
                tflite_bytes.parse(file, "model")
                continue
            code = getattr(schema().BuiltinOperator, op)
            with pytest.raises(InputError, match=rf"\(operator {code} lacks its input {missing_one}\)"):
                open_engine(file)


def test_files_that_write_their_constants_are_refused() -> None:
    """Stock operators crash there, or change the file's bytes in memory, as ours would."""
    for op in ("ADD", "LceBconv2d"):
        inputs = ("a", "b", None, None, None)[: 2 if op == "ADD" else 5]
        y = Tensor((1, 4), data=np.zeros((1, 4), np.float32))
        tensors = {"a": Tensor((1, 4)), "b": Tensor((1, 4)), "y": y}
        with pytest.raises(InputError, match=r"not a whole TFLite file \(an operator writes a constant\)"):
            open_engine(Network(tensors, (Op(op, inputs, ("y",)),), ("a", "b"), ("y",)).file())


def test_operators_with_optional_inputs_are_those_of_the_schema() -> None:
    codes = vars(schema().BuiltinOperator)
    biased = {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 2, "FULLY_CONNECTED": 2, "TRANSPOSE_CONV": 3, "CONV_3D": 2}
    biased |= {"CONV_3D_TRANSPOSE": 3, "SVDF": 3, "BIDIRECTIONAL_SEQUENCE_RNN": 9, "CUSTOM": 0}
    cells = dict.fromkeys(["LSTM", "UNIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_LSTM"], 1)
    assert {codes[name]: first for name, first in (biased | cells).items()} == tflite_bytes._FIRST_OPTIONAL


def test_only_the_batch_may_be_free(case: Case) -> None:
    def with_signature(*signature: int) -> bytes:
        tensors = case.network.tensors | {"x": replace(case.network.tensors["x"], signature=signature)}
        return replace(case.network, tensors=tensors).file()

    engine = open_engine(with_signature(-1, 40, 41, 64))
    assert engine.input_shape == (64, 40, 41)
    np.testing.assert_allclose(engine.run(case.feeds["x"]), case.expected, rtol=0, atol=case.tolerance)
    for free in ((1, -1, -1, 64), (-1, 40, -1, 64), (-1, 40, 41, -1)):
        with pytest.raises(InputError, match=r"input shape \[1, .*-1.*\] is not fixed; export it with fixed height"):
            open_engine(with_signature(*free))


def test_a_single_value_is_no_input() -> None:
    tensors = {"x": Tensor((1, 4)), "s": Tensor(()), "y": Tensor((1, 4))}
    with pytest.raises(InputError, match="model: an input is a single value, expected a batch"):
        open_engine(Network(tensors, (Op("ADD", ("x", "s"), ("y",)),), ("x", "s"), ("y",)).file())


def test_values_of_another_type_are_refused() -> None:
    case = quantize_case("int8", 40, np.random.default_rng(0))
    engine = open_engine(case.network.file())
    np.testing.assert_array_equal(engine.run(case.feeds["x"]), case.expected)
    with pytest.raises(InputError, match="model takes values of int8, got float32"):
        engine.run(case.feeds["x"].astype(np.float32))


BROKEN = {
    "library": "raise OSError('libm.so.6: version `GLIBC_2.99\\' not found\\n(required by it)')",
    "import": "import no_such_module_at_all",
    "binary": "raise AttributeError('_ARRAY_API not found')",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_host_that_is_there_but_broken(
    kind: str, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one is taken, or Larq's interpreter; without either there is one line with the reason."""
    name = f"broken_{kind}"
    (tmp_path / f"{name}.py").write_text(BROKEN[kind] + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(litert_engine, "HOSTS", {"broken": name} | litert_engine.HOSTS)
    assert open_engine(case.network.file()).runtime == find_host() != "broken"
    monkeypatch.setattr(litert_engine, "HOSTS", {"broken": name})
    assert find_host() is None
    with pytest.raises(InputError, match="model needs LiteRT, and broken cannot be imported ") as refused:
        open_engine(case.network.file(), tflite="litert")
    assert "\n" not in str(refused.value)
    if importlib.util.find_spec("larq_compute_engine") is not None:
        assert open_engine(case.network.file()).runtime == "larq-compute-engine"


def test_more_outputs_are_what_the_schema_reads(case: Case) -> None:
    classes: Callable[..., object] = schema().ModelT.InitFromPackedBuf
    content = tflite_bytes.parse(case.network.file(), "model")
    model = classes(content.with_outputs(["conv", "w"]), 0)
    graph = model.subgraphs[0]  # type: ignore[attr-defined]
    assert [graph.tensors[index].name.decode() for index in graph.outputs] == [*content.outputs, "conv", "w"]
