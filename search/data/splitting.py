"""Cutting a set into parts with every class in proportion. Pure functions of labels and seed."""

import numpy as np

from bnas.profiles.errors import InputError


def stratified(labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted positions of (the rest, a random part of exactly `count`), classes in proportion.

    labels: integers [N]. Each class gives its share of `count` rounded down, then the largest
    remainders give one more. The rest keeps at least one of every class. Raises `InputError` when that is impossible.
    """
    _, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if count > len(labels) - len(sizes):
        raise InputError(
            f"too few images: {count} of {len(labels)} cannot be set aside "
            f"while each of {len(sizes)} classes keeps one; add images"
        )
    shares = quotas(sizes, count)
    rng = np.random.default_rng(seed)
    part = np.concatenate(
        [rng.permutation(np.flatnonzero(inverse == index))[:share] for index, share in enumerate(shares)]
    )
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[part] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def quotas(sizes: np.ndarray, count: int) -> np.ndarray:
    """How many of `count` each class of `sizes` gives: proportional, exact in total, never a whole class."""
    ideal = sizes * (count / sizes.sum())
    shares = np.minimum(np.floor(ideal).astype(np.int64), sizes - 1)
    while (missing := count - shares.sum()) > 0:  # a second round only when a class had no more to give
        open_classes = np.flatnonzero(shares < sizes - 1)
        order = open_classes[np.argsort(-(ideal - shares)[open_classes], kind="stable")]
        shares[order[:missing]] += 1
    return shares
