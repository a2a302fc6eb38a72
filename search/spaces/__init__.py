"""Search spaces as plain descriptions, and the architectures that are points of them. No torch in here."""

from bnas.profiles.errors import InputError, unknown

from . import cells, mobilenet, options, references, shufflenet, tiny
from .architecture import Architecture
from .space import SearchSpace

SPACES = {"tiny": tiny, "cells": cells, "mobilenet": mobilenet, "shufflenet": shufflenet}

__all__ = ["SPACES", "Architecture", "SearchSpace", "make_space", "reference", "space_of"]


def make_space(text: str, shape: tuple[int, int, int], classes: int) -> SearchSpace:
    """The space that `text` names, for images of `shape` (channels, height, width).

    text: NAME[:INSTANCE][:OPTION=VALUE,...], for example cells, mobilenet:cifar or tiny:micro, cells:bits=32,layers=20.
    Without an instance, the image's size chooses it. Raises InputError for what is unknown or does not fit.
    """
    name, *rest = text.split(":")
    if name not in SPACES and name not in references.NETWORKS:
        raise unknown("space", name, SPACES)
    instance = rest.pop(0) if rest and "=" not in rest[0] else options.instance_for(shape)
    pairs = [pair.partition("=") for pair in (rest.pop(0).split(",") if rest else [])]
    if rest or not all(option and equals and value for option, equals, value in pairs):
        raise InputError(f"{text!r} is not a space; write NAME[:INSTANCE][:OPTION=VALUE,...], e.g. cells:cifar:bits=32")
    given = {option: value for option, _, value in pairs}
    module = SPACES.get(name, references)
    settings = options.check(name, instance, shape, classes, given, module.OPTIONS, module.STRIDES)
    return getattr(module, name)(settings)


def reference(name: str, shape: tuple[int, int, int] = (3, 224, 224), classes: int = 1000) -> Architecture:
    """A published network by name (references.REFERENCES). Raises InputError for a name that there is not."""
    if name in references.NETWORKS:
        return Architecture(make_space(f"{name}:imagenet", shape, classes).id, ())
    if name not in references.POINTS:
        raise unknown("reference network", name, references.REFERENCES)
    space, choose = references.POINTS[name]
    return choose(make_space(space, shape, classes))


def space_of(space_id: str) -> SearchSpace:
    """The space an id such as `tiny:micro:1x8x8:10` names. Raises InputError if it names none."""
    try:
        name, instance, shape, classes, *given = space_id.split(":")
        channels, height, width = (int(n) for n in shape.split("x"))
        return make_space(":".join([name, instance, *given]), (channels, height, width), int(classes))
    except options.ImageSizeError as error:
        raise InputError(f"{error.problem}; change the image in the space id {space_id!r}") from None
    except InputError:
        raise
    except ValueError:
        raise InputError(
            f"{space_id!r} is not a space id; expected NAME:INSTANCE:CHANNELSxHEIGHTxWIDTH:CLASSES[:OPTION=VALUE,...]"
        ) from None
