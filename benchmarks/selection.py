"""How long selection takes and what it is worth: `python benchmarks/selection.py [--json FILE] [--seeds N]`.

Two tables. Times: the exact selection over budgets from the fastest architecture to the slowest, for a 20 x 6 space
with random latencies and the cifar instances of our spaces under a shipped profile. Regret: how far below the exact
optimum the evolution stays after --evaluations evaluations, and the greedy choice, as a share of what the optimum gains
over the fastest architecture; 0 is the optimum. All with additive random scores: "random" do not follow the latency,
"costly" grow with it (latency / the gene's greatest + noise of 10 %), which makes a harder knapsack. Only for times,
"latency" are it with noise of a thousandth, often too hard to prove in the nodes that a selection may take.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import scipy

from bnas.profiles.schema import load_profile
from bnas.profiles.table import LatencyTable
from bnas.search.latency import LatencyModel, latency_model
from bnas.search.selection.evolution import evolve
from bnas.search.selection.exact import score_of, select
from bnas.search.selection.greedy import greedy
from bnas.search.spaces import SPACES, make_space
from bnas.search.spaces.architecture import Decision
from bnas.search.spaces.space import SearchSpace, chain_genes

Scores = tuple[np.ndarray, ...]
PROFILE = "rtx3080"
POPULATION = 50
REGRET_SHARES = (0.25, 0.5)  # limits of the regret table, between the fastest and the slowest

SCORES: dict[str, Callable[[LatencyModel, np.random.Generator], Scores]] = {
    "random": lambda model, rng: tuple(rng.random(len(ms)) for ms in model.candidate_ms),
    "costly": lambda model, rng: tuple(ms / (ms.max() or 1.0) + 0.1 * rng.random(len(ms)) for ms in model.candidate_ms),
    "latency": lambda model, rng: tuple(
        ms / max(times.max() for times in model.candidate_ms) + 1e-3 * rng.random(len(ms)) for ms in model.candidate_ms
    ),
}


def random_space(genes: int, candidates: int) -> LatencyModel:
    decisions = tuple(Decision(f"d{d}", tuple(map(str, range(candidates)))) for d in range(genes))
    space = SearchSpace("random", "micro", (1, 8, 8), 10, (), decisions, chain_genes(decisions), ())
    parts = tuple(np.random.default_rng((genes, candidates)).random((genes, candidates)))  # not those of the scores
    return LatencyModel(space, 0.0, parts, parts)


def spaces() -> dict[str, LatencyModel]:
    table = LatencyTable(load_profile(PROFILE))
    return {"20 x 6": random_space(20, 6)} | {
        name: latency_model(make_space(name, (3, 32, 32), 10), table) for name in SPACES
    }


def limit_at(model: LatencyModel, share: float) -> float:
    """ms between the fastest (0) and the slowest architecture (1)."""
    fastest = model.ms(model.fastest())
    slowest = model.ms_of(tuple(int(ms.argmax()) for ms in model.candidate_ms))
    return fastest + share * (slowest - fastest)


def time_row(name: str, model: LatencyModel, kind: str, budgets: int, seeds: int) -> dict:
    """Seconds of `seeds` x `budgets` exact selections, and how many of them are proven optimal."""
    wall, cpu, proven = [], [], 0
    for seed in range(seeds):
        scores = SCORES[kind](model, np.random.default_rng(seed))
        for share in np.linspace(0, 1, budgets):
            start, start_cpu = time.perf_counter(), time.process_time()
            found = select(model, scores, limit_at(model, float(share)))
            wall.append(time.perf_counter() - start)
            cpu.append(time.process_time() - start_cpu)
            proven += found.gap == 0
    return {
        "space": name, "genes": len(model.candidate_ms), "candidates": max(map(len, model.candidate_ms)),
        "scores": kind, "selections": len(wall), "proven": proven,
        "median_s": median(wall), "max_s": max(wall), "median_cpu_s": median(cpu), "max_cpu_s": max(cpu),
    }  # fmt: skip


def regret_row(model: LatencyModel, kind: str, share: float, evaluations: int, seed: int, folder: Path) -> dict:
    """Both regrets on mobilenet, in parts of what the optimum gains over the fastest architecture."""
    scores = SCORES[kind](model, np.random.default_rng(seed))
    limit_ms = limit_at(model, share)
    best = select(model, scores, limit_ms)
    trials = evolve(
        model, limit_ms, lambda genome: score_of(scores, genome), evaluations=evaluations, population=POPULATION,
        seed=seed, path=folder / f"{kind}-{share}-{seed}.db", progress=lambda *_: None,
    )  # fmt: skip
    gain = best.score - score_of(scores, model.space.indices(model.fastest()))
    return {
        "scores": kind, "limit_ms": limit_ms, "seed": seed, "evaluations": evaluations, "gap": best.gap,
        "evolution": (best.score - max(t.score for t in trials)) / gain,
        "greedy": (best.score - greedy(model, scores, limit_ms).score) / gain,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budgets", type=int, default=25)
    parser.add_argument("--evaluations", type=int, default=1000)
    arguments = parser.parse_args()
    models = spaces()
    select(models["tiny"], SCORES["random"](models["tiny"], np.random.default_rng(0)), float("inf"))  # imports
    print(f"exact selection, profile {PROFILE}; wall seconds (CPU seconds)")
    times = []
    for name, model in models.items():
        for kind in SCORES:
            times.append(row := time_row(name, model, kind, arguments.budgets, arguments.seeds))
            print(
                f"{name:10} {row['genes']:3} genes of up to {row['candidates']:3}, {kind:6}: "
                f"median {row['median_s']:.3f} ({row['median_cpu_s']:.3f}), max {row['max_s']:.3f} "
                f"({row['max_cpu_s']:.3f}), {row['proven']} of {row['selections']} proven",
                flush=True,
            )
    print(f"\nregret on mobilenet, {arguments.evaluations} evaluations, share of the optimum's gain over the fastest")
    regrets = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("random", "costly"):
            for share in REGRET_SHARES:
                rows = [
                    regret_row(models["mobilenet"], kind, share, arguments.evaluations, seed, Path(folder))
                    for seed in range(arguments.seeds)
                ]
                regrets += rows
                print(
                    f"{kind:6} limit {rows[0]['limit_ms']:.4g} ms: "
                    + ", ".join(
                        f"{method} mean {mean(r[method] for r in rows):.4f} (max {max(r[method] for r in rows):.4f})"
                        for method in ("evolution", "greedy")
                    ),
                    flush=True,
                )
    if arguments.json:
        document = {"scipy": scipy.__version__, "cores": os.cpu_count(), "times": times, "regret": regrets}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
