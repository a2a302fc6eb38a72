"""Options that commands share, and turning what a user types into values."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from bnas.profiles.errors import InputError

from ..console import Progress

if TYPE_CHECKING:
    import numpy as np
    import torch

    from bnas.profiles.schema import EngineInfo, Profile
    from bnas.runtime_bench.devices.target import Format
    from bnas.search.data import ImageSet

JSON = typer.Option(False, "--json", help="Print one JSON document on stdout; progress goes to stderr.")
RUN = typer.Argument(None, help="Run folder, or its name under runs/ (default: the newest run).", show_default=False)
ACCELERATOR = typer.Option("auto", "--accelerator", help="Where to train: auto, cpu, cuda or cuda:N.")
DATA = typer.Option("digits", "--data", help="digits, a folder of class folders, parquet files or a Hugging Face set.")
IMAGE_SIZE = typer.Option(None, "--image-size", help="Resize images to this many pixels a side.")
IMAGE_COLUMN = typer.Option(None, "--image-column", help="Parquet column of the images (default: img or image).")
LABEL_COLUMN = typer.Option(
    None, "--label-column", help="Parquet column of labels (default: label, labels, fine_label)."
)
DEVICE = typer.Option("local", "--device", help="local, ssh://[user@]host[:port], adb:SERIAL or emulator.")
CPUS = typer.Option(None, "--cpus", help="Bind to these processors, for example 0-3 or 4,5.")
KEEP = typer.Option(False, "--keep", help="Leave the runner on the device, for next time.")

MANY_THREADS = 256  # more than any device has

_LIMIT = re.compile(r"\s*([-+]?[\d.]+(?:e[-+]?\d+)?)\s*(ms|us|µs|s)?\s*", re.IGNORECASE)
_MS = {"ms": 1.0, "us": 1e-3, "µs": 1e-3, "s": 1e3}


def parse_limit_ms(text: str) -> float:
    """`8ms`, `800us`, `0.5s` or a bare number in ms. Raises InputError unless it is a positive time."""
    match = _LIMIT.fullmatch(text)
    try:
        value = float(match[1]) * _MS[(match[2] or "ms").lower()] if match else math.nan
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"--max-latency {text!r} is not a positive time; write for example 8ms, 800us or 8")
    return value


def check_seconds(seconds: float) -> None:
    """Raises InputError unless it is a time to measure for."""
    if not 0 < seconds < math.inf:
        raise InputError(f"--seconds {seconds} must be positive and finite")


def check_device(url: str, threads: int | None) -> None:
    """What can be said before the device is asked. Raises InputError for a URL or a number that cannot be."""
    from bnas.runtime_bench import machine
    from bnas.runtime_bench.devices.address import parse

    here = parse(url).kind == "local"
    thread_counts(threads, machine.usable_cores() if here else MANY_THREADS)


def thread_counts(asked: int | None, cores: int) -> list[int]:
    """The number asked for, or 1 and all `cores` of the device. Raises InputError if it has fewer."""
    if asked is None:
        return sorted({1, cores})
    if not 1 <= asked <= cores:
        raise InputError(f"--threads {asked} must be from 1 to {cores}, the cores that may be used there")
    return [asked]


def threads_text(count: int) -> str:
    """1 thread, 2 threads."""
    return f"{count} thread{'s' * (count > 1)}"


def shown(text: str) -> str:
    """A text of others, such as a file's name, in one line and without meaning for rich."""
    from rich.markup import escape

    return escape("".join(c if c.isprintable() else "?" for c in text))


def outdated(profile: Profile) -> str:
    """Why a profile that was measured on this machine does not hold for what runs here now; empty if it does."""
    from bnas.runtime_bench import machine
    from bnas.runtime_bench.devices.local import LocalTarget

    if profile.device.fingerprint != machine.fingerprint():
        return ""
    engine = LocalTarget().engine(file_format(profile.engine))
    return "" if profile.engine == engine else f"measured with {profile.engine.text}, but here runs {engine.text}"


def rebuild(profile: Profile) -> str:
    """The command that measures this machine's profile again, without space and file."""
    format = file_format(profile.engine)
    return "bnas profiles build --device local" + ("" if format == "onnx" else f" --engine {format}")


def file_format(engine: EngineInfo) -> Format:
    """Which files the engine of a measured profile is about."""
    return "onnx" if engine.runtime == "onnxruntime" else "tflite"


def load_data(config: dict, report: Progress) -> ImageSet:
    """The images a run's `data` configuration names. Raises InputError if they are no longer the same images."""
    from bnas.search.data import load_images

    images = load_images(
        config["source"],
        image_size=config["image_size"],
        image_column=config["image_column"],
        label_column=config["label_column"],
        progress=lambda done, total: report("load", done, total),
    )
    if "fingerprint" in config and images.fingerprint != config["fingerprint"]:
        raise InputError(f"the images of {config['source']!r} changed since this run was started; start a new run")
    return images


def data_config(source: str, image_size: int | None, image_column: str | None, label_column: str | None) -> dict:
    """What a run remembers of its data; paths are kept absolute so that later commands find them from anywhere."""
    if image_size is not None and image_size < 1:
        raise InputError(f"--image-size {image_size} must be at least 1 pixel")
    path = Path(source)
    return {
        "source": str(path.resolve()) if path.exists() and source not in ("digits", "") else source,
        "image_size": image_size,
        "image_column": image_column,
        "label_column": label_column,
    }


def pick_device(name: str) -> torch.device:
    """The torch device `--accelerator` names; auto is the first GPU if there is one."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"--accelerator {name!r} is not one of auto, cpu, cuda, cuda:N")
    if name.startswith("cuda"):
        count = torch.cuda.device_count()
        if int(name.partition(":")[2] or 0) >= count:
            raise InputError(f"--accelerator {name}: this machine has {count} CUDA devices; use --accelerator auto")
    return torch.device(name)


def sample(images: ImageSet, count: int) -> np.ndarray:
    """`count` real images as a network sees them, float32 [count, C, H, W]: validation first, then training images.

    A smaller set is filled up with its own images moved by a pixel at a time; the test split is left alone.
    """
    import numpy as np

    pixels = np.concatenate([images.validation.images[:count], images.train.images[:count]])[:count]
    moves = range(1, -(-count // len(pixels)))
    pixels = np.concatenate([pixels, *(np.roll(pixels, move, axis=3) for move in moves)])[:count]
    return normalised(images, pixels)


def normalised(images: ImageSet, pixels: np.ndarray) -> np.ndarray:
    """Pixels uint8 [N, C, H, W] of these images as a network sees them, float32."""
    import numpy as np

    mean, std = (np.array(v, np.float32).reshape(1, -1, 1, 1) for v in (images.mean, images.std))
    return (pixels.astype(np.float32) / np.float32(255) - mean) / std
