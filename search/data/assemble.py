"""From labelled encoded pictures, split or not, to an `ImageSet` with all three splits."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from bnas.profiles.errors import InputError

from .form import Picture
from .image_set import ImageSet, Split
from .pictures import Progress, decode
from .splitting import stratified

TEST_SHARE = 0.1  # of the images, when they come without a test split
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Options:
    """How to read an image set; the fields are explained at `load_images`."""

    image_size: int | None = None
    image_column: str | None = None
    label_column: str | None = None
    seed: int = 0
    validation: float = 0.1
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise InputError(f"image size {self.image_size} px is not possible; give 1 or more")
        if not 0 < self.validation < 1:
            raise InputError(f"validation share {self.validation} is not possible; give a fraction, e.g. 0.1")
        if self.seed < 0:
            raise InputError(f"seed {self.seed} is not possible; give 0 or more")


def need_train(name: str, found: Collection[str]) -> None:
    """Raises `InputError` if the splits found do not include train."""
    if "train" not in found:
        raise InputError(f"{name}: no train split, only {', '.join(sorted(found))}; add one called 'train'")


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures of one split: labels int64 [N], and a function that gives the N pictures in that order."""

    labels: np.ndarray
    read: Callable[[], Iterable[Picture]]


def assemble(name: str, classes: tuple[str, ...], splits: Mapping[str, Pictures], options: Options) -> ImageSet:
    """All images decoded in one form, and the missing splits cut from train: stratified, by `options.seed`.

    splits: "train" and perhaps "validation" and "test", as they were found. A test split is cut first.
    """
    for split, found in splits.items():
        if not len(found.labels):
            raise InputError(f"{name}: the {split} split holds no images; add some or remove it")
    if len(classes) < 2:
        raise InputError(f"{name}: only one class ({', '.join(classes)}); a classifier needs at least 2")

    def all_pictures() -> Iterator[Picture]:
        for found in splits.values():
            yield from found.read()

    counts = [len(found.labels) for found in splits.values()]
    images = decode(all_pictures, sum(counts), options.image_size, options.progress)
    parts = np.split(images, np.cumsum(counts)[:-1])
    ready = {split: Split(part, found.labels) for (split, found), part in zip(splits.items(), parts, strict=True)}
    return ImageSet.of(name, classes, **with_all_splits(ready, options))


def with_all_splits(found: dict[str, Split], options: Options) -> dict[str, Split]:
    """`found` with train, validation and test; a missing share is of the images that came as train."""
    train = found["train"]
    shares = {"test": TEST_SHARE, "validation": options.validation}
    kept, cut = np.arange(len(train)), {}
    for split, share in shares.items():
        if split not in found:
            count = max(1, round(share * len(train)))
            rest, part = stratified(train.labels[kept], count, options.seed)
            cut[split], kept = train.take(kept[part]), kept[rest]
    return found | cut | ({"train": train.take(kept)} if cut else {})
