"""Files that are wrong in some way: LiteRT raises an error, or runs. Nothing crashes, hangs or reads elsewhere."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnas.runtime_bench import native_library
from bnas.runtime_bench.litert_engine import find_host

from .conftest import built, here, missing
from .litert_files import (
    Around,
    Array,
    Conv,
    Network,
    Op,
    Tensor,
    chain_case,
    conv_case,
    dequantize_case,
    pool_case,
    unit_case,
)
from .test_fuzz import sanitized
from .test_litert import RUN_TFLITE, SEED

NUMBERS = [0, -1, 2, 3, 7, 33, 255, (1 << 20) + 1, (1 << 31) - 1, -(1 << 31), 1 << 40, -(1 << 62)]
SIZES = [0, 1, 2, 5, 64, 70_000, (1 << 31) - 1]
MOST_ELEMENTS = 1 << 24  # of a tensor that is really made
KNOWN_ERRORS = {"ValueError", "RuntimeError"}


def sound_networks(rng: np.random.Generator) -> list[Network]:
    cases = [
        conv_case(Conv(channels=40, outputs=20, groups=1, output=str(rng.choice(["float32", "int8", "int32"]))), rng),
        conv_case(Conv(channels=64, outputs=36, groups=2, padding="zero"), rng),
        unit_case(Conv(outputs=20), Around(True, True, True, "prelu", True), rng),
        pool_case((3, 2), (2, 1), "same", 40, rng),
        chain_case(rng),
    ]
    return [case.network for case in cases]


def options_of(network: Network, rng: np.random.Generator) -> int | None:
    """One of the operators that have options."""
    found = [i for i, op in enumerate(network.operators) if isinstance(op.options, dict)]
    return int(rng.choice(found)) if found else None


def with_operator(network: Network, index: int, op: Op) -> Network:
    operators = list(network.operators)
    operators[index] = op
    return replace(network, operators=tuple(operators))


def with_tensor(network: Network, name: str, tensor: Tensor) -> Network:
    return replace(network, tensors=network.tensors | {name: tensor})


def some_tensor(network: Network, rng: np.random.Generator, constant: bool | None = None) -> str:
    names = [n for n, t in network.tensors.items() if constant is None or (t.data is not None) == constant]
    return str(rng.choice(names or list(network.tensors)))


# Each: (network, rng) -> (a spoilt one, whether it must be refused).


def spoil_number(network: Network, rng: np.random.Generator) -> tuple[Network, bool]:
    index = options_of(network, rng)
    if index is None:
        return network, False
    op = network.operators[index]
    name = str(rng.choice(list(op.options)))
    number = int(rng.choice(np.array(NUMBERS, object)))
    outside = number < 0 or number > 1 << 20 or (number == 0 and ("stride" in name or "filter" in name))
    return with_operator(network, index, replace(op, options=op.options | {name: number})), outside


def spoil_option(network: Network, rng: np.random.Generator) -> tuple[Network, bool]:
    """An option that is missing, or of a type that is no number."""
    index = options_of(network, rng)
    if index is None:
        return network, False
    op = network.operators[index]
    name = str(rng.choice(list(op.options)))
    changed = {key: value for key, value in op.options.items() if key != name}
    if rng.random() < 0.5:
        changed[name] = [1, 2]
    return with_operator(network, index, replace(op, options=changed)), True


def spoil_bytes(network: Network, rng: np.random.Generator) -> tuple[Network, bool]:
    """Options that are cut, or have some other bytes in them."""
    from flatbuffers import flexbuffers

    index = options_of(network, rng)
    if index is None:
        return network, False
    op = network.operators[index]
    octets = np.frombuffer(bytes(flexbuffers.Dumps(op.options)), np.uint8).copy()
    if rng.random() < 0.3:
        octets = octets[: rng.integers(len(octets))]
    else:
        octets[rng.integers(len(octets), size=rng.integers(1, 5))] = rng.integers(0, 256)
    return with_operator(network, index, replace(op, options=octets.tobytes())), False


def spoil_shape(network: Network, rng: np.random.Generator) -> tuple[Network, bool]:
    """Another size, fewer axes or more; the data of constants stays as it is."""
    name = some_tensor(network, rng)
    tensor = network.tensors[name]
    shape = list(tensor.shape)
    kind = rng.integers(3)
    if kind == 0 and shape:
        shape[rng.integers(len(shape))] = int(rng.choice(SIZES))
    elif kind == 1:
        shape = shape[:-1]
    else:
        shape = [1, *shape]
    refused = tensor.data is not None and int(np.prod(shape, dtype=object)) != tensor.data.size
    return with_tensor(network, name, replace(tensor, shape=tuple(shape))), refused


def spoil_data(network: Network, rng: np.random.Generator) -> tuple[Network, bool]:
    """A constant that ends early."""
    name = some_tensor(network, rng, constant=True)
    tensor = network.tensors[name]
    if tensor.data is None or tensor.data.size < 2:
        return network, False
    whole = np.frombuffer(np.ascontiguousarray(tensor.data).tobytes(), np.uint8)
    return with_tensor(network, name, replace(tensor, data=whole[: rng.integers(1, len(whole))])), True


def spoil_type(network: Network, rng: np.random.Generator) -> tuple[Network, bool]:
    name = some_tensor(network, rng)
    tensor = network.tensors[name]
    other = str(rng.choice([kind for kind in ("float32", "int32", "int8", "bool") if kind != tensor.type]))
    return with_tensor(network, name, replace(tensor, type=other)), tensor.data is not None


def spoil_constant(network: Network, rng: np.random.Generator) -> tuple[Network, bool]:
    """A constant that is none."""
    name = some_tensor(network, rng, constant=True)
    return with_tensor(network, name, replace(network.tensors[name], data=None)), False


def spoil_inputs(network: Network, rng: np.random.Generator) -> tuple[Network, bool]:
    index = int(rng.integers(len(network.operators)))
    op = network.operators[index]
    inputs = list(op.inputs)
    kind = rng.integers(3)
    if kind == 0:
        inputs = inputs[: rng.integers(len(inputs))]
    elif kind == 1:
        inputs[rng.integers(len(inputs))] = some_tensor(network, rng)
    else:
        inputs = [*inputs, some_tensor(network, rng)]
    ours = op.name.startswith("Lce")
    return with_operator(network, index, replace(op, inputs=tuple(inputs))), ours and kind != 1


def spoil_output(network: Network, rng: np.random.Generator) -> tuple[Network, bool]:
    """An output of ours that is a constant of the file: whoever writes there changes the model, or crashes."""
    name = str(rng.choice([op.outputs[0] for op in network.operators if op.name.startswith("Lce")]))
    return with_tensor(network, name, constant_like(network.tensors[name])), True


def constant_like(tensor: Tensor) -> Tensor:
    return replace(tensor, data=np.zeros(tensor.shape, tensor.type))


SPOILS: list[Callable[[Network, np.random.Generator], tuple[Network, bool]]] = [
    spoil_number,
    spoil_option,
    spoil_bytes,
    spoil_shape,
    spoil_data,
    spoil_type,
    spoil_constant,
    spoil_inputs,
    spoil_output,
]


def feeds(network: Network, rng: np.random.Generator) -> dict[str, Array] | None:
    """Something for each input; None if they are too large to be made."""
    found: dict[str, Any] = {}
    for name in network.inputs:
        tensor = network.tensors[name]
        if int(np.prod(tensor.shape, dtype=object)) > MOST_ELEMENTS:
            return None
        found[name] = (10 * rng.standard_normal(tensor.shape)).astype(tensor.type)
    return found


def write(folder: Path, rng: np.random.Generator, count: int) -> list[tuple[str, bool]]:
    """`count` spoilt files; what was done to each, and whether it must be refused."""
    written: list[tuple[str, bool]] = []
    while len(written) < count:
        networks = sound_networks(rng)
        network = networks[int(rng.integers(len(networks)))]
        spoil = SPOILS[int(rng.integers(len(SPOILS)))]
        spoilt, refused = spoil(network, rng)
        values = feeds(spoilt, rng)
        if spoilt is network or values is None:
            continue
        name = f"{len(written):05}"
        (folder / f"{name}.tflite").write_bytes(spoilt.file())
        np.savez(folder / f"{name}.npz", **values)
        written.append((f"{spoil.__name__} of {[op.name for op in network.operators]}", refused))
    return written


def run(folder: Path, library: str, written: list[tuple[str, bool]], environment: dict[str, str]) -> dict[str, int]:
    command = [sys.executable, str(RUN_TFLITE), library, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=dict(os.environ) | environment)
    finished = {path.name[:5] for pattern in ("*.error", "*.out.npz") for path in folder.glob(pattern)}
    if done.returncode:
        first = next((i for i in range(len(written)) if f"{i:05}" not in finished), None)
        about = None if first is None else written[first]
        raise AssertionError(f"exit code {done.returncode} at {first}, {about}\n{done.stderr[-3000:]}")
    counts = {"refused": 0, "ran": 0}
    for i, (what, refused) in enumerate(written):
        error = folder / f"{i:05}.error"
        counts["refused" if error.exists() else "ran"] += 1
        assert error.exists() or not refused, f"ran, though it must not: {folder}/{i:05}.tflite, {what}"
        if error.exists():
            assert error.read_text().partition(":")[0] in KNOWN_ERRORS, f"{error.read_text()}: {what}"
    return counts


@pytest.fixture(autouse=True)
def need_host() -> None:
    here()
    find_host() or missing("needs LiteRT: pip install 'bnas[litert]'")


def test_spoilt_files_are_refused_or_run(tmp_path: Path) -> None:
    print("seed", SEED)
    written = write(tmp_path, np.random.default_rng(SEED), 300)
    library = native_library.litert_library() or built("native", native_library.LITERT)
    counts = run(tmp_path, str(library), written, {})
    assert min(counts.values()) > 20, counts


@pytest.mark.parametrize("count", [150, pytest.param(5_000, marks=pytest.mark.slow)])
def test_spoilt_files_with_sanitizers(count: int, tmp_path: Path) -> None:
    print("seed", SEED)
    written = write(tmp_path, np.random.default_rng(SEED), count)
    run(tmp_path, str(built("sanitize", native_library.LITERT)), written, sanitized())


def test_what_is_wrong_is_said_in_one_line(tmp_path: Path) -> None:
    """The error names the operator, the value and what was expected."""
    rng = np.random.default_rng(0)
    conv = conv_case(Conv(), rng)
    op = conv.network.operators[0]
    weights = conv.network.tensors["w"]
    wrong = {
        "option stride_width is 0, expected 1 to 1048576": replace(op, options=op.options | {"stride_width": 0}),
        "option padding is missing": replace(op, options={k: v for k, v in op.options.items() if k != "padding"}),
        "the padded image of 40006 x 40005 is more than 64 times as large as the image of 6 x 5": replace(
            op, options=op.options | {"dilation_height_factor": 20_000, "dilation_width_factor": 20_000}
        ),
        "the options are no whole flexbuffer map": replace(op, options=b"\x01\x02\x03"),
    }
    networks = {said: with_operator(conv.network, 0, changed) for said, changed in wrong.items()}
    networks["it has 0 outputs, expected 1"] = with_operator(conv.network, 0, replace(op, outputs=()))
    networks["it has no inputs"] = with_operator(conv.network, 0, replace(op, inputs=()))
    networks["x is [1, 6, 5, 3], expected 2 in the last axis"] = with_tensor(
        conv.network, "x", Tensor((1, 6, 5, 3), "int32")
    )
    networks["the filter has type 1, expected 2"] = with_tensor(conv.network, "w", replace(weights, type="float32"))
    networks["the filter is no constant"] = with_tensor(conv.network, "w", replace(weights, data=None))
    for i, network in enumerate(networks.values()):
        (tmp_path / f"{i:05}.tflite").write_bytes(network.file())
        np.savez(tmp_path / f"{i:05}.npz", **(feeds(network, rng) or {}))
    library = native_library.litert_library() or built("native", native_library.LITERT)
    run(tmp_path, str(library), [(said, True) for said in networks], {})
    for i, said in enumerate(networks):
        assert f"LceBconv2d (node 0): {said}" in (tmp_path / f"{i:05}.error").read_text()


def test_constants_are_never_written(tmp_path: Path) -> None:
    """Neither by an operator alone nor by what is computed with a convolution, whichever of the values it is."""
    unit = unit_case(Conv(outputs=20), Around(True, True, True, "prelu", True), np.random.default_rng(0))
    pool = pool_case((2, 2), (2, 2), "same", 40, np.random.default_rng(0))
    back = dequantize_case("float32", 40, np.random.default_rng(0))
    last = unit.network.operators[-1]
    named = [(unit, "bits"), (unit, "conv"), (unit, last.outputs[0]), (pool, "y"), (back, "y")]
    written = []
    for i, (case, name) in enumerate(named):
        network = with_tensor(case.network, name, constant_like(case.network.tensors[name]))
        (tmp_path / f"{i:05}.tflite").write_bytes(network.file())
        np.savez(tmp_path / f"{i:05}.npz", **case.feeds)
        written.append((f"{name} of {[op.name for op in network.operators]}", True))
    library = native_library.litert_library() or built("native", native_library.LITERT)
    run(tmp_path, str(library), written, {})
    for i, (what, _) in enumerate(written):
        assert "the output is a constant of the file" in (tmp_path / f"{i:05}.error").read_text(), what
