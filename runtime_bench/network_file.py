"""A network file before a runtime has it: reading it, naming its damage, and what its inputs must look like."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from bnas.profiles.errors import InputError, unknown

TFLITE_IDENTIFIER = b"TFL3"  # bytes 4 to 8 of the file
SUFFIXES = (".onnx", ".tflite")

Source = Path | str | bytes


def read(source: Source) -> tuple[bytes, str, str]:
    """(content, name for messages, suffix). Raises InputError for what is missing, empty or of another kind."""
    if isinstance(source, bytes):
        data, where, suffix = source, "model", ".tflite" if source[4:8] == TFLITE_IDENTIFIER else ".onnx"
    else:
        path = Path(source)
        data, where, suffix = _content(path), str(source), path.suffix.lower()
    if not data:
        raise InputError(f"{where} is empty; export it again")
    return data, where, suffix


def _content(path: Path) -> bytes:
    if path.is_dir():
        raise InputError(f"{path} is a directory; name a .onnx or .tflite file")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: unknown file type {path.suffix!r}; name a .onnx or .tflite file")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; make it with: bnas export") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def damaged(where: str, what: str, error: Exception, limit: int = 160) -> InputError:
    """The one line for a file that a library refuses: `what` happened and the start of the library's own words."""
    reason = " ".join(str(error).split()) or type(error).__name__
    reason = reason if len(reason) <= limit else f"{reason[: limit - 3]}..."
    return InputError(f"{where}: {what} ({reason}); export it again")


def new_outputs(names: Sequence[str], known: Iterable[str], present: Iterable[str]) -> list[str]:
    """Those of `names` that are not outputs yet. Raises InputError for a name that is no tensor of the file."""
    known, present = set(known), set(present)
    for name in names:
        if name not in known:
            raise unknown("tensor", name, known)
    return [name for name in dict.fromkeys(names) if name not in present]


def fixed_shape(shape: Sequence[object], where: str) -> tuple[int, ...]:
    """An input's shape, with 1 for a free batch axis. Raises InputError if another axis is free, or there are none."""
    if not shape:
        raise InputError(f"{where}: an input is a single value, expected a batch; export it with a constant instead")
    if any(not (isinstance(size, int) and size > 0) for size in shape[1:]):
        raise InputError(f"{where}: input shape {list(shape)} is not fixed; export it with fixed height and width")
    return tuple(size if isinstance(size, int) and size > 0 else 1 for size in shape)


def image_shape(shape: tuple[int, ...], layout: str, where: str) -> tuple[int, int, int]:
    """(channels, height, width) of an input [N, ...] in `layout`."""
    if len(shape) != 4:
        raise InputError(f"{where}: input shape {list(shape)} is not a batch of images (four axes)")
    return (shape[1], shape[2], shape[3]) if layout == "NCHW" else (shape[3], shape[1], shape[2])


def onnx_layout(shape: tuple[int, ...]) -> str:
    """NCHW, unless only the last axis can be the channels: a file made from a TensorFlow network."""
    return "NHWC" if len(shape) == 4 and shape[3] in (1, 3) and shape[1] not in (1, 3) else "NCHW"


def check_images(x: np.ndarray, shapes: Sequence[tuple[int, ...]], where: str) -> None:
    """Raises InputError unless `x` is whole batches for the only input."""
    if len(shapes) != 1:
        raise InputError(f"{where} takes {len(shapes)} inputs, expected one image")
    if x.shape[1:] != shapes[0][1:] or len(x) == 0 or len(x) % shapes[0][0]:
        raise InputError(f"{where} takes images of shape {list(shapes[0])}, got {list(x.shape)}")


def random_tensor(shape: tuple[int, ...], dtype: np.dtype, rng: np.random.Generator) -> np.ndarray:
    """Standard normal floats, or 0 and 1 as integers: indices that any table has."""
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)
