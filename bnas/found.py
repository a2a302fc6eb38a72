"""What is known of the architectures that a search found: its documents, the front around them, and picking again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bnas.profiles import atomic
from bnas.profiles.errors import InputError

from .runs import Run

if TYPE_CHECKING:
    import numpy as np

    from bnas.profiles.schema import Profile
    from bnas.search.latency import LatencyModel
    from bnas.search.selection.evolution import Trial
    from bnas.search.selection.exact import Ceiling
    from bnas.search.spaces import Architecture

ACCURACY = "validation accuracy"  # the score_name of strategies that score by images
FRONT = 8  # architectures, where the user names no number
Scores = Sequence[Sequence[float]]
"""What each candidate of each gene adds to an architecture's score; empty where scores do not add up."""


def describe(latency: LatencyModel, profile: Profile, best: Trial) -> dict:
    """The part of search.json about one architecture."""
    from bnas.profiles.cost import binary_macs, macs, model_bytes, params
    from bnas.profiles.table import predict

    workloads = latency.space.workloads(best.architecture)
    prediction = predict(profile, workloads)
    return {
        "architecture": best.architecture.to_dict(),
        "predicted_ms": best.latency_ms,
        "prediction": str(prediction),
        "prediction_error": prediction.error,
        "prediction_source": prediction.source,
        "score": best.score,
        "profile": profile.name,
        "costs": {count.__name__: sum(map(count, workloads)) for count in (macs, binary_macs, params, model_bytes)},
    }


def front(latency: LatencyModel, scores: Scores, trials: Sequence[Trial], limit_ms: float, count: int) -> list[dict]:
    """Up to `count` architectures under the limit, fastest first, to none of which another is preferable.

    Where scores add up, another means any of the space, and preferable faster without less score; else any scored one,
    and preferable faster or smaller without less score. Of too many, those evenly spread over the ranks.
    """
    import numpy as np

    from bnas.search.selection.evolution import Trial
    from bnas.search.selection.front import front as exact_front
    from bnas.search.selection.front import non_dominated

    if scores:
        selections = exact_front(latency, tuple(map(np.array, scores)), limit_ms, count)
        trials = [Trial(latency.space.architecture(s.indices), s.score, s.latency_ms) for s in selections]
    known = {t.architecture: t for t in trials if t.latency_ms <= limit_ms}
    rows = [(t.score, t.latency_ms, bytes_of(latency, t.architecture)) for t in known.values()]
    kept = sorted(
        ((trial, row) for trial, row in zip(known.values(), rows, strict=True)), key=lambda r: (r[1][1], -r[1][0])
    )
    kept = [kept[i] for i in non_dominated([row for _, row in kept], ("max", "min", "min"))]
    places = np.unique(np.linspace(len(kept) - 1, 0, min(count, len(kept))).round().astype(int))
    return [
        {"architecture": t.architecture.to_dict(), "score": score, "predicted_ms": ms, "model_bytes": size}
        for t, (score, ms, size) in (kept[i] for i in places)
    ]


def bytes_of(latency: LatencyModel, architecture: Architecture) -> int:
    """Bytes of all constants of the exported network, by its workloads."""
    from bnas.profiles.cost import model_bytes

    return sum(map(model_bytes, latency.space.workloads(architecture)))


def byte_ceiling(latency: LatencyModel, most: int) -> Ceiling:
    """At most `most` bytes, for a selection: the sum over an architecture's workloads, taken apart by gene."""
    import numpy as np

    from bnas.profiles.cost import model_bytes
    from bnas.search.selection.exact import Ceiling

    space = latency.space

    def of(decision: int, candidate: int) -> int:
        return sum(map(model_bytes, space.candidate_workloads(decision, candidate)))

    parts = [[of(d, k) for k in range(len(decision.candidates))] for d, decision in enumerate(space.decisions)]
    costs: tuple[np.ndarray, ...] = tuple(
        np.array([sum(parts[d][k] for d, k in taken) for taken in gene.settings]) for gene in space.genes
    )
    return Ceiling(sum(map(model_bytes, space.fixed_workloads())), costs, most)


def write_scores(run: Run, scores: Scores) -> None:
    if scores:
        run.write("scores.json", {"run": str(run.folder), "scores": [list(values) for values in scores]})


def read_scores(run: Run) -> Scores:
    return (run.read("scores.json") or {}).get("scores", ())


def trials_of(latency: LatencyModel, document: dict) -> list[Trial]:
    """The scored architectures in search.json."""
    from bnas.search.selection.evolution import Trial
    from bnas.search.spaces import Architecture

    space = latency.space.id
    return [Trial(Architecture(space, tuple(t["choices"])), t["score"], t["latency_ms"]) for t in document["trials"]]


def pick(
    latency: LatencyModel, scores: Scores, document: dict, limit_ms: float, most_bytes: int | None
) -> tuple[Trial, str | None]:
    """The best architecture under other limits than those of the search, and what is proven of it.

    From all of the space where scores add up; else, by the rule of the search, from those it scored. Raises InputError
    if there is none.
    """
    import numpy as np

    from bnas.profiles.table import format_ms
    from bnas.search.latency import check_limit
    from bnas.search.selection.evolution import Trial, winner
    from bnas.search.selection.exact import select

    check_limit(latency, limit_ms)
    if scores:
        ceiling = None if most_bytes is None else byte_ceiling(latency, most_bytes)
        found = select(latency, tuple(map(np.array, scores)), limit_ms, ceiling)
        proof = found.certificate("{profile}")
        if most_bytes is not None:
            proof = proof.replace(" ms:", f" ms and {most_bytes:,} bytes:")
        return Trial(latency.space.architecture(found.indices), found.score, found.latency_ms), proof
    trials = [t for t in trials_of(latency, document) if t.latency_ms <= limit_ms]
    if most_bytes is not None:
        trials = [t for t in trials if bytes_of(latency, t.architecture) <= most_bytes]
    if not trials:
        fastest = min(t["latency_ms"] for t in document["trials"])
        limits = format_ms(limit_ms) + ("" if most_bytes is None else f" and {most_bytes:,} bytes")
        raise InputError(
            f"none of the {len(document['trials'])} architectures that {document['strategy']} scored meets {limits}, "
            f"the fastest takes {format_ms(fastest)}; search again under that limit"
        )
    if document["score_name"] != ACCURACY:  # sums that do not tell all: P-DARTS has a limit of skips besides
        return max(trials, key=lambda t: (t.score, -t.latency_ms)), None
    return winner(trials, document["validation_images"]), None


def write(run: Run, architecture: Architecture, document: dict) -> None:
    """The architecture first: what search.json says is there."""
    atomic.write_text(run.path("architecture.yaml"), architecture.to_yaml())
    run.write("search.json", document)
