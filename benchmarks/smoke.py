"""Does every search end within a minute? `python benchmarks/smoke.py [--workers N] [--rows WORD ...]`.

Runs `bnas search --budget smoke --data digits`, training included, for every strategy and every space, as a user would,
and notes wall and processor seconds, what was found and the hashes of what was learned. With one worker a row has all
cores, and its wall seconds count. With several, a row is a process of one thread, and its processor seconds count: what
it takes on a quiet core, whatever else runs. Finished rows are kept.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from contest import RESULTS, of, table

from bnas.profiles import atomic
from bnas.profiles.schema import load_profile
from bnas.profiles.table import LatencyTable
from bnas.runtime_bench import machine
from bnas.search.latency import latency_model, median_ms
from bnas.search.spaces import SPACES, make_space
from bnas.search.strategies import STRATEGIES

PROFILE = "rtx3080"
LIMIT_S = 60
Row = dict[str, Any]


def limit_ms(space: str) -> float:
    """The median of random architectures."""
    return median_ms(latency_model(make_space(space, (1, 8, 8), 10), LatencyTable(load_profile(PROFILE))))


def run(strategy: str, space: str, threads: int) -> Row:
    """One command in a process of its own, and what it printed. Raises RuntimeError with its last words if it fails."""
    limit = limit_ms(space)
    options = {"strategy": strategy, "space": space, "profile": PROFILE, "data": "digits", "budget": "smoke"}
    options |= {"max-latency": f"{limit}ms"}
    with tempfile.TemporaryDirectory() as folder:
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        command = [sys.executable, "-c", CHILD, "search", *arguments, "--out", f"{folder}/run"]
        start = time.perf_counter()
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run([*command, "--json"], capture_output=True, text=True, env=environment, cwd=folder)
        wall_s = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{strategy} {space}: {done.stderr.strip()[-500:]}")
    found, processor_s = json.loads(done.stdout), float(done.stderr.strip().splitlines()[-1])
    kept = ("architecture", "predicted_ms", "limit_ms", "steps", "seconds", "initial_hash", "state_hash")
    return {
        "strategy": strategy,
        "space": space,
        "threads": threads,
        "wall_s": round(wall_s, 1),
        "processor_s": round(processor_s, 1),
        "test_accuracy": found["train"]["test_accuracy"],
    } | {name: found[name] for name in kept}


CHILD = """
import resource, sys
from bnas.__main__ import main
try:
    main()
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(used.ru_utime + used.ru_stime, file=sys.stderr)
"""


def seconds(row: Row) -> float:
    """What a user waits: wall seconds if the row had the machine to itself, else processor seconds of its thread."""
    return row["wall_s"] if row["threads"] > 1 else row["processor_s"]


def problems(rows: Sequence[Row]) -> list[str]:
    """What a table of all rows must not show."""
    found = []
    for row in rows:
        name = f"{row['strategy']} on {row['space']}"
        if seconds(row) > LIMIT_S:
            found.append(f"{name} takes {seconds(row):.0f} s")
        if row["predicted_ms"] > row["limit_ms"]:
            found.append(f"{name} is over the limit")
        if row["initial_hash"] == row["state_hash"]:
            found.append(f"{name} learned nothing")
    hashes = {s: tuple(row["state_hash"] for row in of(rows, strategy=s)) for s in {row["strategy"] for row in rows}}
    for one in hashes:
        found += [f"{one} and {two} learned the same" for two in hashes if one < two and hashes[one] == hashes[two]]
    return found


def markdown(document: Row) -> str:
    rows, at = document["rows"], document["machine"]
    lines = []
    for strategy in STRATEGIES:
        own = {row["space"]: row for row in of(rows, strategy=strategy)}
        if own:
            lines.append([strategy, *(cell(own.get(space)) for space in SPACES)])
    verdict = "\n".join(f"- {problem}" for problem in problems(rows)) or "No row breaks a rule."
    return f"""# Every strategy on every space

Made by `benchmarks/smoke.py`: `bnas search --budget smoke --data digits --profile {PROFILE}` with training, under the
median latency of random architectures. Seconds and test accuracy of the network found and trained; * all cores, else
processor seconds of one thread. Rules: at most {LIMIT_S} s; the limit is met; what a method learns is not what it began
with; no two methods learn the same on all spaces.

{table(["strategy", *SPACES], lines)}

{verdict}

Machine: {at["processor"]}, {at["cores"]} cores.
"""


def cell(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{seconds(row):.0f} s{'*' * (row['threads'] > 1)}, {100 * row['test_accuracy']:.1f} %"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=(), metavar="WORD", help="only these strategies or spaces")
    parser.add_argument("--workers", type=int, default=1, help="rows at a time")
    parser.add_argument("--json", type=Path, default=RESULTS / "smoke.json", help="a .md goes beside it")
    options = parser.parse_args(arguments)
    document: Row = {"machine": machine.describe(), "rows": []}
    if options.json.is_file():
        document = json.loads(options.json.read_text())
    options.json.parent.mkdir(parents=True, exist_ok=True)
    jobs = [(strategy, space) for strategy in STRATEGIES for space in SPACES]
    chosen = [job for job in jobs if not options.rows or set(job) & set(options.rows)]
    waiting = [(s, space) for s, space in chosen if not of(document["rows"], strategy=s, space=space)]
    threads = (os.cpu_count() or 1) if options.workers == 1 else 1
    with ThreadPoolExecutor(options.workers) as pool:
        for future in as_completed([pool.submit(run, *job, threads) for job in waiting]):
            try:
                row = future.result()
            except RuntimeError as error:
                print(error, flush=True)
                continue
            document["rows"].append(row)
            atomic.write_text(options.json, json.dumps(document, indent=1) + "\n")
            atomic.write_text(options.json.with_suffix(".md"), markdown(document))
            print(f"{row['strategy']} on {row['space']}: {seconds(row)} s", flush=True)
    print(markdown(document))
    sys.exit(bool(problems(document["rows"])))


if __name__ == "__main__":
    main()
