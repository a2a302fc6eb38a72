"""`bnas pick`: take another architecture from a finished search, under other limits, without searching again."""

from __future__ import annotations

from pathlib import Path

import typer

from bnas.profiles.errors import InputError

from .. import found, runs
from ..console import result, say
from . import settings
from .search import _show


def pick(
    run: str | None = settings.RUN,
    max_latency: str = typer.Option(..., "--max-latency", help="Hard limit: 8ms, 800us or a number in ms."),
    max_bytes: int | None = typer.Option(None, "--max-bytes", help="Hard limit on the bytes of all constants."),
    out: Path | None = typer.Option(None, "--out", help="Run folder (default: runs/PROFILE-SPACE-STRATEGY-HASH)."),
    as_json: bool = settings.JSON,
) -> None:
    """Take the best architecture under new limits from a finished search; it becomes a run of its own, to be trained.

    Example: bnas pick --max-latency 5ms && bnas train
    """
    with result(as_json) as emit:
        document = do_pick(runs.find(run), settings.parse_limit_ms(max_latency), max_bytes, out)
        emit(document, lambda: _show(document))


def do_pick(run: runs.Run, limit_ms: float, max_bytes: int | None = None, out: Path | None = None) -> dict:
    """The document of search.json in the new run; the one picked from stays as it is.

    Where scores add up all of the space is there to pick from, else what the search scored, so that a limit above the
    search's finds nothing slower.
    """
    if max_bytes is not None and max_bytes < 1:
        raise InputError(f"--max-bytes {max_bytes} must be at least 1")
    searched = run.read("search.json")
    if searched is None:
        raise InputError(f"the search in {run.folder} has not finished; repeat the bnas search command to continue it")
    from bnas.profiles.schema import load_profile, save_profile
    from bnas.profiles.table import LatencyTable, format_ms
    from bnas.search.latency import latency_model
    from bnas.search.spaces import space_of

    profile = load_profile(str(run.path("profile.yaml")))
    latency = latency_model(space_of(run.config["space"]), LatencyTable(profile))
    scores = found.read_scores(run)
    best, proof = found.pick(latency, scores, searched, limit_ms, max_bytes)
    trials = {best.architecture: best} | {
        t.architecture: t for t in found.trials_of(latency, searched) if t.latency_ms <= limit_ms
    }
    source = run.config.get("picked_from", runs.config_hash(run.config))
    if not scores and limit_ms > searched["limit_ms"]:
        say(f"pick: {run.folder} has scored nothing above its own limit of {format_ms(searched['limit_ms'])}")
        source = runs.config_hash(run.config)  # from what was picked itself, less is known than from its search
    config = {**run.config, "max_latency_ms": limit_ms, "max_bytes": max_bytes, "picked_from": source}
    name = f"{profile.name.replace(':', '-')}-{latency.space.name}-{run.config['strategy']}"
    picked = runs.start(config, name, out=out, restart=False)
    document = {
        **searched,
        "run": str(picked.folder),
        "limit_ms": limit_ms,
        "limit_source": "--max-latency" if max_bytes is None else f"--max-latency, and {max_bytes:,} bytes",
        **found.describe(latency, profile, best),
        "certificate": proof and proof.format(profile=profile.hash),
        "front": found.front(latency, scores, list(trials.values()), limit_ms, max(len(searched["front"]), 1)),
        "trials": [t.to_dict() for t in trials.values()],
    }
    with runs.locked(picked.folder):
        if (done := picked.read("search.json")) is not None:  # it may be trained already
            say(f"pick: already picked in {picked.folder}")
            return done
        save_profile(profile, picked.path("profile.yaml"))
        found.write_scores(picked, scores)
        found.write(picked, best.architecture, document)
    return document
