"""Does `bnas bench` say what it may say? `python benchmarks/bench_honesty.py [--device URL] [--comparisons N]`

Each of two files, a searched kind of 1-bit network that runs for microseconds and a float convolution that runs for
milliseconds, is compared with itself N times: "no difference" is the only right answer, and a 95 % interval gives it in
about 95 of 100. Then each file is benched five times: the medians should agree within 5 %, or the bench should say that
the machine is too noisy. Every finished comparison is written at once; the same command goes on with what is missing.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bnas.profiles import atomic
from bnas.profiles.workload import Workload
from bnas.runtime_bench.compare import bench_files
from bnas.runtime_bench.devices import open_device
from bnas.runtime_bench.devices.target import Target

RESULTS = Path(__file__).with_name("results") / "bench_honesty.json"
REPEATS = 5
AGREE = 0.05
BOUND = Workload("conv", 32, 64, 64, 56, 56, 3)


def files(folder: Path) -> dict[str, Path]:
    """The two files, written to `folder`."""
    import numpy as np
    import torch

    from bnas.export.capture import capture
    from bnas.export.lowering import lower
    from bnas.export.onnx_writer import to_onnx
    from bnas.export.units import unit_model
    from bnas.search.spaces import make_space

    space = make_space("tiny", (1, 8, 8), 10)
    torch.manual_seed(0)
    network = space.build(space.random(np.random.default_rng(0))).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    graph = lower(capture(network, torch.zeros(2, *space.shape))).graph
    models = {"1-bit network": to_onnx(graph, {}), "float convolution": unit_model(BOUND)}
    for name, model in models.items():
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    return {name: folder / f"{name}.onnx" for name in models}


def compared(target: Target, path: Path, seconds: float, seed: int) -> dict[str, Any]:
    """A file with itself."""
    report = bench_files(target, {"a": path, "b": path}, [1], seconds, each=True, seed=seed)
    (line,) = report["comparisons"]
    return {name: line[name] for name in ("ratio", "low", "high", "difference")}


def benched(target: Target, path: Path, seconds: float, seed: int) -> dict[str, Any]:
    """A file alone."""
    report = bench_files(target, {"a": path}, [1], seconds, seed=seed)
    (row,) = report["results"]
    return {**{name: row[name] for name in ("p50_ms", "p50_low_ms", "p50_high_ms")}, "warnings": report["warnings"]}


def verdict(repeats: Sequence[dict[str, Any]]) -> tuple[float, bool]:
    """By how much the medians of repeated benches differ, and whether that is within 5 % or was said."""
    medians = [row["p50_ms"] for row in repeats]
    spread = max(medians) / min(medians) - 1
    return spread, spread <= AGREE or any(row["warnings"] for row in repeats)


def markdown(document: dict[str, Any]) -> str:
    lines = [
        "# A file against itself, and a bench repeated\n",
        f"`{document['command']}` on {document['environment']['processor']}, one thread.\n",
        '| file | comparisons | "no difference" | half the interval (median) | 5 medians differ by | or said |',
        "| --- | --: | --: | --: | --: | --- |",
    ]
    for name, found in document["files"].items():
        rows, repeats = found["comparisons"], found["repeats"]
        right = sum(not row["difference"] for row in rows)
        widths = sorted((row["high"] - row["low"]) / 2 for row in rows)
        spread, said = verdict(repeats) if repeats else (float("nan"), False)
        lines.append(
            f"| {name} | {len(rows)} | {right} | {100 * widths[len(widths) // 2]:.1f} % | {100 * spread:.1f} % | "
            f"{'yes' if said else 'no'} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="local")
    parser.add_argument("--comparisons", type=int, default=100, help="of each file with itself")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one bench")
    parser.add_argument("--json", type=Path, default=RESULTS, help="a .md goes beside it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, open_device(options.device) as target:
        document: dict[str, Any] = {
            "command": f"python benchmarks/bench_honesty.py --device {options.device} --seconds {options.seconds}",
            "environment": target.describe(),
            "seconds": options.seconds,
            "files": {},
        }
        if options.json.is_file():
            document = json.loads(options.json.read_text())
        for name, path in files(Path(folder)).items():
            found = document["files"].setdefault(name, {"comparisons": [], "repeats": []})
            wanted = {"comparisons": (options.comparisons, compared), "repeats": (REPEATS, benched)}
            for kind, (count, measure) in wanted.items():
                while len(found[kind]) < count:
                    found[kind].append(measure(target, path, options.seconds, len(found[kind])))
                    atomic.write_text(options.json, json.dumps(document, indent=1) + "\n")
                    print(f"{name}, {kind}: {len(found[kind])} of {count}", flush=True)
    atomic.write_text(options.json.with_suffix(".md"), markdown(document))
    print(markdown(document))


if __name__ == "__main__":
    main()
