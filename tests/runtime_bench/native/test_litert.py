"""The delegate in stock LiteRT: every operator of Larq's against its definition, and against Larq's own interpreter."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnas.runtime_bench import native_library
from bnas.runtime_bench.litert_engine import _host, find_host

from .cases import REQUIRE_ALL
from .conftest import built, here, missing
from .litert_files import (
    ACTIVATIONS,
    Around,
    Array,
    Case,
    Conv,
    Network,
    chain_case,
    conv_case,
    dequantize_case,
    pool_case,
    quantize_case,
    unit_case,
)

RUN_TFLITE = Path(__file__).with_name("run_tflite.py")
SEED = 1 if REQUIRE_ALL else int.from_bytes(os.urandom(4), "little")

CONVS = {
    "plain": Conv(),
    "one_tap": Conv(kernel=(1, 1), channels=33, outputs=17),
    "valid": Conv(padding="valid", kernel=(2, 3)),
    "zero": Conv(padding="zero"),
    "zero_stride": Conv(padding="zero", stride=(2, 2), size=(7, 8), kernel=(5, 3)),
    "zero_dilation": Conv(padding="zero", dilation=(2, 3), size=(11, 12)),
    "stride_of_even": Conv(stride=(2, 2), size=(8, 6)),
    "uneven": Conv(stride=(2, 3), size=(9, 7), kernel=(3, 2)),
    "dilation": Conv(dilation=(2, 1), size=(9, 8)),
    "far_apart": Conv(dilation=(40, 30), size=(2, 3), channels=32, outputs=16),  # most of the taps are pads alone
    "few_channels": Conv(channels=3, outputs=5),
    "many_channels": Conv(channels=300, outputs=130, size=(3, 4)),
    "groups": Conv(channels=128, outputs=40, groups=2),
    "groups_of_words": Conv(channels=96, outputs=96, groups=3),
    "groups_zero": Conv(channels=64, outputs=36, groups=2, padding="zero"),
    "batch": Conv(batch=3, size=(4, 5)),
    "wide": Conv(channels=32, outputs=530, size=(2, 2)),  # more channels than one strip of counts
    "large": Conv(channels=64, outputs=64, size=(20, 21)),
}
AROUND = {
    "signs": Around(),
    "residual": Around(residual=True),
    "prelu": Around(residual=True, activation="prelu"),
    "relu": Around(activation="relu"),
    "residual_relu": Around(residual=True, activation="relu"),
    "add_relu": Around(residual=True, activation="add_relu"),
    "all": Around(True, True, True, "prelu", True),
    "all_added": Around(True, True, True, "prelu", True, add=True),
    "one_value": Around(True, True, True, "prelu", True, one_value=True),
    "shifts_only": Around(shift=True, shift_in=True),
}


def convs() -> Iterator[tuple[str, Conv]]:
    """The table, each with every kind of output and activation that goes with it."""
    for name, conv in CONVS.items():
        for output, activation in itertools.product(("float32", "int8", "int32"), ACTIVATIONS):
            if output == "int32" and activation != "none":
                continue  # thresholds take the place of activations
            yield f"{name} {output} {activation}", _with(conv, output=output, activation=activation)


def _with(conv: Conv, **changes: Any) -> Conv:
    return Conv(**(vars(conv) | changes))


def cases(rng: np.random.Generator) -> Iterator[tuple[str, Case]]:
    for name, conv in convs():
        yield name, conv_case(conv, rng)
    for name, around in AROUND.items():
        yield f"unit {name}", unit_case(Conv(outputs=40), around, rng)
    for kind, channels in itertools.product(("float32", "int8", "bool"), (1, 31, 32, 40, 64)):
        yield f"quantize {kind} {channels}", quantize_case(kind, channels, rng)
        yield f"dequantize {kind} {channels}", dequantize_case(kind, channels, rng)
    for kernel, stride, padding in itertools.product(((2, 2), (3, 2)), ((1, 1), (2, 3)), ("valid", "same")):
        yield f"pool {kernel} {stride} {padding}", pool_case(kernel, stride, padding, 70, rng)
    yield "chain", chain_case(rng)


@pytest.fixture(scope="module")
def library() -> str:
    here()
    found = native_library.litert_library()
    return str(found or built("native", native_library.LITERT))


@pytest.fixture(scope="module")
def host() -> str:
    return find_host() or missing("needs LiteRT: pip install 'bnas[litert]'")


@pytest.fixture(scope="module")
def run(library: str, host: str) -> Callable[..., list[Array]]:
    """run(file, feeds, **options) -> the outputs."""
    interpreter_class, load_delegate, _ = _host(host)

    def with_delegate(file: bytes, feeds: dict[str, Array], **options: str) -> list[Array]:
        delegates = [load_delegate(library, options)]
        interpreter = interpreter_class(model_content=file, num_threads=1, experimental_delegates=delegates)
        interpreter.allocate_tensors()
        for entry in interpreter.get_input_details():
            interpreter.set_tensor(entry["index"], feeds[entry["name"]])
        interpreter.invoke()
        return [interpreter.get_tensor(entry["index"]) for entry in interpreter.get_output_details()]

    return with_delegate


def paths() -> list[str]:
    from bnas.runtime_bench.native import _native

    return list(_native.paths())


def test_every_operator_gives_what_its_definition_says(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    print("seed", SEED)
    for path in paths():
        monkeypatch.setenv("BNAS_ISA", path)
        for name, case in cases(np.random.default_rng(SEED)):
            case.check(run(case.network.file(), case.feeds)[0], f"{name} on {path}")


def lce_outputs(case: Case) -> Array:
    """By Larq's interpreter, with the first of its kernels that takes the file."""
    from larq_compute_engine.tflite.python.interpreter import Interpreter

    file = case.network.file()
    for kernels in ({}, {"use_indirect_bgemm": True}, {"use_reference_bconv": True}):
        try:
            interpreter = Interpreter(file, **kernels)
        except RuntimeError:
            continue
        found = interpreter.interpreter.predict([case.feeds[name] for name in case.network.inputs])
        return np.asarray(found[0])
    raise AssertionError("Larq's interpreter does not take the file")


