"""An image set in memory: three splits of uint8 images with labels. Values only; no reading, no torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bnas.profiles.errors import InputError

FORMAT = 1
BLOCK = 1024  # images per step of a statistic, so that no temporary is larger than a few megabytes


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 [N, C, H, W] and their labels int64 [N]; N is at least 1."""

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise ValueError(f"images must be uint8 [N, C, H, W], got {self.images.dtype} {self.images.shape}")
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"labels must be int64 [{len(self.images)}], got {self.labels.dtype} {self.labels.shape}")
        if not len(self.images):
            raise ValueError("a split needs at least one image")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Split:
        """The images at these positions, copied."""
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A named set for classification. A search may look at `train` and `validation`, never at `test`.

    mean, std: per channel, of the train images scaled to 0..1.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise InputError(f"image set {self.name!r} has {len(self.classes)} class; a classifier needs at least 2")
        for split in (self.train, self.validation, self.test):
            if split.images.shape[1:] != self.shape:
                raise ValueError(f"splits differ in shape: {split.images.shape[1:]} and {self.shape}")
            if split.labels.min() < 0 or split.labels.max() >= len(self.classes):
                raise ValueError(f"labels must be in 0..{len(self.classes) - 1}")

    @classmethod
    def of(cls, name: str, classes: tuple[str, ...], train: Split, validation: Split, test: Split) -> ImageSet:
        """The set with the mean and standard deviation of its train images."""
        mean, std = channel_statistics(train.images)
        return cls(name, classes, train, validation, test, mean, std)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any pixel, label, class name or move between splits."""
        digest = hashlib.sha256(repr((FORMAT, self.classes)).encode())
        for split in (self.train, self.validation, self.test):
            digest.update(repr(split.images.shape).encode())
            digest.update(np.ascontiguousarray(split.images).data)
            digest.update(np.ascontiguousarray(split.labels, dtype="<i8").data)
        return digest.hexdigest()[:16]

    def to_dict(self) -> dict[str, object]:
        """What a run records of its data, ready for JSON; the fingerprint stands for the pixels."""
        return {
            "format": FORMAT,
            "name": self.name,
            "classes": list(self.classes),
            "shape": list(self.shape),
            "images": {
                "train": len(self.train),
                "validation": len(self.validation),
                "test": len(self.test),
            },
            "mean": list(self.mean),
            "std": list(self.std),
            "fingerprint": self.fingerprint,
        }


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 images [N, C, H, W] scaled to 0..1.

    Computed from a histogram, so exact up to the last division. The deviation is at least 1/255: a channel
    without any contrast is then centred instead of divided by zero.
    """
    mean, std = [], []
    for channel in range(images.shape[1]):
        counts = np.zeros(256, dtype=np.int64)
        for start in range(0, len(images), BLOCK):
            counts += np.bincount(images[start : start + BLOCK, channel].ravel(), minlength=256)
        values = np.arange(256) / 255
        centre = float(counts @ values / counts.sum())
        variance = float(counts @ (values - centre) ** 2 / counts.sum())
        mean.append(centre)
        std.append(max(variance**0.5, 1 / 255))
    return tuple(mean), tuple(std)
