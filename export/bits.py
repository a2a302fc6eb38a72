"""Signs of a convolution's weights as bits: one bit per weight, packed along the input channels."""

import numpy as np


def pack(negative: np.ndarray) -> np.ndarray:
    """bool [O, C, kh, kw] -> uint8 [O, kh, kw, ceil(C / 8)].

    Bit i of byte j is channel 8 * j + i (least significant bit first); 1 means -1; bits past the last channel are 0.
    """
    return np.packbits(negative.transpose(0, 2, 3, 1), axis=-1, bitorder="little")


def unpack(packed: np.ndarray, channels: int) -> np.ndarray:
    """The inverse of `pack`: uint8 [O, kh, kw, ceil(channels / 8)] -> bool [O, channels, kh, kw]."""
    bits = np.unpackbits(packed, axis=-1, count=channels, bitorder="little")
    return bits.astype(bool).transpose(0, 3, 1, 2)
