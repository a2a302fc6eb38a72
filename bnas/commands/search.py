"""`bnas search`: find a network under a latency limit, and train it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import typer

from bnas.profiles.errors import InputError, unknown

from .. import curves, found, runs
from ..console import Progress, output, progress, result, say
from ..found import ACCURACY, FRONT
from . import settings
from .train import do_train

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from bnas.search.data import ImageSet
    from bnas.search.latency import LatencyModel
    from bnas.search.strategies.single_path import Method
    from bnas.search.strategies.task import SearchTask
    from bnas.search.training.recipes import Budget


def search(
    profile: str | None = typer.Option(None, "--profile", help="Shipped profile (rtx3080, ...) or a .yaml; required."),
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
    pareto: int | None = typer.Option(
        None, "--pareto", help=f"How many networks of the front of score, latency and bytes to keep (default: {FRONT})."
    ),
    storage: str | None = typer.Option(
        None, "--storage", help="Optuna storage for the trials, e.g. sqlite:///DB (default: trials.db in the run)."
    ),
    join: Path | None = typer.Option(
        None, "--join", help="Score candidates of a search that another process runs in this folder; nothing else."
    ),
    train: bool = typer.Option(True, "--train/--no-train", help="Train the network found."),
    out: Path | None = typer.Option(None, "--out", help="Run folder (default: runs/PROFILE-SPACE-STRATEGY-HASH)."),
    restart: bool = typer.Option(False, "--restart", help="Throw away what the run folder holds."),
    tensorboard: bool = typer.Option(
        False, "--tensorboard", help="Also write the curves of the search for TensorBoard."
    ),
    accelerator: str = settings.ACCELERATOR,
    as_json: bool = settings.JSON,
) -> None:
    """Find a 1-bit network under a latency limit and train it. Interrupted? The same command continues.

    Example: bnas search --profile rpi4b --data ./images --max-latency 8ms
    """
    with result(as_json) as emit, progress() as report:
        if tensorboard:
            curves.check()
        if join is not None:
            joined = do_join(join, accelerator, report)
            emit(joined, lambda: output.print(f"{joined['run']}: {joined['scored']} architectures scored here"))
            return
        if profile is None:
            raise InputError("--profile is missing; bnas profiles list has the shipped ones, see bnas search --help")
        document = do_search(
            profile=profile, data=settings.data_config(data, image_size, image_column, label_column), space=space,
            strategy=strategy, max_latency=max_latency, budget=budget, supernet_epochs=supernet_epochs,
            evaluations=evaluations, epochs=epochs, seed=seed, pareto=pareto, storage=storage, out=out, restart=restart,
            accelerator=accelerator, report=report,
        )  # fmt: skip
        run = runs.open_run(Path(document["run"]))
        if tensorboard:
            curves.write(run, document)
        if train:
            document["train"] = do_train(run, accelerator, report)
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
    pareto: int | None = None,
    storage: str | None = None,
    out: Path | None = None,
    restart: bool = False,
    accelerator: str = "auto",
    report: Progress,
) -> dict:
    """Search without training; the document of search.json, which is only read when the run has already finished.

    Of a finished run, another `pareto` makes the front anew, from what is known.
    """
    limit_ms = None if max_latency is None else settings.parse_limit_ms(max_latency)
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed {seed} must be from 0 to {2**32 - 1}")
    if pareto is not None:
        _positive("--pareto", pareto)
    from bnas.profiles.schema import load_profile, save_profile
    from bnas.profiles.table import LatencyTable, format_ms
    from bnas.search.latency import check_limit, latency_model, median_ms
    from bnas.search.selection.evolution import connected
    from bnas.search.spaces import make_space
    from bnas.search.strategies import STRATEGIES
    from bnas.search.training.recipes import budget as budget_of

    if strategy not in STRATEGIES:
        raise unknown("strategy", strategy, STRATEGIES)
    address = None if storage is None else trials_address(storage, strategy)
    spend = budget_of(budget, strategy)
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
            f"profile {profile} was {reason}; measure again: {settings.rebuild(device_profile)} --space {space} "
            f"--threads {device_profile.threads} --out {profile}"
        )
    images = settings.load_data(data, report)
    the_space = make_space(space, images.shape, len(images.classes))
    latency = latency_model(the_space, LatencyTable(device_profile))
    chosen = limit_ms is None
    limit = median_ms(latency) if limit_ms is None else limit_ms
    check_limit(latency, limit)
    if address is not None:
        connected(address)
    config = {
        "data": {**data, "fingerprint": images.fingerprint},
        "space": the_space.id,
        "strategy": strategy,
        "profile": {"name": device_profile.name, "hash": device_profile.hash},
        "max_latency_ms": limit,
        "budget": spend.to_dict(),
        "seed": seed,
        **({} if address is None else {"storage": address}),
    }
    run = runs.start(
        config, f"{device_profile.name.replace(':', '-')}-{the_space.name}-{strategy}", out=out, restart=restart
    )
    with runs.locked(run.folder):
        if (finished := run.read("search.json")) is not None:
            say(f"search: already finished in {run.folder}")
            if pareto is not None:
                scores, trials = found.read_scores(run), found.trials_of(latency, finished)
                finished["front"] = found.front(latency, scores, trials, limit, pareto)
                run.write("search.json", finished)
            return {**finished, "seconds": (run.read("seconds.json") or {}).get("search", {})}
        say(f"search: {the_space.id} ({the_space.size:,} architectures), limit {format_ms(limit)} in {run.folder}")
        save_profile(device_profile, run.path("profile.yaml"))
        if address is not None and run.read("study.json") is None:
            run.write("study.json", {"run": str(run.folder), "name": f"bnas-{uuid4()}"})
        ended = STRATEGIES[strategy].run(search_task(run, latency, images, spend, device, report))
        document = {
            "run": str(run.folder),
            "strategy": strategy,
            "limit_ms": limit,
            "limit_source": "median of 200 random architectures" if chosen else "--max-latency",
            **found.describe(latency, device_profile, ended.best),
            "score_name": ended.score_name,
            "certificate": ended.certificate and ended.certificate.format(profile=device_profile.hash),
            "space_size": the_space.size,
            "validation_images": len(images.validation.labels),
            "front": found.front(latency, ended.scores, ended.trials, limit, pareto or FRONT),
            "trials": [t.to_dict() for t in ended.trials],
            "supernet_losses": list(ended.losses),
            "curves": ended.curves,
            "course": [list(architecture.choices) for architecture in ended.course],
            "steps": ended.steps,
            "initial_hash": ended.initial_hash,
            "state_hash": ended.state_hash,
        }
        seconds = {phase: round(spent, 3) for phase, spent in ended.seconds.items()}
        run.write("seconds.json", {"run": str(run.folder), "search": seconds})
        found.write_scores(run, ended.scores)
        found.write(run, ended.best.architecture, document)  # the same however often the search was interrupted
        return {**document, "seconds": seconds}


def search_task(
    run: runs.Run, latency: LatencyModel, images: ImageSet, budget: Budget, device: torch.device, report: Progress
) -> SearchTask:
    """What the strategy of a run is given."""
    from bnas.search.augment import default_augmentation, on_device
    from bnas.search.strategies.task import SearchTask

    return SearchTask(
        latency=latency,
        limit_ms=run.config["max_latency_ms"],
        train=on_device(images.train, device, images.mean, images.std),
        validation=on_device(images.validation, device, images.mean, images.std),
        augmentation=default_augmentation(images),
        budget=budget,
        seed=run.config["seed"],
        device=device,
        folder=run.folder,
        progress=report,
        trials=None if (study := run.read("study.json")) is None else (run.config["storage"], study["name"]),
    )


def method_of(strategy: str) -> Method | None:
    """What a strategy by evolution is made of; None for others."""
    from bnas.search.strategies import STRATEGIES
    from bnas.search.strategies.selecting import by_evolution

    method = getattr(STRATEGIES[strategy], "METHOD", None)
    return method if getattr(method, "select", None) is by_evolution else None


def trials_address(storage: str, strategy: str) -> str:
    """A storage's address as it holds from anywhere. Raises InputError unless it is one and the strategy has trials."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    if method_of(strategy) is None:
        raise InputError(f"--storage {storage}: {strategy} has no evolution whose trials could be kept there; drop it")
    try:
        url = make_url(storage)
    except ArgumentError:
        raise InputError(f"--storage {storage!r} is no address; write for example sqlite:///trials.db") from None
    if url.drivername.startswith("sqlite") and url.database:
        url = url.set(database=str(Path(url.database).resolve()))
    return url.render_as_string(hide_password=False)


