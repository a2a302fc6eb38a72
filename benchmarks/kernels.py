"""One whole binary unit inside onnxruntime against its rivals: `python benchmarks/kernels.py [--json FILE]`.

One thread, pinned to one core. A file holds 8 equal units, each with weights of its own, so that what a call costs is
shared; all times are per unit. Where the shape allows, the units form a chain with a residual around each; where the
channels or the image size change, all 8 read the same input and the residual of each is the output of the one before,
so that there is one output as well. The first unit has no residual: a float input as residual would keep onnxruntime's
rivals out of their own layout for the whole chain, which no real network does. Parts: sign, packing, convolution,
batch-norm, residual, activation (PReLU or ReLU); the twins have convolution, residual and activation.

The int8 twin is calibrated on activations of real images. A ratio counts against the fastest form of a rival: the
smaller of its PReLU and ReLU times in the same run. See docs/kernels.md for how to read the result.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # tensorflow's start-up messages

import numpy as np
from comparison import Row, add_options, bench, checks, document, effort, print_result, ratios
from protocols import Bounds, pin
from rivals import EPILOGUES, real_activations

from bnas.export.graph import BinaryConv, Graph, same_pads

UNITS = 8
TARGETS = (
    ("avx512", "ort-fp32", 8.0, "each"),
    ("avx512", "ort-int8", 2.5, "each"),
    ("avx512", "lce-indirect", 8.0, "each"),
    ("avx512", "lce", 25.0, "each"),
    ("avx512", "ort-fp32", 10.0, "geomean"),
    ("avx512", "ort-int8", 3.0, "geomean"),
    ("avx2", "ort-fp32", 2.5, "each"),
)


@dataclass(frozen=True)
class Layer:
    """One convolution at a square input of `size` pixels, SAME padding."""

    in_channels: int
    out_channels: int
    size: int
    kernel: int = 3
    stride: int = 1

    @property
    def name(self) -> str:
        channels = f"{self.in_channels}" if self.chained else f"{self.in_channels}->{self.out_channels}"
        return f"{self.size}x{self.size}x{channels} k{self.kernel} s{self.stride}"

    @property
    def chained(self) -> bool:
        """Whether a unit's output can be the next one's input."""
        return self.in_channels == self.out_channels and self.stride == 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one unit."""
        pixels = (-(-self.size // self.stride)) ** 2
        return pixels * self.in_channels * self.out_channels * self.kernel**2


LAYERS = (
    Layer(64, 64, 56),
    Layer(128, 128, 28),
    Layer(256, 256, 14),
    Layer(512, 512, 7),
    Layer(64, 64, 56, kernel=1),
    Layer(256, 256, 14, kernel=1),
    Layer(64, 64, 28, kernel=5),
    Layer(64, 128, 56, stride=2),
    Layer(33, 33, 28),
    Layer(48, 48, 28),
    Layer(96, 96, 28),
)


def units_graph(layer: Layer, epilogue: str, units: int = UNITS) -> Graph:
    """The units as one network, input "x"; weights do not depend on the epilogue.

    Scales, biases and slopes are short in binary, so that hardly anything is rounded and results can be compared.
    """
    rng = np.random.default_rng(0)
    out = layer.out_channels
    size, kernel, strides = (layer.size,) * 2, (layer.kernel,) * 2, (layer.stride,) * 2
    scale = 2.0 ** -round(math.log2(layer.in_channels * layer.kernel**2) / 2)  # 1 / sqrt(K): outputs of variance 1
    nodes = []
    for number in range(units):
        slope = rng.choice([0.125, 0.25], out) * (epilogue == "prelu")
        nodes.append(
            BinaryConv(
                name=f"unit{number}",
                x=f"y{number - 1}" if layer.chained and number else "x",
                output=f"y{number}",
                negative=rng.random((out, layer.in_channels, *kernel)) < 0.5,
                scale=(scale * rng.choice([0.5, 1.0], out)).astype(np.float32),
                bias=(rng.integers(-32, 32, out) / 64).astype(np.float32),
                strides=strides,
                pads=same_pads(size, kernel, strides),
                residual=f"y{number - 1}" if number else None,
                slope=slope.astype(np.float32),
            )
        )
    return Graph("x", (layer.in_channels, *size), nodes[-1].output, tuple(nodes))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    names = [layer.name for layer in LAYERS]
    parser.add_argument("--layers", nargs="+", choices=names, default=names, metavar="LAYER", help=f"of: {names}")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="blocks of a layer last at least so long (default 4)"
    )
    options = parser.parse_args(arguments)
    cores = pin(1)
    bounds = Bounds(options.isa)
    rows: list[Row] = []
    for layer in LAYERS:
        if layer.name not in options.layers:
            continue
        started = time.perf_counter()
        rows += bench(
            {"layer": layer.name},
            {epilogue: units_graph(layer, epilogue) for epilogue in EPILOGUES},
            real_activations(layer.in_channels, layer.size, layer.size),
            macs=layer.macs,
            units=UNITS,
            engines=options.engines,
            isas=options.isa,
            bounds=bounds,
            **effort(options),
        )
        print(f"{layer.name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    lines = ratios(rows, "layer")
    found = checks(lines, TARGETS)
    print_result(lines, found, "layer", quick=options.quick)
    if options.json:
        result = document(rows, bounds, lines, found, cores=cores, units=UNITS, quick=options.quick)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
