"""The operators inside onnxruntime, on our kernels and by their function bodies, against the definition."""

import itertools
import json
import os
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import bnas
from bnas.runtime_bench import native_library

from .cases import (
    BOUNDED,
    EDGES,
    byte_case,
    byte_cases,
    choose,
    conv_case,
    conv_cases,
    epilogues,
    generator,
    image_case,
    image_cases,
    numbers,
    signed,
    skip_cases,
)
from .conftest import built, emulator, here
from .definition import Geometry, Levels, dots, max_pool, words_of
from .operators import FLOAT_PARTS, Node, byte_node, conv_nodes, feeds, image_node, model, pack_node, pool_node, session

RUN_MODELS = Path(__file__).with_name("run_models.py")


@pytest.fixture(scope="module", autouse=True)
def paths() -> list[str]:
    return list(here().paths())


def draw_nodes(draw: Any) -> list[Node]:
    """At least one node of each operator."""
    rng, case, skip = generator(draw), draw(conv_cases()), draw(skip_cases())
    shape = dots(case.negative, case.weights, case.geometry).shape
    threshold = rng.integers(-8, 9, (shape[1], 1, 1)).astype(np.int32)
    channels = choose(draw, EDGES)
    shift = numbers(rng, (channels, 1, 1) if draw(st.booleans()) else (1, 1, 1), "hard")
    x = signed(rng, (2, channels, 5, 7), shift)
    geometry = Geometry((3, 2), (choose(draw, (1, 2)), 2), (draw(st.integers(0, 2)), 1, 0, draw(st.integers(0, 1))))
    words = words_of(x < shift)
    bits = np.unpackbits(np.ascontiguousarray(words.transpose(0, 2, 3, 1)).view(np.uint8), axis=3, bitorder="little")
    pooled = words_of(max_pool(bits.transpose(0, 3, 1, 2).astype(bool), geometry))
    return [
        *conv_nodes(case, draw(epilogues(shape)), threshold),
        conv_nodes(skip, draw(epilogues(skip.x.shape)), np.zeros((skip.x.shape[1], 1, 1), np.int32))[-1],
        byte_node(draw(byte_cases())),
        image_node(draw(image_cases())),
        pack_node(x, shift),
        pool_node(words, geometry, pooled),
    ]


def integer_nodes(seed: int = 0) -> list[Node]:
    """Convolutions of several sizes whose results are whole numbers, so that nothing is rounded."""
    rng = np.random.default_rng(seed)
    shapes = {
        (1, 33, 9, 8): (40, Geometry((3, 3), pads=(1, 1, 1, 1))),
        (2, 64, 10, 10): (32, Geometry((3, 3), (2, 2), (0, 0, 1, 1))),
        (1, 130, 5, 6): (66, Geometry((1, 1), groups=2)),
        (1, 65, 6, 8): (65, Geometry((3, 3), pads=(1, 1, 1, 1))),
        (1, 31, 7, 20): (5, Geometry((5, 3), (1, 2), (4, 1, 2, 1), (2, 1))),
    }
    nodes = []
    for image, (outputs, geometry) in shapes.items():
        case = conv_case(rng, image, outputs, geometry, "one")
        nodes += conv_nodes(case, {}, rng.integers(-8, 9, (outputs, 1, 1)).astype(np.int32))
    parts = {"slope": np.zeros((1, 1, 1), np.float32)}
    levels, rounding = Levels(0.25, 128), Levels(512.0, 0)
    geometry = Geometry((7, 5), (2, 2), (3, 2, 3, 2))
    nodes += [
        byte_node(byte_case(rng, (1, 3, 20, 23), 20, geometry, levels=levels)),
        byte_node(byte_case(rng, (2, 4, 9, 33), 9, geometry, levels=levels, parts=parts, rounding=rounding)),
    ]
    x = rng.standard_normal((2, 70, 6, 5), np.float32)
    shift = numbers(rng, (70, 1, 1), "normal")
    words, geometry = words_of(x < shift), Geometry((2, 2), (2, 1), (1, 0, 0, 1))
    return [*nodes, pack_node(x, shift), pool_node(words, geometry, words_of(max_pool(x < shift, geometry)))]


def stem_node() -> Node:
    rng, pool = np.random.default_rng(2), Geometry((3, 2), (2, 2), (1, 1, 0, 0))
    parts = {"slope": np.zeros((1, 1, 1), np.float32)}
    return image_node(image_case(rng, (2, 3, 21, 40), 20, Geometry((7, 5), (2, 2), (3, 2, 3, 2)), pool, parts))


