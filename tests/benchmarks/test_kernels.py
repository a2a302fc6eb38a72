"""What benchmarks/kernels.py times is what it says: shapes, engines, integer operators, outputs. No time is judged."""

import json
import os
from pathlib import Path
from typing import Any

import comparison
import kernels
import numpy as np
import protocols
import pytest
import rivals
from kernels import LAYERS, Layer, units_graph

from bnas.export.twins import float_graph
from bnas.runtime_bench import native_library
from bnas.runtime_bench.measure import Measurement

ONNX_ENGINES = ("bnas", "ort-fp32", "ort-int8")
TINY = Layer(33, 33, 6)
TINY_DOWN = Layer(32, 64, 6, stride=2)


def images(layer: Layer, count: int = 4) -> np.ndarray:
    shape = (count, layer.in_channels, layer.size, layer.size)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def bench(layer: Layer, engines: tuple[str, ...], units: int = 3) -> list[dict[str, Any]]:
    graphs = {epilogue: units_graph(layer, epilogue, units) for epilogue in rivals.EPILOGUES}
    paths = rivals.native_paths()
    return comparison.bench(
        {"layer": layer.name},
        graphs,
        images(layer),
        macs=layer.macs,
        units=units,
        engines=engines,
        isas=paths,
        rounds=1,
        passes=1,
    )


def paths_that_run() -> set[str]:
    built = native_library.operator_library() is not None
    return set(rivals.native_paths()) if built else {rivals.FUNCTION_FLOAT}


def test_the_layers_are_those_of_the_claim() -> None:
    names = [layer.name for layer in LAYERS]
    assert names[:4] == ["56x56x64 k3 s1", "28x28x128 k3 s1", "14x14x256 k3 s1", "7x7x512 k3 s1"]
    assert {layer.macs for layer in LAYERS[:4]} == {56 * 56 * 64 * 64 * 9}
    assert Layer(64, 128, 56, stride=2).name == "56x56x64->128 k3 s2"
    assert Layer(64, 128, 56, stride=2).macs == 28 * 28 * 64 * 128 * 9
    assert Layer(8, 8, 7, kernel=1, stride=2).macs == 4 * 4 * 8 * 8
    assert {layer.kernel for layer in LAYERS} == {1, 3, 5} and {layer.stride for layer in LAYERS} == {1, 2}
    assert {layer.in_channels for layer in LAYERS} >= {33, 48, 96}


