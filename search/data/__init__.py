"""Image sets, whatever they are stored in: `load_images` reads one into numpy."""

from bnas.profiles.errors import unknown

from . import digits
from .image_set import ImageSet, Split

__all__ = ["ImageSet", "Split", "load_images"]


def load_images(
    data: str,
    *,
    image_size: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    seed: int = 0,
    validation: float = 0.1,
) -> ImageSet:
    """The image set named `data`; only `digits` for now."""
    if data != "digits":
        raise unknown("data", data, ("digits",))
    return digits.load()
