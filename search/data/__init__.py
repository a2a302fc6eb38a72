"""Image sets, whatever they are stored in: `load_images` reads one into numpy."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from bnas.profiles.errors import InputError

from . import digits, folder, hub, parquet
from .assemble import Options
from .image_set import ImageSet, Split
from .pictures import Progress

__all__ = ["SOURCES", "ImageSet", "Split", "load_images", "source_of"]

SOURCES: dict[str, Callable[[str, Options], ImageSet]] = {
    "digits": digits.load,
    "folder": folder.load,
    "parquet": parquet.load,
    "hub": hub.load,
}
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def load_images(
    data: str,
    *,
    image_size: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    seed: int = 0,
    validation: float = 0.1,
    progress: Progress | None = None,
) -> ImageSet:
    """The image set `data`: `digits`, a folder, a parquet file or folder, or a name on the Hugging Face hub.

    image_size: height and width in pixels; by default that of the images if they are all square and equal, else 32.
    image_column, label_column: of parquet files and hub sets whose columns have unusual names.
    validation: the share of train that becomes validation when the data has none. A set without a test split also
        gives a tenth to test. Both cuts are stratified and depend on `seed` only, so use one seed for search and
        training. `digits` is always cut the same way.
    progress: called with (images decoded, images in all) now and then.

    Raises `InputError` if there is no such data or a part of it cannot be used.
    """
    options = Options(image_size, image_column, label_column, seed, validation, progress)
    try:
        return SOURCES[source_of(data)](data, options)
    except OSError as error:
        raise InputError(f"data {data!r} cannot be read: {error}") from error


def source_of(data: str) -> str:
    """The key in `SOURCES` for this `data`. What exists as a file or folder is never asked of the hub."""
    if data == "digits":
        return "digits"
    path = Path(os.path.expanduser(data))  # leaves ~nobody as it is, where Path.expanduser fails
    if data and path.is_dir():
        return "parquet" if parquet.files_in(path) else "folder"
    if path.suffix == parquet.SUFFIX and path.is_file():
        return "parquet"
    if data and path.exists():
        raise InputError(f"data {data!r} is neither a folder nor a {parquet.SUFFIX} file; give one of these")
    is_path = path.suffix == parquet.SUFFIX or ("/" in data and path.parent.is_dir())
    if HUB_NAME.fullmatch(data) and not is_path:
        return "hub"
    raise InputError(
        f"data {data!r} does not exist; give 'digits', a folder with one sub-folder per class, "
        f"a {parquet.SUFFIX} file, or a name on the Hugging Face hub"
    )