@pytest.mark.parametrize("layer", [TINY, TINY_DOWN])
@pytest.mark.parametrize("epilogue", rivals.EPILOGUES)
def test_the_units_share_one_file_and_one_output(layer: Layer, epilogue: str) -> None:
    graph = units_graph(layer, epilogue)
    first, *rest = graph.binary_convs
    assert len(graph.nodes) == len(graph.binary_convs) == kernels.UNITS
    assert first.residual is None and [unit.residual for unit in rest] == [f"y{i}" for i in range(len(rest))]
    assert [unit.x for unit in rest] == ([unit.residual for unit in rest] if layer.chained else ["x"] * len(rest))
    outputs = -(-layer.size // layer.stride)
    assert graph.shapes()[graph.output] == (layer.out_channels, outputs, outputs)
    assert len({unit.negative.tobytes() for unit in graph.binary_convs}) == kernels.UNITS
    assert all(bool(unit.slope.any()) == (epilogue == "prelu") for unit in graph.binary_convs)  # type: ignore[union-attr]
    assert len(float_graph(graph).float_convs) == kernels.UNITS


@pytest.mark.parametrize("layer", [TINY, TINY_DOWN])
def test_rows_of_a_layer(layer: Layer) -> None:
    rows = bench(layer, ONNX_ENGINES)
    assert json.loads(json.dumps(rows)) == rows
    keys = [(row["engine"], row["isa"], row["epilogue"], row["protocol"]) for row in rows]
    isas = {"bnas": paths_that_run(), "ort-fp32": {"own"}, "ort-int8": {"own"}}
    wanted = {
        (engine, isa, epilogue, protocol)
        for engine in ONNX_ENGINES
        for isa in isas[engine]
        for epilogue in ("prelu", "relu")
        for protocol in ("blocks", "alternate")
    }
    assert len(keys) == len(set(keys)) and set(keys) == wanted
    for row in rows:
        assert row["layer"] == layer.name and row["threads"] == 1
        assert row["count"] == (5 if row["protocol"] == "blocks" else 1)
        assert 0 < row["p10_ms"] <= row["p50_ms"] <= row["p90_ms"]
        assert row["gmac_s"] == pytest.approx(layer.macs / (row["p50_ms"] * 1e6))
        native = row["engine"] == "bnas" and row["isa"] != rivals.FUNCTION_FLOAT
        assert (0 < row["bound_fraction"] < 1) if native else "bound_fraction" not in row
        if row["engine"] == "bnas":
            assert row["agreement"] == 1 and row["runs"] in (f"native-{row['isa']}", row["isa"])


@pytest.mark.parametrize("layer", [TINY, TINY_DOWN])
def test_the_int8_twin_is_integer_and_in_its_relu_form_nothing_else(layer: Layer) -> None:
    for row in bench(layer, ("ort-int8",)):
        assert (row["integer_convs"], row["integer_adds"]) == (3, 2)
        assert row["float_convs"] == row["float_adds"] == 0
        assert row["other"].get("PRelu", 0) == (3 if row["epilogue"] == "prelu" else 0)
        if row["epilogue"] == "relu":  # into bytes and out again, once each
            assert {name: n for name, n in row["other"].items() if name != "Transpose"} == {
                "QuantizeLinear": 1,
                "DequantizeLinear": 1,
            }


def test_every_rival_computes_what_the_file_says() -> None:
    pytest.importorskip("larq_compute_engine")
    built = native_library.litert_library() is not None
    engines = tuple(engine for engine in rivals.ENGINES if built or engine != "litert-native")
    rows = [row for row in bench(Layer(32, 32, 6), engines, units=2) if row["protocol"] == "blocks"]
    assert {row["engine"] for row in rows} == set(engines)
    exact = (*rivals.OURS, "lce", "lce-indirect")
    assert all(row["agreement"] > 0.999 for row in rows if row["engine"] in exact)
    assert all(row["correlation"] > 0.99 for row in rows if row["engine"] in ("ort-int8", "tflite-fp32", "tflite-int8"))
    assert {row["delegates"] for row in rows if row["engine"] == "tflite-fp32"} == {1}


@pytest.mark.parametrize("engine", ["bnas", "ort-int8"])
def test_an_engine_that_computes_something_else_is_named(engine: str) -> None:
    graph = units_graph(TINY, "prelu", 2)
    found = list(rivals.contenders(graph, "prelu", images(TINY), engines=("ort-fp32",)))
    wrong = rivals.Contender(engine, "avx512", "prelu", lambda: None, lambda x: found[0].output(x)[:, ::-1])
    with pytest.raises(RuntimeError, match=f"^{engine} avx512 prelu: "):
        comparison.check_outputs([*found, wrong], graph, images(TINY)[:1])


def test_calibration_images_are_real_and_levelled() -> None:
    x = rivals.real_activations(5, 9, 7)
    assert x.shape == (rivals.CALIBRATION_IMAGES, 5, 9, 7) and x.dtype == np.float32
    assert np.abs(x.mean((0, 2, 3))).max() < 1e-5 and np.abs(x.std((0, 2, 3)) - 1).max() < 0.05
    assert len({image.tobytes() for image in x}) == len(x)


def test_digits_stand_in_for_cifar(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BNAS_CIFAR10", str(tmp_path))
    x = rivals.real_images.__wrapped__(12, 12)
    assert x.shape == (rivals.CALIBRATION_IMAGES, 3, 12, 12) and (x[:, 0] == x[:, 2]).all()


def test_a_forced_path_is_forced_only_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    for before in ("portable", None):
        if before is None:
            monkeypatch.delenv("BNAS_ISA")
        else:
            monkeypatch.setenv("BNAS_ISA", before)
        with rivals.forced("avx2"):
            assert os.environ["BNAS_ISA"] == "avx2"
        assert os.environ.get("BNAS_ISA") == before


def test_blocks_and_alternation_call_as_they_say() -> None:
    calls: list[str] = []
    runs = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    taken = protocols.alternate(runs, passes=3)
    assert calls == ["a", "b"] * 5 and [m.count for m in taken.values()] == [3, 3]  # two passes are not counted
    taken = protocols.blocks(runs, protocols.Bounds([]), rounds=4)
    assert all(measured.count >= 20 and measured.count % 5 == 0 for measured in taken.values())
    assert protocols.times(Measurement((2_000_000, 4_000_000, 6_000_000)), 2)["p50_ms"] == 2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not pin processes")
def test_pinning() -> None:
    before = os.sched_getaffinity(0)
    try:
        cores = protocols.pin(1)
        assert os.sched_getaffinity(0) == set(cores) and len(cores) == 1
    finally:
        os.sched_setaffinity(0, before)


def test_bounds_keep_the_highest() -> None:
    bounds, more = protocols.Bounds([]), protocols.Bounds([])
    more.samples = {"avx2": [3.0, 7.0], "avx512": []}
    bounds.add(more)
    bounds.add(more)
    assert bounds.samples["avx2"] == [3, 7, 3, 7] and bounds.highest() == {"avx2": 7.0}


def test_ours_in_litert_is_a_path_of_its_own() -> None:
    rows = [row("a", "bnas", "relu", 1.0, "avx512"), row("a", "litert-native", "relu", 2.0, "avx512")]
    lines = comparison.ratios([*rows, row("a", "lce", "relu", 30.0)], "layer")
    assert {line["isa"]: line["ratios"] for line in lines} == {"avx512": {"lce": 30.0}, "litert-avx512": {"lce": 15.0}}
    (found,) = comparison.checks(lines, [("litert-avx512", "lce", 16.0, "each")])
    assert found["value"] == 15.0 and not found["met"]


def row(layer: str, engine: str, epilogue: str, ms: float, isa: str = "own", **more: Any) -> dict[str, Any]:
    labels = {"layer": layer, "engine": engine, "epilogue": epilogue, "isa": isa, "p50_ms": ms}
    return {"protocol": "blocks", "threads": 1, **labels, **more}


ROWS = [
    row("a", "bnas", "prelu", 1.0, "avx512"),
    row("a", "bnas", "relu", 0.5, "avx512"),
    row("a", "ort-fp32", "prelu", 20.0),
    row("a", "ort-fp32", "relu", 9.0),
    row("a", "ort-fp32", "relu", 1.0, protocol="alternate"),
    row("a", "ort-fp32", "relu", 1.0, threads=2),
    row("b", "bnas", "prelu", 1.0, "avx512"),
    row("b", "ort-fp32", "prelu", 4.0),
]


def test_ratios_count_against_the_fastest_form_of_the_same_layer_protocol_and_threads() -> None:
    lines = comparison.ratios(ROWS, "layer")
    assert [(line["layer"], line["epilogue"], line["ratios"]["ort-fp32"]) for line in lines] == [
        ("a", "prelu", 9),
        ("a", "relu", 18),
        ("b", "prelu", 4),
    ]


def test_checks_are_about_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    lines = comparison.ratios(ROWS, "layer")
    targets = [(isa, "ort-fp32", 8.0, kind) for isa in ("avx512", "avx2") for kind in ("each", "geomean")]
    each, mean = comparison.checks(lines, targets)
    assert (each["value"], each["missed"], each["of"], each["met"]) == (4, 1, 3, False)
    assert mean["value"] == pytest.approx((9 * 18 * 4) ** (1 / 3)) and mean["met"]
    comparison.print_result(lines, [each, mean], "layer")
    printed = capsys.readouterr().out
    assert "FAIL  avx512 against ort-fp32, every row: 4.00 of 8; 1 of 3 below" in printed
    assert "PASS  avx512 against ort-fp32, geometric mean: 8.65 of 8" in printed


def test_a_function_body_meets_no_target_and_is_called_float(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("a", "bnas", "relu", 1.0, rivals.FUNCTION_FLOAT), row("a", "ort-fp32", "relu", 99.0)]
    lines = comparison.ratios(rows, "layer")
    assert comparison.checks(lines, kernels.TARGETS) == []
    comparison.print_result(lines, [], "layer")
    assert "no speed-up may be claimed" in capsys.readouterr().out


def test_the_script_writes_its_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels, "LAYERS", (TINY,))
    monkeypatch.setattr(kernels, "pin", lambda threads: [0])
    target = tmp_path / "result.json"
    kernels.main(["--quick", "--engines", "bnas", "ort-fp32", "--json", str(target)])
    result = json.loads(target.read_text())
    assert result["cpu"] and result["quick"] and result["units"] == kernels.UNITS
    assert {entry["layer"] for entry in result["rows"]} == {TINY.name}
    assert result["bound_gmac_s"] == max(result["bounds"].values(), default=None)
    printed = capsys.readouterr().out
    assert TINY.name in printed and "may not be quoted" in printed


def test_only_paths_that_may_be_fast_can_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        kernels.main(["--isa", "reference"])
    assert error.value.code == 2 and "argument --isa: invalid choice: 'reference'" in capsys.readouterr().err
