import numpy as np
import pytest

from bnas.export.bits import pack, unpack


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
