"""Images on the training device: the whole set as uint8, batches normalised and augmented there.

Every random number is drawn on the CPU, from a generator that depends on a few given integers only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from .data import ImageSet, Split

DEVICE_SHARE = 0.5  # of the free GPU memory may hold images; the network needs the rest
WRITTEN = ("digit", "mnist", "svhn")  # names of sets whose images mean something else in a mirror


def generator(*key: int) -> torch.Generator:
    """A CPU generator that depends on these non-negative integers only, e.g. (seed, epoch)."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def order(count: int, seed: int, epoch: int) -> Tensor:
    """The order of `count` images in one epoch: a permutation, int64 [count] on the CPU.

    It depends on (seed, epoch) alone, so a resumed run recomputes it and no checkpoint stores it.
    """
    return torch.randperm(count, generator=generator(seed, epoch))


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(images / 255 - mean) / std in float32. images: uint8 [B, C, H, W]; mean, std: [C, 1, 1]."""
    return images.to(torch.float32).div_(255).sub_(mean).div_(std)


@dataclass(frozen=True, eq=False)
class DeviceSplit:
    """A split whose batches come out normalised on `device`.

    images: uint8 [N, C, H, W], on `device` when they fit, else on the CPU;
        each batch is then copied from pinned memory.
    labels: int64 [N] on `device`. mean, std: float32 [C, 1, 1] on `device`.
    """

    images: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor

    @property
    def device(self) -> torch.device:
        return self.labels.device

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images float32 [B, C, H, W] and labels int64 [B] on `device`. indices: int64 [B]."""
        if self.images.device == self.device:
            indices = indices.to(self.device, non_blocking=True)
            images = self.images[indices]
        else:
            images = self.images[indices.cpu()].pin_memory().to(self.device, non_blocking=True)
            indices = indices.to(self.device, non_blocking=True)
        return normalise(images, self.mean, self.std), self.labels[indices]


def on_device(split: Split, device: torch.device | str, mean: tuple[float, ...], std: tuple[float, ...]) -> DeviceSplit:
    """The split held where it is trained. mean, std: per channel, of images scaled to 0..1."""
    device = torch.device(device)
    images = torch.from_numpy(split.images)
    if fits(images.nbytes, device):
        images = images.to(device)
    return DeviceSplit(
        images,
        torch.from_numpy(split.labels).to(device),
        torch.tensor(mean, dtype=torch.float32, device=device)[:, None, None],
        torch.tensor(std, dtype=torch.float32, device=device)[:, None, None],
    )


def fits(size_bytes: int, device: torch.device) -> bool:
    """Whether that many bytes of images may live on the device."""
    if device.type != "cuda":
        return True
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return size_bytes <= DEVICE_SHARE * free_bytes


def augment(images: Tensor, generator: torch.Generator, *, flip: bool, shift: int) -> Tensor:
    """Each image moved by up to `shift` pixels each way and, with `flip`, mirrored half of the time.

    images: [B, C, H, W] of any type, on any device; pixels that move in repeat the nearest edge.
    generator: on the CPU, so that the same seed gives the same images on every device.
    """
    if shift < 0:
        raise ValueError(f"shift must be 0 or more pixels, got {shift}")
    count, channels, height, width = images.shape
    down, right = torch.randint(-shift, shift + 1, (2, count, 1), generator=generator)
    rows = (torch.arange(height) - down).clamp_(0, height - 1)
    columns = (torch.arange(width) - right).clamp_(0, width - 1)
    if flip:
        mirrored = torch.randint(0, 2, (count, 1), generator=generator, dtype=torch.bool)
        columns = torch.where(mirrored, columns.flip(1), columns)
    source = (rows[:, :, None] * width + columns[:, None, :]).view(count, 1, height * width)
    source = source.to(images.device, non_blocking=True).expand(-1, channels, -1)
    return images.reshape(count, channels, height * width).gather(2, source).view_as(images)


def default_augmentation(image_set: ImageSet) -> dict[str, int | bool]:
    """`flip` and `shift` for `augment`: an eighth of the height; no mirror for written characters.

    Below 16 pixels nothing is shifted: a pixel is then too much of the image (digits: 97.9 % with, 98.8 % without).
    """
    height = image_set.shape[1]
    written = any(word in image_set.name.lower() for word in WRITTEN)
    return {"flip": not written, "shift": height // 8 if height >= 16 else 0}