def do_join(folder: Path, accelerator: str, report: Progress) -> dict:
    """Score candidates of the search in `folder` beside the process that runs it, until there are enough.

    Raises InputError if that search has ended, has no evolution, or has not trained its supernet yet.
    """
    from bnas.profiles.schema import load_profile
    from bnas.profiles.table import LatencyTable
    from bnas.search.latency import latency_model
    from bnas.search.spaces import space_of
    from bnas.search.strategies.selecting import join
    from bnas.search.training.recipes import Budget

    run = runs.find(str(folder))
    strategy = run.config["strategy"]
    method = method_of(strategy)
    if method is None:
        raise InputError(f"--join {folder}: {strategy} has no evolution; spos and fairnas can be joined")
    if run.read("search.json") is not None:
        raise InputError(f"--join {folder}: the search has ended; see it with: bnas report {folder}")
    needed = ("profile.yaml", "study.json") if "storage" in run.config else ("profile.yaml",)
    if not all(run.path(name).is_file() for name in needed):
        raise InputError(f"--join {folder}: the search has not begun; start it with bnas search, then join")
    device = settings.pick_device(accelerator)
    images = settings.load_data(run.config["data"], report)
    latency = latency_model(space_of(run.config["space"]), LatencyTable(load_profile(str(run.path("profile.yaml")))))
    task = search_task(run, latency, images, Budget.from_dict(run.config["budget"]), device, report)
    return {"run": str(run.folder), "strategy": strategy, "scored": join(task, method)}


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


