"""Graph -> .tflite with one `LceBconv2d` per binary convolution, through Larq Compute Engine's converter.

The converter finds binary operators by matching patterns, and compiles some look-alikes to float or to wrong numbers
without a word. Only forms that it compiles exactly are written here (tried on larq-compute-engine 0.16.0):

- sign is `where(x - shift >= 0, 1, -1)`, which becomes `LceQuantize`: +0, -0 and NaN give +1;
- padding in front of a convolution, binary or float, is folded into SAME if its amounts look like SAME, and symmetric
  padding with stride 2 on an even size does: the runtime then pads elsewhere. So trailing pads that no window reads are
  dropped (what is left looks like SAME only if it is), and other amounts go in front of the sign, as +1;
- scale, bias and shifts have shape [C]: [1, 1, 1, C] is fused into an operator that the runtime refuses.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bnas.profiles import atomic
from bnas.profiles.errors import InputError

from .graph import BinaryConv, FloatOp, Graph, first_alike, output_shape, same_pads
from .tflite_file import finish, libraries, rounding_name, unmatched

Tensor = Any  # tf.Tensor: [1, H, W, C] or [1, features], float32


def write_tflite(graph: Graph, path: Path | str, metadata: dict[str, str]) -> None:
    """Write `to_tflite(graph, metadata)` to `path` in one step."""
    atomic.write_bytes(path, to_tflite(graph, metadata))


def to_tflite(graph: Graph, metadata: dict[str, str]) -> bytes:
    """The network as a TensorFlow Lite file for Larq Compute Engine, batch 1.

    Inputs are float32 [1, H, W, C] in the order of `graph.inputs`; the output is [1, classes] (or [1, H, W, C]).
    `metadata` is embedded, see `tflite_file.read_metadata`. Raises InputError if tensorflow or larq-compute-engine is
    missing or a grouped convolution does not fill whole words; RuntimeError if the file lacks a binary convolution.
    """
    for unit in graph.binary_convs:
        _check_groups(unit)
    with _quiet() as log:
        libraries()
        try:
            converted = _convert(_program(graph), graph)
        except Exception as error:
            raise RuntimeError(f"Larq Compute Engine's converter failed: {_last_line(log) or error}") from error
        data = finish(converted, [_input_name(i) for i in range(len(graph.inputs))], metadata)
    if missing := unmatched(data, graph):
        raise RuntimeError(f"the .tflite does not hold these binary convolutions as LceBconv2d: {', '.join(missing)}")
    return data


def _check_groups(unit: BinaryConv) -> None:
    channels = unit.negative.shape[1]
    if unit.groups > 1 and channels % 32:
        raise InputError(
            f"binary convolution {unit.name!r} has {channels} channels per group, but Larq Compute Engine packs each "
            "group into words of 32; use a multiple of 32, or export to onnx"
        )


def to_int8_tflite(graph: Graph, images: np.ndarray) -> bytes:
    """A network without binary convolutions (`twins.float_graph`) as TensorFlow's own converter quantises it.

    Weights and values are 8 bits, ranges are those on `images` [N, C, H, W]; inputs and outputs stay float32. Raises
    InputError as `to_tflite` does; RuntimeError if some operator has no 8-bit form.
    """
    tf, _ = libraries()

    def converted(folder: str) -> bytes:
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image[None].transpose(0, 2, 3, 1)] for image in images)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        return bytes(converter.convert())

    with _quiet() as log:
        try:
            return _saved(_program(graph), graph, converted)
        except Exception as error:
            raise RuntimeError(f"TensorFlow's converter failed: {_last_line(log) or error}") from error


def _convert(program: Callable[..., Tensor], graph: Graph) -> bytes:
    _, lce = libraries()
    return _saved(program, graph, lambda folder: bytes(lce.convert_saved_model(folder)))


def _saved(program: Callable[..., Tensor], graph: Graph, convert: Callable[[str], bytes]) -> bytes:
    """What `convert` makes of the program, saved in a folder."""
    tf, _ = libraries()
    module = tf.Module()
    signature = [
        tf.TensorSpec([1, height, width, channels], tf.float32, name=_input_name(i))
        for i, (_, (channels, height, width)) in enumerate(graph.inputs)
    ]
    module.program = tf.function(program, input_signature=signature, autograph=False)
    with tempfile.TemporaryDirectory(prefix="bnas-") as folder:
        tf.saved_model.save(module, folder, signatures=module.program.get_concrete_function())
        return convert(folder)


def _input_name(index: int) -> str:
    return f"input_{index}"


@contextmanager
def _quiet() -> Iterator[Any]:
    """Collect what native code and Python print on stderr in a file that is yielded; the converter is chatty."""
    with tempfile.TemporaryFile() as log:
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            yield log
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _last_line(log: Any) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if "error" in line.lower()), "")


def _program(graph: Graph) -> Callable[..., Tensor]:
    """The network as a function of its NHWC inputs, to be traced. Float values that are alike are computed once."""
    alike = first_alike(graph)

    def run(*inputs: Tensor) -> Tensor:
        values = dict(zip((name for name, _ in graph.inputs), inputs, strict=True))
        for node in graph.nodes:
            arguments = [values[name] for name in node.inputs]
            if isinstance(node, BinaryConv):
                values[node.output] = _binary_conv(node, *arguments)
            elif alike[node.output] in values:
                values[node.output] = values[alike[node.output]]
            else:
                values[node.output] = FLOAT_WRITERS[node.kind](node, *arguments)
        return values[graph.output]

    return run


def _binary_conv(unit: BinaryConv, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """act(conv(sign(x - shift), W) * scale + bias + residual); each part that does nothing is left out."""
    import tensorflow as tf

    v = _subtract(x, unit.shift)
    pads = _pads_read(unit, x)
    if not any(pads):
        v = _sign(v)
    elif pads == same_pads(_size(x), _kernel(unit.negative), unit.strides, unit.dilations):
        v = _pad(_sign(v), pads, 1.0)
    else:
        v = _sign(_pad(v, pads, 1.0))
    weight = np.where(unit.negative, -1.0, 1.0).astype(np.float32).transpose(2, 3, 1, 0)
    v = tf.nn.conv2d(v, weight, unit.strides, "VALID", dilations=unit.dilations)
    v = v * unit.scale + unit.bias
    if residual is not None:
        v = v + residual
    if unit.slope is None:
        return _add(_subtract(v, unit.act_shift_in), unit.act_shift_out)
    fused_too_far = residual is None and _is(unit.scale, 1.0) and _is(unit.bias, 0.0)
    activate = _prelu if unit.slope.any() or fused_too_far else _relu
    return _add(activate(_subtract(v, unit.act_shift_in), unit.slope), unit.act_shift_out)


def _sign(v: Tensor) -> Tensor:
    import tensorflow as tf

    return tf.where(v >= 0, 1.0, -1.0)


def _is(values: np.ndarray, number: float) -> bool:
    return bool((values == number).all())


def _add(v: Tensor, values: np.ndarray | None) -> Tensor:
    return v if values is None or not values.any() else v + values


def _subtract(v: Tensor, values: np.ndarray | None) -> Tensor:
    return v if values is None or not values.any() else v - values


def _relu(v: Tensor, slope: np.ndarray | None = None) -> Tensor:
    import tensorflow as tf

    return tf.nn.relu(v)


def _prelu(v: Tensor, slope: np.ndarray) -> Tensor:
    """Keras' PReLU, which the converter recognises as one PRELU; `slope` [C] must have one axis less than `v`."""
    import tensorflow as tf

    negated = -np.broadcast_to(slope, v.shape[-1:]).reshape((1,) * (len(v.shape) - 2) + (-1,))
    return tf.nn.relu(v) + negated * tf.nn.relu(-v)


