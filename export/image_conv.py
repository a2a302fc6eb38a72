"""Float convolutions that read an image, with what follows them: the stems of networks.

A runtime that packs pixels into blocks of channels has little use for an image of three; `ImageConv2d` is made for it.
"""

from dataclasses import dataclass

import numpy as np

from .eight_bit import IMAGE_CHANNELS, eight_bit_units
from .graph import BinaryConv, FloatOp, Graph, Node, conv_epilogue

# Weights of an output channel for one of the image from which the operator is faster than onnxruntime's convolution:
# 7 x 7. It takes 0.6 of the time there, as long at 5 x 5, and 1.2 to 2 times as long at 3 x 3.
LEAST_WEIGHTS = 49


@dataclass(frozen=True, eq=False)
class ImageUnit:
    """A convolution of one group without dilation, its activation, and a max-pool or None.

    epilogue: as `graph.conv_epilogue`, without a rounding.
    """

    op: FloatOp
    epilogue: tuple[FloatOp, ...]
    pool: FloatOp | None

    @property
    def ops(self) -> tuple[FloatOp, ...]:
        """All that is computed in it, in order."""
        return (self.op, *self.epilogue, *([] if self.pool is None else [self.pool]))

    @property
    def slope(self) -> np.ndarray:
        """Of negative values: [out] or [1]; 1 where there is no activation, 0 for a ReLU."""
        if not self.epilogue:
            return np.ones(1, np.float32)
        return self.epilogue[0].attributes.get("slope", np.zeros(1, np.float32))

    @property
    def shift(self) -> np.ndarray:
        """Added behind the activation, [out] or [1]."""
        return self.epilogue[1].attributes["bias"] if len(self.epilogue) > 1 else np.zeros(1, np.float32)


def image_convs(graph: Graph) -> dict[str, ImageUnit]:
    """The large float convolutions of `graph` that read an image of few channels, by the values' names they end in.

    Not in front of a float convolution: runtimes keep the blocks of channels that they like best between two of them.
    Nor in front of a sign that changes at the very value that a black window gives, a stem without bias, for example:
    the operator rounds such a window to either side of it.
    """
    readers, eight_bit, shapes = graph.readers(), eight_bit_units(graph), graph.shapes()
    found = {}
    for op in graph.float_convs:
        a = op.attributes
        if op.output in eight_bit or shapes[op.inputs[0]][0] > IMAGE_CHANNELS or a["groups"] > 1:
            continue
        if a["dilations"] != (1, 1) or np.prod(a["weight"].shape[2:]) < LEAST_WEIGHTS:
            continue
        chain: list[FloatOp] = [op]
        for step in conv_epilogue(op, readers):
            if step.kind == "quantize" or chain[-1].output == graph.output:
                break
            chain.append(step)
        following = readers.get(chain[-1].output, [])
        pool = following[0] if len(following) == 1 and chain[-1].output != graph.output else None
        if not isinstance(pool, FloatOp) or pool.kind != "max_pool":
            pool = None
        unit = ImageUnit(op, tuple(chain[1:]), pool)
        output = unit.ops[-1].output
        if not any(_spoils(unit, reader) for reader in readers.get(output, [])):
            found[output] = unit
    return found


def _spoils(unit: ImageUnit, reader: Node) -> bool:
    """Whether `reader` is better off with an ordinary convolution."""
    if isinstance(reader, BinaryConv):
        threshold = None if reader.x != unit.ops[-1].output else 0 if reader.shift is None else reader.shift
    else:
        threshold = reader.attributes.get("shift")  # of signs
    bias = unit.op.attributes["bias"]
    black = np.where(bias < 0, bias * unit.slope, bias) + unit.shift
    on_threshold = threshold is not None and bool((black == threshold).any())
    return on_threshold or (isinstance(reader, FloatOp) and reader.kind == "conv")
