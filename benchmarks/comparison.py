"""From a network in its two forms to rows, ratios and PASS or FAIL; shared by kernels.py and networks.py."""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from protocols import MIN_PASSES, Bounds, alternate, blocks, times
from rich.console import Console
from rich.table import Table
from rivals import (
    ENGINES,
    FUNCTION_FLOAT,
    OURS,
    Contender,
    agreement,
    contenders,
    function_body,
    native_module,
    native_paths,
)

from bnas.export.graph import Graph
from bnas.runtime_bench import machine
from bnas.runtime_bench.measure import MIN_ROUNDS

AGREEMENT = 0.99  # of the values of ours and the function body's
CORRELATION = 0.9  # of a twin's values and the fp32 twin's

Row = dict[str, Any]
Target = tuple[str, str, float, str]
"""(path, rival, at least this many times as fast, on "each" row or as the "geomean" of all). Of ours in LiteRT a path
begins with "litert-"."""


def bench(
    place: Mapping[str, str],
    graphs: Mapping[str, Graph],
    images: np.ndarray,
    *,
    macs: int,
    units: int = 1,
    engines: Sequence[str] = ENGINES,
    isas: Sequence[str] = (),
    threads: int = 1,
    rounds: int = MIN_ROUNDS,
    seconds: float = 0.0,
    passes: int = MIN_PASSES,
    bounds: Bounds | None = None,
) -> list[Row]:
    """The JSON rows of one network: every engine, path and epilogue (the keys of `graphs`), both protocols.

    All are timed in the same turns. place: the first entry of each row, {"layer": ...} or {"network": ...}. images:
    float32 [N, C, H, W], see `contenders`. A run holds `units` parts of `macs` multiply-accumulates, and times are of
    one. The bounds measured between the rounds are added to `bounds`. Raises as `contenders` and `check_outputs` do.
    """
    entered: list[Contender] = []
    for epilogue, graph in graphs.items():
        found = list(contenders(graph, epilogue, images, engines=engines, isas=isas, threads=threads))
        check_outputs(found, graph, images[:1])
        entered += found
    runs = {contender.name: contender.run for contender in entered}
    own = Bounds(isas)
    measured = {
        "blocks": blocks(runs, own, rounds=rounds, seconds=seconds),
        "alternate": alternate(runs, passes=passes, seconds=seconds / 2),
    }
    limits = own.highest()
    if bounds:
        bounds.add(own)
    rows = []
    for protocol, taken in measured.items():
        for contender in entered:
            labels = {name: getattr(contender, name) for name in ("engine", "isa", "epilogue")}
            row = {**place, **labels, "protocol": protocol, "threads": threads}
            row |= times(taken[contender.name], units)
            row["gmac_s"] = macs / row["p50_ms"] / 1e6
            if contender.isa in limits and len(graph.nodes) == units:  # nothing but units
                row["bound_fraction"] = row["gmac_s"] / (limits[contender.isa] * threads)
            rows.append(row | contender.notes)
    return rows


def check_outputs(found: Sequence[Contender], graph: Graph, x: np.ndarray) -> None:
    """Ours and Larq's must compute what the file says; the int8 and TFLite twins about what the fp32 twin computes.

    Raises RuntimeError naming the engine that does not. What is compared is noted as "agreement" or "correlation".
    """
    results = {contender: contender.output(x) for contender in found}
    binary = function_body(graph)(x)
    twins = [result for contender, result in results.items() if contender.engine == "ort-fp32"]
    for contender, result in results.items():
        if contender.engine in OURS or contender.engine.startswith("lce"):
            contender.notes["agreement"] = agreement(result, binary)
            if contender.notes["agreement"] < AGREEMENT:
                raise RuntimeError(f"{contender.name}: only {contender.notes['agreement']:.1%} as the function body")
        elif twins:
            contender.notes["correlation"] = float(np.corrcoef(result.ravel(), twins[0].ravel())[0, 1])
            if not contender.notes["correlation"] > CORRELATION:
                raise RuntimeError(f"{contender.name}: correlation {contender.notes['correlation']:.2f} with ort-fp32")


def ratios(rows: Sequence[Row], place: str, protocol: str = "blocks") -> list[Row]:
    """Per row of ours: p50_ms, and per rival the p50_ms of its fastest form and how many times as fast ours is."""
    rows = [row for row in rows if row["protocol"] == protocol]
    fastest: dict[tuple[str, str, int], float] = {}
    for row in rows:
        if row["engine"] not in OURS:
            key = (row[place], row["engine"], row["threads"])
            fastest[key] = min(row["p50_ms"], fastest.get(key, math.inf))
    result = []
    for row in rows:
        if row["engine"] in OURS:
            own = {e: ms for (p, e, t), ms in fastest.items() if (p, t) == (row[place], row["threads"])}
            line = {name: row.get(name) for name in (place, "isa", "epilogue", "threads", "p50_ms", "bound_fraction")}
            if row["engine"] == "litert-native":
                line["isa"] = f"litert-{row['isa']}"
            result.append({**line, "rivals": own, "ratios": {engine: ms / row["p50_ms"] for engine, ms in own.items()}})
    return result


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values))


