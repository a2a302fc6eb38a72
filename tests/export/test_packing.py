"""Bits for floats must not change one sign: packed and unpacked graphs are run side by side, to the last bit."""

import os
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from bnas.export.graph import BinaryConv, FloatOp, Graph
from bnas.export.onnx_writer import to_onnx, write_onnx
from bnas.export.packing import integer_thresholds, pack_bits

Floats = np.ndarray


def conv(x: str, output: str, channels: tuple[int, int] = (5, 5), seed: int = 0, **parts: object) -> BinaryConv:
    """A 3x3 unit of random values with PReLU of positive slopes."""
    rng = np.random.default_rng(seed)
    inputs, out = channels
    given_parts = {
        "scale": rng.standard_normal(out).astype(np.float32),
        "bias": rng.standard_normal(out).astype(np.float32),
        "slope": rng.random(out).astype(np.float32),
        "shift": np.linspace(-1, 1, inputs, dtype=np.float32),
        "pads": (1, 1, 1, 1),
    }
    return BinaryConv(output, x, output, rng.random((out, inputs, 3, 3)) < 0.5, **{**given_parts, **parts})  # type: ignore[arg-type]


def max_pool(x: str, output: str, pads: tuple[int, int, int, int] = (1, 0, 1, 1)) -> FloatOp:
    return FloatOp("max_pool", output, (x,), output, {"kernel": (3, 2), "strides": (2, 1), "pads": pads})


def relu(x: str, output: str) -> FloatOp:
    return FloatOp("relu", output, (x,), output)


def graph_of(*nodes: BinaryConv | FloatOp) -> Graph:
    return Graph("x", (5, 6, 7), nodes[-1].output, nodes)


def operators(graph: Graph) -> list[str]:
    """Of the ONNX file, in order."""
    return [node.op_type for node in to_onnx(graph, {}).graph.node]


def run(graph: Graph, x: Floats, optimised: bool = False) -> Floats:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = to_onnx(graph, {}).SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def images(graph: Graph, seed: int = 0, batch: int = 2) -> Floats:
    return np.random.default_rng(seed).standard_normal((batch, *graph.input_shape)).astype(np.float32)


def assert_same_to_the_last_bit(graph: Graph, packed: Graph, x: Floats) -> None:
    np.testing.assert_array_equal(run(packed, x), run(graph, x))


def assert_right(graph: Graph, packed: Graph) -> None:
    """For graphs in which only the last units may give floats: optimisations round these, and must not move a sign."""
    x = images(graph)
    assert_same_to_the_last_bit(graph, packed, x)
    np.testing.assert_allclose(run(packed, x, optimised=True), run(graph, x), rtol=1e-5, atol=1e-5)


# --- which values become bits ---------------------------------------------------------------------------------------


def test_a_chain_becomes_bits_from_the_first_sign_to_the_last_convolution() -> None:
    graph = graph_of(relu("x", "stem"), conv("stem", "a"), conv("a", "b", seed=1), conv("b", "c", seed=2))
    packed = pack_bits(graph)
    assert operators(packed) == ["Relu", "PackSigns", "BinaryConv2dBits", "BinaryConv2dBits", "BinaryConv2dFromBits"]
    assert [unit.name for unit in packed.binary_convs] == ["a", "b", "c"]
    assert packed.shapes()["b"] == (5, 6, 7)
    assert_right(graph, packed)


def test_max_pools_between_signs_pool_bits() -> None:
    graph = graph_of(conv("x", "a"), max_pool("a", "p"), max_pool("p", "q"), conv("q", "b", seed=1))
    packed = pack_bits(graph)
    assert operators(packed) == [
        "PackSigns", "BinaryConv2dBits", "BinaryMaxPool2d", "BinaryMaxPool2d", "BinaryConv2dFromBits",
    ]  # fmt: skip
    assert_right(graph, packed)


def test_a_max_pool_of_floats_pools_their_signs() -> None:
    graph = graph_of(relu("x", "stem"), max_pool("stem", "p"), conv("p", "a"))
    packed = pack_bits(graph)
    assert operators(packed) == ["Relu", "PackSigns", "BinaryMaxPool2d", "BinaryConv2dFromBits"]
    assert_right(graph, packed)


