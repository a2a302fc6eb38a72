"""Encoded images (PNG, JPEG, …) into one uint8 array: which channels, which size, how many processes."""

import io
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from bnas.profiles.errors import InputError

from .decoders import decode_batches
from .form import Form, FormChanged, Picture
from .packages import needs

if TYPE_CHECKING:
    from PIL.Image import Image

DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # over 8 bits: Pillow would clip them to white
BATCH = 64  # images decoded in one go; a few of these are in memory, still encoded
# Small images keep Pillow under the interpreter lock, so threads do not help: 60,000 JPEGs of 32x32 take 10 s with
# one thread or two. Helper processes start in 0.3 s, which pays for sets of more pixels than this.
HELPERS_ABOVE_PX = 4 * 2**20
MOST_HELPERS = 8

T = TypeVar("T")
Progress = Callable[[int, int], None]  # called with (images done, images in all)


def decode(
    pictures: Callable[[], Iterable[Picture]], count: int, image_size: int | None, progress: Progress | None
) -> np.ndarray:
    """All pictures as uint8 [count, C, H, W]; grey only if all are, H = W = `image_size` or else as `Form` finds.

    pictures: gives the same `count` pictures at each call. Larger images are cropped to their central square and
    resized (bilinear). Raises `InputError` naming the picture that cannot be read.

    The form is assumed from the first image, and decoding begins again when a later one disagrees. That happens
    twice at most (grey to RGB, one size to many) and spares reading all headers first.
    """
    with needs("search", "pillow"):
        from PIL import Image  # noqa: F401

    first = next(iter(pictures()))
    form, size_px = opened(first, partial(first_form, image_size))
    workers = min(cores(), MOST_HELPERS) if count * size_px[0] * size_px[1] > HELPERS_ABOVE_PX else 0
    while True:
        try:
            return decode_as(form, pictures(), count, workers, progress)
        except FormChanged as change:
            form = change.form


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def first_form(image_size: int | None, image: "Image") -> tuple[Form, tuple[int, int]]:
    """The form of a set of this one image, and the (width, height) of the image."""
    width, height = image.size
    form = Form(1 if image.mode == "L" else 3, image_size or width, exact=image_size is None)
    return form.of_set_with(image), (width, height)


def decode_as(
    form: Form, pictures: Iterable[Picture], count: int, workers: int, progress: Progress | None
) -> np.ndarray:
    """All pictures in one form: uint8 [count, C, H, W]. Raises `FormChanged` at the first that does not fit."""
    out = np.empty((count, form.channels, form.size_px, form.size_px), dtype=np.uint8)
    done = 0
    for images in decode_batches(form, batches(pictures), workers):
        out[done : done + len(images)] = images
        done += len(images)
        if progress:
            progress(done, count)
    if done != count:
        raise InputError(f"expected {count} images, found {done}; the data changed while it was read")
    return out


def decode_batch(form: Form, batch: list[Picture]) -> np.ndarray:
    """uint8 [len(batch), C, H, W]."""
    out = np.empty((len(batch), form.channels, form.size_px, form.size_px), dtype=np.uint8)
    for index, picture in enumerate(batch):
        out[index] = opened(picture, partial(pixels, form))
    return out


def pixels(form: Form, image: "Image") -> np.ndarray:
    """uint8 [C, H, W] of one image. Raises `FormChanged` if it does not fit."""
    from PIL.Image import Resampling

    if (fitting := form.of_set_with(image)) != form:
        raise FormChanged(fitting)
    mode = "L" if form.channels == 1 else "RGB"
    plain = image if image.mode == mode else image.convert(mode)
    width, height = plain.size
    if (width, height) != (form.size_px, form.size_px):
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        plain = plain.resize((form.size_px, form.size_px), Resampling.BILINEAR, box=box)
    return np.asarray(plain).reshape(form.size_px, form.size_px, form.channels).transpose(2, 0, 1)


def opened(picture: Picture, use: Callable[["Image"], T]) -> T:
    """What `use` makes of the picture; whatever is wrong with its bytes becomes an `InputError` that names it."""
    from PIL import Image, UnidentifiedImageError

    content = picture.content
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            if image.mode in DEEP_MODES:
                raise InputError(
                    f"{picture.where}: more than 8 bits per pixel (mode {image.mode}); convert it to 8 bits"
                )
            return use(image)
    except (FormChanged, InputError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise InputError(f"{picture.where}: not an image; repair or remove it") from None
    except Exception as error:  # image parsers raise almost anything on damaged bytes
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{picture.where}: cannot be decoded ({reason}); repair or remove it") from error


def batches(pictures: Iterable[Picture]) -> Iterator[list[Picture]]:
    """Lists of at most `BATCH` pictures, in order."""
    remaining = iter(pictures)
    while batch := list(islice(remaining, BATCH)):
        yield batch
