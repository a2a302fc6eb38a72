import numpy as np
import pytest

from bnas.export.bits import around, pack, unpack, unpack_values


@pytest.mark.parametrize("channels", [1, 3, 7, 8, 9, 31, 32, 33, 63, 64, 65])
def test_unpack_inverts_pack_and_unused_bits_are_zero(channels: int) -> None:
    negative = np.random.default_rng(channels).random((5, channels, 3, 2)) < 0.5
    packed = pack(negative)
    assert packed.dtype == np.uint8 and packed.shape == (5, 3, 2, -(-channels // 8))
    np.testing.assert_array_equal(unpack(packed, channels), negative)
    assert int(np.unpackbits(packed).sum()) == int(negative.sum())


def test_the_first_channel_is_the_least_significant_bit() -> None:
    negative = np.zeros((1, 10, 1, 1), bool)
    negative[0, [0, 2, 9]] = True
    np.testing.assert_array_equal(pack(negative).ravel(), [0b101, 0b10])


@pytest.mark.parametrize("channels", [1, 31, 32, 33, 65])
def test_values_are_unpacked_from_words(channels: int) -> None:
    negative = np.random.default_rng(channels).random((2, channels, 3, 4)) < 0.5
    words = np.zeros((2, -(-channels // 32), 3, 4), np.uint32)
    for c in range(channels):
        words[:, c // 32] += negative[:, c].astype(np.uint32) << np.uint32(c % 32)
    np.testing.assert_array_equal(unpack_values(words, channels), negative)


def test_floats_around_a_shift_have_the_given_signs() -> None:
    shift = np.array([0, -0.5, 1e30, -1e-30, 3], np.float32)
    negative = np.random.default_rng(0).random((2, 5, 3, 4)) < 0.5
    x = around(shift, negative)
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x < shift.reshape(-1, 1, 1), negative)
