"""Two whole networks against their rivals: `python benchmarks/networks.py [--json FILE] [--threads 1 2]`.

Image 3x224x224, random weights, batch 1. Both are made of residual binary 3x3 units in the form of export/graph.py,
act(conv(sign(x)) * scale + bias + residual), with PReLU or ReLU behind the residual:

- bireal18: the Bi-Real Net of 18 layers (Liu et al. 2018). Stem 7x7 stride 2 to 64 channels and 3x3 max-pool stride 2;
  four groups of four binary convolutions of 64, 128, 256 and 512 channels, each with a residual of its own; where the
  size halves, the residual is a 2x2 average pool and a float 1x1 convolution; global average pool, linear.
- bireal18-e8: the same with 8-bit ends, as `ends=8` makes them: the image, what the stem gives, and the means in front
  of the linear layer are rounded to 8 bits, and the weights of both are whole numbers. Its twins are those of bireal18.
- quicknet: QuickNet-like, after the network of that name in Larq Zoo. Stem 3x3 stride 2 to 16 channels, depthwise 3x3
  stride 2, 1x1 to 64; four groups of four residual binary layers of 64, 128, 256 and 512 channels; between them ReLU,
  2x2 max-pool of stride 1, a blurring depthwise 3x3 of stride 2 and a float 1x1 convolution; ReLU, global average pool,
  linear. It is not QuickNet itself: that has ReLU before batch-norm and residual, here they are one fused unit.

Calibrated and checked on real images. Besides times, each path of ours is profiled in a session of its own: how much of
it is binary units, and how much the float operators around them.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # tensorflow's start-up messages

import numpy as np
from comparison import Row, add_options, bench, checks, document, effort, print_result, ratios
from protocols import Bounds, pin
from rich.console import Console
from rivals import EPILOGUES, forced, real_images

from bnas.export.graph import BinaryConv, FloatOp, Graph, output_shape, same_pads
from bnas.export.onnx_functions import BYTE_CONV, IMAGE_CONV
from bnas.export.onnx_writer import to_onnx
from bnas.runtime_bench import native_library

SIZE = 224
CLASSES = 1000
CHANNELS = (64, 128, 256, 512)
DEPTH = 4  # binary convolutions per group
PROFILED_RUNS = 20
TARGETS = (
    ("avx512", "ort-fp32", 6.0, "each"),
    ("avx512", "ort-int8", 2.0, "each"),
    ("litert-avx512", "lce", 10.0, "each"),
    ("litert-avx512", "lce-indirect", 3.0, "each"),
    ("litert-avx512", "tflite-fp32", 3.0, "each"),
)


class Builder:
    """A Graph that grows at its end; `value` names the value made last."""

    def __init__(self, epilogue: str, size: int) -> None:
        self.epilogue = epilogue
        self.rng = np.random.default_rng(0)
        self.nodes: list[BinaryConv | FloatOp] = []
        self.value = "image"
        self.shapes: dict[str, tuple[int, ...]] = {"image": (3, size, size)}

    def graph(self) -> Graph:
        _, height, width = self.shapes["image"]
        return Graph("image", (3, height, width), self.value, tuple(self.nodes))

    def add(self, node: BinaryConv | FloatOp) -> str:
        self.nodes.append(node)
        self.shapes[node.output] = output_shape(node, tuple(self.shapes[name] for name in node.inputs))
        self.value = node.output
        return self.value

    def op(self, kind: str, **attributes: Any) -> str:
        name = f"{kind}{len(self.nodes)}"
        return self.add(FloatOp(kind, name, (self.value,), name, attributes))

    def conv(
        self,
        channels: int,
        kernel: int,
        stride: int = 1,
        *,
        groups: int = 1,
        blur: bool = False,
        whole: bool = False,
    ) -> str:
        """A float convolution with SAME padding and folded batch-norm.

        blur: fixed weights of a 3x3 low-pass. whole: weights that an 8-bit convolution may have.
        """
        shape = (channels, self.shapes[self.value][0] // groups, kernel, kernel)
        weight = self.rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
        bias = 0 if blur else 0.1 * self.rng.standard_normal(channels)
        if blur:
            weight = np.broadcast_to(np.outer([1, 2, 1], [1, 2, 1]) / 16, shape)
        if whole:
            weight, bias = self.whole_numbers(shape), np.rint(64 * bias) / 64
        return self.op(
            "conv",
            weight=weight.astype(np.float32),
            bias=np.broadcast_to(bias, channels).astype(np.float32),
            strides=(stride, stride),
            pads=self._pads(kernel, stride),
            dilations=(1, 1),
            groups=groups,
        )

    def round(self, scale: float) -> str:
        """To 8 bits around 0. scale: a power of 2, so that sums are exact, and values half-way everywhere alike."""
        return self.op("quantize", scale=scale, zero_point=128)

    def whole_numbers(self, shape: tuple[int, ...]) -> np.ndarray:
        """Weights that are whole multiples of a power of 2, the largest of each output channel 127 times it."""
        steps = np.clip(np.rint(40 * self.rng.standard_normal(shape)), -127, 127)
        steps.reshape(shape[0], -1)[:, 0] = 127
        return (steps * 2.0 ** -round(math.log2(40 * math.sqrt(math.prod(shape[1:]))))).astype(np.float32)

    def max_pool(self, kernel: int, stride: int, *, pad: bool) -> str:
        pads = self._pads(kernel, stride) if pad else (0, 0, 0, 0)
        return self.op("max_pool", kernel=(kernel, kernel), strides=(stride, stride), pads=pads)

    def binary(self, channels: int, stride: int = 1, *, x: str, residual: str) -> str:
        """A binary 3x3 unit. Scales, biases and slopes are short in binary: rounding hardly ever flips a sign."""
        inputs = self.shapes[x][0]
        scale = 2.0 ** -round(math.log2(inputs * 9) / 2)
        slope = self.rng.choice([0.125, 0.25], channels) * (self.epilogue == "prelu")
        name = f"binary{len(self.nodes)}"
        return self.add(
            BinaryConv(
                name,
                x,
                name,
                negative=self.rng.random((channels, inputs, 3, 3)) < 0.5,
                scale=(scale * self.rng.choice([0.5, 1.0], channels)).astype(np.float32),
                bias=(self.rng.integers(-48, 16, channels) / 64).astype(np.float32),
                strides=(stride, stride),
                pads=same_pads(self._size(x), (3, 3), (stride, stride)),
                residual=residual,
                slope=slope.astype(np.float32),
            )
        )

    def head(self, *, whole: bool = False) -> None:
        self.op("global_mean")
        features = self.shapes[self.value][0]
        weight = self.rng.standard_normal((CLASSES, features)) / math.sqrt(features)
        if whole:
            self.round(1 / 16)
            weight = self.whole_numbers((CLASSES, features))
        self.op("linear", weight=weight.astype(np.float32), bias=np.zeros(CLASSES, np.float32))

    def _size(self, value: str) -> tuple[int, int]:
        _, height, width = self.shapes[value]
        return (height, width)

    def _pads(self, kernel: int, stride: int) -> tuple[int, int, int, int]:
        return same_pads(self._size(self.value), (kernel, kernel), (stride, stride))


def bireal18(epilogue: str, size: int = SIZE, *, ends: int = 32) -> Graph:
    net = Builder(epilogue, size)
    whole = ends == 8
    if whole:
        net.round(1 / 32)
    net.conv(CHANNELS[0], 7, 2, whole=whole)
    if whole:
        net.round(1 / 16)
    net.max_pool(3, 2, pad=True)
    for group, channels in enumerate(CHANNELS):
        for number in range(DEPTH):
            x = residual = net.value
            stride = 2 if group and not number else 1
            if stride == 2:
                net.op("avg_pool", kernel=(2, 2), strides=(2, 2), pads=(0, 0, 0, 0))
                residual = net.conv(channels, 1)
            net.binary(channels, stride, x=x, residual=residual)
    net.head(whole=whole)
    return net.graph()


def quicknet(epilogue: str, size: int = SIZE) -> Graph:
    net = Builder(epilogue, size)
    net.conv(CHANNELS[0] // 4, 3, 2)
    net.op("relu")
    net.conv(CHANNELS[0] // 4, 3, 2, groups=CHANNELS[0] // 4)
    net.conv(CHANNELS[0], 1)
    for group, channels in enumerate(CHANNELS):
        if group:
            net.op("relu")
            net.max_pool(2, 1, pad=False)
            net.conv(CHANNELS[group - 1], 3, 2, groups=CHANNELS[group - 1], blur=True)
            net.conv(channels, 1)
        for _ in range(DEPTH):
            net.binary(channels, x=net.value, residual=net.value)
    net.op("relu")
    net.head()
    return net.graph()


NETWORKS: dict[str, Callable[..., Graph]] = {
    "bireal18": bireal18,
    "bireal18-e8": partial(bireal18, ends=8),
    "quicknet": quicknet,
}


def macs(graph: Graph) -> tuple[int, int]:
    """Multiply-accumulates of its (binary, float) convolutions and linear layers."""
    shapes, count = graph.shapes(), Counter[bool]()
    for node in graph.nodes:
        binary = isinstance(node, BinaryConv)
        weight = node.negative if isinstance(node, BinaryConv) else node.attributes.get("weight")
        if weight is not None:
            count[binary] += math.prod(shapes[node.output][1:]) * weight.size
    return count[True], count[False]


def breakdown(graph: Graph, isa: str, threads: int, runs: int = PROFILED_RUNS) -> dict[str, Any]:
    """Where our time goes: ms per operator (median over the runs, summed over its nodes), by onnxruntime's profiler.

    "binary_ms" is None without the operator library, where a unit is inlined into float operators. An 8-bit stem is
    neither in it nor in "float_ms".
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.enable_profiling = True
    image = np.random.default_rng(0).standard_normal((1, *graph.input_shape)).astype(np.float32)
    with tempfile.TemporaryDirectory(prefix="bnas-") as folder, forced(isa):
        options.profile_file_prefix = str(Path(folder, "profile"))
        if library := native_library.operator_library():
            options.register_custom_ops_library(str(library))
        data = to_onnx(graph, {}).SerializeToString()
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        for _ in range(runs):
            session.run(None, {graph.input: image})
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            nodes[event["args"]["op_name"], event["name"]].append(event["dur"] / 1e3)
    by_operator: Counter[str] = Counter()
    for (operator, _), taken in nodes.items():
        by_operator[operator] += float(np.median(taken))
    binary = sum(by_operator[name] for name in native_library.OPERATORS - {BYTE_CONV, IMAGE_CONV}) or None
    return {
        "binary_ms": binary,
        "float_ms": None if binary is None else sum(by_operator.values()) - binary - by_operator[BYTE_CONV],
        "by_operator": dict(by_operator.most_common()),
    }


