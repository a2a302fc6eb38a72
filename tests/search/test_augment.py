"""Augmentation against a slow numpy version, and the promise that (seed, epoch) alone fixes every random number."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bnas.search.augment import (
    DeviceSplit,
    augment,
    default_augmentation,
    fits,
    generator,
    on_device,
    order,
)
from bnas.search.data import ImageSet, Split


def split_of(count: int, channels: int = 3, size_px: int = 8, classes: int = 2) -> Split:
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, channels, size_px, size_px), dtype=np.uint8)
    return Split(images, np.arange(count, dtype=np.int64) % classes)


def augmented_slowly(images: np.ndarray, key: tuple[int, ...], flip: bool, shift: int) -> np.ndarray:
    """Pad with the edge, cut a window, mirror it: one image at a time."""
    count, _, height, width = images.shape
    draws = generator(*key)
    down, right = torch.randint(-shift, shift + 1, (2, count, 1), generator=draws).numpy()[..., 0]
    mirrored = torch.randint(0, 2, (count, 1), generator=draws, dtype=torch.bool) if flip else [False] * count
    out = np.empty_like(images)
    for index, image in enumerate(images):
        padded = np.pad(image, ((0, 0), (shift, shift), (shift, shift)), mode="edge")
        top, left = shift - down[index], shift - right[index]
        window = padded[:, top : top + height, left : left + width]
        out[index] = window[:, :, ::-1] if mirrored[index] else window
    return out


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 9),
    channels=st.sampled_from((1, 3)),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    flip=st.booleans(),
    shift=st.integers(0, 5),
    seed=st.integers(0, 2**70),
)
def test_augment_equals_the_slow_version(
    count: int, channels: int, height: int, width: int, flip: bool, shift: int, seed: int
) -> None:
    images = np.random.default_rng(0).standard_normal((count, channels, height, width), dtype=np.float32)
    got = augment(torch.from_numpy(images), generator(seed), flip=flip, shift=shift)
    np.testing.assert_array_equal(got.numpy(), augmented_slowly(images, (seed,), flip, shift))


def test_augment_by_hand() -> None:
    row = torch.tensor([1.0, 2.0, 3.0]).expand(64, 1, 1, 3)
    seen = {tuple(image.flatten().tolist()) for image in augment(row, generator(0), flip=True, shift=1)}
    moved = {(1, 2, 3), (1, 1, 2), (2, 3, 3)}
    assert seen == moved | {image[::-1] for image in moved}


def test_augment_takes_strided_images_and_leaves_them_alone() -> None:
    images = torch.randn(6, 3, 8, 8).to(memory_format=torch.channels_last)
    before = images.clone()
    got = augment(images, generator(1), flip=True, shift=2)
    assert torch.equal(images, before)
    assert torch.equal(got, augment(images.contiguous(), generator(1), flip=True, shift=2))


def test_no_flip_and_no_shift_changes_nothing() -> None:
    images = torch.randn(4, 1, 8, 8)
    assert torch.equal(augment(images, generator(0), flip=False, shift=0), images)
    with pytest.raises(ValueError, match="shift must be 0 or more pixels, got -1"):
        augment(images, generator(0), flip=False, shift=-1)


@given(count=st.integers(0, 300), seed=st.integers(0, 2**63), epoch=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_order_is_a_permutation_from_seed_and_epoch_alone(count: int, seed: int, epoch: int) -> None:
    first = order(count, seed, epoch)
    torch.rand(1)  # the global generator plays no part
    assert torch.equal(first, order(count, seed, epoch))
    assert torch.equal(first.sort().values, torch.arange(count))


def test_orders_of_epochs_and_seeds_differ() -> None:
    orders = {tuple(order(50, seed, epoch).tolist()) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_batch_is_normalised_on_the_device() -> None:
    split = split_of(20)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.25, 1.0)
    held = on_device(split, "cpu", mean, std)
    assert len(held) == 20
    indices = torch.tensor([3, 3, 19])
    images, labels = held.batch(indices)
    assert images.dtype == torch.float32 and labels.dtype == torch.int64
    expected = (split.images[indices] / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(images.numpy(), expected, atol=1e-6)
    assert labels.tolist() == [1, 1, 1]
    assert held.images.dtype == torch.uint8  # not stored as floats


def test_images_take_at_most_half_of_the_free_gpu_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 8000))
    assert fits(500, torch.device("cuda")) and not fits(501, torch.device("cuda"))
    assert fits(10**15, torch.device("cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_gpu_gives_what_the_cpu_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    split, statistics = split_of(40), ((0.5,) * 3, (0.25,) * 3)
    indices = order(40, 0, 0)[:16]

    def first_batch(held: DeviceSplit) -> torch.Tensor:
        images, _ = held.batch(indices)
        assert images.device.type == held.device.type
        return augment(images, generator(0, 0), flip=True, shift=1).cpu()

    expected = first_batch(on_device(split, "cpu", *statistics))
    resident = on_device(split, "cuda", *statistics)
    assert resident.images.is_cuda
    torch.testing.assert_close(first_batch(resident), expected)
    monkeypatch.setattr("bnas.search.augment.fits", lambda size_bytes, device: False)
    streamed = on_device(split, "cuda", *statistics)
    assert not streamed.images.is_cuda
    torch.testing.assert_close(first_batch(streamed), expected)


@pytest.mark.parametrize(
    ("name", "size_px", "expected"),
    [
        ("digits", 8, {"flip": False, "shift": 0}),
        ("ylecun/mnist", 28, {"flip": False, "shift": 3}),
        ("cifar10", 32, {"flip": True, "shift": 4}),
        ("tiny", 4, {"flip": True, "shift": 0}),
    ],
)
def test_default_augmentation(name: str, size_px: int, expected: dict[str, int | bool]) -> None:
    split = split_of(4, size_px=size_px)
    assert default_augmentation(ImageSet.of(name, ("a", "b"), split, split, split)) == expected
