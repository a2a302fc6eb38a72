"""What a .tflite says about itself, and the values inside its binary convolutions."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from bnas.export.graph import BinaryConv, FloatOp, Graph, same_pads
from bnas.export.tflite_file import (
    TfliteFile,
    count_binary_convs,
    expose,
    operator_counts,
    read_metadata,
)
from bnas.export.tflite_writer import to_tflite
from bnas.profiles.errors import InputError

CHANNELS, SIZE = 32, (8, 8)
SAME3 = same_pads(SIZE, (3, 3), (1, 1))
METADATA = {"classes": '["cat", "dog"]', "bnas": "0.1.0"}


def unit(name: str, x: str, kernel: int = 3, pads: tuple[int, int, int, int] = SAME3, **parts) -> BinaryConv:
    rng = np.random.default_rng(sum(map(ord, name)))
    return BinaryConv(
        name,
        x,
        name,
        rng.random((CHANNELS, CHANNELS, kernel, kernel)) < 0.5,
        rng.normal(size=CHANNELS).astype(np.float32),
        rng.normal(size=CHANNELS).astype(np.float32),
        pads=pads,
        **parts,
    )


def vector(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=CHANNELS).astype(np.float32)


def signs(x: np.ndarray, shift: np.ndarray | None) -> np.ndarray:
    return np.where(x < (0 if shift is None else shift[:, None, None]), -1.0, 1.0)


def core(node: BinaryConv, x: np.ndarray) -> np.ndarray:
    """conv(sign(x - shift), W) * scale + bias, in float64."""
    top, left, bottom, right = node.pads
    padded = np.pad(signs(x, node.shift), ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=1.0)
    windows = np.lib.stride_tricks.sliding_window_view(padded, node.negative.shape[2:], axis=(2, 3))
    dots = np.einsum("nchwij,ocij->nohw", windows, np.where(node.negative, -1.0, 1.0))
    return dots * node.scale[:, None, None] + node.bias[:, None, None]


def network() -> Graph:
    """Each way in which a unit's input or output may be hidden in the file."""
    nodes = (
        unit("image with shift", "image", shift=vector(1)),
        unit("same input, same shift", "image", shift=vector(1), slope=vector(2)),
        unit("same input, no shift", "image", residual="image with shift", slope=np.zeros(CHANNELS, np.float32)),
        FloatOp("add", "add", ("same input, same shift", "same input, no shift"), "sum"),
        unit("rprelu, shift in folded", "sum", slope=vector(3), act_shift_in=vector(4), act_shift_out=vector(5)),
        unit("packed, shift folded", "rprelu, shift in folded", shift=vector(6)),
        unit("reads bits", "packed, shift folded", shift=vector(7)),
        unit("padded before the sign", "reads bits", pads=(2, 1, 0, 1), shift=vector(8)),
        FloatOp("affine", "norm", ("padded before the sign",), "norm", {"scale": vector(9), "bias": vector(10)}),
        FloatOp("max_pool", "pool", ("norm",), "pool", {"kernel": (2, 2), "strides": (2, 2), "pads": (0, 0, 0, 0)}),
        unit("behind a pool", "pool", kernel=1, pads=(0, 0, 0, 0), residual="pool"),
        FloatOp(
            "max_pool",
            "smaller",
            ("behind a pool",),
            "smaller",
            {"kernel": (3, 3), "strides": (1, 1), "pads": (1,) * 4},
        ),
        unit("behind a pool of bits", "smaller", kernel=1, pads=(0, 0, 0, 0)),
        FloatOp("global_mean", "mean", ("behind a pool of bits",), "mean"),
    )
    return Graph("image", (CHANNELS, *SIZE), "mean", nodes)


