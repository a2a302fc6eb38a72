"""Search spaces as plain descriptions, and the architectures that are points of them. No torch in here."""

from .architecture import Architecture
from .chain import ChainSpace
from .tiny import tiny

SPACES = {"tiny": tiny}

__all__ = ["SPACES", "Architecture", "ChainSpace", "make_space", "space_of"]


def make_space(name: str, shape: tuple[int, int, int], classes: int) -> ChainSpace:
    """The space called `name` for images of `shape` (channels, height, width). Raises InputError if unknown."""
    from bnas.profiles.errors import unknown

    if name not in SPACES:
        raise unknown("space", name, SPACES)
    return SPACES[name](shape, classes)


def space_of(space_id: str) -> ChainSpace:
    """The space an id such as `tiny:1x8x8:10` names. Raises InputError if it names none."""
    from bnas.profiles.errors import InputError

    try:
        name, shape, classes = space_id.split(":")
        channels, height, width = (int(n) for n in shape.split("x"))
        return make_space(name, (channels, height, width), int(classes))
    except InputError:
        raise
    except ValueError:
        raise InputError(f"{space_id!r} is not a space id; expected NAME:CHANNELSxHEIGHTxWIDTH:CLASSES") from None
