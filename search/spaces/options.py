"""What a user says about a space, checked: its instance, the image it is for and its options."""

from __future__ import annotations

from dataclasses import dataclass

from bnas.profiles.errors import InputError, unknown

LARGEST = {"micro": 16, "cifar": 64}  # sides up to which an instance is chosen when none is given


class ImageSizeError(InputError):
    """An image that is too small or cannot be halved often enough. problem: without how another size is chosen."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}; choose a size with --image-size")
        self.problem = problem


@dataclass(frozen=True)
class Settings:
    """instance, image and options of a space; given: the options that were named, in the order the space lists them."""

    instance: str
    shape: tuple[int, int, int]
    classes: int
    given: tuple[tuple[str, str], ...]
    values: dict[str, str]

    def __getitem__(self, option: str) -> str:
        return self.values[option]

    @property
    def end_bits(self) -> int:
        return int(self["ends"])


def instance_for(shape: tuple[int, int, int]) -> str:
    return next((name for name, side in LARGEST.items() if max(shape[1:]) <= side), "imagenet")


def check(
    name: str,
    instance: str,
    shape: tuple[int, int, int],
    classes: int,
    given: dict[str, str],
    known: dict[str, tuple[str, ...]],
    strides: dict[str, int],
) -> Settings:
    """known: for each option its values, the default first; an empty tuple takes any number above 0.

    strides: by how much each instance makes the image smaller. Raises InputError for what does not fit.
    """
    channels, height, width = shape
    if instance not in strides:
        raise unknown(f"instance of space {name!r}", instance, strides)
    if channels not in (1, 3):
        raise InputError(f"space {name!r} takes images of 1 or 3 channels, got {channels}")
    if classes < 2:
        raise InputError(f"space {name!r} needs at least 2 classes, got {classes}")
    stride = strides[instance]
    least = max(8, 2 * stride)
    if not all(side >= least and side % stride == 0 for side in (height, width)):
        raise ImageSizeError(
            f"space '{name}:{instance}' takes images of at least {least} pixels a side, divisible by {stride}, got "
            f"{height}x{width}"
        )
    for option, value in given.items():
        if option not in known:
            raise unknown(f"option of space {name!r}", option, known)
        if known[option] and value not in known[option]:
            raise unknown(f"{option} of space {name!r}", value, known[option])
        if not known[option] and not (value.isdecimal() and value.isascii() and 0 < int(value) <= 4096):
            raise InputError(f"{option}={value} of space {name!r} is not a number from 1 to 4096")
    values = {option: given.get(option, choices[0] if choices else "") for option, choices in known.items()}
    named = {
        option: value for option, value in values.items() if option in given and value != (known[option] or ("",))[0]
    }
    return Settings(instance, shape, classes, tuple(named.items()), values)


BITS = ("1", "8", "32", "1+8", "1+32", "8+32", "1+8+32")
ENDS = {"ends": ("32", "8")}  # of every space: bits of its first convolutions, which read the image, and of its head


def bit_widths(option: str) -> tuple[int, ...]:
    """(1, 8) of "1+8"."""
    return tuple(map(int, option.split("+")))


def label(candidate: str, bits: int, widths: tuple[int, ...]) -> str:
    """A candidate's name; it says its bits where the space has several."""
    return candidate if len(widths) == 1 else f"{candidate}_{bits}bit"
