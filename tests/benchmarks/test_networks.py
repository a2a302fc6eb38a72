"""What benchmarks/networks.py times: the networks, their twins and where our time goes. No time is judged."""

import comparison
import networks
import numpy as np
import pytest
import rivals
from networks import NETWORKS

from bnas.export.eight_bit import eight_bit_units
from bnas.export.graph import Graph
from bnas.export.onnx_writer import to_onnx
from bnas.export.twins import float_graph
from bnas.runtime_bench import native_library

SMALL = 32  # pixels, for what is run


def test_bireal18_is_the_published_shape() -> None:
    graph = networks.bireal18("prelu")
    assert [unit.negative.shape[0] for unit in graph.binary_convs] == [64] * 4 + [128] * 4 + [256] * 4 + [512] * 4
    assert [unit.strides for unit in graph.binary_convs].count((2, 2)) == 3
    assert [conv.attributes["weight"].shape[2] for conv in graph.float_convs] == [7, 1, 1, 1]
    shapes = graph.shapes()
    assert [shapes[graph.binary_convs[i].output][1:] for i in (0, 4, 8, 12)] == [(s, s) for s in (56, 28, 14, 7)]
    binary, rest = networks.macs(graph)
    assert binary == 4 * 56**2 * 64**2 * 9 + 3 * (28**2 * 128**2 * 9 * 3 + 28**2 * 64 * 128 * 9)
    assert rest == 112**2 * 64 * 3 * 49 + 3 * 28**2 * 64 * 128 + 512 * 1000


def test_quicknet_has_the_operations_published_for_it() -> None:
    graph = networks.quicknet("relu")
    assert [unit.negative.shape[0] for unit in graph.binary_convs] == [64] * 4 + [128] * 4 + [256] * 4 + [512] * 4
    assert {unit.strides for unit in graph.binary_convs} == {(1, 1)}
    binary, rest = networks.macs(graph)
    assert round(binary / 1e9, 2) == 1.85 and rest / 1e9 == pytest.approx(0.029, abs=1e-3)  # Larq Zoo's table


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("epilogue", rivals.EPILOGUES)
def test_every_binary_layer_has_its_own_residual(name: str, epilogue: str) -> None:
    graph = NETWORKS[name](epilogue, SMALL)
    residuals = [unit.residual for unit in graph.binary_convs]
    assert len(residuals) == len(set(residuals)) == 16 and None not in residuals
    assert all(bool(unit.slope.any()) == (epilogue == "prelu") for unit in graph.binary_convs)  # type: ignore[union-attr]
    assert graph.shapes()[graph.output] == (networks.CLASSES,)


def bench(graph: Graph, engines: tuple[str, ...]) -> list[dict]:
    images = rivals.real_images(SMALL, SMALL)
    return comparison.bench(
        {"network": "small"}, {"relu": graph}, images, macs=1, engines=engines, isas=(), rounds=1, passes=1
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_of_a_network(name: str) -> None:
    graph = NETWORKS[name]("relu", SMALL)
    rows = {row["engine"]: row for row in bench(graph, ("bnas", "ort-fp32", "ort-int8"))}
    assert rows["bnas"]["agreement"] > 0.99 and "bound_fraction" not in rows["bnas"]
    int8 = rows["ort-int8"]
    assert int8["integer_convs"] == len(float_graph(graph).float_convs) and int8["integer_adds"] == 16
    assert int8["float_convs"] == int8["float_adds"] == 0 and "Relu" not in int8["other"]


@pytest.mark.parametrize("name", NETWORKS)
def test_larq_and_xnnpack_run_the_same_network(name: str) -> None:
    pytest.importorskip("larq_compute_engine")
    graph = NETWORKS[name]("prelu", SMALL)
    rows = {row["engine"]: row for row in bench(graph, ("ort-fp32", "tflite-fp32", "lce-indirect"))}
    assert rows["tflite-fp32"]["delegates"] == 1 and rows["tflite-fp32"]["correlation"] > 0.999
    assert rows["lce-indirect"]["agreement"] > 0.99


def test_the_breakdown_tells_binary_units_from_the_rest() -> None:
    found = networks.breakdown(networks.bireal18("relu", SMALL), next(iter(rivals.native_paths()), ""), 1, runs=2)
    assert all(ms > 0 for ms in found["by_operator"].values())
    if native_library.operator_library() is None:
        assert found["binary_ms"] is found["float_ms"] is None
    else:
        units = found["by_operator"]["BinaryConv2d"] + found["by_operator"]["BinaryConv2dSkip"]
        assert found["binary_ms"] == pytest.approx(units) and found["float_ms"] > 0
        total = found["binary_ms"] + found["float_ms"]
        assert total == pytest.approx(sum(found["by_operator"].values())) and np.isfinite(total)


def test_8_bit_ends_are_one_operator_and_one_integer_product() -> None:
    graph = networks.bireal18("prelu", SMALL, ends=8)
    operators = [node.op_type for node in to_onnx(graph, {}).graph.node]
    assert operators[0] == "ByteConv2d" and operators.count("Conv") == 3
    assert [unit.op.kind for unit in eight_bit_units(graph).values()] == ["conv", "linear"]
    assert networks.macs(graph) == networks.macs(networks.bireal18("prelu", SMALL))
