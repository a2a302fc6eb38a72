"""One of several processes that evolve the same study, for the test of them: `worker.py DATABASE LOG SECONDS [URL]`.

Writes a line to LOG when it begins to score an architecture, which takes SECONDS; prints the result as JSON.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
from conftest import toy

from bnas.search.selection.evolution import Trial, evolve

EVALUATIONS = 10


def run(path: Path, log: Path, seconds: float, url: str = "") -> list[Trial]:
    model = toy(np.random.default_rng(0).random((3, 3)).tolist())

    def score(genome: tuple[int, ...]) -> float:
        with log.open("a") as file:
            file.write(f"{genome}\n")
        time.sleep(seconds)
        return sum(genome) / 6

    return evolve(
        model, 2.0, score, evaluations=EVALUATIONS, population=4, seed=1, path=path, progress=lambda *_: None,
        storage=(url, "shared") if url else None,
    )  # fmt: skip


if __name__ == "__main__":
    path, log, seconds, *url = sys.argv[1:]
    print(json.dumps([trial.to_dict() for trial in run(Path(path), Path(log), float(seconds), *url)]))