@pytest.fixture(scope="module")
def file(require: Callable[[str], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("tensorflow")
    require("larq_compute_engine")
    path = tmp_path_factory.mktemp("tflite") / "network.tflite"
    path.write_bytes(to_tflite(network(), METADATA))
    return path


def test_operators_and_metadata_are_read_back(file: Path) -> None:
    assert count_binary_convs(file) == operator_counts(file)["LceBconv2d"] == len(network().binary_convs)
    assert read_metadata(file) == read_metadata(file.read_bytes()) == METADATA


def test_constants_are_aligned(file: Path) -> None:
    data = file.read_bytes()
    for buffer in TfliteFile(data).model.buffers:
        if buffer.data is not None and len(buffer.data) > 64:
            assert data.find(bytes(buffer.data)) % 16 == 0


def test_units_show_their_inputs_and_outputs(file: Path) -> None:
    graph = network()
    images = np.random.default_rng(0).normal(size=(3, CHANNELS, *SIZE)).astype(np.float32)
    logits, units, _ = expose(file, graph).run(images)
    assert logits.shape == (3, CHANNELS)
    assert list(units) == [node.name for node in graph.binary_convs]
    np.testing.assert_array_equal(units["image with shift"].x, images)
    np.testing.assert_array_equal(units["same input, no shift"].x, images)
    stages = {name: values.stage for name, values in units.items()}
    assert {name for name, stage in stages.items() if stage != "core"} == {"packed, shift folded"}
    for node in graph.binary_convs:
        values = units[node.name]
        assert values.x.dtype == values.y.dtype == np.float32
        wanted = core(node, values.x)
        if values.stage == "core":
            tolerance = 1e-6 * node.negative[0].size * float(np.abs(node.scale).max())
            np.testing.assert_allclose(values.y, wanted, atol=tolerance, err_msg=node.name)
        else:
            np.testing.assert_array_equal(values.y, signs(wanted.astype(np.float32), vector(7)))


def test_exposing_leaves_the_output_as_it_was(file: Path) -> None:
    from larq_compute_engine.tflite.python.interpreter import Interpreter

    images = np.random.default_rng(1).normal(size=(2, CHANNELS, *SIZE)).astype(np.float32)
    plain = Interpreter(file.read_bytes()).predict(images.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(expose(file, network()).run(images)[0], plain)


def test_equal_weights_are_told_apart_by_scale_and_bias(require: Callable[[str], None]) -> None:
    require("tensorflow")
    require("larq_compute_engine")
    first = unit("a", "image", kernel=1, pads=(0, 0, 0, 0))
    second = replace(first, name="b", x="negated", output="b", scale=vector(1))
    negate = FloatOp("affine", "negate", ("image",), "negated", {"scale": np.float32([-1]), "bias": np.float32([0.1])})
    concat = FloatOp("concat", "c", ("a", "b"), "c")
    data = to_tflite(Graph("image", (CHANNELS, 2, 2), "c", (first, negate, second, concat)), {})
    image = np.random.default_rng(0).normal(size=(1, CHANNELS, 2, 2)).astype(np.float32)
    for nodes in ((first, negate, second, concat), (negate, second, first, concat)):
        units = expose(data, Graph("image", (CHANNELS, 2, 2), "c", nodes)).run(image)[1]
        np.testing.assert_array_equal(units["a"].x, image)
        np.testing.assert_allclose(units["a"].y, core(first, image), atol=1e-4)
        np.testing.assert_allclose(units["b"].y, core(second, np.float32(0.1) - image), atol=1e-4)


def test_a_wrong_bias_in_the_file_is_seen(file: Path) -> None:
    """What no rule explains is shown as it is."""
    graph = network()
    last = graph.binary_convs[-1]
    moved = replace(last, bias=last.bias + 1)
    nodes = tuple(moved if node is last else node for node in graph.nodes)
    image = np.zeros((1, CHANNELS, *SIZE), np.float32)
    values = expose(file, replace(graph, nodes=nodes)).run(image)[1][last.name]
    assert np.abs(values.y - core(moved, values.x)).min() > 0.9


def test_a_graph_of_another_network_is_refused(file: Path) -> None:
    with pytest.raises(RuntimeError, match="does not hold these binary convolutions: other"):
        expose(file, Graph("image", (CHANNELS, *SIZE), "other", (unit("other", "image"),)))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97])
def test_a_truncated_file_is_refused(file: Path, tmp_path: Path, share: float) -> None:
    data = file.read_bytes()
    (tmp_path / "cut.tflite").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"cut\.tflite' is not a complete TensorFlow Lite model; export it again"):
        operator_counts(tmp_path / "cut.tflite")


def test_a_file_of_another_kind_or_none_is_refused(require: Callable[[str], None], tmp_path: Path) -> None:
    require("tensorflow")
    require("larq_compute_engine")
    with pytest.raises(InputError, match="the model is not a complete TensorFlow Lite model"):
        read_metadata(b"PK\x03\x04 something else entirely")
    with pytest.raises(InputError, match=r"cannot read .*none\.tflite.*No such file"):
        read_metadata(tmp_path / "none.tflite")


@pytest.mark.parametrize("package", ["tensorflow", "larq_compute_engine"])
def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in ("tensorflow", "larq_compute_engine"):
        monkeypatch.setitem(sys.modules, name, None if name == package else ModuleType(name))
    for call in (lambda: read_metadata(b"...."), lambda: to_tflite(network(), {})):
        with pytest.raises(InputError, match=rf"TFLite files need {package}: pip install 'bnas\[tflite\]'$"):
            call()
