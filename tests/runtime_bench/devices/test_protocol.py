"""The same questions to every kind of device, and nothing left behind by any of them."""

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnas.profiles.errors import InputError
from bnas.runtime_bench import machine, native_library
from bnas.runtime_bench.devices import open_device
from bnas.runtime_bench.engines import open_engine

from .conftest import NEAR, URLS
from .ssh_server import SshServer

UGLY = [
    "a b.onnx",
    'it\'s "this".onnx',
    "x;touch pwned;.onnx",
    "$(touch pwned).onnx",
    "two\nlines\ttab.onnx",
    "-rf.onnx",
]


@pytest.mark.parametrize("url", URLS, indirect=True)
def test_whole_protocol(url: str, network: bytes, images: np.ndarray, device_folder: Path, server: SshServer) -> None:
    with open_device(url) as target:
        emulated = "emulator" in url
        assert (target.url, target.local, target.emulated) == (url, url == "local", emulated)
        found = target.describe()
        assert json.loads(json.dumps(found)) == found and found.keys() == machine.describe().keys()
        assert found["arch"] == ("aarch64" if emulated else machine.here().arch)
        assert found["onnxruntime"] and found["memory_mb"] > 0 and found["cpus"]
        assert (target.fingerprint() == machine.fingerprint()) is not emulated
        assert target.usable_cores() == len(found["cpus"]) == machine.usable_cores()
        assert set(target.state()) == {"governor", "clock_mhz", "limit_mhz", "temperature_c", "throttled"}
        assert (target.bound_gmacs() is None) is emulated
        engine = target.engine()
        assert engine.name.startswith("native-") and engine.runtime == "onnxruntime" and engine.version

        kernels, bodies = target.open(network, 1), target.open(network, 1, kernels=False)
        assert (kernels.name, kernels.version, kernels.operators) == (engine.name, engine.version, engine.operators)
        assert (bodies.name, bodies.operators) == ("function-float", None)
        for session in (kernels, bodies):
            assert session.input_shape == (32, 8, 8) and session.input_layout == "NCHW" and session.load_ms > 0
            assert session.means_of is None
            samples = session.timed(1, 4)
            assert len(samples) == 4 and all(isinstance(ns, int) and ns > 0 for ns in samples)
            np.testing.assert_allclose(session.infer(images), open_engine(network).run(images), rtol=1e-5, atol=1e-5)
        kernels.close()
        kernels.close()

        taken = target.memory(network, 1)
        assert taken is None if emulated else taken and 0 < taken["base_bytes"] <= taken["peak_bytes"]
        nodes = target.unit_profile(network, 1, 3)
        assert native_library.OPERATORS & {node["op"] for node in nodes} and all(node["ms"] >= 0 for node in nodes)
    assert list(device_folder.iterdir()) == []
    assert list((server.folder / "home").iterdir()) == []


@pytest.mark.parametrize("url", ["local", "ssh", "adb", "emulator"], indirect=True)
def test_file_names_mean_nothing_to_a_shell(url: str, network: bytes, tmp_path: Path, device_folder: Path) -> None:
    before = os.environ.copy()
    names = UGLY if url in ("local", "ssh://board", "adb:SERIAL-1") else UGLY[:1]
    with open_device(url) as target:
        for name in names:
            (tmp_path / name).write_bytes(network)
            assert target.open(tmp_path / name).timed(0, 1)
    assert dict(os.environ) == dict(before)
    for folder in (tmp_path, device_folder, Path.cwd(), Path.home()):
        assert not list(folder.glob("pwned*")) and not list(folder.glob("x"))
    assert list(device_folder.iterdir()) == []


@pytest.mark.parametrize("url", ["adb"], indirect=True)
def test_the_only_device_is_named_by_its_serial_number(url: str, network: bytes) -> None:
    """So that what was measured on it is found again when there are two."""
    with open_device("adb:") as target:
        assert target.url == url == "adb:SERIAL-1"
        assert target.open(network).timed(0, 1)


@pytest.mark.parametrize("relative", [False, True])
def test_files_that_are_called_as_modules_are_not_imported(
    relative: bool, network: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnx", "numpy", "onnxruntime", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the user was imported')")
    (tmp_path / "model.onnx").write_bytes(network)
    monkeypatch.chdir(tmp_path)
    with open_device("local") as target:
        taken = target.memory(Path("model.onnx") if relative else network, 1)
    assert taken and 0 < taken["base_bytes"] <= taken["peak_bytes"]


@pytest.mark.parametrize("url", ["adb"], indirect=True)
def test_no_user_string_is_in_a_command(url: str, network: bytes, tmp_path: Path, adb_log: Path) -> None:
    path = tmp_path / "the-users;name$(id).onnx"
    path.write_bytes(network)
    with open_device(url) as target:
        session = target.open(path)
        session.infer(np.zeros((1, 32, 8, 8), np.float32))
        target.memory(path, 1), target.unit_profile(path, 1, 1)
    asked = adb_log.read_text()
    assert asked.count("\n") > 10 and "users" not in asked


