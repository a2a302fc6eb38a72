"""Random problems for the kernels: sizes around the edges of words, vectors and strips, and values that are hard."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from .definition import (
    BYTE_PARTS,
    EPILOGUE,
    IMAGE_PARTS,
    NEUTRAL,
    Array,
    Expected,
    Geometry,
    Levels,
    byte_conv,
    image_conv,
)

T = TypeVar("T")

REQUIRE_ALL = os.environ.get("BNAS_REQUIRE_ALL") == "1"
# In continuous integration the same cases every time, elsewhere always new ones.
BOUNDED = settings(
    deadline=None,
    derandomize=REQUIRE_ALL,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

EDGES = (1, 2, 3, 12, 31, 32, 33, 40, 48, 63, 64, 65, 96, 127)
LARGEST = float(np.finfo(np.float32).max)
HARD = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, -1e-45, 1e-40, -1e-40, LARGEST, -LARGEST], np.float32)
MOST_MACS = 1 << 20  # of one case: the slowest is the reference under an emulator


@dataclass(frozen=True, eq=False)
class ConvCase:
    """A binary convolution, and the floats whose signs it is fed with."""

    x: Array  # float32 [N, C, H, W]
    shift: Array  # float32 [C, 1, 1] or one element
    weights: Array  # bool [O, C / groups, kh, kw], True for -1
    geometry: Geometry

    @property
    def negative(self) -> Array:
        return self.x < self.shift

    @property
    def window(self) -> dict[str, Any]:
        """Keyword arguments of the kernels."""
        g = self.geometry
        return {"strides": g.strides, "pads": g.pads, "dilations": g.dilations, "groups": g.groups}

    def __repr__(self) -> str:
        return f"ConvCase(x {self.x.shape}, shift {self.shift.shape}, weights {self.weights.shape}, {self.geometry})"


def choose(draw: st.DrawFn, options: Sequence[T]) -> T:
    return options[draw(st.integers(0, len(options) - 1))]


def generator(draw: st.DrawFn) -> np.random.Generator:
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1)))


def numbers(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> Array:
    """float32: "normal", "quarters" (whole multiples of 1/4), "large", or "hard" (some of HARD among the normal)."""
    if kind == "quarters":
        return (rng.integers(-8, 9, shape) / 4).astype(np.float32)
    normal = rng.standard_normal(shape).astype(np.float32)
    if kind == "large":
        return normal * np.float32(10) ** rng.integers(-20, 21, shape).astype(np.float32)
    return normal if kind == "normal" else np.where(rng.random(shape) < 0.4, rng.choice(HARD, shape), normal)


def signed(rng: np.random.Generator, shape: tuple[int, ...], shift: Array) -> Array:
    """Values on both sides of the shift, on it, next to it, and hard ones."""
    x = (rng.standard_normal(shape) + np.where(np.isfinite(shift), shift, 0) / 2).astype(np.float32)
    kind = rng.integers(0, 8, shape)
    whole = np.broadcast_to(shift, shape)
    x = np.where(kind == 0, whole, x)
    with np.errstate(all="ignore"):
        x = np.where(kind == 1, np.nextafter(whole, rng.choice(np.array([-np.inf, np.inf], np.float32), shape)), x)
    return np.where(kind == 2, rng.choice(HARD, shape), x).astype(np.float32)


def image_size(draw: st.DrawFn, span: int, before: int, after: int, most: int) -> int:
    """Of one axis, not less than what the window spans."""
    least = max(1, span - before - after)
    return draw(st.integers(least, max(least, most)))


@st.composite
def conv_cases(draw: st.DrawFn) -> ConvCase:
    groups = choose(draw, (1, 1, 1, 2, 3, 5))
    edges = EDGES if groups < 3 else EDGES[:6]
    depth, outputs = choose(draw, edges), choose(draw, edges)
    square = draw(st.booleans())
    kernel, strides, dilations = (
        (first, first if square else choose(draw, options))
        for options in ((1, 3, 5, 7, 2), (1, 2, 3), (1, 1, 1, 2, 3))
        for first in [choose(draw, options)]
    )
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    padding = choose(draw, ("same", "valid", "any", "any", "wide"))
    most = int(max(1, MOST_MACS / (groups * outputs * depth * kernel[0] * kernel[1])) ** 0.5)
    if padding == "same":  # TensorFlow's: for stride 2 on even sizes nothing before, one after
        height, width = draw(st.integers(1, min(20, most + 1))), draw(st.integers(1, min(20, most + 1)))
        lacking = [
            max(0, (-(-size // stride) - 1) * stride + span - size)
            for size, stride, span in zip((height, width), strides, spans, strict=True)
        ]
        pads = (lacking[0] // 2, lacking[1] // 2, lacking[0] - lacking[0] // 2, lacking[1] - lacking[1] // 2)
    else:
        limit = {"valid": 0, "any": 3, "wide": 9}[padding]
        pads = tuple(draw(st.integers(0, limit)) for _ in range(4))  # type: ignore[assignment]
        height = image_size(draw, spans[0], pads[0], pads[2], min(20, most))
        width = image_size(draw, spans[1], pads[1], pads[3], min(20, most))
    batch = choose(draw, (1, 1, 2, 3))
    return conv_case(
        generator(draw),
        (batch, groups * depth, height, width),
        groups * outputs,
        Geometry(kernel, strides, pads, dilations, groups),
        shift=choose(draw, ("one", "normal", "hard")),
    )


def conv_case(
    rng: np.random.Generator, image: tuple[int, int, int, int], outputs: int, geometry: Geometry, shift: str = "normal"
) -> ConvCase:
    shifts = np.zeros((1, 1, 1), np.float32) if shift == "one" else numbers(rng, (image[1], 1, 1), shift)
    weights = rng.random((outputs, image[1] // geometry.groups, *geometry.kernel)) < 0.5
    return ConvCase(signed(rng, image, shifts), shifts, weights, geometry)


@st.composite
def skip_cases(draw: st.DrawFn) -> ConvCase:
    """Results have the shape of x, so x can be the residual."""
    channels, kernel = draw(st.sampled_from(EDGES)), draw(st.sampled_from([1, 2, 3, 5]))
    image = (draw(st.integers(1, 3)), channels, draw(st.integers(1, 9)), draw(st.integers(1, 40)))
    before, after = (kernel - 1) // 2, kernel // 2
    return conv_case(generator(draw), image, channels, Geometry((kernel, kernel), pads=(before, after, after, before)))


@st.composite
def epilogues(draw: st.DrawFn, shape: tuple[int, int, int, int], hardest: bool = True) -> dict[str, Array]:
    """Parts for results of `shape`, each absent, one element or complete; [O, 1, 1], residual [N, O, Ho, Wo]."""
    rng = generator(draw)
    kinds = ("normal", "quarters", "large", "hard") if hardest else ("normal", "quarters")
    parts: dict[str, Array] = {}
    for name in EPILOGUE:
        complete = shape if name == "residual" else (shape[1], 1, 1)
        size = choose(draw, ("absent", "one", "complete", "complete"))
        if size == "absent":
            continue
        parts[name] = numbers(rng, complete if size == "complete" else (1, 1, 1), choose(draw, kinds))
        if name == "slope" and draw(st.booleans()):
            with np.errstate(invalid="ignore"):
                parts[name] = np.abs(parts[name]) * np.float32(choose(draw, (0.25, 0.0, -0.0)))
        if name == "scale" and draw(st.booleans()):
            parts[name] = parts[name] * np.float32(1 / 64)
    return parts


@dataclass(frozen=True, eq=False)
class ByteCase:
    """A convolution of 8 bits."""

    x: Array  # float32 [N, C, H, W]
    levels: Levels
    weights: Array  # int8 [O, C / groups, kh, kw]
    geometry: Geometry
    parts: dict[str, Array]  # of BYTE_PARTS
    rounding: Levels

    @property
    def expected(self) -> Array:
        return byte_conv(self.x, self.levels, self.weights, self.geometry, self.parts, self.rounding)

    def run(self, kernels: Any, path: str) -> Array:
        g = self.geometry
        window = {"strides": g.strides, "pads": g.pads, "dilations": g.dilations, "groups": g.groups}
        levels, rounding = self.levels, {"y_scale": self.rounding.scale, "y_zero": self.rounding.zero}
        found: Array = kernels.byte_conv(
            path, self.x, self.weights, levels.scale, levels.zero, **window, **self.parts, **rounding
        )
        return found

    def __repr__(self) -> str:
        shapes = {name: part.shape for name, part in self.parts.items()}
        about = f"x {self.x.shape}, {self.levels}, weights {self.weights.shape}, {self.geometry}, {shapes}"
        return f"ByteCase({about}, {self.rounding})"


def byte_case(
    rng: np.random.Generator,
    image: tuple[int, int, int, int],
    outputs: int,
    geometry: Geometry,
    *,
    levels: Levels | None = None,
    parts: dict[str, Array] | None = None,
    rounding: Levels | None = None,
) -> ByteCase:
    """Values on the levels, in the middle between two, next to that, beyond all, and hard ones."""
    levels = levels or Levels(0.25, 128)
    scale = np.float32(levels.scale)
    steps = rng.integers(-2 * 300, 2 * 300, image) / 2
    with np.errstate(over="ignore"):
        x = (steps * np.float64(scale)).astype(np.float32)
        kind = rng.integers(0, 8, image)
        x = np.where(kind == 0, np.nextafter(x, rng.choice(np.array([-np.inf, np.inf], np.float32), image)), x)
        x = np.where(kind < 4, x, (rng.standard_normal(image) * 100 * np.float64(scale)).astype(np.float32))
    x = np.where(kind == 7, rng.choice(HARD, image), x).astype(np.float32)
    weights = rng.integers(-128, 128, (outputs, image[1] // geometry.groups, *geometry.kernel))
    weights = np.where(rng.random(weights.shape) < 0.2, rng.choice([-128, 127], weights.shape), weights)
    return ByteCase(x, levels, weights.astype(np.int8), geometry, parts or {}, rounding or Levels(0.0, 0))


MOST_WEIGHTS = 512  # of an output channel


@st.composite
def byte_cases(draw: st.DrawFn) -> ByteCase:
    rng, groups = generator(draw), choose(draw, (1, 1, 1, 2, 3))
    kernel = (choose(draw, (1, 3, 7, 2)), choose(draw, (1, 3, 7, 2, 5)))
    strides, dilations = ((choose(draw, (1, 2, 3)), choose(draw, (1, 1, 1, 2, 3))) for _ in range(2))
    depth = min(choose(draw, (3, 1, 2, 4, 5, 9, 33)), MOST_WEIGHTS // (kernel[0] * kernel[1]))
    outputs = groups * choose(draw, (1, 4, 8, 9, 16, 17))
    pads: Any = tuple(draw(st.integers(0, choose(draw, (0, 3, 9)))) for _ in range(4))
    height, width = (
        image_size(draw, dilations[i] * (kernel[i] - 1) + 1, pads[i], pads[i + 2], (12, 70)[i]) for i in range(2)
    )
    levels = Levels(float(np.float32(choose(draw, (0.25, 0.02, 3.7, 2e-38, 3e38)))), choose(draw, (0, 128, 255, 7)))
    parts = {
        name: numbers(rng, (outputs, 1, 1) if draw(st.booleans()) else (1, 1, 1), choose(draw, ("normal", "hard")))
        for name in BYTE_PARTS
        if draw(st.booleans())
    }
    y_scale = float(np.float32(choose(draw, (0.0, 0.0, 0.5, 37.1, 1e-37))))
    rounding = Levels(y_scale, choose(draw, (0, 128, 255)))
    image = (choose(draw, (1, 2)), groups * depth, height, width)
    geometry = Geometry(kernel, strides, pads, dilations, groups)
    return byte_case(rng, image, outputs, geometry, levels=levels, parts=parts, rounding=rounding)


NO_POOL = Geometry((1, 1))


@dataclass(frozen=True, eq=False)
class ImageCase:
    """A float convolution of an image."""

    x: Array  # float32 [N, C, H, W]
    weights: Array  # float32 [O, C, kh, kw]
    geometry: Geometry
    pool: Geometry
    parts: dict[str, Array]  # of IMAGE_PARTS

    @property
    def expected(self) -> Expected:
        return image_conv(self.x, self.weights, self.geometry, self.pool, self.parts)

    def run(self, kernels: Any, path: str) -> Array:
        g, p = self.geometry, self.pool
        window = {"strides": g.strides, "pads": g.pads}
        pool = {"pool_kernel": p.kernel, "pool_strides": p.strides, "pool_pads": p.pads}
        found: Array = kernels.image_conv(path, self.x, self.weights, **window, **pool, **self.parts)
        return found

    def __repr__(self) -> str:
        shapes = {name: part.shape for name, part in self.parts.items()}
        return f"ImageCase(x {self.x.shape}, weights {self.weights.shape}, {self.geometry}, {self.pool}, {shapes})"


def image_case(
    rng: np.random.Generator,
    image: tuple[int, int, int, int],
    outputs: int,
    geometry: Geometry,
    pool: Geometry = NO_POOL,
    parts: dict[str, Array] | None = None,
) -> ImageCase:
    x, weights = rng.standard_normal(image, np.float32), rng.standard_normal((outputs, image[1], *geometry.kernel))
    return ImageCase(x, weights.astype(np.float32), geometry, pool, parts or {})


@st.composite
def image_cases(draw: st.DrawFn) -> ImageCase:
    rng, depth = generator(draw), choose(draw, (3, 1, 2, 4, 5))
    kernel = (choose(draw, (7, 3, 1, 2, 4, 5, 9)), choose(draw, (7, 3, 1, 2, 4, 5, 9, 11)))
    strides = (choose(draw, (2, 1, 3, 4)), choose(draw, (2, 1, 3, 4, 5)))
    pads: Any = tuple(draw(st.integers(0, choose(draw, (0, 3, 9)))) for _ in range(4))
    height, width = (image_size(draw, kernel[i], pads[i], pads[i + 2], (24, 70)[i]) for i in range(2))
    pool = NO_POOL
    if draw(st.booleans()):
        free = [
            (size - k) // s + 1
            for size, k, s in zip((height + pads[0] + pads[2], width + pads[1] + pads[3]), kernel, strides, strict=True)
        ]
        windows = [min(choose(draw, (3, 2, 1, 4)), size) for size in free]
        around: Any = tuple(draw(st.integers(0, windows[i % 2] - 1)) for i in range(4))
        pool = Geometry((windows[0], windows[1]), (choose(draw, (2, 1, 3)), choose(draw, (2, 1, 3, 5))), around)
    outputs = choose(draw, (1, 16, 4, 17, 32, 33, 64))
    parts = {
        name: numbers(rng, (outputs, 1, 1) if draw(st.booleans()) else (1, 1, 1), "normal")
        for name in IMAGE_PARTS
        if draw(st.booleans())
    }
    image = (choose(draw, (1, 2)), depth, height, width)
    return image_case(rng, image, outputs, Geometry(kernel, strides, pads), pool, parts)


def neutral(outputs: int) -> dict[str, Array]:
    """Parts that change nothing, written out; the residual as one element."""
    return {
        name: np.full((1, 1, 1) if name == "residual" else (outputs, 1, 1), value, np.float32)
        for name, value in NEUTRAL.items()
    }
