"""The one error a user can cause; the command line prints it as one line and exits with 2."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Bad input: the message names the value and the remedy, in one line."""


def unknown(what: str, name: str, known: Iterable[str]) -> InputError:
    """An `InputError` for a name that is not in `known`, with the nearest known name if one is near."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return InputError(f"unknown {what} {name!r}; {hint}choose from: {', '.join(names)}")
