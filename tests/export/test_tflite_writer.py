"""Every form the writer uses is compiled to `LceBconv2d` and computes what the graph says, on even and odd sizes."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

from bnas.export.graph import BinaryConv, FloatOp, Graph, same_pads
from bnas.export.tflite_file import count_binary_convs, operator_counts, read_metadata
from bnas.export.tflite_writer import to_tflite, write_tflite
from bnas.profiles.errors import InputError

SIZES = {16: (8, 8), 32: (9, 6), 33: (7, 7), 64: (8, 8)}  # channels -> height, width
ACTIVATIONS = ("none", "relu", "prelu", "rprelu")
PADDINGS = ("same", "symmetric", "none", "lopsided")
CASES = [
    (kernel, stride, padding, ACTIVATIONS[i % 4], bool(i // 2 % 2), bool(i // 3 % 2))
    for i, (padding, kernel, stride) in enumerate(product(PADDINGS, (1, 3, 5), (1, 2)))
]


def name_of(case: tuple) -> str:
    kernel, stride, padding, activation, shift, residual = case
    return f"k{kernel}s{stride}-{padding}-{activation}{'-shift' * shift}{'-residual' * residual}"


@pytest.fixture(scope="module")
def outputs(require: Callable[[str], None]) -> dict[int, tuple[Graph, np.ndarray, np.ndarray]]:
    """channels -> (graph of all cases side by side, image, what the .tflite computes)."""
    require("tensorflow")
    require("larq_compute_engine")
    found = {}
    for channels in SIZES:
        graph, image = all_cases(channels)
        found[channels] = (graph, image, run(to_tflite(graph, {}), image))
    return found


def all_cases(channels: int) -> tuple[Graph, np.ndarray]:
    """One network with a unit for each case, all reading the image; their outputs are concatenated."""
    rng = np.random.default_rng(channels)
    size = SIZES[channels]
    nodes: list[BinaryConv | FloatOp] = [
        FloatOp(
            "avg_pool",
            "halve",
            ("image",),
            "half",
            {"kernel": (2, 2), "strides": (2, 2), "pads": same_pads(size, (2, 2), (2, 2))},
        )
    ]
    for case in CASES:
        kernel, stride, padding, activation, shift, residual = case
        pads = {
            "same": same_pads(size, (kernel, kernel), (stride, stride)),
            "symmetric": (kernel // 2,) * 4,
            "none": (0, 0, 0, 0),
            "lopsided": (2, 0, 1, 1),
        }[padding]
        source = "half" if stride == 2 else "image"
        fits = residual and (padding == "same" or padding == "symmetric")
        nodes.append(
            unit(rng, name_of(case), channels, kernel, stride, pads, activation, shift, source if fits else None)
        )
    nodes += [FloatOp("flatten", f"flat {n.name}", (n.output,), f"flat {n.name}") for n in nodes[1:]]
    nodes.append(FloatOp("concat", "all", tuple(f"flat {name_of(case)}" for case in CASES), "all"))
    image = (rng.integers(-4, 5, (2, channels, *size)) / 4).astype(np.float32)  # exact zeros and exact ties with shifts
    image[0, :, 0, 0] = -0.0
    return Graph("image", (channels, *size), "all", tuple(nodes)), image


def unit(
    rng: np.random.Generator,
    name: str,
    channels: int,
    kernel: int,
    stride: int,
    pads: tuple[int, int, int, int],
    activation: str,
    shift: bool,
    residual: str | None,
) -> BinaryConv:
    """A random unit; about half of its scales are negative, one is zero."""
    scale = rng.normal(size=channels).astype(np.float32)
    scale[-1] = 0

    def vector() -> np.ndarray:
        return rng.normal(size=channels).astype(np.float32)

    return BinaryConv(
        name=name,
        x="image",
        output=name,
        negative=rng.random((channels, channels, kernel, kernel)) < 0.5,
        scale=scale,
        bias=vector(),
        strides=(stride, stride),
        pads=pads,
        shift=(rng.integers(-2, 3, channels) / 4).astype(np.float32) if shift else None,
        residual=residual,
        slope={"none": None, "relu": np.zeros(channels, np.float32)}.get(activation, vector()),
        act_shift_in=vector() if activation == "rprelu" else None,
        act_shift_out=vector() if activation == "rprelu" else None,
    )


def reference(node: BinaryConv, x: np.ndarray, residual: np.ndarray | None = None) -> np.ndarray:
    """The unit by counting: dot = K - 2 * popcount(a xor w)."""
    a = x < (0 if node.shift is None else node.shift[:, None, None])
    top, left, bottom, right = node.pads
    a = np.pad(a, ((0, 0), (0, 0), (top, bottom), (left, right))).astype(np.int64)
    w = node.negative.astype(np.int64)
    kernel_height, kernel_width = w.shape[2:]
    windows = np.lib.stride_tricks.sliding_window_view(a, (kernel_height, kernel_width), axis=(2, 3))
    windows = windows[:, :, :: node.strides[0], :: node.strides[1]]
    both = np.einsum("nchwij,ocij->nohw", windows, w)
    differing = windows.sum((1, 4, 5))[:, None] + w.sum((1, 2, 3))[:, None, None] - 2 * both

    def per_channel(values: np.ndarray | None, default: float) -> np.ndarray | float:
        return default if values is None else values[:, None, None].astype(np.float64)

    v = (w[0].size - 2 * differing) * per_channel(node.scale, 1) + per_channel(node.bias, 0)
    v = v + (0 if residual is None else residual) - per_channel(node.act_shift_in, 0)
    v = np.where(v < 0, v * per_channel(node.slope, 1), v)
    return v + per_channel(node.act_shift_out, 0)


def run(data: bytes, *images: np.ndarray) -> np.ndarray:
    from larq_compute_engine.tflite.python.interpreter import Interpreter

    return Interpreter(data).predict([np.ascontiguousarray(image.transpose(0, 2, 3, 1)) for image in images])


def halve(x: np.ndarray) -> np.ndarray:
    """Mean over 2x2 windows, at the edges over what is inside."""
    padded = np.pad(x, ((0, 0), (0, 0), (0, x.shape[2] % 2), (0, x.shape[3] % 2)), constant_values=np.nan)
    n, c, height, width = padded.shape
    return np.nanmean(padded.reshape(n, c, height // 2, 2, width // 2, 2), axis=(3, 5))


@pytest.mark.parametrize("case", CASES, ids=name_of)
@pytest.mark.parametrize("channels", SIZES)
def test_a_unit_computes_what_the_graph_says(
    outputs: dict[int, tuple[Graph, np.ndarray, np.ndarray]], channels: int, case: tuple
) -> None:
    graph, image, found = outputs[channels]
    shapes, start = graph.shapes(), 0
    for node in graph.binary_convs:
        size = int(np.prod(shapes[node.output]))
        if node.name == name_of(case):
            residual = {"image": image, "half": halve(image), None: None}[node.residual]
            wanted = reference(node, image, residual).reshape(len(image), -1)
            fan_in = node.negative[0].size  # the runtime computes (K * scale + bias) - popcount * 2 * scale
            rounding = 4 * np.finfo(np.float32).eps * fan_in * float(np.abs(node.scale).max())
            np.testing.assert_allclose(found[:, start : start + size], wanted, rtol=1e-5, atol=rounding)
        start += size
    assert start == found.shape[1]


def test_the_file_is_written_with_its_metadata_and_runs(require: Callable[[str], None], tmp_path) -> None:
    require("tensorflow")
    require("larq_compute_engine")
    rng = np.random.default_rng(0)
    same = same_pads((6, 6), (3, 3), (1, 1))
    graph = Graph("image", (32, 6, 6), "a", (unit(rng, "a", 32, 3, 1, same, "prelu", False, "image"),))
    metadata = {"classes": '["zero", "eins", "zwei", "größer"]', "bnas": "0.1.0"}
    write_tflite(graph, tmp_path / "a.tflite", metadata)
    assert read_metadata(tmp_path / "a.tflite") == metadata
    assert count_binary_convs(tmp_path / "a.tflite") == 1
    assert operator_counts(tmp_path / "a.tflite") == {"LceQuantize": 1, "LceBconv2d": 1, "ADD": 1, "PRELU": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.tflite"]
    data = (tmp_path / "a.tflite").read_bytes()
    assert data == to_tflite(graph, metadata)
    assert run(data, np.zeros((1, 32, 6, 6), np.float32)).shape == (1, 6, 6, 32)


def test_a_residual_may_be_a_second_input(require: Callable[[str], None]) -> None:
    require("tensorflow")
    require("larq_compute_engine")
    rng = np.random.default_rng(1)
    node = unit(rng, "a", 32, 3, 2, same_pads((6, 6), (3, 3), (2, 2)), "rprelu", True, "residual")
    graph = Graph("image", (32, 6, 6), "a", (node,), (("residual", (32, 3, 3)),))
    image, residual = (rng.normal(size=(2, 32, n, n)).astype(np.float32) for n in (6, 3))
    found = run(to_tflite(graph, {}), image, residual).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, reference(node, image, residual), rtol=1e-5, atol=1e-3)


def test_dilation_and_groups(require: Callable[[str], None]) -> None:
    require("torch")
    require("tensorflow")
    require("larq_compute_engine")
    from larq_compute_engine.tflite.python.interpreter import Interpreter

    rng = np.random.default_rng(2)
    scale, bias = np.ones(64, np.float32), np.zeros(64, np.float32)
    negative = rng.random((64, 32, 3, 3)) < 0.5
    nodes = []
    for pads in (same_pads((8, 9), (3, 3), (1, 1), (2, 2)), (1, 1, 1, 1), (0, 0, 0, 0)):
        x = f"pads {pads}"
        nodes.append(
            BinaryConv(x, "image", x, negative ^ (len(nodes) == 1), scale, bias, pads=pads, dilations=(2, 2), groups=2)
        )
    flat = [FloatOp("flatten", f"flat {n.name}", (n.output,), f"flat {n.name}") for n in nodes]
    concat = FloatOp("concat", "all", tuple(n.output for n in flat), "all")
    graph = Graph("image", (64, 8, 9), "all", (*nodes, *flat, concat))
    image = rng.normal(size=(1, 64, 8, 9)).astype(np.float32)
    found = Interpreter(to_tflite(graph, {}), use_indirect_bgemm=True).predict(image.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(found, np.concatenate([dilated(n, image).reshape(1, -1) for n in nodes], 1))


def dilated(node: BinaryConv, image: np.ndarray) -> np.ndarray:
    import torch

    top, left, bottom, right = node.pads
    signs = np.pad(np.where(image < 0, -1.0, 1.0), ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=1.0)
    weight = torch.tensor(np.where(node.negative, -1.0, 1.0))
    return torch.nn.functional.conv2d(torch.tensor(signs), weight, dilation=node.dilations, groups=node.groups).numpy()


def test_float_operators_compute_what_torch_computes(require: Callable[[str], None]) -> None:
    """Symmetric padding with stride 2 on even sizes among them, which the converter alone would get wrong."""
    require("torch")
    require("tensorflow")
    require("larq_compute_engine")
    import torch
    from torch.nn import functional

    rng = np.random.default_rng(3)
    nodes: list[FloatOp] = []
    wanted: dict[str, torch.Tensor] = {}
    image = rng.normal(size=(2, 8, 10, 8)).astype(np.float32)
    x = torch.tensor(image)

    def random(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    def add(kind: str, result: torch.Tensor, inputs: tuple[str, ...] = ("image",), **attributes) -> str:
        name = f"{kind} {len(nodes)}"
        nodes.append(FloatOp(kind, name, inputs, name, attributes))
        wanted[name] = result
        return name

    for groups in (1, 2, 8):
        for stride, pad, dilation in ((1, 1, 1), (2, 1, 1), (2, 0, 1), (1, 2, 2), (1, 3, 1), (2, 2, 2)):
            w, b = random(16, 8 // groups, 3, 3), random(16)
            value = functional.conv2d(x, torch.tensor(w), torch.tensor(b), stride, pad, dilation, groups)
            twice = {"strides": (stride, stride), "pads": (pad,) * 4, "dilations": (dilation, dilation)}
            add("conv", value, weight=w, bias=b, groups=groups, **twice)
    w, b = random(16, 8, 3, 3), random(16)
    value = functional.conv2d(functional.pad(x, (1, 1, 1, 1)), torch.tensor(w), torch.tensor(b), 2)
    padded = add("pad", functional.pad(x, (1, 1, 1, 1)), pads=(1, 1, 1, 1), value=0.0)
    settings = {"strides": (2, 2), "pads": (0, 0, 0, 0), "dilations": (1, 1), "groups": 1}
    add("conv", value, (padded,), weight=w, bias=b, **settings)
    add("pad", functional.pad(x, (2, 0, 1, 0), value=-1.0), pads=(1, 2, 0, 0), value=-1.0)
    shift, slope = random(8), random(8)
    add("sign", torch.where(x < torch.tensor(shift)[:, None, None], -1.0, 1.0), shift=shift)
    scale, bias = random(8), random(8)
    affine = add(
        "affine", x * torch.tensor(scale)[:, None, None] + torch.tensor(bias)[:, None, None], scale=scale, bias=bias
    )
    add("affine", x * 3.0 - 1.0, scale=np.float32([3.0]), bias=np.float32([-1.0]))
    add("add", x + wanted[affine], ("image", affine))
    add("prelu", functional.prelu(x, torch.tensor(slope)), slope=slope)
    add("relu", x.relu())
    for kernel, stride, pad, ceil, pads in (  # the image has 10 x 8 pixels; pads: what the windows read
        ((2, 2), (2, 2), 0, False, (0, 0, 0, 0)),
        ((3, 3), (2, 2), 0, False, (0, 0, 0, 0)),
        ((3, 3), (3, 3), 0, True, (0, 0, 2, 1)),
        ((3, 2), (2, 3), 0, True, (0, 0, 1, 0)),
        ((3, 3), (1, 1), 1, False, (1, 1, 1, 1)),
        ((3, 3), (2, 2), 0, True, (0, 0, 1, 1)),
        ((3, 3), (2, 2), 1, False, (1, 1, 0, 0)),
        ((3, 3), (2, 2), 1, True, (1, 1, 2, 2)),
        ((2, 2), (3, 3), 0, True, (0, 0, 1, 0)),
    ):
        value = functional.avg_pool2d(x, kernel, stride, pad, ceil_mode=ceil, count_include_pad=False)
        add("avg_pool", value, kernel=kernel, strides=stride, pads=pads)
        value = functional.max_pool2d(x, kernel, stride, pad, ceil_mode=ceil)
        add("max_pool", value, kernel=kernel, strides=stride, pads=pads)
    add("concat", torch.cat([x, wanted[affine]], 1), ("image", affine))
    for start, stop, step in ((2, 5, 1), (0, 7, 2), (1, 8, 2), (1, 8, 3)):
        add("slice", x[:, start:stop:step], start=start, stop=stop, step=step)
    mean = add("global_mean", x.mean((2, 3)))
    add("prelu", functional.prelu(wanted[mean], torch.tensor(slope)), (mean,), slope=slope)
    flat = add("flatten", x.flatten(1))
    w, b = random(5, 640), random(5)
    add("linear", functional.linear(wanted[flat], torch.tensor(w), torch.tensor(b)), (flat,), weight=w, bias=b)

    flats = [FloatOp("flatten", f"flat {n.name}", (n.output,), f"flat {n.name}") for n in nodes]
    last = FloatOp("concat", "all", tuple(n.output for n in flats), "all")
    graph = Graph("image", (8, 10, 8), "all", (*nodes, *flats, last))
    found, start = run(to_tflite(graph, {}), image), 0
    for node in nodes:
        value = wanted[node.name].flatten(1).numpy()
        part = found[:, start : start + value.shape[1]]
        np.testing.assert_allclose(part, value, rtol=1e-4, atol=1e-4, err_msg=f"{node.name} {node.attributes}")
        start += value.shape[1]
    assert start == found.shape[1]


def test_groups_that_do_not_fill_words_are_refused() -> None:
    node = BinaryConv("conv3", "image", "y", np.zeros((32, 16, 3, 3), bool), np.ones(32), np.zeros(32), groups=2)
    with pytest.raises(InputError, match=r"'conv3' has 16 channels per group.*multiple of 32"):
        to_tflite(Graph("image", (32, 4, 4), "y", (node,)), {})


def test_a_convolution_that_the_file_lacks_is_named(require: Callable[[str], None]) -> None:
    """Two equal units on one input become one operator."""
    require("tensorflow")
    require("larq_compute_engine")
    same = ("image", np.zeros((32, 32, 1, 1), bool), np.ones(32, np.float32), np.ones(32, np.float32))
    nodes = [BinaryConv(name, same[0], name, *same[1:]) for name in ("first", "second")]
    graph = Graph("image", (32, 4, 4), "sum", (*nodes, FloatOp("add", "sum", ("first", "second"), "sum")))
    with pytest.raises(RuntimeError, match=r"does not hold .*: second$"):
        to_tflite(graph, {})