@pytest.mark.parametrize("url", ["local", "ssh", "emulator"], indirect=True)
def test_without_kernels_function_bodies_run(
    url: str, network: bytes, images: np.ndarray, without_kernels: Callable[[str], None]
) -> None:
    expected = open_engine(network, kernels=False).run(images[:3])
    without_kernels(url)
    with open_device(url) as target:
        session = target.open(network)
        assert target.engine().name == session.name == "function-float"
        assert target.engine().operators is session.operators is target.bound_gmacs() is None
        np.testing.assert_allclose(session.infer(images[:3]), expected, rtol=1e-5, atol=1e-5)
        assert session.timed(0, 2) and (url == "emulator" or target.memory(network, 1))
        nodes = {node["op"] for node in target.unit_profile(network, 1, 1)}
        assert nodes & {"Conv", "FusedConv"} and not nodes & native_library.OPERATORS


@pytest.mark.parametrize("url", ["local", "ssh"], indirect=True)
def test_weights_beside_the_file_are_taken_along(url: str, tmp_path: Path) -> None:
    import onnx
    from onnx import helper, numpy_helper

    weights = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32)
    shapes = [helper.make_tensor_value_info(name, 1, [1, channels, 9, 9]) for name, channels in (("x", 3), ("y", 8))]
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    graph = helper.make_graph([node], "outside", shapes[:1], shapes[1:], [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    whole = model.SerializeToString()
    path = tmp_path / "outside.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="weights beside", size_threshold=0)
    x = np.random.default_rng(1).standard_normal((1, 3, 9, 9)).astype(np.float32)
    with open_device(url) as target:
        np.testing.assert_allclose(target.open(path).infer(x), open_engine(whole).run(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("url", ["local", *NEAR], indirect=True)
def test_bad_files_and_choices_are_named(url: str, network: bytes, tmp_path: Path, device_folder: Path) -> None:
    broken = tmp_path / "cut; off.onnx"
    broken.write_bytes(network[: len(network) // 2])
    with open_device(url) as target:
        with pytest.raises(InputError, match=r"cut; off\.onnx"):
            target.open(broken)
        with pytest.raises(InputError, match="does not exist"):
            target.open(tmp_path / "absent.onnx")
        with pytest.raises(InputError, match="threads must be at least 1, got 0"):
            target.open(network, 0)
        with pytest.raises(InputError, match="takes images of shape"):
            target.open(network).infer(np.zeros((1, 31, 8, 8), np.float32))
        assert target.open(network).timed(0, 1), "a refused file does not end the connection"
    with pytest.raises(InputError, match="no CPU 999"), open_device(url, cpus="999"):
        pass
    assert list(device_folder.iterdir()) == []


def tiny(inputs: dict[str, tuple[int, list[Any] | None]], nodes: list[tuple[str, list[str]]], out: list[Any]) -> bytes:
    """inputs: name -> (type, shape); nodes: (operator, its inputs), the last of which gives y of shape `out`."""
    from onnx import helper, numpy_helper

    given = [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()]
    kind = next(iter(inputs.values()))[0] if inputs else 1
    ones = numpy_helper.from_array(np.ones((1, 2), np.float32), "ones")
    made = [helper.make_node(operator, names, ["y"]) for operator, names in nodes]
    found = [helper.make_tensor_value_info("y", kind, out)] if out else []
    graph = helper.make_graph(made, "tiny", given, found, [ones])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


TYPES = ["FLOAT", "DOUBLE", "FLOAT16", "UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "UINT64", "INT64",
         "BOOL", "STRING"]  # fmt: skip
ODD: dict[str, tuple[Any, ...]] = {
    "no inputs": ({}, [("Identity", ["ones"])], [1, 2]),
    "no outputs": ({"x": (1, [1, 2])}, [("Identity", ["x"])], []),
    "a scalar": ({"x": (1, [])}, [("Add", ["x", "ones"])], [1, 2]),
    "a second scalar": ({"x": (1, [1, 2]), "s": (1, [])}, [("Add", ["x", "s"])], [1, 2]),
    "a free axis": ({"x": (1, [1, "w"])}, [("Identity", ["x"])], [1, "w"]),
    "a free batch": ({"x": (1, ["n", 2])}, [("Identity", ["x"])], ["n", 2]),
    "two inputs": ({"x": (1, [1, 2]), "z": (1, [1, 2])}, [("Add", ["x", "z"])], [1, 2]),
}
ACCEPTED = {"a free batch", "two inputs", "FLOAT", "UINT8", "INT8", "UINT32", "INT32", "INT64"}


@pytest.mark.parametrize("url", ["local", *NEAR], indirect=True)
def test_every_device_refuses_the_same_files(url: str, network: bytes) -> None:
    from onnx import TensorProto

    def typed(name: str) -> tuple[Any, ...]:
        return {"x": (TensorProto.DataType.Value(name), [1, 2])}, [("Identity", ["x"])], [1, 2]

    files = {name: tiny(*parts) for name, parts in (ODD | {name: typed(name) for name in TYPES}).items()}
    ran = set()
    with open_device(url) as target:
        for name, model in files.items():
            with contextlib.suppress(InputError):
                assert len(target.open(model).timed(0, 1)) == 1
                ran.add(name)
        assert target.open(network).timed(0, 1)
    assert ran == ACCEPTED


@pytest.mark.parametrize("url", ["local", *NEAR], indirect=True)
def test_chosen_cpus_and_path(url: str, network: bytes) -> None:
    chosen = machine.usable_cpus()[-1:]
    before = machine.usable_cpus(), os.environ.get("BNAS_ISA")
    with open_device(url, cpus=str(chosen[0]), isa="portable") as target:
        assert target.describe()["cpus"] == list(chosen) and target.usable_cores() == 1
        assert target.engine().name == target.open(network).name == "native-portable"
    assert (machine.usable_cpus(), os.environ.get("BNAS_ISA")) == before
    with pytest.raises(InputError, match="nonsense"), open_device(url, isa="nonsense") as target:
        target.engine()


def kept(folder: Path) -> dict[str, int]:
    """Every file -> when it was written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("url", NEAR, indirect=True)
def test_kept_files_are_pushed_again_only_if_they_are_spoilt(url: str, network: bytes, device_folder: Path) -> None:
    with open_device(url, keep=True) as target:
        target.open(network)
    first = kept(device_folder)
    assert first and all(path.startswith("bnas-kit/") and "model" not in path for path in first)
    cut, zeroed = (next(device_folder.rglob(name)) for name in (native_library.LIBRARY, native_library.RUNNER))
    cut.write_bytes(b"")
    zeroed.write_bytes(bytes(zeroed.stat().st_size))
    with open_device(url, keep=True) as target:
        assert target.open(network).timed(0, 1)
    second = kept(device_folder)
    changed = {path for path in first if first[path] != second[path]}
    assert first.keys() == second.keys() and changed == {str(p.relative_to(device_folder)) for p in (cut, zeroed)}


@pytest.mark.parametrize("url", ["adb"], indirect=True)
def test_kept_files_whose_content_the_device_cannot_tell(
    url: str, network: bytes, tmp_path: Path, device_folder: Path
) -> None:
    without = tmp_path / "commands" / "sha256sum"
    without.write_text("#!/bin/sh\nexit 127\n")
    without.chmod(0o755)
    for _ in range(2):
        with open_device(url, keep=True) as target:
            assert target.open(network).timed(0, 1)
        runner = next(device_folder.rglob(native_library.RUNNER))
        runner.write_bytes(bytes(runner.stat().st_size))


@pytest.mark.parametrize("url", ["ssh"], indirect=True)
def test_what_was_kept_for_others_goes_when_it_is_old(url: str, device_folder: Path) -> None:
    """Files of another version of bnas, and its own, which were long not used."""
    with open_device(url, keep=True):
        own = kept(device_folder)
    others = {"0123456789abcdef": 40, "fedcba9876543210": 20}  # days ago
    ages = others | {path.name: 50 for path in (device_folder / "bnas-kit").iterdir()}
    for name, days in ages.items():
        folder = device_folder / "bnas-kit" / name
        folder.mkdir(exist_ok=True)
        if name in others:
            (folder / native_library.RUNNER).write_bytes(b"of another version")
        os.utime(folder, (time.time() - 86400 * days,) * 2)
    with open_device(url, keep=True):
        assert kept(device_folder).keys() == own.keys() | {f"bnas-kit/fedcba9876543210/{native_library.RUNNER}"}


@pytest.mark.parametrize("url", ["ssh"], indirect=True)
def test_a_shell_that_greets(
    url: str, network: bytes, images: np.ndarray, device_folder: Path, server: SshServer
) -> None:
    greeting = server.folder / "home" / ".bashrc"
    greeting.write_text("echo 'welcome {to}\tthis board'\n")
    try:
        for _ in range(2):
            with open_device(url, keep=True) as target:
                here = open_engine(network).run(images)
                np.testing.assert_allclose(target.open(network).infer(images), here, rtol=1e-5, atol=1e-5)
                assert target.memory(network, 1) and target.describe()["memory_mb"]
    finally:
        greeting.unlink()
    assert [path.name for path in device_folder.iterdir()] == ["bnas-kit"]