def test_one_packing_serves_all_who_want_the_same_signs() -> None:
    ends = [conv("a", "b", seed=1), conv("a", "c", seed=2), conv("d", "e", seed=3, residual="b")]
    graph = graph_of(
        conv("x", "a"), *ends[:2], conv("x", "d", seed=4), ends[2], FloatOp("add", "sum", ("c", "e"), "sum")
    )
    packed = pack_bits(graph)
    assert operators(packed).count("PackSigns") == 1
    assert operators(packed).count("BinaryConv2dBits") == 2 and operators(packed).count("BinaryConv2dFromBits") == 3
    assert_right(graph, packed)
    other = np.full(5, 0.5, np.float32)
    differing = replace(graph, nodes=(graph.nodes[0], *ends[:2], conv("x", "d", seed=4, shift=other), *graph.nodes[4:]))
    packed = pack_bits(differing)
    assert operators(packed).count("PackSigns") == 2
    assert_right(differing, packed)


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param((conv("x", "a"),), id="alone"),
        pytest.param((conv("x", "a", residual="x"), conv("a", "b")), id="residual"),
        pytest.param((conv("x", "a"), conv("a", "b", residual="a")), id="read-as-residual"),
        pytest.param((conv("x", "a"), conv("a", "b"), FloatOp("add", "c", ("a", "b"), "c")), id="read-as-floats"),
        pytest.param((conv("x", "a"), max_pool("a", "p"), relu("p", "b")), id="pooled-floats"),
        pytest.param((conv("x", "a"), max_pool("a", "b")), id="pooled-output"),
        pytest.param((conv("x", "a"), conv("a", "b"), conv("a", "c", shift=None), FloatOp("add", "d", ("b", "c"), "d")),
                     id="two-shifts"),
        pytest.param((conv("x", "a", slope=np.full(5, -1, np.float32)), conv("a", "b")), id="not-monotone"),
        pytest.param((conv("x", "a", slope=np.full(5, np.inf, np.float32)), conv("a", "b")), id="infinite-slope"),
        pytest.param((conv("x", "a"), conv("a", "b", shift=np.full(5, np.nan, np.float32))), id="undefined-shift"),
    ],
)  # fmt: skip
def test_a_graph_with_nothing_to_pack_is_returned_unchanged(nodes: tuple[BinaryConv | FloatOp, ...]) -> None:
    graph = graph_of(*nodes)
    assert pack_bits(graph) is graph


def test_the_output_stays_float() -> None:
    inner = conv("x", "a")
    graph = Graph("x", (5, 6, 7), "a", (inner, conv("a", "b")))
    assert pack_bits(graph) is graph


def test_packing_twice_changes_nothing_more() -> None:
    packed = pack_bits(graph_of(conv("x", "a"), max_pool("a", "p"), conv("p", "b"), conv("b", "c")))
    assert pack_bits(packed) is packed


def test_a_packed_graph_runs_in_the_oldest_onnxruntime(old_python: str, tmp_path: Path) -> None:
    graph = graph_of(relu("x", "stem"), max_pool("stem", "p"), conv("p", "a"), max_pool("a", "q"), conv("q", "b"))
    x = images(graph)
    write_onnx(pack_bits(graph), tmp_path / "packed.onnx", {})
    np.savez(tmp_path / "arrays.npz", expected=run(graph, x), x=x)
    script = Path(__file__).with_name("old_runtime.py")
    command = [old_python, str(script), str(tmp_path / "packed.onnx"), str(tmp_path / "arrays.npz")]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    version, difference = done.stdout.split()
    assert version.startswith("1.17") and float(difference) <= 1e-5


def test_onnxruntime_unpacks_weights_once_at_load_and_only_values_at_run_time(tmp_path: Path) -> None:
    packed = pack_bits(graph_of(conv("x", "a"), conv("a", "b"), conv("b", "c")))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(to_onnx(packed, {}).SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert found.count("BitShift") == found.count("BitwiseAnd") == 3  # the inputs of a, b and c


# --- thresholds -----------------------------------------------------------------------------------------------------


def sign_of(unit: BinaryConv, dot: int, shift: np.float32) -> bool:
    """Is the unit's output below the shift? One channel, one rounding after another."""
    with np.errstate(all="ignore"):
        v = np.float32(dot) * unit.scale[0]
        v = v + unit.bias[0]
        if unit.act_shift_in is not None:
            v = v - unit.act_shift_in[0]
        if unit.slope is not None and v < 0:
            v = v * unit.slope[0]
        if unit.act_shift_out is not None:
            v = v + unit.act_shift_out[0]
        return bool(v < shift)


any_float = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, -1e-45, 3e38, -3e38])
plain_float = st.integers(-8, 8).map(lambda n: n / 4)


@st.composite
def one_channel(draw: st.DrawFn) -> tuple[BinaryConv, np.float32]:
    number = draw(st.sampled_from([any_float, plain_float]))

    def value(optional: bool = False) -> Floats | None:
        return None if optional and draw(st.booleans()) else np.array([draw(number)], np.float32)

    depth = draw(st.integers(1, 12))
    unit = BinaryConv(
        "a", "x", "a", np.zeros((1, depth, 1, draw(st.integers(1, 3))), bool), value(), value(),  # type: ignore[arg-type]
        slope=value(True), act_shift_in=value(True), act_shift_out=value(True),
    )  # fmt: skip
    fan_in = unit.negative.size
    if draw(st.booleans()):
        return unit, np.float32(draw(number))
    exactly = unit.scale[0] * np.float32(draw(st.integers(-fan_in, fan_in))) + unit.bias[0]  # on an output, or beside
    return unit, np.nextafter(np.float32(exactly), np.float32(draw(st.sampled_from([exactly, -np.inf, np.inf]))))


