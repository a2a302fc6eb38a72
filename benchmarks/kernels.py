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
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # tensorflow's start-up messages

import numpy as np
from protocols import Bounds, alternate, blocks, pin, times
from rich.console import Console
from rich.table import Table
from rivals import (
    ENGINES,
    EPILOGUES,
    FUNCTION_FLOAT,
    Contender,
    agreement,
    contenders,
    function_body,
    native_module,
    native_paths,
    real_activations,
)

from bnas.export.graph import BinaryConv, Graph, same_pads
from bnas.runtime_bench import machine

UNITS = 8
AGREEMENT = 0.99  # of the values of ours and the function body's
# (path, rival, at least this many times as fast, "each" layer or the "geomean" of all)
TARGETS = (
    ("avx512", "ort-fp32", 8.0, "each"),
    ("avx512", "ort-int8", 2.5, "each"),
    ("avx512", "lce-indirect", 8.0, "each"),
    ("avx512", "lce", 25.0, "each"),
    ("avx512", "ort-fp32", 10.0, "geomean"),
    ("avx512", "ort-int8", 3.0, "geomean"),
    ("avx2", "ort-fp32", 2.5, "each"),
)

Row = dict[str, Any]


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
        return -((-self.size // self.stride) ** 2) * self.in_channels * self.out_channels * self.kernel**2


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


def bench_layer(
    layer: Layer,
    bounds: Bounds,
    *,
    engines: Sequence[str] = ENGINES,
    isas: Sequence[str] = (),
    rounds: int,
    seconds: float,
    passes: int,
    units: int = UNITS,
) -> list[Row]:
    """All rows of one layer; both epilogues of all engines are timed in the same turns."""
    images = real_activations(layer.in_channels, layer.size, layer.size)
    entered: list[Contender] = []
    for epilogue in EPILOGUES:
        graph = units_graph(layer, epilogue, units)
        found = list(contenders(graph, epilogue, images, engines=engines, isas=isas))
        check_outputs(found, graph, images[:1])
        entered += found
    runs = {contender.name: contender.run for contender in entered}
    own_bounds = Bounds(isas)
    taken = {
        "blocks": blocks(runs, own_bounds, rounds=rounds, seconds=seconds),
        "alternate": alternate(runs, passes=passes, seconds=seconds / 2),
    }
    limits = own_bounds.medians()
    for isa, samples in own_bounds.samples.items():
        bounds.samples[isa] += samples
    rows = []
    for protocol, measured in taken.items():
        for contender in entered:
            row = {
                "layer": layer.name,
                "engine": contender.engine,
                "isa": contender.isa,
                "epilogue": contender.epilogue,
                "protocol": protocol,
                "threads": 1,
                **times(measured[contender.name], units),
            }
            row["gmac_s"] = layer.macs / row["p50_ms"] / 1e6
            if contender.isa in limits:
                row["bound_fraction"] = row["gmac_s"] / limits[contender.isa]
            rows.append({**row, **contender.notes})
    return rows


def check_outputs(found: Sequence[Contender], graph: Graph, x: np.ndarray) -> None:
    """Ours and Larq's must compute what the file says; the int8 and TFLite twins about what the fp32 twin computes.

    Raises RuntimeError naming the engine that does not. What is compared is noted as "agreement" or "correlation".
    """
    results = {contender: contender.output(x) for contender in found}
    binary = function_body(graph)(x)
    twins = [result for contender, result in results.items() if contender.engine == "ort-fp32"]
    for contender, result in results.items():
        if contender.engine == "bnas" or contender.engine.startswith("lce"):
            contender.notes["agreement"] = agreement(result, binary)
            if contender.notes["agreement"] < AGREEMENT:
                raise RuntimeError(f"{contender.name}: only {contender.notes['agreement']:.1%} as the function body")
        elif twins:
            contender.notes["correlation"] = float(np.corrcoef(result.ravel(), twins[0].ravel())[0, 1])
            if not contender.notes["correlation"] > 0.9:
                raise RuntimeError(f"{contender.name}: correlation {contender.notes['correlation']:.2f} with ort-fp32")


def ratios(rows: Sequence[Row], place: str = "layer", protocol: str = "blocks") -> list[Row]:
    """Per row of ours: p50_ms, and per rival the p50_ms of its fastest form and how many times as fast ours is."""
    rows = [row for row in rows if row["protocol"] == protocol]
    fastest: dict[tuple[str, str, int], float] = {}
    for row in rows:
        if row["engine"] != "bnas":
            key = (row[place], row["engine"], row["threads"])
            fastest[key] = min(row["p50_ms"], fastest.get(key, math.inf))
    result = []
    for row in rows:
        if row["engine"] == "bnas":
            own = {(e): ms for (p, e, t), ms in fastest.items() if (p, t) == (row[place], row["threads"])}
            line = {name: row.get(name) for name in (place, "isa", "epilogue", "threads", "p50_ms", "bound_fraction")}
            result.append({**line, "rivals": own, "ratios": {engine: ms / row["p50_ms"] for engine, ms in own.items()}})
    return result


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values))


