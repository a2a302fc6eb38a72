"""`bnas search`: find a network under a latency limit, and train it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import typer

from bnas.profiles import atomic
from bnas.profiles.errors import InputError, unknown

from .. import runs
from ..console import Progress, output, progress, result, say
from . import settings
from .train import do_train


def search(
    profile: str = typer.Option(..., "--profile", help="Shipped profile (rtx3080, rpi4b, ...) or a .yaml file."),
    data: str = settings.DATA,
    space: str = typer.Option(
        "tiny", "--space", help="NAME[:INSTANCE][:OPTION=VALUE,...], e.g. cells or mobilenet:bits=1+8; see bnas spaces."
    ),
    strategy: str = typer.Option("spos", "--strategy", help="Search method."),
    max_latency: str | None = typer.Option(
        None, "--max-latency", help="Hard limit: 8ms, 800us or a number in ms (default: median of 200 random networks)."
    ),
    budget: str = typer.Option("default", "--budget", help="How much to spend: smoke, default or paper."),
    supernet_epochs: int | None = typer.Option(None, help="Override the budget's supernet epochs."),
    evaluations: int | None = typer.Option(None, help="Override how many architectures are scored."),
    epochs: int | None = typer.Option(None, help="Override how many epochs the network found is trained."),
    seed: int = typer.Option(0, "--seed", help="Same seed, same result."),
    image_size: int | None = settings.IMAGE_SIZE,
    image_column: str | None = settings.IMAGE_COLUMN,
    label_column: str | None = settings.LABEL_COLUMN,
    train: bool = typer.Option(True, "--train/--no-train", help="Train the network found."),
    out: Path | None = typer.Option(None, "--out", help="Run folder (default: runs/PROFILE-SPACE-STRATEGY-HASH)."),
    restart: bool = typer.Option(False, "--restart", help="Throw away what the run folder holds."),
    accelerator: str = settings.ACCELERATOR,
    as_json: bool = settings.JSON,
) -> None:
    """Find a 1-bit network under a latency limit and train it. Interrupted? The same command continues.

    Example: bnas search --profile rpi4b --data ./images --max-latency 8ms
    """
    with result(as_json) as emit, progress() as report:
        document = do_search(
            profile=profile, data=settings.data_config(data, image_size, image_column, label_column), space=space,
            strategy=strategy, max_latency=max_latency, budget=budget, supernet_epochs=supernet_epochs,
            evaluations=evaluations, epochs=epochs, seed=seed, out=out, restart=restart, accelerator=accelerator,
            report=report,
        )  # fmt: skip
        if train:
            document["train"] = do_train(runs.open_run(Path(document["run"])), accelerator, report)
        emit(document, lambda: _show(document))


def do_search(
    *,
    profile: str,
    data: dict,
    space: str = "tiny",
    strategy: str = "spos",
    max_latency: str | None = None,
    budget: str = "default",
    supernet_epochs: int | None = None,
    evaluations: int | None = None,
    epochs: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    restart: bool = False,
    accelerator: str = "auto",
    report: Progress,
) -> dict:
    """Search without training; the document of search.json, which is only read when the run has already finished."""
    limit_ms = None if max_latency is None else settings.parse_limit_ms(max_latency)
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed {seed} must be from 0 to {2**32 - 1}")
    from bnas.profiles.cost import binary_macs, macs, model_bytes, params
    from bnas.profiles.schema import load_profile, save_profile
    from bnas.profiles.table import LatencyTable, format_ms, predict
    from bnas.search.augment import default_augmentation, on_device
    from bnas.search.latency import check_limit, latency_model, median_ms
    from bnas.search.spaces import make_space
    from bnas.search.strategies import STRATEGIES
    from bnas.search.strategies.task import SearchTask
    from bnas.search.training.recipes import budget as budget_of

    if strategy not in STRATEGIES:
        raise unknown("strategy", strategy, STRATEGIES)
    spend = budget_of(budget)
    if supernet_epochs is not None:
        spend = replace(spend, supernet=replace(spend.supernet, epochs=_positive("--supernet-epochs", supernet_epochs)))
    if evaluations is not None:
        spend = replace(spend, evaluations=_positive("--evaluations", evaluations))
    if epochs is not None:
        spend = replace(spend, training=replace(spend.training, epochs=_positive("--epochs", epochs)))
    device = settings.pick_device(accelerator)
    device_profile = load_profile(profile)
    if reason := settings.outdated(device_profile):
        raise InputError(
            f"profile {profile} was {reason}; measure again: bnas profiles build --device local --space {space} "
            f"--threads {device_profile.threads} --out {profile}"
        )
    images = settings.load_data(data, report)
    the_space = make_space(space, images.shape, len(images.classes))
    latency = latency_model(the_space, LatencyTable(device_profile))
    chosen = limit_ms is None
    limit = median_ms(latency) if limit_ms is None else limit_ms
    check_limit(latency, limit)
    config = {
        "data": {**data, "fingerprint": images.fingerprint},
        "space": the_space.id,
        "strategy": strategy,
        "profile": {"name": device_profile.name, "hash": device_profile.hash},
        "max_latency_ms": limit,
        "budget": spend.to_dict(),
        "seed": seed,
    }
    run = runs.start(
        config, f"{device_profile.name.replace(':', '-')}-{the_space.name}-{strategy}", out=out, restart=restart
    )
    with runs.locked(run.folder):
        if (finished := run.read("search.json")) is not None:
            say(f"search: already finished in {run.folder}")
            return {**finished, "seconds": (run.read("seconds.json") or {}).get("search", {})}
        say(f"search: {the_space.id} ({the_space.size:,} architectures), limit {format_ms(limit)} in {run.folder}")
        save_profile(device_profile, run.path("profile.yaml"))
        found = STRATEGIES[strategy].run(
            SearchTask(
                latency=latency,
                limit_ms=limit,
                train=on_device(images.train, device, images.mean, images.std),
                validation=on_device(images.validation, device, images.mean, images.std),
                augmentation=default_augmentation(images),
                budget=spend,
                seed=seed,
                device=device,
                folder=run.folder,
                progress=report,
            )
        )
        best = found.best.architecture
        workloads = the_space.workloads(best)
        prediction = predict(device_profile, workloads)
        certificate = found.certificate and found.certificate.format(profile=device_profile.hash)
        atomic.write_text(run.path("architecture.yaml"), best.to_yaml())
        document = {
            "run": str(run.folder),
            "strategy": strategy,
            "architecture": best.to_dict(),
            "limit_ms": limit,
            "limit_source": "median of 200 random architectures" if chosen else "--max-latency",
            "predicted_ms": found.best.latency_ms,
            "prediction": str(prediction),
            "prediction_error": prediction.error,
            "prediction_source": prediction.source,
            "score": found.best.score,
            "score_name": found.score_name,
            "certificate": certificate,
            "profile": device_profile.name,
            "costs": {count.__name__: sum(map(count, workloads)) for count in (macs, binary_macs, params, model_bytes)},
            "space_size": the_space.size,
            "trials": [t.to_dict() for t in found.trials],
            "supernet_losses": list(found.losses),
            "curves": found.curves,
            "course": [list(architecture.choices) for architecture in found.course],
            "steps": found.steps,
            "initial_hash": found.initial_hash,
            "state_hash": found.state_hash,
        }
        seconds = {phase: round(spent, 3) for phase, spent in found.seconds.items()}
        run.write("seconds.json", {"run": str(run.folder), "search": seconds})
        run.write("search.json", document)  # the same however often the search was interrupted
        return {**document, "seconds": seconds}


def _positive(option: str, value: int) -> int:
    if value < 1:
        raise InputError(f"{option} {value} must be at least 1")
    return value


def _spelled(architecture: dict) -> str:
    """The choices of a chain in one line, those of cells in one line for each node."""
    from bnas.search.spaces import space_of

    space, choices = space_of(architecture["space"]), architecture["choices"]
    if [gene.id for gene in space.genes] == [decision.id for decision in space.decisions]:
        return " ".join(choices)
    pairs = zip(space.genes, choices, strict=True)
    return "\n".join(f"{gene.id}: {choice.replace('@', ' of ').replace('+', ', ')}" for gene, choice in pairs)


def _show(document: dict) -> None:
    from rich.table import Table

    from bnas.profiles.table import format_ms

    table = Table(title=f"found in {document['run']}", show_header=False)
    table.add_row("architecture", _spelled(document["architecture"]))
    table.add_row("limit", f"{format_ms(document['limit_ms'])} ({document['limit_source']})")
    table.add_row("predicted", f"{document['prediction']} on {document['profile']}")
    costs = document["costs"]
    table.add_row("1-bit MACs", f"{costs['binary_macs']:,} of {costs['macs']:,}")
    table.add_row("parameters", f"{costs['params']:,} in {costs['model_bytes']:,} bytes")
    accuracy = document["score_name"] == "validation accuracy"
    score = f"{document['score']:.2%}" if accuracy else f"{document['score']:.4g}"
    table.add_row(document["score_name"], f"{score} with the supernet's weights" if accuracy else score)
    if document["certificate"]:
        table.add_row("selection", document["certificate"])
    if trained := document.get("train"):
        table.add_row("validation accuracy", f"{trained['validation_accuracy']:.2%}")
        table.add_row("test accuracy", f"{trained['test_accuracy']:.2%}")
    output.print(table)
    run = document["run"]
    say(f"next: bnas export {run} --format tflite (or onnx)" if trained else f"next: bnas train {run}")
