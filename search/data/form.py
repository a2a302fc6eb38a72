"""What a set of pictures becomes in memory, and one encoded picture of it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from PIL.Image import Image

DEFAULT_SIZE_PX = 32  # when the images differ in size and nobody says which they shall have


class Picture(NamedTuple):
    """One encoded image: how to call it in a message, and its bytes or the file that holds them."""

    where: str
    content: bytes | Path


@dataclass(frozen=True)
class Form:
    """What all images of a set become: `channels` 1 (grey) or 3 (RGB), `size_px` high and wide.

    exact: every image has that size already, and one that has not changes the form of the whole set.
    """

    channels: int
    size_px: int
    exact: bool

    def of_set_with(self, image: "Image") -> "Form":
        """The form of the set when this image belongs to it as well."""
        form = self
        if form.channels == 1 and image.mode != "L":
            form = replace(form, channels=3)
        if form.exact and image.size != (form.size_px, form.size_px):
            form = replace(form, size_px=DEFAULT_SIZE_PX, exact=False)
        return form


class FormChanged(Exception):
    """An image does not fit the form assumed so far."""

    def __init__(self, form: Form) -> None:
        super().__init__(form)
        self.form = form
