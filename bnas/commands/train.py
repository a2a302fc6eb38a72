"""`bnas train`: train the network a search found, from fresh weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnas.profiles.errors import InputError

from .. import runs
from ..console import Progress, output, progress, result, say
from . import settings

if TYPE_CHECKING:
    from bnas.search.spaces import Architecture


def train(
    run: str | None = settings.RUN,
    accelerator: str = settings.ACCELERATOR,
    as_json: bool = settings.JSON,
) -> None:
    """Train the network a search found (1-bit weights and activations). Interrupted? The same command continues.

    Example: bnas search --profile rpi4b --no-train && bnas train
    """
    with result(as_json) as emit, progress() as report:
        document = do_train(runs.find(run), accelerator, report)
        emit(document, lambda: _show(document))


def do_train(run: runs.Run, accelerator: str, report: Progress) -> dict:
    """The document of train.json, which is only read when training has already finished."""
    from bnas.search.augment import default_augmentation, on_device
    from bnas.search.training.from_scratch import train as fit_network
    from bnas.search.training.recipes import Recipe

    with runs.locked(run.folder):
        if (finished := run.read("train.json")) is not None and run.path("model.safetensors").is_file():
            say(f"train: already finished in {run.folder}")
            return finished
        arch = found_architecture(run)
        images = settings.load_data(run.config["data"], report)
        device = settings.pick_device(accelerator)
        splits = {
            name: on_device(getattr(images, name), device, images.mean, images.std)
            for name in ("train", "validation", "test")
        }
        trained = fit_network(
            arch,
            Recipe(**run.config["budget"]["training"]),
            train_split=splits["train"],
            validation=splits["validation"],
            test=splits["test"],
            augmentation=default_augmentation(images),
            seed=run.config["seed"],
            device=device,
            folder=run.folder,
            progress=report,
        )
        document = {
            "run": str(run.folder),
            "architecture": arch.to_dict(),
            "validation_accuracy": trained.validation_accuracy,
            "test_accuracy": trained.test_accuracy,
            "test_images": len(images.test.labels),
            "losses": list(trained.losses),
        }
        run.write("train.json", document)
        return document


def found_architecture(run: runs.Run) -> Architecture:
    """Raises InputError if the search of this run has not finished."""
    from bnas.search.spaces import Architecture, space_of

    path = run.path("architecture.yaml")
    if run.read("search.json") is None or not path.is_file():
        raise InputError(f"the search in {run.folder} has not finished; repeat the bnas search command to continue it")
    arch = Architecture.from_yaml(path.read_text(), str(path))
    if not space_of(arch.space).contains(arch):
        raise InputError(f"{path} is not what the search wrote; delete {run.path('search.json')} and search again")
    return arch


def _show(document: dict) -> None:
    output.print(
        f"{document['run']}: {document['validation_accuracy']:.2%} validation, "
        f"{document['test_accuracy']:.2%} test accuracy ({document['test_images']} images)"
    )
    say(f"next: bnas export {document['run']} --format tflite (or onnx)")
