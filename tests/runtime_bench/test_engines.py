"""Engines give the file's own result, name what runs, and refuse damaged files in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from bnas.profiles.errors import InputError
from bnas.runtime_bench import machine
from bnas.runtime_bench.engines import may_claim_speedup, onnx_engine, open_engine
from bnas.runtime_bench.litert_engine import find_host

RNG = np.random.default_rng(0)


def refusal(source: Path | str | bytes, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        open_engine(source, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_onnx_results_shape_and_metadata(conv: Callable[..., bytes], tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(conv(3, 6))
    engine = open_engine(tmp_path / "a.onnx", threads=2)
    assert (engine.name, engine.runtime, engine.version) == ("onnxruntime", "onnxruntime", onnxruntime.__version__)
    assert (engine.threads, engine.input_shape, engine.input_layout) == (2, (3, 6, 6), "NCHW")
    assert engine.metadata == {"classes": '["a", "b"]'}
    assert engine.load_ms > 0
    x = np.ones((5, 3, 6, 6), np.float32) * np.arange(5, dtype=np.float32)[:, None, None, None]
    y = engine.run(x)
    assert y.shape == (5, 3, 6, 6)
    np.testing.assert_array_equal(y[:, 0, 2, 2], 27.0 * np.arange(5))  # 3 channels x 9 taps of ones
    np.testing.assert_array_equal(y[:, 0, 0, 0], 12.0 * np.arange(5))  # a corner sees 4 taps


def test_a_free_batch_axis_and_a_larger_one(conv: Callable[..., bytes]) -> None:
    free, pairs = open_engine(conv(2, 4, batch="N")), open_engine(conv(2, 4, batch=2))
    x = RNG.standard_normal((4, 2, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(free.run(x), pairs.run(x), rtol=1e-6)
    assert free.random_input(RNG).shape == (1, 2, 4, 4)
    with pytest.raises(InputError, match=r"takes images of shape \[2, 2, 4, 4\], got \[3, 2, 4, 4\]"):
        pairs.run(x[:3])


def test_an_operator_that_no_kernel_knows_runs_by_its_function_body(with_our_operator: bytes) -> None:
    engine = open_engine(with_our_operator)
    assert (engine.name, engine.operators) == ("function-float", None)
    x = engine.random_input(np.random.default_rng(1))
    np.testing.assert_array_equal(engine.run(x), 2 * x)


@pytest.fixture(scope="module")
def unit() -> bytes:
    from bnas.export.units import unit_model
    from bnas.profiles.workload import Workload

    workload = Workload("binary_conv", 1, 33, 40, 9, 8, kernel=3, epilogue=("residual", "prelu"))
    return unit_model(workload).SerializeToString()


def test_our_operators_run_on_our_kernels(
    unit: bytes, require: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    require("bnas.runtime_bench.native._native")
    from bnas.runtime_bench.native import _native

    body = open_engine(unit, kernels=False)
    assert (body.name, body.operators) == ("function-float", None)
    expected = body.call(np.random.default_rng(2))()
    assert onnx_engine().name == f"native-{_native.paths()[-1]}"
    for path in _native.paths():
        monkeypatch.setenv("BNAS_ISA", path)
        engine = open_engine(unit, threads=2)
        assert engine.name == onnx_engine().name == f"native-{path}"
        assert engine.operators == onnx_engine().operators == _native.version
        found = engine.call(np.random.default_rng(2))()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)  # sums of 297 signs, in another order
    monkeypatch.setenv("BNAS_ISA", "sse9")
    assert "BNAS_ISA=sse9 is not one of reference, portable" in refusal(unit)
    assert open_engine(unit, kernels=False).name == "function-float"


def test_without_the_kernels_the_function_body_runs(unit: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnas.runtime_bench.native.__path__", [])
    assert open_engine(unit).name == onnx_engine().name == "function-float"
    assert onnx_engine().operators is None


def test_extra_outputs_of_onnx(conv: Callable[..., bytes]) -> None:
    engine = open_engine(conv(2, 5, layers=3), extra_outputs=["y0", "y2"])
    x = engine.random_input(RNG)
    outputs = engine.run_all(x)
    assert list(outputs) == ["y2", "y0"]
    np.testing.assert_allclose(outputs["y0"], open_engine(conv(2, 5)).run(x), rtol=1e-5, atol=1e-5)
    assert "unknown tensor 'y9'" in refusal(conv(2, 5), extra_outputs=["y9"])


def test_a_call_feeds_every_input_and_an_image_is_one(sum_of_two: bytes) -> None:
    engine = open_engine(sum_of_two)
    engine.call(RNG)()
    with pytest.raises(InputError, match="takes 2 inputs, expected one image"):
        engine.run(np.zeros((1, 2, 3, 3), np.float32))


def test_layout_of_a_file_made_from_tensorflow(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    def model(shape: list) -> bytes:
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
        graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()

    engine = open_engine(model([1, 32, 40, 3]))
    assert (engine.input_layout, engine.input_shape) == ("NHWC", (3, 32, 40))
    with pytest.raises(InputError, match=r"input shape \[1, 784\] is not a batch of images"):
        _ = open_engine(model([1, 784])).input_shape
    assert "input shape ['N', 3, 'H', 32] is not fixed" in refusal(model(["N", 3, "H", 32]))


def test_bad_files_get_one_line(conv: Callable[..., bytes], tmp_path: Path) -> None:
    whole = conv(8, 8)
    for name, data, said in [
        ("empty.onnx", b"", "is empty; export it again"),
        ("empty.tflite", b"", "is empty; export it again"),
        ("text.onnx", b"hello, this is no network", "export it again"),
        ("cut.onnx", whole[: len(whole) // 2], "not a whole ONNX file"),
        ("model.pb", whole, "unknown file type '.pb'; name a .onnx or .tflite file"),
        ("model", whole, "unknown file type ''"),
    ]:
        (tmp_path / name).write_bytes(data)
        message = refusal(tmp_path / name)
        assert message.startswith(str(tmp_path / name)) and said in message
    assert "does not exist; make it with: bnas export" in refusal(tmp_path / "absent.onnx")
    assert "is a directory" in refusal(tmp_path)
    assert "threads must be at least 1, got 0" in refusal(whole, threads=0)


def test_no_cut_of_an_onnx_file_gets_through(conv: Callable[..., bytes]) -> None:
    whole = conv(2, 4)
    for length in range(1, len(whole), 7):
        try:
            open_engine(whole[:length])
        except InputError as error:
            assert "\n" not in str(error)


def test_an_operator_nobody_knows(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 2, 2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Frobnicate", ["x"], ["y"], domain="org")], "g", value[:1], value[1:])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("org", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    assert "onnxruntime cannot load it" in refusal(model.SerializeToString())


@pytest.fixture(params=["litert", "lce"])
def tflite_engine(request: pytest.FixtureRequest) -> Any:
    """What runs a .tflite. The files here hold none of our operators, and need no delegate."""
    return request.param


def test_tflite_results_and_metadata(tflite: Path, tflite_engine: Any) -> None:
    engine = open_engine(tflite, threads=2, tflite=tflite_engine)
    if tflite_engine == "lce":
        assert engine.name == ("lce" if machine.is_arm64() else "lce-portable")
        assert engine.runtime == "larq-compute-engine"
    else:
        assert (engine.name, engine.runtime) == ("litert", find_host())
    assert (engine.operators, engine.threads) == (None, 2)
    assert (engine.input_layout, engine.input_shape) == ("NHWC", (3, 4, 5))
    assert engine.metadata == {"classes": ["a", "b"]}
    x = RNG.standard_normal((3, 3, 4, 5)).astype(np.float32).transpose(0, 2, 3, 1)  # not contiguous
    first = engine.run(x)
    kept = first.copy()
    np.testing.assert_array_equal(first, 2 * np.maximum(x, 0))
    engine.run(-x)
    np.testing.assert_array_equal(first, kept)  # a result is not overwritten by the next run
    engine.call(RNG)()
    assert engine.random_input(RNG).shape == (1, 4, 5, 3)
    with pytest.raises(InputError, match=r"takes images of shape \[1, 4, 5, 3\], got \[1, 3, 4, 5\]"):
        engine.run(np.zeros((1, 3, 4, 5), np.float32))
    assert open_engine(tflite.read_bytes(), tflite=tflite_engine).name == engine.name


def test_extra_outputs_of_tflite(tflite: Path, tflite_engine: Any) -> None:
    from tensorflow.lite.python import schema_py_generated as schema

    graph = schema.ModelT.InitFromPackedBuf(tflite.read_bytes(), 0).subgraphs[0]
    inner = graph.tensors[graph.operators[0].outputs[0]].name.decode()
    engine = open_engine(tflite, extra_outputs=[inner], tflite=tflite_engine)
    x = engine.random_input(RNG)
    outputs = engine.run_all(x)
    assert len(outputs) == 2
    np.testing.assert_array_equal(outputs[inner], np.maximum(x, 0))
    assert "unknown tensor 'y9'" in refusal(tflite, extra_outputs=["y9"], tflite=tflite_engine)


def test_bad_tflite_files_get_one_line(tflite: Path, tmp_path: Path, tflite_engine: Any) -> None:
    whole = tflite.read_bytes()
    for name, data in {"cut": whole[: len(whole) // 2], "head": whole[:100], "text": b"hello" * 50}.items():
        path = tmp_path / f"{name}.tflite"
        path.write_bytes(data)
        assert refusal(path, tflite=tflite_engine).startswith(f"{path}: not a whole TFLite file")


def test_a_missing_package_names_the_extra(tflite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "larq_compute_engine.tflite.python.interpreter", None)
    assert refusal(tflite, tflite="lce").endswith("needs Larq Compute Engine: pip install 'bnas[tflite]'")
    monkeypatch.setattr("bnas.runtime_bench.litert_engine.HOSTS", {"nobody": "no_such_module.interpreter"})
    assert refusal(tflite, tflite="litert").endswith("needs LiteRT: pip install 'bnas[litert]'")


def test_larq_runs_a_tflite_where_our_delegate_is_missing(tflite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnas.runtime_bench.native.__path__", [])
    assert open_engine(tflite).runtime == "larq-compute-engine"


def test_who_may_claim_a_speedup() -> None:
    entitled = [
        name
        for name in (
            *("function-float", "onnxruntime", "litert", "lce-portable", "lce", "analytic"),
            *("native-reference", "native-portable", "native-avx2", "native-avx512", "native-neon"),
            *("litert-native-reference", "litert-native-avx512"),
        )
        if may_claim_speedup(name)
    ]
    native = ["native-portable", "native-avx2", "native-avx512", "native-neon"]
    assert entitled == ["lce", *native, "litert-native-avx512"]
