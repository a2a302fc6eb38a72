"""The twins: same topology without signs, and an int8 one that really computes its convolutions in integers."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from bnas.export.graph import BinaryConv, FloatOp, Graph, same_pads
from bnas.export.twins import float_graph, fp32_twin, int8_twin, optimised_nodes, write_twins

ACTIVATIONS = ("none", "relu", "prelu", "rprelu")
METADATA = {"bnas": "0.1.0", "classes": "[]"}
STEM_CONV: dict[str, Any] = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "groups": 1}


def activation(kind: str, rng: np.random.Generator, channels: int) -> dict[str, np.ndarray]:
    slope = np.full(channels, 0.25, np.float32)
    shifts = {name: rng.normal(size=channels).astype(np.float32) for name in ("act_shift_in", "act_shift_out")}
    return {"none": {}, "relu": {"slope": 0 * slope}, "prelu": {"slope": slope}, "rprelu": {"slope": slope, **shifts}}[
        kind
    ]


def unit(
    rng: np.random.Generator, name: str, x: str, kernel: int, stride: int, size: int, kind: str, **parts: Any
) -> BinaryConv:
    return BinaryConv(
        name,
        x,
        name,
        rng.random((16, 16, kernel, kernel)) < 0.5,
        rng.normal(size=16).astype(np.float32),
        rng.normal(size=16).astype(np.float32) / 4,
        strides=(stride, stride),
        pads=same_pads((size, size), (kernel, kernel), (stride, stride)),
        **activation(kind, rng, 16),
        **parts,
    )


def network(kind: str, depth: int = 2) -> Graph:
    """A float stem, residual units, a strided one without residual, a linear head. Image [3, 12, 12], 4 classes."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(16, 3, 3, 3)).astype(np.float32) / 5
    stem = FloatOp("conv", "stem", ("image",), "0", {"weight": weight, "bias": np.zeros(16, np.float32), **STEM_CONV})
    chain = [unit(rng, f"{i + 1}", f"{i}", 3, 1, 12, kind, residual=f"{i}") for i in range(depth)]
    shift = rng.normal(size=16).astype(np.float32)
    down = unit(rng, "down", f"{depth}", 3, 2, 12, kind, shift=shift)
    mean = FloatOp("global_mean", "mean", ("down",), "mean")
    linear = {"weight": rng.normal(size=(4, 16)).astype(np.float32), "bias": np.zeros(4, np.float32)}
    return Graph("image", (3, 12, 12), "y", (stem, *chain, down, mean, FloatOp("linear", "y", ("mean",), "y", linear)))


def images(count: int = 20) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 3, 12, 12)).astype(np.float32)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"image": x})[0]


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_the_int8_twin_computes_every_convolution_in_integers(kind: str, tmp_path: Path, capfd, caplog) -> None:
    graph = network(kind)
    report = write_twins(graph, images(), tmp_path / "model", METADATA)
    assert json.loads(json.dumps(report)) == {
        "fp32": str(tmp_path / "model.fp32.onnx"),
        "int8": str(tmp_path / "model.int8.onnx"),
        "int8_integer_convs": len(graph.binary_convs) + 1,
        "int8_float_convs": 0,
        "prelu_in_float": len(graph.binary_convs) if "prelu" in kind else 0,
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.fp32.onnx", "model.int8.onnx"]
    for name in ("fp32", "int8"):
        model = onnx.load(report[name])
        assert {entry.key: entry.value for entry in model.metadata_props} == METADATA
        assert model.ir_version == 9 and [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
        onnx.checker.check_model(model, full_check=True)
    assert not caplog.records and capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == logging.NOTSET


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_the_float_twin_is_the_same_topology_without_signs(kind: str) -> None:
    graph = network(kind)
    twin = float_graph(graph)
    assert not twin.binary_convs and len(twin.float_convs) == len(graph.binary_convs) + len(graph.float_convs)
    assert {name: twin.shapes()[name] for name in graph.shapes()} == graph.shapes()
    for unit, conv in zip(graph.binary_convs, twin.float_convs[1:], strict=True):
        weight = conv.attributes["weight"]
        assert ((weight < 0) == (unit.negative ^ (unit.scale < 0)[:, None, None, None])).all()
        assert np.square(weight).sum((1, 2, 3)).mean() == pytest.approx(1, rel=1e-5)


def test_activations_of_a_deep_twin_stay_in_range() -> None:
    x = images(4)
    deep = fp32_twin(network("prelu", depth=20), METADATA)
    assert 1e-2 < np.abs(run(deep, x)).max() < 1e2


def test_the_int8_twin_follows_the_float_twin() -> None:
    """It is made for timing, but ranges that clip everything would be a mistake."""
    fp32 = fp32_twin(network("relu"), METADATA)
    int8 = int8_twin(fp32, images())
    wanted = run(fp32, images())
    assert np.abs(run(int8, images()) - wanted).max() < 0.1 * np.abs(wanted).max()


def test_a_twin_is_deterministic(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_twins(network("rprelu"), images(), tmp_path / name, METADATA)
    for kind in ("fp32", "int8"):
        assert (tmp_path / f"a.{kind}.onnx").read_bytes() == (tmp_path / f"b.{kind}.onnx").read_bytes()


def test_channels_without_scale_do_not_break_a_twin() -> None:
    graph = network("none", depth=0)
    down = graph.binary_convs[0]
    silent = BinaryConv("down", "0", "down", down.negative, 0 * down.scale, down.bias, (2, 2), down.pads)
    twin = fp32_twin(Graph("image", (3, 12, 12), "y", (graph.nodes[0], silent, *graph.nodes[2:])), METADATA)
    assert np.isfinite(run(twin, images(1))).all()


def test_signs_and_their_pads_in_front_of_float_convolutions_are_left_out() -> None:
    ones = {"weight": np.ones((3, 3, 3, 3), np.float32), "bias": np.zeros(3, np.float32), **STEM_CONV}
    nodes = (
        FloatOp("sign", "sign", ("image",), "signs", {"shift": np.zeros(3, np.float32)}),
        FloatOp("pad", "pad", ("signs",), "padded", {"pads": (1, 1, 1, 1), "value": -1.0}),
        FloatOp("conv", "conv", ("padded",), "y", ones),
    )
    pad, conv = float_graph(Graph("image", (3, 4, 4), "y", nodes)).nodes
    assert isinstance(pad, FloatOp) and pad.inputs == ("image",) and pad.attributes["value"] == 0
    assert conv is nodes[2] or conv.inputs == ("padded",)


def test_a_convolution_left_in_float_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxruntime import quantization

    monkeypatch.setattr(
        quantization, "quantize_static", lambda source, target, *_, **__: target.write_bytes(source.read_bytes())
    )
    fp32 = fp32_twin(network("none", depth=1), METADATA)
    assert [operator for operator, _ in optimised_nodes(fp32)].count("Conv") == 3
    with pytest.raises(RuntimeError, match=r"int8 twin stay in float: .+, .+, .+$"):
        int8_twin(fp32, images(2))
