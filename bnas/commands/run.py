"""`bnas run`: what an exported network says of images."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from bnas.profiles.errors import InputError

from .. import runs
from ..console import output, result, say
from . import settings

if TYPE_CHECKING:
    import numpy as np

    from bnas.runtime_bench.engines import Engine


def run(
    model: str = typer.Argument(..., help="A .onnx or .tflite file, or a run."),
    images: list[Path] = typer.Argument(..., help="Image files."),
    top: int = typer.Option(3, "--top", help="Classes to print for each image, the likeliest first."),
    threads: int = typer.Option(1, "--threads", help="Threads of the runtime."),
    as_json: bool = settings.JSON,
) -> None:
    """Classify images with an exported network. What it needs to know (classes, normalisation) lies in the file.

    Example: bnas run model.tflite photo.png
    """
    with result(as_json) as emit:
        document = do_run(_file(model), images, top, threads)
        emit(document, lambda: _show(document))


def do_run(file: Path, images: list[Path], top: int = 3, threads: int = 1) -> dict:
    """The classes of every image, with their probabilities, and what ran."""
    import numpy as np

    from bnas.runtime_bench import machine
    from bnas.runtime_bench.engines import open_engine

    if top < 1:
        raise InputError(f"--top {top} must be at least 1")
    settings.thread_counts(threads, machine.usable_cores())
    engine = open_engine(file, threads)
    x = np.concatenate([_input(engine, path, str(file)) for path in images])
    if engine.input_layout == "NHWC":
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    engine.run(x[:1])  # the first run of a file takes longer
    started = time.perf_counter()
    logits = np.concatenate([engine.run(x[i : i + 1]).reshape(1, -1) for i in range(len(x))]).astype(np.float64)
    ms = 1e3 * (time.perf_counter() - started) / len(x)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = odds / odds.sum(axis=1, keepdims=True)
    classes = _known(engine, "classes") or [str(number) for number in range(logits.shape[1])]
    if len(classes) != logits.shape[1]:
        raise InputError(f"{file} names {len(classes)} classes and gives {logits.shape[1]} values; export it again")
    return {
        "file": str(file),
        "engine": engine.name,
        "ms_per_image": ms,
        "results": [
            {
                "image": str(path),
                "top": [
                    {"class": classes[index], "probability": float(row[index])}
                    for index in np.argsort(-row, kind="stable")[:top]
                ],
            }
            for path, row in zip(images, probabilities, strict=True)
        ],
    }


def _file(model: str) -> Path:
    if Path(model).is_file() or Path(model).suffix.lower() in (".onnx", ".tflite"):
        return Path(model)
    found = runs.find(model)
    exported = [path for name in ("model.onnx", "model.tflite") if (path := found.path(name)).is_file()]
    if not exported:
        raise InputError(f"nothing is exported in {found.folder} yet; do: bnas export {found.folder}")
    return exported[0]


def _input(engine: Engine, image: Path, file: str) -> np.ndarray:
    """The image as the network sees it, float32 [1, C, H, W]: cut and resized as its training images were."""
    import numpy as np

    from bnas.search.data.form import Form, Picture
    from bnas.search.data.packages import needs
    from bnas.search.data.pictures import opened, pixels

    channels, height, width = engine.input_shape
    if channels not in (1, 3) or height != width:
        raise InputError(f"{file} takes {channels} channels of {height}x{width}, expected grey or RGB squares")
    if not image.is_file():
        raise InputError(f"{image} is {'a directory; name image files' if image.is_dir() else 'not there'}")
    form = Form(channels, height, exact=False)
    mode = "L" if channels == 1 else "RGB"
    with needs("search", "pillow"):
        taken = opened(Picture(str(image), image), lambda opened: pixels(form, opened.convert(mode)))
    how = _known(engine, "normalisation")
    if how is None:
        say(f"{file} does not say how pixels are normalised; they are divided by 255")
        how = {"scale": 1 / 255, "mean": [0.0], "std": [1.0]}
    mean, std = (np.array(how[name], np.float32).reshape(1, -1, 1, 1) for name in ("mean", "std"))
    return (taken[None].astype(np.float32) * np.float32(how["scale"]) - mean) / std


def _known(engine: Engine, name: str) -> Any:
    """What the file says under `name`; None if it says nothing, as files of others do."""
    text = engine.metadata.get(name)
    try:
        return None if text is None else json.loads(text)
    except (TypeError, ValueError):
        return None


def _show(document: dict) -> None:
    for found in document["results"]:
        likely = ", ".join(f"{row['class']} {row['probability']:.1%}" for row in found["top"])
        output.print(f"{found['image']}: {likely}", markup=False)
    say(f"{document['engine']}, {document['ms_per_image']:.3g} ms an image")