def checks(lines: Sequence[Row], targets: Sequence[Target]) -> list[Row]:
    """Each target of one thread with the value that counts, the least ratio or the geometric mean, and "met".

    A target of which nothing was measured is left out; a function body (no operator library) has none.
    """
    found = []
    for isa, rival, wanted, kind in targets:
        own = [line["ratios"] for line in lines if (line["isa"], line["threads"]) == (isa, 1)]
        values = [ratios[rival] for ratios in own if rival in ratios]
        if not values:
            continue
        counts = values if kind == "each" else [geometric_mean(values)]
        entry = {"isa": isa, "rival": rival, "kind": kind, "target": wanted, "value": min(counts)}
        missed = sum(value < wanted for value in counts)
        found.append({**entry, "missed": missed, "of": len(counts), "met": not missed})
    return found


def print_result(lines: Sequence[Row], found: Sequence[Row], place: str, *, quick: bool = False) -> None:
    """The table of ratios, geometric means below, and PASS or FAIL per target."""
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    rivals = [engine for engine in ENGINES if any(engine in line["ratios"] for line in lines)]
    unit, factor, digits = ("us", 1e3, 0) if place == "layer" else ("ms", 1.0, 2)
    table = Table(title=f"median {unit}, blocks; in brackets: times as fast as the rival's fastest form")
    for column in (place, "path", "epilogue"):
        table.add_column(column, no_wrap=True)
    for column in ("threads", "ours", "of bound", *rivals):
        table.add_column(column, justify="right", no_wrap=True)
    for line in lines:
        cells = [f"{factor * line['rivals'][r]:.{digits}f} ({line['ratios'][r]:.2f})" for r in rivals]
        bound = f"{line['bound_fraction']:.0%}" if line["bound_fraction"] else ""
        ours = f"{factor * line['p50_ms']:.{digits}f}"
        table.add_row(line[place], line["isa"], line["epilogue"], str(line["threads"]), ours, bound, *cells)
    for isa, epilogue, threads in dict.fromkeys((line["isa"], line["epilogue"], line["threads"]) for line in lines):
        own = [
            line["ratios"]
            for line in lines
            if (line["isa"], line["epilogue"], line["threads"]) == (isa, epilogue, threads)
        ]
        means = [f"({geometric_mean([ratios[rival] for ratios in own]):.2f})" for rival in rivals]
        table.add_row("geometric mean", isa, epilogue, str(threads), "", "", *means, style="bold")
    console.print(table)
    for check in found:
        verdict, what = "PASS" if check["met"] else "FAIL", "every row" if check["kind"] == "each" else "geometric mean"
        text = (
            f"{verdict}  {check['isa']} against {check['rival']}, {what}: {check['value']:.2f} of {check['target']:g}"
        )
        console.print(text if check["met"] else f"{text}; {check['missed']} of {check['of']} below")
    if quick:
        console.print("A quick run: it shows that everything runs, its times may not be quoted.")
    if any(line["isa"] == FUNCTION_FLOAT for line in lines):
        console.print("No operator library is installed: ours ran as float arithmetic, no speed-up may be claimed.")


def document(rows: Sequence[Row], bounds: Bounds, lines: Sequence[Row], found: Sequence[Row], **more: Any) -> Row:
    """The JSON of a run. bound_gmac_s is that of the fastest path."""
    highest = bounds.highest()
    return {
        "bound_gmac_s": max(highest.values(), default=None),
        "bounds": highest,
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
    known = [name for name in native_module().paths() if name != "reference"] if native_module() else []
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument(
        "--isa", nargs="+", choices=known, default=native_paths(), metavar="PATH", help=f"our kernels, of: {known}"
    )
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--rounds", type=int, default=MIN_ROUNDS, help="at least so many of blocks (default 12)")
    parser.add_argument("--quick", action="store_true", help="2 rounds: does it run? No number of it may be quoted")


def effort(options: argparse.Namespace) -> dict[str, Any]:
    """How long `bench` shall take, by the options."""
    if options.quick:
        return {"rounds": 2, "passes": 2}
    return {"rounds": options.rounds, "seconds": options.seconds}
