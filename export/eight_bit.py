"""Convolutions and linear layers in 8 bits, recognised by value: whole-numbered weights on whole-numbered inputs.

Inputs are uint8 with one scale and zero point; weights are int8, symmetric, with one scale per output channel
(Krishnamoorthi 2018, arXiv 1806.08342, sections 2.2 and 3.1). Training computes with the rounded values in float; here
the integers behind them are found again.
"""

from dataclasses import dataclass, replace

import numpy as np

from .graph import FloatOp, Graph, conv_epilogue

KEEPS_LEVELS = ("relu", "max_pool", "slice")  # give values of the same levels, of which 0 is one
LARGEST = 127  # so that -w is there for every w
GRID_TOLERANCE = 1e-3  # of a step; folding a batch-norm in float64 and rounding to float32 moves weights by up to 3e-5
BIAS_LIMIT = 2**30  # an int32 sum of a bias and up to 33,000 products stays inside
IMAGE_CHANNELS = 4  # a convolution of more reads no image
IMAGE_WEIGHTS = 512  # of an output channel: as many as a `ByteConv2d` may have
BIAS_PRECISION = 2**24  # steps of a bias whose channel has no weight


@dataclass(frozen=True, eq=False)
class EightBitUnit:
    """op(dequantised x, integers * scale), a convolution with what follows it or a linear layer.

    integers: int8 in [-127, 127], of the shape of the weight; scale: float32 [out], a zero channel's is any.
    source: the `quantize` whose levels the input has. epilogue: as `graph.conv_epilogue`, of a linear layer empty.
    """

    op: FloatOp
    integers: np.ndarray
    scale: np.ndarray
    source: FloatOp
    epilogue: tuple[FloatOp, ...]

    @property
    def reads_image(self) -> bool:
        """Whether it is a convolution of so few channels that runtimes' integer kernels are no faster than float ones.

        It goes by the unit alone, so that a unit that is timed by itself is what it is in a network.
        """
        outputs, depth = self.integers.shape[:2]
        if self.op.kind != "conv" or depth * self.op.attributes["groups"] > IMAGE_CHANNELS:
            return False
        return self.integers.size <= outputs * IMAGE_WEIGHTS

    @property
    def output(self) -> str:
        """The value that it ends in."""
        return self.epilogue[-1].output if self.epilogue else self.op.output

    @property
    def bias_scale(self) -> np.ndarray:
        """float32 [out]: what one of the integer sums counts."""
        return np.float32(self.source.attributes["scale"]) * self.scale

    def integer_bias(self) -> np.ndarray | None:
        """int32 [out], the bias in units of `bias_scale`; None where a runtime cannot compute the unit in integers.

        That takes an output that is rounded to 8 bits right behind the convolution; a ReLU in between is the same as
        the lower end of the range where that is zero.
        """
        if not self.epilogue or self.epilogue[-1].kind != "quantize":
            return None
        *between, last = self.epilogue
        if between and not (between[0].kind == "relu" and last.attributes["zero_point"] == 0):
            return None
        steps = np.rint(self.op.attributes["bias"].astype(np.float64) / self.bias_scale)
        return steps.astype(np.int32) if np.abs(steps).max() <= BIAS_LIMIT else None


def eight_bit_units(graph: Graph) -> dict[str, EightBitUnit]:
    """The 8-bit convolutions and linear layers of `graph` in order, by the names of their values."""
    producers, readers = graph.producers(), graph.readers()
    found = {}
    for op in graph.nodes:
        if not isinstance(op, FloatOp) or op.kind not in ("conv", "linear"):
            continue
        source = producers.get(op.inputs[0])
        while isinstance(source, FloatOp) and source.kind in KEEPS_LEVELS:
            source = producers.get(source.inputs[0])
        integers = integer_weights(op.attributes["weight"])
        if integers is None or not isinstance(source, FloatOp) or source.kind != "quantize":
            continue
        bias = np.abs(op.attributes["bias"])
        free = np.where(bias > 0, bias / (source.attributes["scale"] * BIAS_PRECISION), 1)
        largest = _largest(op.attributes["weight"])
        scale = np.where(largest > 0, largest / LARGEST, free).astype(np.float32)
        epilogue = conv_epilogue(op, readers) if op.kind == "conv" else ()
        found[op.output] = EightBitUnit(op, integers, scale, source, epilogue)
    return found


def image_units(graph: Graph) -> dict[str, EightBitUnit]:
    """Those of `eight_bit_units` that read an image, which a file may hold as one operator from float to float.

    They end in front of a rounding that other 8-bit units look for.
    """
    units = eight_bit_units(graph)
    sources = {unit.source.output for unit in units.values()}
    return {
        name: replace(unit, epilogue=unit.epilogue[:-1]) if unit.output in sources else unit
        for name, unit in units.items()
        if unit.reads_image
    }


def integer_weights(weight: np.ndarray) -> np.ndarray | None:
    """int8 like `weight` [out, ...], each channel of which is these times max |w| / 127; None if not."""
    if not np.isfinite(weight).all():
        return None
    largest = _largest(weight).reshape(-1, *(1,) * (weight.ndim - 1))
    with np.errstate(all="ignore"):
        steps = np.where(largest > 0, weight.astype(np.float64) * LARGEST / largest, 0)
    whole = np.rint(steps)
    return whole.astype(np.int8) if (np.abs(steps - whole) <= GRID_TOLERANCE).all() else None


def _largest(weight: np.ndarray) -> np.ndarray:
    """max |w| of each output channel, float64 [out]."""
    return np.abs(weight.astype(np.float64)).reshape(len(weight), -1).max(axis=1)
