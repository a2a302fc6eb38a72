"""A folder of images: one sub-folder per class, or train/ and test/ (and validation/) with one per class each."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from bnas.profiles.errors import InputError

from .assemble import SPLIT_NAMES, Options, Pictures, assemble, need_train
from .form import Picture
from .image_set import ImageSet

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))
LAYOUT = "expected <folder>/<class>/<image> or <folder>/train/<class>/<image>"


def load(data: str, options: Options) -> ImageSet:
    """The set in folder `data`. Links, hidden files and files that are no images by their suffix are ignored."""
    root = Path(data).expanduser()
    roots = split_folders(root)
    need_train(data, roots)
    files = {split: images_by_class(folder) for split, folder in roots.items()}
    classes = tuple(sorted(files["train"]))
    for split, by_class in files.items():
        if strange := sorted(by_class.keys() - files["train"].keys()):
            raise InputError(
                f"{roots[split] / strange[0]}: class {strange[0]!r} has no train images; add some or remove it"
            )
    splits = {split: pictures(by_class, classes) for split, by_class in files.items()}
    return assemble(root.resolve().name, classes, splits, options)


def split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split; the root itself as train if its sub-folders are not all named like splits."""
    folders = visible(root, Path.is_dir)
    if not folders or not all(folder.name.lower() in SPLIT_NAMES for folder in folders):
        return {"train": root}
    splits: dict[str, Path] = {}
    for folder in folders:
        split = SPLIT_NAMES[folder.name.lower()]
        if split in splits:
            raise InputError(f"{root}: both {splits[split].name} and {folder.name} mean {split}; remove one")
        splits[split] = folder
    return splits


def images_by_class(folder: Path) -> dict[str, list[Path]]:
    """The image files of every class sub-folder that has some. Raises `InputError` if there are none."""
    by_class = {}
    for sub in visible(folder, Path.is_dir):
        if images := image_files(sub):
            by_class[sub.name] = images
        elif visible(sub, Path.is_dir):
            raise InputError(f"{sub}: holds folders instead of images; {LAYOUT}")
    if by_class:
        return by_class
    if image_files(folder):
        raise InputError(f"{folder}: images without a class; sort them into one sub-folder per class")
    raise InputError(f"{folder}: no images found; {LAYOUT}")


def image_files(folder: Path) -> list[Path]:
    return [path for path in visible(folder, Path.is_file) if path.suffix.lower() in SUFFIXES]


def visible(folder: Path, kind: Callable[[Path], bool]) -> list[Path]:
    """What lies directly in the folder, sorted by name, without hidden things and links."""
    return sorted(
        path for path in folder.iterdir() if not path.name.startswith(".") and not path.is_symlink() and kind(path)
    )


def pictures(by_class: dict[str, list[Path]], classes: tuple[str, ...]) -> Pictures:
    files = [(path, classes.index(name)) for name, paths in by_class.items() for path in paths]
    labels = np.array([label for _, label in files], dtype=np.int64)
    return Pictures(labels, partial(read, [path for path, _ in files]))


def read(paths: list[Path]) -> Iterator[Picture]:
    return (Picture(str(path), path) for path in paths)