def _kernel(weight: np.ndarray) -> tuple[int, int]:
    return (weight.shape[2], weight.shape[3])


def _size(x: Tensor) -> tuple[int, int]:
    return (x.shape[1], x.shape[2])


def _pads_read(node: BinaryConv | FloatOp, x: Tensor) -> tuple[int, int, int, int]:
    """The node's pads (top, left, bottom, right) without trailing rows and columns that no window reads."""
    if isinstance(node, BinaryConv):
        pads, strides, dilations, kernel = node.pads, node.strides, node.dilations, _kernel(node.negative)
    else:
        a = node.attributes
        pads, strides, dilations = a["pads"], a["strides"], a.get("dilations", (1, 1))
        kernel = a["kernel"] if "kernel" in a else _kernel(a["weight"])
    height, width = _size(x)
    outputs = output_shape(node, ((x.shape[3], height, width),))[1:]

    def after(axis: int, pixels: int) -> int:
        read = (outputs[axis] - 1) * strides[axis] + dilations[axis] * (kernel[axis] - 1) + 1
        return max(read - pads[axis] - pixels, 0)

    return (pads[0], pads[1], after(0, height), after(1, width))


def _pad(v: Tensor, pads: tuple[int, int, int, int], value: float) -> Tensor:
    import tensorflow as tf

    top, left, bottom, right = pads
    if not any(pads):
        return v
    return tf.pad(v, [[0, 0], [top, bottom], [left, right], [0, 0]], constant_values=value)


def _conv(op: FloatOp, x: Tensor) -> Tensor:
    import tensorflow as tf

    a = op.attributes
    weight, groups = a["weight"], a["groups"]
    v = _pad(x, _pads_read(op, x), 0.0)
    if groups > 1 and groups == x.shape[3] and a["strides"][0] == a["strides"][1]:
        kernel = weight.reshape(groups, -1, *weight.shape[2:]).transpose(2, 3, 0, 1)
        v = tf.raw_ops.DepthwiseConv2dNative(  # tf.nn's wrapper is wrong for strides with dilations
            input=v, filter=kernel, strides=[1, *a["strides"], 1], padding="VALID", dilations=[1, *a["dilations"], 1]
        )
    else:
        kernel = weight.transpose(2, 3, 1, 0)
        v = tf.nn.conv2d(v, kernel, a["strides"], "VALID", dilations=a["dilations"])
    return v + a["bias"]


