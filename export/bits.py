"""Signs as bits, packed along the channels: a convolution's weights in bytes, a network's values in words."""

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


def unpack_values(bits: np.ndarray, channels: int) -> np.ndarray:
    """uint32 [N, ceil(channels / 32), H, W] -> bool [N, channels, H, W]; bit i of word j is channel 32 * j + i."""
    octets = np.ascontiguousarray(bits.transpose(0, 2, 3, 1)).astype("<u4").view(np.uint8)
    return np.unpackbits(octets, axis=-1, count=channels, bitorder="little").astype(bool).transpose(0, 3, 1, 2)


def around(shift: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Floats [N, C, H, W] on the known side of the shift [C], for signs whose float values a file does not have."""
    shift = shift.reshape(-1, 1, 1)
    distance = np.maximum(np.abs(shift), 1)
    return np.where(negative, shift - distance, shift + distance).astype(np.float32)