@settings(max_examples=600, deadline=None)
@given(one_channel())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_thresholds_decide_as_the_floats_do(case: tuple[BinaryConv, np.float32]) -> None:
    unit, shift = case
    fan_in = unit.negative.size
    dots = range(-fan_in, fan_in + 1, 2)
    wanted = [sign_of(unit, dot, shift) for dot in dots]
    found = integer_thresholds(unit, np.array([shift]))
    if found is None:
        changes = sum(a != b for a, b in pairwise(wanted))
        assert changes > 1 or not np.isfinite(unit.slope).all()
        return
    flip, threshold = found
    assert threshold.dtype == np.int32
    assert [(-dot if flip[0] else dot) < threshold[0] for dot in dots] == wanted


# --- random graphs --------------------------------------------------------------------------------------------------


@st.composite
def graphs(draw: st.DrawFn, pools: bool, pads: tuple[int, int, int, int] = (1, 0, 1, 1)) -> Graph:
    """Units and max-pools that read any value made before; the last unit's output is the graph's. pads: of pools."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # Without pools also what makes infinities and NaN: what a pool of floats makes of NaN differs between runtimes.
    nasty = np.array([0.0, -0.0, 1e-40, -1e-40] + [np.inf, -np.inf, 3e38, -3e38, np.nan] * (not pools), np.float32)

    def numbers(count: int) -> Floats:
        kind = draw(st.sampled_from(["normal", "normal", "quarters", "nasty"]))
        values = rng.standard_normal(count) if kind == "normal" else rng.integers(-6, 7, count) / 4
        values = values.astype(np.float32)
        return np.where(rng.random(count) < 0.3, rng.choice(nasty, count), values) if kind == "nasty" else values

    shapes: dict[str, tuple[int, int, int]] = {"x": (draw(st.sampled_from([3, 33])), 5, 6)}
    shifts: dict[int, list[Floats]] = {}
    nodes: list[BinaryConv | FloatOp] = []
    for i in range(draw(st.integers(2, 6))):
        x = draw(st.sampled_from(list(shapes)[-2:]))  # mostly chains
        channels = shapes[x][0]
        if pools and i and draw(st.integers(0, 3)) == 0:
            node: BinaryConv | FloatOp = max_pool(x, f"v{i}", pads)
        else:
            known = shifts.setdefault(channels, [numbers(channels), np.zeros(channels, np.float32)])
            out = draw(st.sampled_from([3, 33, 40]))
            same_shape = [n for n, s in shapes.items() if s == (out, *shapes[x][1:])]
            optional = {
                name: numbers(out) for name in ("act_shift_in", "act_shift_out") if draw(st.integers(0, 2)) == 0
            }
            slope = np.abs(numbers(out)) * np.float32(draw(st.sampled_from([1, 1, 1, -1])))
            node = conv(
                x,
                f"v{i}",
                (channels, out),
                seed=draw(st.integers(0, 99)),
                scale=numbers(out),
                bias=numbers(out),
                slope=draw(st.sampled_from([None, np.zeros(out, np.float32), slope])),
                shift=known[draw(st.integers(0, 3)) == 0],
                residual=draw(st.sampled_from([None, None, None, *same_shape])),
                **optional,
            )
        nodes.append(node)
        shapes[node.output] = Graph("x", shapes["x"], node.output, tuple(nodes)).shapes()[node.output]  # type: ignore[assignment]
    last = conv(nodes[-1].output, "y", (shapes[nodes[-1].output][0], 3), seed=7)
    return Graph("x", shapes["x"], "y", (*nodes, last))


@settings(max_examples=60, deadline=None)
@given(st.booleans().flatmap(graphs), st.integers(0, 99))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_random_graphs_give_the_same_bits(graph: Graph, seed: int) -> None:
    assert_same_to_the_last_bit(graph, pack_bits(graph), images(graph, seed))


@settings(max_examples=8, deadline=None)
@given(graphs(pools=True, pads=(1, 1, 1, 1)))  # the evaluator misplaces unequal pads of a pool that stays float
def test_random_graphs_give_the_same_bits_in_the_reference_evaluator(graph: Graph) -> None:
    x = images(graph, batch=1)
    found = ReferenceEvaluator(to_onnx(pack_bits(graph), {})).run(None, {"x": x})[0]
    np.testing.assert_array_equal(found, run(graph, x))
