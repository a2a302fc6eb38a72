"""Every path of the kernels against the definition: the same integers and bits, floats within 4 ulp."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .cases import (
    BOUNDED,
    EDGES,
    HARD,
    NO_POOL,
    ByteCase,
    ConvCase,
    ImageCase,
    byte_case,
    byte_cases,
    choose,
    conv_case,
    conv_cases,
    epilogues,
    generator,
    image_case,
    image_cases,
    neutral,
    numbers,
    signed,
    skip_cases,
)
from .definition import Array, Geometry, Levels, bytes_of, dots, epilogue, max_pool, words_of


def same(found: Array, wanted: Array, *where: object) -> None:
    assert found.dtype == wanted.dtype, where
    np.testing.assert_array_equal(found, wanted, err_msg=" ".join(map(str, where)))


def check_integers(kernels: Any, case: ConvCase, rng: np.random.Generator, paths: list[str]) -> None:
    """Without an epilogue floats are the integers, from floats and from bits; thresholds give exact bits."""
    integers = dots(case.negative, case.weights, case.geometry)
    words, packed, channels = words_of(case.negative), bytes_of(case.weights), case.x.shape[1]
    outputs, fan_in = case.weights.shape[0], case.weights[0].size
    # On the values that there are, between them, and beyond all of them.
    threshold = rng.choice(integers.ravel(), outputs) + rng.integers(-1, 2, outputs)
    extreme = rng.choice([-(2**31), -fan_in, 1 - fan_in, fan_in, fan_in + 1, 2**31 - 1], outputs)
    threshold = np.where(rng.random(outputs) < 0.2, extreme, threshold).astype(np.int32)
    minus = words_of(integers < threshold[:, None, None])
    # Bits past the last channel of the weights mean nothing.
    used = bytes_of(np.ones_like(case.weights))
    careless = packed | (rng.integers(0, 256, packed.shape).astype(np.uint8) & ~used)
    for path in paths:
        found = kernels.conv(path, case.x, careless, shift=case.shift, **case.window)
        same(found, integers.astype(np.float32), path, "conv")
        found = kernels.conv_from_bits(path, words, channels, packed, **case.window, **neutral(outputs))
        same(found, integers.astype(np.float32), path, "conv_from_bits")
        same(kernels.conv_bits(path, words, channels, careless, threshold, **case.window), minus, path, "conv_bits")


def check_floats(kernels: Any, case: ConvCase, parts: dict[str, Array], paths: list[str]) -> None:
    expected = epilogue(dots(case.negative, case.weights, case.geometry), parts)
    words, packed, channels = words_of(case.negative), bytes_of(case.weights), case.x.shape[1]
    for path in paths:
        found = {
            "conv": kernels.conv(path, case.x, packed, shift=case.shift, **case.window, **parts),
            "conv_from_bits": kernels.conv_from_bits(path, words, channels, packed, **case.window, **parts),
        }
        for operator, y in found.items():
            wrong = expected.wrong(y)
            if wrong.any():
                first = tuple(np.argwhere(wrong)[0])
                at = {name: np.broadcast_to(part, y.shape)[first] for name, part in parts.items()}
                dot = dots(case.negative, case.weights, case.geometry)[first]
                raise AssertionError(
                    f"{operator} on {path}: {wrong.sum()} of {y.size} wrong; at {first} dot {dot} with {at} gives "
                    f"{y[first]!r}, expected {expected.y[first]!r} within {expected.tolerance[first]}"
                )


@settings(BOUNDED, max_examples=100)
@given(case=conv_cases())
def test_integers_are_exact(kernels: Any, case: ConvCase) -> None:
    check_integers(kernels, case, np.random.default_rng(0), kernels.paths())


@settings(BOUNDED, max_examples=200)
@given(data=st.data())
def test_floats_are_within_4_ulp(kernels: Any, data: st.DataObject) -> None:
    case = data.draw(conv_cases())
    shape = dots(case.negative, case.weights, case.geometry).shape
    check_floats(kernels, case, data.draw(epilogues(shape)), kernels.paths())


@settings(BOUNDED, max_examples=50)
@given(data=st.data())
def test_a_skip_takes_the_place_of_its_input(kernels: Any, data: st.DataObject) -> None:
    case = data.draw(skip_cases())
    check_floats(kernels, case, data.draw(epilogues(case.x.shape)) | {"residual": case.x}, kernels.paths())


def test_a_residual_that_begins_where_x_does_is_not_x(kernels: Any) -> None:
    case = conv_case(np.random.default_rng(1), (1, 64, 5, 6), 4, Geometry((1, 1)))
    check_floats(kernels, case, {"residual": case.x[:, :4]}, kernels.paths())


@pytest.mark.slow
@settings(BOUNDED, max_examples=3000, derandomize=False)
@given(data=st.data())
def test_a_long_search_finds_nothing(kernels: Any, data: st.DataObject) -> None:
    case = data.draw(conv_cases())
    check_integers(kernels, case, np.random.default_rng(0), kernels.paths())
    shape = dots(case.negative, case.weights, case.geometry).shape
    check_floats(kernels, case, data.draw(epilogues(shape)), kernels.paths())


@pytest.mark.parametrize("fan_in", [1, 2, 3, 4])
@settings(BOUNDED, max_examples=40)
@given(data=st.data())
def test_sums_that_cancel_are_within_4_ulp(kernels: Any, fan_in: int, data: st.DataObject) -> None:
    """Each part leads from one end of the range to the other, so that adding them in another order would show."""
    rng = generator(data.draw)
    case = conv_case(rng, (1, 1, 3, 37), 70, Geometry((1, fan_in)))
    integers = dots(case.negative, case.weights, case.geometry)
    vector = (integers.shape[1], 1, 1)
    ends = [rng.uniform(-2, 2, vector) for _ in range(3)]  # after each part
    parts = {"scale": rng.uniform(0.1, 2, vector)}
    parts["bias"] = ends[0] - parts["scale"] * rng.choice([-1, 1], vector)
    total = integers * parts["scale"] + parts["bias"]
    if data.draw(st.booleans()):
        parts["residual"] = ends[1] - total
        total = total + parts["residual"]
    parts["act_shift_in"] = np.median(total, axis=(0, 2, 3)).reshape(vector) - ends[2]
    if data.draw(st.booleans()):
        parts["slope"] = rng.uniform(-2, 2, vector)
    parts = {name: np.ascontiguousarray(part, np.float32) for name, part in parts.items()}
    check_floats(kernels, case, parts, kernels.paths())


# Sizes that need several slabs of rows, ranges of output channels, strips of positions, or runs of pixels.
LARGE = {
    "slabs and ranges": ((1, 40, 101, 83), 40, Geometry((3, 3), pads=(1, 1, 1, 1))),
    "slabs of a batch, stride 2": ((2, 33, 98, 90), 9, Geometry((3, 3), (2, 2), (0, 0, 1, 1))),
    "slabs, stride 3 by 1, dilated": ((1, 40, 110, 61), 9, Geometry((3, 2), (3, 1), (2, 3, 4, 5), (2, 3))),
    "slabs that end in padding": ((1, 64, 107, 40), 8, Geometry((5, 5), pads=(9, 2, 30, 2))),
    "slabs of a 1x1 kernel": ((1, 33, 103, 83), 33, Geometry((1, 1))),
    "more images than are packed at once": ((5, 33, 51, 47), 33, Geometry((3, 3), pads=(2, 1, 0, 1))),
    "wide": ((1, 3, 4, 1500), 5, Geometry((3, 3), pads=(1, 1, 1, 1))),
    "wide, stride 3": ((1, 33, 2, 2100), 3, Geometry((1, 5), (1, 3), (0, 7, 0, 1), (1, 2))),
    "wide, no junk": ((1, 33, 3, 1031), 9, Geometry((1, 1))),
    "wide groups, stride 2 of a 1x1 kernel": ((1, 99, 3, 1029), 6, Geometry((1, 1), (2, 2), groups=3)),
    "kernel as wide as the image": ((1, 31, 3, 130), 2, Geometry((3, 130), pads=(0, 1, 1, 129))),
    "pads beyond the kernel": ((1, 33, 2, 3), 9, Geometry((3, 3), (2, 3), (40, 700, 5, 600))),
    "many groups": ((1, 300, 9, 9), 300, Geometry((3, 3), pads=(1, 1, 1, 1), groups=300)),
}


@pytest.mark.parametrize("image, outputs, geometry", LARGE.values(), ids=LARGE)
def test_sizes_that_are_cut_into_pieces(kernels: Any, image: Any, outputs: int, geometry: Geometry) -> None:
    rng = np.random.default_rng(7)
    case = conv_case(rng, image, outputs, geometry)
    paths = kernels.paths()[1:]  # the reference knows no pieces, and is slow
    check_integers(kernels, case, rng, paths)
    shape = dots(case.negative, case.weights, geometry).shape
    vector = (outputs, 1, 1)
    parts = {"scale": numbers(rng, vector, "normal"), "bias": numbers(rng, vector, "normal")}
    parts |= {"residual": numbers(rng, shape, "normal"), "slope": numbers(rng, vector, "normal")}
    check_floats(kernels, case, parts, paths)
    if shape == case.x.shape:
        check_floats(kernels, case, parts | {"residual": case.x}, paths)  # takes the place of x


@pytest.mark.parametrize("fan_in", [7, 8, 31, 255, 257, 2040, 8200, 40_000, 70_000])
def test_sums_of_any_length(kernels: Any, fan_in: int) -> None:
    """Counts from none to all, where narrow ones would overflow; weights that differ everywhere, or nowhere."""
    x = np.full((1, fan_in, 1, 3), -1.0, np.float32)
    x[..., 1] = 1
    x[:, ::2, 0, 2] = 1
    weights = np.stack([np.zeros((fan_in, 1, 1), bool), np.ones((fan_in, 1, 1), bool)] * 5)
    case = ConvCase(x, np.zeros((1, 1, 1), np.float32), weights, Geometry((1, 1)))
    check_integers(kernels, case, np.random.default_rng(0), kernels.paths())


@settings(BOUNDED, max_examples=60)
@given(data=st.data())
def test_signs_are_packed(kernels: Any, data: st.DataObject) -> None:
    rng, channels = generator(data.draw), choose(data.draw, EDGES)
    shape = (choose(data.draw, (1, 2)), channels, choose(data.draw, (1, 2, 17)), choose(data.draw, (1, 3, 8, 31, 67)))
    shift = numbers(rng, (channels, 1, 1), choose(data.draw, ("normal", "hard")))
    if data.draw(st.booleans()):
        shift = shift[:1]
    x = signed(rng, shape, shift)
    for path in kernels.paths():
        same(kernels.pack_signs(path, x, shift), words_of(x < shift), path)


def test_signs_of_every_pair_of_hard_values(kernels: Any) -> None:
    x = np.broadcast_to(HARD[:, None, None], (1, len(HARD), 2, 1500))
    for shift in HARD:
        wanted = words_of(x < shift)
        for path in kernels.paths():
            same(kernels.pack_signs(path, np.ascontiguousarray(x), np.full(1, shift)), wanted, path, shift)


@settings(BOUNDED, max_examples=60)
@given(data=st.data())
def test_bits_are_pooled(kernels: Any, data: st.DataObject) -> None:
    kernel = (choose(data.draw, (2, 3, 1, 4)), choose(data.draw, (2, 3, 1, 4)))
    strides = (choose(data.draw, (1, 2, 3)), choose(data.draw, (1, 2, 3)))
    pads: Any = tuple(data.draw(st.integers(0, kernel[i % 2] - 1)) for i in range(4))
    size = [max(kernel[i] - pads[i] - pads[i + 2], data.draw(st.integers(1, 12))) for i in range(2)]
    shape = (choose(data.draw, (1, 2)), choose(data.draw, EDGES), *size)
    negative = generator(data.draw).random(shape) < 0.7
    pooled = max_pool(negative, Geometry(kernel, strides, pads))
    found = kernels.max_pool_bits(words_of(negative), kernel, strides=strides, pads=pads)
    wanted = words_of(pooled)
    wanted[:, -1] &= np.uint32(0xFFFFFFFF >> -shape[1] % 32)
    same(found, wanted)


@settings(BOUNDED, max_examples=150)
@given(case=byte_cases())
def test_8_bit_convolutions_are_the_same_numbers_everywhere(kernels: Any, case: ByteCase) -> None:
    expected, first = case.expected, None
    for path in kernels.paths():
        found = case.run(kernels, path)
        same(found, expected, path)
        first = first or found.tobytes()
        assert np.isnan(found).any() or found.tobytes() == first, path  # zeros have the same sign


@pytest.mark.slow
@settings(BOUNDED, max_examples=3000, derandomize=False)
@given(case=byte_cases())
def test_a_long_search_finds_nothing_in_8_bits(kernels: Any, case: ByteCase) -> None:
    for path in kernels.paths():
        same(case.run(kernels, path), case.expected, path)


# Sizes that need several slabs of rows, runs of positions or registers of bytes.
LARGE_IMAGES = {
    "stem of an ImageNet network": ((1, 3, 112, 112), 64, Geometry((7, 7), (2, 2), (3, 3, 3, 3))),
    "stem of 16 channels": ((2, 3, 64, 64), 16, Geometry((3, 3), (2, 2), (0, 0, 1, 1))),
    "slabs of a batch, dilated": ((2, 4, 120, 61), 9, Geometry((3, 5), (3, 1), (2, 3, 4, 5), (2, 3))),
    "wide": ((1, 3, 4, 1500), 5, Geometry((3, 3), pads=(1, 1, 1, 1))),
    "wide, stride 3, groups": ((1, 8, 2, 2100), 6, Geometry((1, 5), (1, 3), (0, 7, 0, 1), groups=2)),
    "pads beyond the kernel": ((1, 3, 2, 3), 9, Geometry((3, 3), (2, 3), (40, 700, 5, 600))),
    "as many weights as may be": ((1, 32, 9, 21), 8, Geometry((4, 4))),
}


@pytest.mark.parametrize("image, outputs, geometry", LARGE_IMAGES.values(), ids=LARGE_IMAGES)
def test_8_bit_images_that_are_cut_into_pieces(kernels: Any, image: Any, outputs: int, geometry: Geometry) -> None:
    rng = np.random.default_rng(9)
    parts = {name: numbers(rng, (outputs, 1, 1), "normal") for name in ("scale", "bias", "slope")}
    for rounding in (Levels(0.0, 0), Levels(64.0, 100)):
        case = byte_case(rng, image, outputs, geometry, parts=parts, rounding=rounding)
        for path in kernels.paths()[1:]:
            same(case.run(kernels, path), case.expected, path)


@pytest.mark.parametrize("weight", [-128, 127])
@pytest.mark.parametrize("level, zero", [(255, 0), (0, 255), (255, 255)])
def test_the_largest_8_bit_sums_are_exact(kernels: Any, weight: int, level: int, zero: int) -> None:
    x = np.full((1, 32, 4, 4), level - zero, np.float32)
    w = np.full((3, 32, 4, 4), weight, np.int8)
    for path in kernels.paths():
        found = kernels.byte_conv(path, x, w, 1.0, zero)
        assert (found == (level - zero) * weight * 512).all(), path


def test_more_weights_than_sums_can_hold_are_refused(kernels: Any) -> None:
    x, w = np.zeros((1, 27, 19, 1), np.float32), np.zeros((1, 27, 19, 1), np.int8)
    for path in kernels.paths():
        with pytest.raises(ValueError, match="more than 512 weights per output channel"):
            kernels.byte_conv(path, x, w, 1.0, 0)
        with pytest.raises(ValueError, match=r"expected a normal number above 0$"):
            kernels.byte_conv(path, x, w[:, :, :1], 0.0, 0)
        with pytest.raises(ValueError, match="or 0 for none"):
            kernels.byte_conv(path, x, w[:, :, :1], 1.0, 0, y_scale=float("inf"))


@settings(BOUNDED, max_examples=60)
@given(case=image_cases())
def test_images_are_convolved_and_pooled(kernels: Any, case: ImageCase) -> None:
    expected = case.expected
    for path in kernels.paths():
        assert not expected.wrong(case.run(kernels, path)).any(), path


@pytest.mark.slow
@settings(BOUNDED, max_examples=3000, derandomize=False)
@given(case=image_cases())
def test_a_long_search_finds_nothing_in_images(kernels: Any, case: ImageCase) -> None:
    test_images_are_convolved_and_pooled.hypothesis.inner_test(kernels, case)  # type: ignore[attr-defined]


# Sizes that need several slabs of rows or blocks of tiles, and windows that leave out rows.
POOLED = Geometry((3, 3), (2, 2), (1, 1, 1, 1))
WHOLE_IMAGES = {
    "stem of an ImageNet network": ((1, 3, 112, 112), 64, Geometry((7, 7), (2, 2), (3, 3, 3, 3)), POOLED),
    "stem of a CIFAR network": ((2, 3, 32, 32), 48, Geometry((3, 3), pads=(1, 1, 1, 1)), NO_POOL),
    "patches": ((1, 3, 64, 64), 96, Geometry((4, 4), (4, 4)), NO_POOL),
    "slabs of a batch": ((2, 4, 150, 61), 70, Geometry((3, 5), (3, 1), (2, 3, 4, 5)), Geometry((2, 2), (3, 4))),
    "wide": ((1, 3, 5, 1500), 5, Geometry((3, 3), pads=(1, 1, 1, 1)), Geometry((4, 4), (1, 4), (3, 0, 3, 2))),
    "pads beyond the kernel": ((1, 3, 2, 3), 9, Geometry((3, 3), (2, 3), (40, 700, 5, 600)), POOLED),
}


@pytest.mark.parametrize("image, outputs, geometry, pool", WHOLE_IMAGES.values(), ids=WHOLE_IMAGES)
def test_images_that_are_cut_into_pieces(
    kernels: Any, image: Any, outputs: int, geometry: Geometry, pool: Geometry
) -> None:
    rng = np.random.default_rng(9)
    parts = {name: numbers(rng, (outputs, 1, 1), "normal") for name in ("bias", "slope", "act_shift_out")}
    case = image_case(rng, image, outputs, geometry, pool, parts)
    expected = case.expected
    for path in kernels.paths()[1:]:
        assert not expected.wrong(case.run(kernels, path)).any(), path


def test_windows_of_an_image_that_do_not_fit_are_refused(kernels: Any) -> None:
    x, w = np.zeros((1, 3, 4, 5), np.float32), np.zeros((2, 3, 3, 3), np.float32)
    for path in kernels.paths():
        with pytest.raises(ValueError, match="the kernel spans 3 pixels, more than the padded height of 2"):
            kernels.image_conv(path, x[:, :, :2], w)
        with pytest.raises(ValueError, match="pool: the kernel spans 3 pixels, more than the padded height of 2"):
            kernels.image_conv(path, x, w, pool_kernel=(3, 3))
        with pytest.raises(ValueError, match="pool: pads must be smaller than the kernel"):
            kernels.image_conv(path, x, w, pool_pads=(1, 0, 0, 0))