@settings(BOUNDED, max_examples=40)
@given(data=st.data())
def test_every_operator_on_every_path(paths: list[str], data: st.DataObject) -> None:
    nodes = draw_nodes(data.draw)
    everything = {name for node in nodes for name in node.inputs}
    constants = data.draw(st.none() | st.sets(st.sampled_from(sorted(everything - {"x"}))))
    optimised = data.draw(st.booleans())
    file = model(*nodes, constants=constants)
    with pytest.MonkeyPatch.context() as patch:
        for path in paths:
            patch.setenv("BNAS_ISA", path)
            results = session(file, optimised=optimised).run(None, feeds(file, *nodes))
            for node, found in zip(nodes, results, strict=True):
                node.check(found, path)


@pytest.mark.parametrize("optimised", [False, True])
def test_integers_are_observed_on_every_path(
    paths: list[str], optimised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = integer_nodes()
    file = model(*nodes)
    for path in paths:
        monkeypatch.setenv("BNAS_ISA", path)
        for node, found in zip(nodes, session(file, optimised=optimised).run(None, feeds(file, *nodes)), strict=True):
            np.testing.assert_array_equal(found, node.expected.y if node.rounded else node.expected)  # type: ignore[union-attr]


def test_every_combination_of_present_and_neutral_inputs() -> None:
    """Of both operators that have such, on the kernels and by the function body; that may round otherwise"""
    rng = np.random.default_rng(3)
    geometry = Geometry((3, 3), (1, 2), (1, 1, 1, 1))
    nodes = []
    for present in itertools.product([False, True], repeat=len(FLOAT_PARTS)):
        names = [name for name, is_present in zip(FLOAT_PARTS, present, strict=True) if is_present]
        case = conv_case(rng, (1, 33, 4, 5), 9, geometry, "normal" if "shift" in names else "one")
        shapes = {name: (1, 9, 4, 3) if name == "residual" else (9, 1, 1) for name in names if name != "shift"}
        parts = {name: numbers(rng, shape, "normal") for name, shape in shapes.items()}
        nodes += conv_nodes(case, parts, np.zeros((9, 1, 1), np.int32))[: 1 if "shift" in names else 2]
    assert len(nodes) == 2**7 + 2**6
    for some in (nodes[i : i + 8] for i in range(0, len(nodes), 8)):
        file, bodied = model(*some), model(*some, body=True)
        values = feeds(file, *some)
        for optimised in (False, True):
            on_kernels = session(file, optimised=optimised).run(None, values)
            by_bodies = session(bodied, library=False, optimised=optimised).run(None, values)
            for node, found, body in zip(some, on_kernels, by_bodies, strict=True):
                node.check(found, "kernels")
                if not optimised:
                    node.check(body, "body")
                np.testing.assert_allclose(found, body, rtol=1e-5, atol=1e-4)


def test_the_kernels_go_before_the_function_body() -> None:
    node = integer_nodes()[0]
    wrong = onnx.load_from_string(model(node, body=True))
    next(step for step in wrong.functions[0].node if step.op_type == "Less").op_type = "Greater"
    file = wrong.SerializeToString()
    node.check(session(file).run(None, feeds(file, node))[0])
    with pytest.raises(AssertionError):
        node.check(session(file, library=False).run(None, feeds(file, node))[0])


def test_one_session_takes_images_of_any_size_from_many_threads() -> None:
    rng = np.random.default_rng(4)
    geometry = Geometry((3, 3), (2, 2), (1, 1, 1, 1))
    first = conv_case(rng, (1, 40, 8, 8), 33, geometry)
    sizes = [(1, 8, 8), (3, 8, 8), (2, 5, 31), (1, 50, 49), (1, 1, 1), (0, 4, 4)]
    cases = [
        type(first)(signed(rng, (n, 40, h, w), first.shift), first.shift, first.weights, geometry) for n, h, w in sizes
    ]
    node = conv_nodes(first, {}, np.zeros((33, 1, 1), np.int32))[0]
    shared = session(model(node), threads=2)
    wrong: list[object] = []

    def work(turn: int) -> None:
        for i in range(30):
            case = cases[(turn + i) % len(cases)]
            integers = dots(case.negative, case.weights, geometry)
            found = shared.run(None, {"x0": case.x})[0]
            if found.shape != integers.shape or not np.array_equal(found, integers):
                wrong.append((turn, i, case))

    workers = [threading.Thread(target=work, args=(turn,)) for turn in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_weights_may_change_between_runs() -> None:
    rng = np.random.default_rng(5)
    case = conv_case(rng, (1, 40, 6, 6), 9, Geometry((3, 3)))
    other = type(case)(case.x, case.shift, ~case.weights, case.geometry)
    more = conv_case(rng, (1, 40, 6, 6), 12, Geometry((3, 3)))
    nodes = [conv_nodes(c, {}, np.zeros((c.weights.shape[0], 1, 1), np.int32))[0] for c in (case, other, more)]
    file = model(nodes[0], constants=set(FLOAT_PARTS) - {"shift"})
    free = onnx.load_from_string(file)
    next(port for port in free.graph.input if port.name == "w_packed0").type.tensor_type.shape.dim[0].dim_param = "o"
    shared = session(free.SerializeToString())
    for node in (*nodes, *nodes, nodes[0], nodes[0]):
        node.check(shared.run(None, {f"{n}0": node.inputs[n] for n in ("x", "w_packed", "shift")})[0])


def test_weights_and_levels_of_8_bits_may_change_between_runs() -> None:
    rng, geometry = np.random.default_rng(5), Geometry((3, 3))
    levels = (Levels(0.25, 128), Levels(0.5, 0), Levels(0.25, 0))
    rounded = (Levels(0.0, 0), Levels(0.0, 0), Levels(64.0, 7))
    cases = [
        byte_case(rng, (1, 3, 6, 6), 9, geometry, levels=a, rounding=b) for a, b in zip(levels, rounded, strict=True)
    ]
    nodes = [byte_node(case) for case in cases]
    shared = session(model(nodes[0], constants=set()))
    for node in (*nodes, *nodes, nodes[0], nodes[0]):
        node.check(shared.run(None, {f"{name}0": value for name, value in node.inputs.items()})[0])


@pytest.mark.parametrize(
    ("part", "value", "problem"),
    [
        ("x_scale", 0.0, "x_scale is 0, expected a normal number above 0"),
        ("x_scale", -0.5, "x_scale is -0.5, expected a normal number above 0"),
        ("x_scale", np.inf, "x_scale is inf, expected a normal number above 0"),
        ("y_scale", np.nan, "y_scale is nan, expected a normal number above 0, or 0 for none"),
        ("y_scale", 2.0**-140, "y_scale is 7.17465e-43, expected a normal number above 0, or 0 for none"),
    ],
)
@pytest.mark.parametrize("constant", [True, False])
def test_scales_of_levels_are_checked(part: str, value: float, problem: str, constant: bool) -> None:
    node = byte_node(byte_case(np.random.default_rng(0), (1, 3, 6, 6), 4, Geometry((3, 3))))
    node.inputs[part] = np.array(value, np.float32)
    with pytest.raises(Exception, match=f"ByteConv2d 'node0': {problem}$"):
        if constant:
            session(model(node))
        else:
            session(model(node, constants=set())).run(None, {f"{name}0": value for name, value in node.inputs.items()})


def test_more_than_512_weights_are_refused_at_load() -> None:
    node = byte_node(byte_case(np.random.default_rng(0), (1, 3, 15, 15), 4, Geometry((12, 15))))
    with pytest.raises(Exception, match="ByteConv2d 'node0': more than 512 weights per output channel"):
        session(model(node))


def test_two_threads_give_the_same_bits_as_one(paths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    case = conv_case(rng, (2, 64, 56, 57), 65, Geometry((3, 3), pads=(1, 1, 1, 1)))
    vector, shape = (65, 1, 1), dots(case.negative, case.weights, case.geometry).shape
    parts = {name: numbers(rng, vector, "normal") for name in ("scale", "bias", "slope", "act_shift_in")}
    nodes = conv_nodes(case, parts | {"residual": numbers(rng, shape, "normal")}, np.zeros(vector, np.int32))
    stem = Geometry((7, 7), (2, 2), (3, 3, 3, 3))
    nodes.append(byte_node(byte_case(rng, (2, 3, 112, 113), 65, stem, parts={"bias": parts["bias"]})))
    nodes.append(image_node(image_case(rng, (2, 3, 150, 153), 65, stem, Geometry((3, 3), (2, 2), (1, 1, 1, 1)))))
    file = model(*nodes)
    for path in paths[1:]:
        monkeypatch.setenv("BNAS_ISA", path)
        one, two = (session(file, threads=threads).run(None, feeds(file, *nodes)) for threads in (1, 2))
        for node, a, b in zip(nodes, one, two, strict=True):
            assert a.tobytes() == b.tobytes()
            node.check(a, path)


def with_fixed_sizes(network: onnx.ModelProto, nodes: Sequence[Node]) -> onnx.ModelProto:
    for port in network.graph.input:
        name, number = port.name[:-1], int(port.name[-1])
        for axis, size in zip(port.type.tensor_type.shape.dim, nodes[number].inputs[name].shape, strict=True):
            axis.dim_value = size
    return network


def behind_a_negation(network: onnx.ModelProto) -> onnx.ModelProto:
    """The network of one node with -x0 as its input: in front of the node is a value that nobody else reads."""
    network.graph.node.insert(0, helper.make_node("Neg", ["minus"], ["x0"]))
    network.graph.input[0].name = "minus"
    return network


def test_a_skip_takes_the_place_of_its_input(paths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    case = conv_case(rng, (2, 33, 97, 83), 33, Geometry((3, 3), pads=(1, 1, 1, 1)))
    vector = (33, 1, 1)
    parts = {name: numbers(rng, vector, "normal") for name in ("scale", "bias", "slope", "act_shift_in")}
    skip = conv_nodes(case, parts, np.zeros(vector, np.int32))[-1]
    file = model(skip)
    whole = {"minus": -case.x}
    behind = behind_a_negation(with_fixed_sizes(onnx.load_from_string(file), [skip]))
    for path in paths[1:]:
        monkeypatch.setenv("BNAS_ISA", path)
        apart = session(file).run(None, feeds(file, skip))[0]
        skip.check(apart, path)
        for threads in (1, 2):
            found = session(behind.SerializeToString(), threads=threads).run(None, whole)[0]
            assert found.tobytes() == apart.tobytes()
    body = session(model(skip, body=True), library=False, optimised=False).run(None, feeds(file, skip))[0]
    skip.check(body, "body")


def test_what_is_not_ours_is_not_overwritten() -> None:
    """Inputs of the network, constants, values that others read, and outputs."""
    rng = np.random.default_rng(10)
    case = conv_case(rng, (1, 33, 9, 8), 33, Geometry((3, 3), pads=(1, 1, 1, 1)))
    residual = numbers(rng, case.x.shape, "normal")
    plain, *_, skip = conv_nodes(case, {"residual": residual}, np.zeros((33, 1, 1), np.int32))
    for constants in (None, set(plain.inputs) - {"x", "residual"}):
        network = with_fixed_sizes(onnx.load_from_string(model(plain, skip, constants=constants)), [plain, skip])
        # y0 is an output, and a skip works on it; so does a second one on the y1 that the first one made.
        for number, source in enumerate(("y0", "y1", "y1")):
            behind = onnx.NodeProto()
            behind.CopyFrom(network.graph.node[1])
            behind.input[0], behind.output[0], behind.name = source, f"z{number}", f"behind{number}"
            network.graph.node.append(behind)
            network.graph.output.append(helper.make_tensor_value_info(f"z{number}", onnx.TensorProto.FLOAT, None))
        values = feeds(network.SerializeToString(), plain, skip)
        given = {name: value.copy() for name, value in values.items()}
        shared = session(network.SerializeToString())
        first, second = shared.run(None, values), shared.run(None, values)
        plain.check(first[0])
        skip.check(first[1])
        np.testing.assert_array_equal(first[3], first[4])
        for one, two in zip(first, second, strict=True):
            assert one.tobytes() == two.tobytes()
        for name, value in values.items():
            np.testing.assert_array_equal(value, given[name])


def test_a_skip_needs_one_tensor_less(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    case = conv_case(rng, (1, 64, 256, 256), 64, Geometry((1, 1)))
    taken = {}
    for node in (nodes := conv_nodes(case, {}, np.zeros((64, 1, 1), np.int32)))[0], nodes[-1]:
        fixed = behind_a_negation(with_fixed_sizes(onnx.load_from_string(model(node)), [node]))
        # A third node makes the result of the second one a value inside of the network.
        fixed.graph.node.append(helper.make_node("GlobalMaxPool", ["y0"], ["most"]))
        fixed.graph.output[0].name = "most"
        file = tmp_path / f"{node.operator}.onnx"
        onnx.save(fixed, file)
        runtime = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so*"))
        command = [native_library.path_of(native_library.RUNNER), file, "--json", "--ort", runtime]
        command += ["--ops", bnas.ops_library_path(), "--runs", "1", "--warmup", "0"]
        report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        taken[node.operator] = report["peak_bytes"] - report["base_bytes"]
    assert 0.9 < (taken["BinaryConv2d"] - taken["BinaryConv2dSkip"]) / case.x.nbytes < 1.1


def test_a_skip_whose_output_would_have_another_shape_is_refused() -> None:
    case = conv_case(np.random.default_rng(0), (1, 8, 6, 6), 8, Geometry((3, 3), pads=(1, 1, 1, 1)))
    node = conv_nodes(case, {}, np.zeros((8, 1, 1), np.int32))[-1]
    strided = model(replace(node, attributes=node.attributes | {"strides": [2, 2]}))
    problem = r"BinaryConv2dSkip 'node0': x is \[1, 8, 6, 6\], expected \[1, 8, 3, 3\] as the output"
    with pytest.raises(Exception, match=problem):
        session(strided).run(None, feeds(strided, node))


def test_an_unknown_path_is_refused_at_registration(paths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BNAS_ISA", "mmx")
    with pytest.raises(Exception, match="BNAS_ISA=mmx is not one of " + ", ".join(paths)):
        onnxruntime.SessionOptions().register_custom_ops_library(bnas.ops_library_path())


def test_the_oldest_onnxruntime_runs_the_kernels(old_python: str, tmp_path: Path) -> None:
    nodes, parts = integer_nodes(), {name: np.full((9, 1, 1), 0.5, np.float32) for name in ("scale", "slope")}
    case = conv_case(np.random.default_rng(8), (2, 65, 7, 7), 9, Geometry((3, 3), pads=(1, 1, 1, 1)))
    nodes += [*conv_nodes(case, parts, np.ones((9, 1, 1), np.int32)), stem_node()]
    for i, node in enumerate(nodes):
        for kind, constants in {"constant": None, "given": set[str]()}.items():
            file = model(node, constants=constants)
            (tmp_path / f"{i}_{kind}.onnx").write_bytes(file)
            np.savez(tmp_path / f"{i}_{kind}.npz", **feeds(file, node))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command: Sequence[str] = [old_python, str(RUN_MODELS), bnas.ops_library_path(), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1.17.")
    for i, node in enumerate(nodes):
        for kind in ("constant", "given"):
            assert not (tmp_path / f"{i}_{kind}.error").exists(), (tmp_path / f"{i}_{kind}.error").read_text()
            node.check(np.load(tmp_path / f"{i}_{kind}.out.npz")["arr_0"], kind)


# --- onnxruntime on aarch64, under an emulator ----------------------------------------------------------------------


@pytest.mark.parametrize("isa", ["neon", "portable"])
def test_onnxruntime_on_aarch64_gives_the_same_integers(
    isa: str, aarch64_runtime: tuple[Path, Path], tmp_path: Path
) -> None:
    library, root = aarch64_runtime
    nodes = integer_nodes()
    case = conv_case(np.random.default_rng(9), (1, 40, 57, 30), 33, Geometry((3, 3), pads=(1, 1, 1, 1)))
    parts = {name: numbers(np.random.default_rng(1), (33, 1, 1), "normal") for name in ("scale", "bias", "slope")}
    nodes += [*conv_nodes(case, parts, np.ones((33, 1, 1), np.int32)), stem_node()]
    file = model(*nodes)
    (tmp_path / "nodes.onnx").write_bytes(file)
    program, ops = built("aarch64", "bnas-runner"), built("aarch64", "libbnas_ort.so")
    command = [*emulator(root), str(program), str(tmp_path / "nodes.onnx"), "--isa", isa, "--runs", "1"]
    command += ["--warmup", "0", "--threads", "2", "--no-optimize", "--ort", str(library), "--ops", str(ops), "--json"]
    for name, value in feeds(file, *nodes).items():
        np.save(tmp_path / f"{name}.npy", value)
        command += ["--input", str(tmp_path / f"{name}.npy")]
    for i in range(len(nodes)):
        command += ["--output", str(tmp_path / f"y{i}.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f'"engine": "native-{isa}"' in done.stdout
    here_found = session(file, optimised=False).run(None, feeds(file, *nodes))
    for i, node in enumerate(nodes):
        found = np.load(tmp_path / f"y{i}.npy")
        node.check(found, isa)
        if i < len(nodes) - 4:
            np.testing.assert_array_equal(found, here_found[i])