def _linear(op: FloatOp, x: Tensor) -> Tensor:
    import tensorflow as tf

    return tf.matmul(x, op.attributes["weight"].T) + op.attributes["bias"]


def _avg_pool(op: FloatOp, x: Tensor) -> Tensor:
    """SAME counts what is inside of the image only; for other pads zeros are added, then made up for."""
    import tensorflow as tf

    kernel, strides, pads = op.attributes["kernel"], op.attributes["strides"], _pads_read(op, x)
    if pads == same_pads(_size(x), kernel, strides):
        return tf.nn.avg_pool2d(x, kernel, strides, "SAME")
    mean = tf.nn.avg_pool2d(_pad(x, pads, 0.0), kernel, strides, "VALID")
    if not any(pads):
        return mean
    _, rows, columns = output_shape(op, ((x.shape[3], *_size(x)),))

    def share_inside(axis: int, count: int) -> np.ndarray:
        first = np.arange(count) * strides[axis] - pads[axis]
        return (np.minimum(first + kernel[axis], _size(x)[axis]) - np.maximum(first, 0)) / kernel[axis]

    share = np.outer(share_inside(0, rows), share_inside(1, columns))
    return mean * (1 / share).astype(np.float32)[None, :, :, None]


def _max_pool(op: FloatOp, x: Tensor) -> Tensor:
    import tensorflow as tf

    kernel, strides, pads = op.attributes["kernel"], op.attributes["strides"], _pads_read(op, x)
    if pads == same_pads(_size(x), kernel, strides):  # XNNPACK runs no padding with another value than 0
        return tf.nn.max_pool2d(x, kernel, strides, "SAME")
    return tf.nn.max_pool2d(_pad(x, pads, float(np.finfo(np.float32).min)), kernel, strides, "VALID")


def _concat(op: FloatOp, *values: Tensor) -> Tensor:
    import tensorflow as tf

    return tf.concat(values, axis=-1)


def _global_mean(op: FloatOp, x: Tensor) -> Tensor:
    import tensorflow as tf

    return tf.reduce_mean(x, axis=[1, 2])


def _flatten(op: FloatOp, x: Tensor) -> Tensor:
    """Features in the order of [C, H, W], as the weights behind expect them."""
    import tensorflow as tf

    return tf.reshape(tf.transpose(x, [0, 3, 1, 2]) if len(x.shape) == 4 else x, [1, -1])


def _quantize(op: FloatOp, x: Tensor) -> Tensor:
    """In float, in PyTorch's order: times 1 / scale, then round half to even."""
    import tensorflow as tf

    scale, zero_point = np.float32(op.attributes["scale"]), op.attributes["zero_point"]
    steps = tf.round(x * (np.float32(1) / scale), name=rounding_name(op.output))
    return tf.clip_by_value(steps, -float(zero_point), 255.0 - zero_point) * scale


def _slice(op: FloatOp, x: Tensor) -> Tensor:
    return x[..., op.attributes["start"] : op.attributes["stop"] : op.attributes["step"]]


def _float_sign(op: FloatOp, x: Tensor) -> Tensor:
    """A form that the converter leaves in float."""
    import tensorflow as tf

    return 1.0 - 2.0 * tf.cast(_subtract(x, op.attributes["shift"]) < 0, tf.float32)


def _float_pad(op: FloatOp, x: Tensor) -> Tensor:
    """Blocks set beside `x`, because `tf.pad` may be folded into the convolution behind, see above."""
    import tensorflow as tf

    def beside(x: Tensor, axis: int, before: int, after: int) -> Tensor:
        shape = list(x.shape)
        blocks = [
            np.full([*shape[:axis], n, *shape[axis + 1 :]], op.attributes["value"], np.float32) for n in (before, after)
        ]
        return tf.concat([blocks[0], x, blocks[1]], axis) if before or after else x

    top, left, bottom, right = op.attributes["pads"]
    return beside(beside(x, 1, top, bottom), 2, left, right)


FLOAT_WRITERS: dict[str, Callable[..., Tensor]] = {
    "conv": _conv,
    "linear": _linear,
    "affine": lambda op, x: x * op.attributes["scale"] + op.attributes["bias"],
    "add": lambda op, a, b: a + b,
    "prelu": lambda op, x: _prelu(x, op.attributes["slope"]),
    "relu": lambda op, x: _relu(x),
    "avg_pool": _avg_pool,
    "max_pool": _max_pool,
    "concat": _concat,
    "slice": _slice,
    "global_mean": _global_mean,
    "flatten": _flatten,
    "quantize": _quantize,
    "sign": _float_sign,
    "pad": _float_pad,
}
