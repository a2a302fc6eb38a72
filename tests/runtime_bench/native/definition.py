"""What the operators of `ai.bnas` must give, from their definition and with numpy alone.

`negative` is a bool array, True where a value is -1. Sums of +1 and -1 are added up in float64, where they are exact.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
EPILOGUE = ("scale", "bias", "residual", "slope", "act_shift_in", "act_shift_out")
NEUTRAL = {"scale": 1.0, "bias": 0.0, "residual": 0.0, "slope": 1.0, "act_shift_in": 0.0, "act_shift_out": 0.0}


@dataclass(frozen=True)
class Geometry:
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, left, bottom, right
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1


def words_of(negative: Array) -> Array:
    """bool [N, C, H, W] -> bits tensor, uint32 [N, ceil(C / 32), H, W]."""
    images, channels, height, width = negative.shape
    whole = np.zeros((images, -(-channels // 32) * 32, height, width), bool)
    whole[:, :channels] = negative
    octets = np.packbits(whole.transpose(0, 2, 3, 1), axis=-1, bitorder="little")
    return np.ascontiguousarray(np.ascontiguousarray(octets).view("<u4").transpose(0, 3, 1, 2))


def bytes_of(negative: Array) -> Array:
    """Weights, bool [O, C, kh, kw] -> w_packed, uint8 [O, kh, kw, ceil(C / 8)]."""
    return np.ascontiguousarray(np.packbits(negative.transpose(0, 2, 3, 1), axis=-1, bitorder="little"))


def dots(negative: Array, weights: Array, geometry: Geometry) -> Array:
    """bool [N, C, H, W], bool [O, C / groups, kh, kw] -> int64 [N, O, Ho, Wo]; padding is +1."""
    return sums(1.0 - 2.0 * negative, 1.0 - 2.0 * weights, geometry, padding=1.0)


def sums(values: Array, weights: Array, geometry: Geometry, padding: float = 0.0) -> Array:
    """Whole numbers in float64 [N, C, H, W] and [O, C / groups, kh, kw] -> int64 [N, O, Ho, Wo]."""
    return real_sums(values, weights, geometry, padding).astype(np.int64)


def real_sums(values: Array, weights: Array, geometry: Geometry, padding: float = 0.0) -> Array:
    """The same with any numbers, in float64."""
    (top, left, bottom, right), (kh, kw), (dh, dw) = geometry.pads, geometry.kernel, geometry.dilations
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=padding)
    spans = (dh * (kh - 1) + 1, dw * (kw - 1) + 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=(2, 3))
    windows = windows[:, :, :: geometry.strides[0], :: geometry.strides[1], ::dh, ::dw]
    parts = [
        np.tensordot(part, weight, axes=((1, 4, 5), (1, 2, 3)))  # [N, Ho, Wo, O / groups]
        for part, weight in zip(
            np.split(windows, geometry.groups, axis=1), np.split(weights, geometry.groups), strict=True
        )
    ]
    return np.concatenate(parts, axis=3).transpose(0, 3, 1, 2)


def max_pool(negative: Array, geometry: Geometry) -> Array:
    """bool [N, C, H, W] -> bool [N, C, Ho, Wo]: whether all pixels of a window are -1, padding being ignored."""
    top, left, bottom, right = geometry.pads
    padded = np.pad(negative, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=True)
    windows = np.lib.stride_tricks.sliding_window_view(padded, geometry.kernel, axis=(2, 3))
    return windows[:, :, :: geometry.strides[0], :: geometry.strides[1]].all(axis=(4, 5))


BYTE_PARTS = {"scale": 1.0, "bias": 0.0, "slope": 1.0, "act_shift_out": 0.0}  # of ByteConv2d, and their neutral value


@dataclass(frozen=True)
class Levels:
    """uint8 levels: `l` stands for (l - zero) * scale. scale: a float32 value, 0 for none."""

    scale: float
    zero: int

    def steps(self, quotients: Array) -> Array:
        """float32 values in units of the scale -> whole numbers, float32; the lowest for NaN."""
        with np.errstate(invalid="ignore"):
            steps = np.clip(np.rint(quotients), -self.zero, 255 - self.zero)
        return np.where(np.isnan(quotients), -self.zero, steps).astype(np.float32)


def byte_conv(
    x: Array, levels: Levels, weights: Array, geometry: Geometry, parts: dict[str, Array], rounding: Levels
) -> Array:
    """ByteConv2d in float32, one rounding a step: x float32 [N, C, H, W], weights int8 [O, C / groups, kh, kw].

    parts: of BYTE_PARTS, absent ones are neutral. y is rounded to levels if `rounding` has a scale.
    """
    one = {name: np.float32(value) for name, value in BYTE_PARTS.items()} | parts
    with np.errstate(all="ignore"):
        steps = levels.steps(x / np.float32(levels.scale))
        integers = sums(steps.astype(np.float64), weights.astype(np.float64), geometry)
        value = integers.astype(np.float32) * one["scale"] + one["bias"]
        value = np.where(value < 0, value * one["slope"], value) + one["act_shift_out"]
        if rounding.scale:
            scale = np.float32(rounding.scale)
            value = rounding.steps(value * (np.float32(1) / scale)) * scale
    return value.astype(np.float32)


@dataclass(frozen=True)
class Expected:
    """y, and how far from it a kernel may be."""

    y: Array
    tolerance: Array

    def wrong(self, found: Array) -> Array:
        """Where `found` is not what it should be: bool, as y."""
        assert found.dtype == np.float32 and found.shape == self.y.shape, (found.dtype, found.shape, self.y.shape)
        with np.errstate(all="ignore"):
            near = np.abs(found.astype(np.float64) - self.y) <= self.tolerance
        same = (found == self.y) | (np.isnan(found) & np.isnan(self.y))
        return ~(near | same | (self.tolerance == np.inf))


def epilogue(integers: Array, parts: dict[str, Array]) -> Expected:
    """act(integers * scale + bias + residual), in float32 and in this order; absent parts are neutral.

    The tolerance is 4 ulp of the largest value on the way to an element. Three things no bound of that kind can cover:
    - a slope of more than 1 in front of an error: the tolerance is multiplied by it where the slope may have been used;
    - of a value next to 0 it is open whether an infinite slope, or NaN, is used;
    - where finite parts are so large that float32's range might be left on the way, it is open whether it is: a fused
      multiplication and addition stays within it where two operations do not.
    """
    one = {name: np.float32(value) for name, value in NEUTRAL.items()} | parts
    with np.errstate(all="ignore"):
        scaled = integers.astype(np.float32) * one["scale"]
        biased = scaled + one["bias"]
        summed = biased + one["residual"]
        centred = summed - one["act_shift_in"]
        rectified = np.where(centred < 0, centred * one["slope"], centred)
        y = (rectified + one["act_shift_out"]).astype(np.float32)
        before = 4 * _ulp(scaled, biased, summed, centred)
        slope = np.abs(one["slope"]).astype(np.float64)
        stretched = np.where(centred <= before, np.where(slope > 1, before * slope, before), before)
        stretched = np.where((np.abs(centred) <= before) & ~np.isfinite(slope), np.inf, stretched)
        tolerance = np.maximum(stretched, 4 * _ulp(scaled, biased, summed, centred, rectified, y))
        size = {name: np.where(np.isfinite(part), np.abs(part), 0).astype(np.float64) for name, part in one.items()}
        reach = np.abs(integers) * size["scale"] + size["bias"] + size["residual"] + size["act_shift_in"]
        reach = reach * np.maximum(size["slope"], 1) + size["act_shift_out"]
        crowded = reach > np.finfo(np.float32).max / 4
    return Expected(y, np.where(crowded, np.inf, np.where(np.isfinite(y), tolerance, 0)))


def _ulp(*values: Array) -> Array:
    """Of the largest of them, element by element; float64."""
    largest = np.max(np.broadcast_arrays(*(np.abs(value) for value in values)), axis=0)
    return np.where(np.isfinite(largest), np.spacing(np.where(np.isfinite(largest), largest, 1)), 0).astype(np.float64)


IMAGE_PARTS = {"bias": 0.0, "slope": 1.0, "act_shift_out": 0.0}  # of ImageConv2d, and their neutral value
TILE = 4  # rows and columns of outputs that ImageConv2d makes together
IMAGE_ERROR = 128 * 2.0**-24  # of the products' absolute sum: a few roundings, enlarged by the transforms


def image_conv(x: Array, weights: Array, geometry: Geometry, pool: Geometry, parts: dict[str, Array]) -> Expected:
    """ImageConv2d: x float32 [N, C, H, W], weights float32 [O, C, kh, kw]; pool: its dilations and groups are 1.

    An output may be off by roundings of all that is read for its tile, also beyond the last output of a row.
    """
    one = {name: np.float64(value) for name, value in IMAGE_PARTS.items()} | parts
    x, weights = x.astype(np.float64), weights.astype(np.float64)
    value = real_sums(x, weights, geometry) + one["bias"]
    height, width = value.shape[2:]
    top, left, bottom, right = geometry.pads
    more = [(TILE - 1) * stride for stride in geometry.strides]
    beyond = replace(geometry, pads=(top, left, bottom + more[0], right + more[1]))
    sizes = np.pad(real_sums(np.abs(x), np.abs(weights), beyond), ((0, 0), (0, 0), (TILE - 1, TILE), (TILE - 1, TILE)))
    around = np.lib.stride_tricks.sliding_window_view(sizes, (2 * TILE - 1, 2 * TILE - 1), axis=(2, 3))
    size = around.max(axis=(4, 5))[:, :, :height, :width] + np.abs(one["bias"])
    error = IMAGE_ERROR * size * np.maximum(1, np.abs(one["slope"])) + 2.0**-22 * np.abs(one["act_shift_out"])
    value = np.where(value < 0, value * one["slope"], value) + one["act_shift_out"]
    return Expected(windows_max(value, pool).astype(np.float32), windows_max(error, pool))


def windows_max(values: Array, pool: Geometry) -> Array:
    """[N, C, H, W] -> the largest of each window, padding being ignored."""
    top, left, bottom, right = pool.pads
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, pool.kernel, axis=(2, 3))
    return windows[:, :, :: pool.strides[0], :: pool.strides[1]].max(axis=(4, 5))