def front_table(document: dict) -> Table:
    """What a little more or less time would buy."""
    from rich.table import Table

    from bnas.profiles.table import format_ms

    table = Table(title="front: none of these is beaten in all three", caption="bnas pick takes one by its limits")
    for column in ("predicted", document["score_name"], "bytes"):
        table.add_column(column, justify="right")
    for row in document["front"]:
        taken = row["architecture"] == document["architecture"]
        cells = (format_ms(row["predicted_ms"]), _score(document, row["score"]), f"{row['model_bytes']:,}")
        table.add_row(*cells, style="bold" if taken else None)
    return table


def _score(document: dict, score: float) -> str:
    return f"{score:.2%}" if document["score_name"] == ACCURACY else f"{score:.4g}"


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
    accuracy = document["score_name"] == ACCURACY
    score = _score(document, document["score"])
    table.add_row(document["score_name"], f"{score} with the supernet's weights" if accuracy else score)
    if document["certificate"]:
        table.add_row("selection", document["certificate"])
    if trained := document.get("train"):
        table.add_row("validation accuracy", f"{trained['validation_accuracy']:.2%}")
        table.add_row("test accuracy", f"{trained['test_accuracy']:.2%}")
    output.print(table)
    output.print(front_table(document))
    run = document["run"]
    say(f"next: bnas export {run} --format tflite (or onnx)" if trained else f"next: bnas train {run}")