def print_breakdown(rows: Sequence[Row]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    for row in rows:
        parts = ", ".join(f"{name} {ms:.2f}" for name, ms in list(row["by_operator"].items())[:7])
        name = f"{row['network']} {row['epilogue']} {row['isa']}, {row['threads']} thread{'s'[: row['threads'] - 1]}"
        binary = "" if row["binary_ms"] is None else f"binary {row['binary_ms']:.2f}, float {row['float_ms']:.2f} ms; "
        console.print(f"{name}: {binary}{parts}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--seconds", type=float, default=20.0, help="least duration of a network's blocks (default 20)")
    options = parser.parse_args(arguments)
    cores = pin(max(options.threads))
    bounds = Bounds(options.isa)
    rows: list[Row] = []
    profiles: list[Row] = []
    facts: dict[str, Any] = {}
    for name in options.networks:
        graphs = {epilogue: NETWORKS[name](epilogue) for epilogue in EPILOGUES}
        binary, rest = macs(graphs[EPILOGUES[0]])
        facts[name] = {"binary_macs": binary, "float_macs": rest}
        for threads in options.threads:
            started = time.perf_counter()
            found = bench(
                {"network": name},
                graphs,
                real_images(SIZE, SIZE),
                macs=binary + rest,
                engines=options.engines,
                isas=options.isa,
                threads=threads,
                bounds=bounds,
                **effort(options),
            )
            rows += found
            ran = dict.fromkeys((row["isa"], row["epilogue"]) for row in found if row["engine"] == "bnas")
            runs = 3 if options.quick else PROFILED_RUNS
            for isa, epilogue in ran:
                place = {"network": name, "isa": isa, "epilogue": epilogue, "threads": threads}
                profiles.append(place | breakdown(graphs[epilogue], isa, threads, runs))
            print(f"{name}, {threads} threads: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    lines = ratios(rows, "network")
    checked = checks(lines, TARGETS)
    print_result(lines, checked, "network", quick=options.quick)
    print_breakdown(profiles)
    if options.json:
        more = {"cores": cores, "quick": options.quick, "networks": facts, "profiles": profiles}
        options.json.write_text(json.dumps(document(rows, bounds, lines, checked, **more), indent=1) + "\n")


if __name__ == "__main__":
    main()