def test_larqs_interpreter_gives_the_same(run: Any, require: Callable[[str], None]) -> None:
    require("larq_compute_engine")
    if int(np.__version__.partition(".")[0]) >= 2:
        missing("Larq's interpreter needs numpy < 2")
    print("seed", SEED)
    for name, case in cases(np.random.default_rng(SEED)):
        if "zero" in name and ("relu" in name or " int" in name):
            continue  # refused by all but its reference kernels, see below
        if name.startswith("batch"):
            continue  # its interpreter feeds one image at a time
        theirs, ours = lce_outputs(case), run(case.network.file(), case.feeds)[0]
        if ours.dtype == np.float32:
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max(), err_msg=name)
        else:
            np.testing.assert_array_equal(ours, theirs, err_msg=name)


def test_fuse_is_a_bool_or_a_digit(run: Any) -> None:
    case = unit_case(Conv(channels=40, outputs=20), Around(residual=True), np.random.default_rng(SEED))
    for value in (True, False, 1, 0, "1", "0"):
        case.check(run(case.network.file(), case.feeds, fuse=value)[0], value)
    for value in ("yes", "", 2):
        with pytest.raises(ValueError, match=f"fuse={value} is not known; there is fuse=0 and fuse=1"):
            run(case.network.file(), case.feeds, fuse=value)


def test_zero_points_beyond_8_bits_are_cut(run: Any) -> None:
    """+1 and -1 are 4 steps from the zero point; what lies outside of 8 bits becomes their end."""
    case = dequantize_case("int8", 40, np.random.default_rng(SEED))
    minus = case.expected == case.expected.min()
    for zero in (1000, 130, -130, -1000, 2**31 - 1, -(2**31)):
        tensors = case.network.tensors | {"y": replace(case.network.tensors["y"], zero_point=zero)}
        found = run(replace(case.network, tensors=tensors).file(), case.feeds)[0]
        np.testing.assert_array_equal(found, np.clip(np.where(minus, zero - 4, zero + 4), -128, 127), err_msg=str(zero))