def checks(lines: Sequence[Row], targets: Sequence[tuple[str, str, float, str]] = TARGETS) -> list[Row]:
    """Each target with the value that counts (the least ratio, or the geometric mean) and whether it is met.

    Only targets of which something was measured. A function body (no operator library) meets none.
    """
    found = []
    for isa, rival, wanted, kind in targets:
        values = [line["ratios"][rival] for line in lines if line["isa"] == isa and rival in line["ratios"]]
        if values:
            value = min(values) if kind == "each" else geometric_mean(values)
            entry = {"isa": isa, "rival": rival, "kind": kind, "target": wanted, "value": value}
            missed = sum(ratio < wanted for ratio in values) if kind == "each" else int(value < wanted)
            found.append({**entry, "missed": missed, "of": len(values), "met": value >= wanted})
    return found


def print_result(console: Console, lines: Sequence[Row], found: Sequence[Row], place: str = "layer") -> None:
    """The table of ratios, geometric means below, and PASS or FAIL per target."""
    rivals = [engine for engine in ENGINES if any(engine in line["ratios"] for line in lines)]
    unit = "us" if place == "layer" else "ms"
    factor = 1e3 if unit == "us" else 1.0
    table = Table(title=f"blocks, median {unit}; in brackets: ours is that many times as fast as its fastest form")
    for column in (place, "path", "epilogue", "threads", "ours", "of bound", *rivals):
        table.add_column(column, justify="left" if column in (place, "path", "epilogue") else "right", no_wrap=True)
    for line in lines:
        bound = line["bound_fraction"]
        cells = [
            f"{factor * line['rivals'][r]:.{0 if factor > 1 else 2}f} ({line['ratios'][r]:.1f})"
            if r in line["ratios"]
            else ""
            for r in rivals
        ]
        ours = f"{factor * line['p50_ms']:.{1 if factor > 1 else 2}f}"
        table.add_row(
            line[place],
            line["isa"],
            line["epilogue"],
            str(line["threads"]),
            ours,
            f"{bound:.0%}" if bound else "",
            *cells,
        )
    for isa, epilogue in dict.fromkeys((line["isa"], line["epilogue"]) for line in lines):
        own = [line["ratios"] for line in lines if (line["isa"], line["epilogue"]) == (isa, epilogue)]
        means = [f"({geometric_mean([r[e] for r in own if e in r]):.2f})" for e in rivals]
        table.add_row("geometric mean", isa, epilogue, "", "", "", *means, style="bold")
    console.print(table)
    for check in found:
        what = "on every row" if check["kind"] == "each" else "geometric mean"
        missed = (
            f", {check['missed']} of {check['of']} rows below" if check["kind"] == "each" and not check["met"] else ""
        )
        console.print(
            f"{'PASS' if check['met'] else 'FAIL'}  {check['isa']} against {check['rival']}, {what}: "
            f"{check['value']:.2f}, wanted {check['target']:g}{missed}",
            highlight=False,
        )
    if any(line["isa"] == FUNCTION_FLOAT for line in lines):
        console.print("No operator library is installed: ours ran as float arithmetic, no speed-up may be claimed.")


def document(rows: Sequence[Row], bounds: Bounds, lines: Sequence[Row], found: Sequence[Row], **more: Any) -> Row:
    """The JSON of a run. bound_gmac_s is that of the fastest path."""
    medians = bounds.medians()
    return {
        "bound_gmac_s": max(medians.values(), default=None),
        "bounds": medians,
        "cpu": machine.processor(),
        **more,
        "environment": machine.describe(),
        "library_version": getattr(native_module(), "version", None),
        "rows": list(rows),
        "ratios": list(lines),
        "checks": list(found),
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that kernels.py and networks.py share."""
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--isa", nargs="+", default=None, help="paths of our kernels (default: all of this processor)")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--rounds", type=int, default=12, help="at least so many rounds of blocks (default 12)")
    parser.add_argument("--quick", action="store_true", help="2 rounds: does it run? No number of it may be quoted")


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
    isas = options.isa or native_paths()
    rounds, passes, seconds = (2, 2, 0.0) if options.quick else (options.rounds, 30, options.seconds)
    bounds = Bounds(isas)
    rows: list[Row] = []
    for layer in LAYERS:
        if layer.name not in options.layers:
            continue
        started = time.perf_counter()
        rows += bench_layer(
            layer, bounds, engines=options.engines, isas=isas, rounds=rounds, seconds=seconds, passes=passes
        )
        print(f"{layer.name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    lines = ratios(rows)
    found = checks(lines)
    print_result(Console(width=None if sys.stdout.isatty() else 200), lines, found)
    if options.json:
        result = document(rows, bounds, lines, found, cores=cores, units=UNITS, quick=options.quick)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