def test_names_of_options_that_nobody_looks_for(run: Any) -> None:
    """However long they are, and even if they begin as one of ours."""
    case = conv_case(Conv(), np.random.default_rng(SEED))
    op = case.network.operators[0]
    more = {"a" * 63: 1, "b" * 64: 2, "c" * 65: 3, "channels_in" + "_" * 100_000: 4}
    network = replace(case.network, operators=(replace(op, options=op.options | more),))
    case.check(run(network.file(), case.feeds)[0])


def test_other_sizes_after_fusing(library: str, host: str) -> None:
    """What was fused at one size also runs at others, where the residual is repeated for each image, or the reverse."""
    interpreter_class, load_delegate, _ = _host(host)
    rng = np.random.default_rng(SEED)
    case = unit_case(Conv(channels=40, outputs=20), Around(True, True, True, "prelu", True), rng)
    values = {name: rng.standard_normal((4, *feed.shape[1:])).astype(np.float32) for name, feed in case.feeds.items()}

    def run(fuse: str, **feeds: Array) -> Array:
        options = {"num_threads": 1, "experimental_delegates": [load_delegate(library, {"fuse": fuse})]}
        interpreter = interpreter_class(model_content=case.network.file(), **options)
        interpreter.allocate_tensors()
        entries = {entry["name"]: entry["index"] for entry in interpreter.get_input_details()}
        for name, value in feeds.items():
            interpreter.resize_tensor_input(entries[name], value.shape)
        interpreter.allocate_tensors()
        for name, value in feeds.items():
            interpreter.set_tensor(entries[name], value)
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))

    def one(x: int, residual: int) -> Array:
        """By itself, which other tests compare with its definition."""
        return run("0", x=values["x"][x : x + 1], residual=values["residual"][residual : residual + 1])

    for images, residuals in ((4, 1), (1, 4), (4, 4), (0, 1), (0, 0)):
        feeds = {"x": values["x"][:images], "residual": values["residual"][:residuals]}
        count = 0 if images == 0 else max(images, residuals)
        for fuse in "10" if count else "1":  # the runtime's own addition may crash where one of the two is empty
            found = run(fuse, **feeds)
            assert found.shape == (count, 6, 5, 20)
            for i in range(count):
                expected = one(min(i, images - 1), min(i, residuals - 1))[0]
                np.testing.assert_allclose(found[i], expected, rtol=0, atol=case.tolerance, err_msg=f"{i} of {images}")
    small = {"x": values["x"][:2], "residual": values["residual"][:2, :1, :, :1]}
    np.testing.assert_allclose(run("1", **small), run("0", **small), rtol=0, atol=case.tolerance)
    with pytest.raises((RuntimeError, ValueError), match=r"the residual is \[3, 6, 5, 20\], which does not go with"):
        run("1", x=values["x"], residual=values["residual"][:3])


def delegated(run_folder: Path, library: str, *options: str) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, str(RUN_TFLITE), library, str(run_folder), *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    return {name: int(count) for name, count in (line for line in lines if len(line) == 2)}


def test_fused_and_apart_agree_and_nothing_else_is_claimed(run: Any) -> None:
    """Where a value in between is wanted too, it must be there, whether or not its neighbours are computed at once."""
    rng = np.random.default_rng(SEED)
    for name, around in AROUND.items():
        case = unit_case(Conv(outputs=40), around, rng)
        (together,), (apart,) = (run(case.network.file(), case.feeds, fuse=fuse) for fuse in "10")
        np.testing.assert_allclose(together, apart, rtol=0, atol=case.tolerance, err_msg=name)
        inner = [op.outputs[0] for op in case.network.operators]
        shown = Network(case.network.tensors, case.network.operators, case.network.inputs, tuple(inner))
        values, wanted = (run(shown.file(), case.feeds, fuse=fuse) for fuse in "10")
        for value, expected, tensor in zip(values, wanted, inner, strict=True):
            np.testing.assert_allclose(value, expected, rtol=0, atol=case.tolerance, err_msg=f"{name} {tensor}")
