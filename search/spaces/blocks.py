"""Candidate blocks of the chains, described as units; a real-valued shortcut goes around every 1-bit convolution."""

from .wiring import Value, Wiring

GROUP = 32  # channels of a group where a 1-bit convolution takes a depthwise one's place; all where 32 do not divide
DEPTHWISE = {
    "float": 32,
    "int8": 8,
    "grouped": 1,
}  # option value -> bits of the spatial part of a separable 1-bit block


def bireal(w: Wiring, x: Value, out: int, kernel: int, stride: int, *, act: str = "rprelu") -> Value:
    """One unit (Bi-Real Net, Liu et al. 2018; with RPReLU as in ReActNet)."""
    return w.binary("conv", x, out, kernel, stride, act=act)


def react(w: Wiring, x: Value, out: int, kernel: int, stride: int, *, act: str = "rprelu") -> Value:
    """kernel x kernel, then 1x1 that widens; where channels grow the shortcut repeats them (ReActNet, Liu et al. 2020).

    ReActNet's two parallel 1x1 convolutions on the same input are one here, of twice the channels.
    """
    x = w.binary("spatial", x, x.channels, kernel, stride, act=act)
    return w.binary("point", x, out, 1, act=act)


def identity(w: Wiring, x: Value) -> Value:
    return x


def widened(w: Wiring, x: Value, kernel: int, expansion: int) -> Value:
    """Two units: kernel x kernel to `expansion` times the channels, then 1x1 back. Expansion 1: the first alone."""
    if expansion == 1:
        return bireal(w, x, x.channels, kernel, 1)
    wide = w.binary("widen", x, expansion * x.channels, kernel)
    return w.binary("narrow", wide, x.channels, 1)


def spatial(w: Wiring, name: str, x: Value, kernel: int, stride: int, bits: int, *, dilation: int = 1) -> Value:
    """The spatial part of a separable 1-bit block, same channels.

    A 1-bit depthwise convolution would sum kernel^2 signs only, so it is float, 8 bits, or 1 bit in groups of 32
    channels. The shortcut goes around it, too, so that real values pass through the whole block.
    """
    if bits == 1:
        groups = 1 if x.channels % GROUP else x.channels // GROUP
        return w.binary(name, x, x.channels, kernel, stride, groups=groups, dilation=dilation)
    passed = w.shortcut(f"{name}_shortcut", x, x.channels, stride)
    y = w.conv(name, x, x.channels, kernel, stride, bits=bits, groups=x.channels, dilation=dilation)
    return w.step(f"{name}_sum", "add", y, passed, out=x.channels)


def mobile(
    w: Wiring, x: Value, out: int, kernel: int, expansion: int, stride: int, *, bits: int, depthwise: str = "float"
) -> Value:
    """MB(k, e) of MobileNetV2 (Sandler et al. 2018). expansion 1: no first convolution.

    1 bit: the 1x1 convolutions are binary, with shortcuts that repeat channels and average them. There the residual of
    the whole block is what passes through all shortcuts.
    """
    wide = expansion * x.channels
    if bits == 1:
        y = w.binary("expand", x, wide, 1) if expansion > 1 else x
        y = spatial(w, "spatial", y, kernel, stride, DEPTHWISE[depthwise])
        passed = w.shortcut("project_mean", y, x.channels)
        return w.binary("project", y, out, 1, shortcut=w.shortcut("project_shortcut", passed, out))
    y = w.conv("expand", x, wide, 1, bits=bits, act="relu") if expansion > 1 else x
    y = w.conv("spatial", y, wide, kernel, stride, bits=bits, groups=wide, act="relu")
    y = w.conv("project", y, out, 1, bits=bits)
    return w.step("sum", "add", y, x, out=out) if stride == 1 and x.channels == out else y


def shuffle(
    w: Wiring, x: Value, out: int, kernel: int, stride: int, *, bits: int, depthwise: str = "float", passed: int = 0
) -> Value:
    """A block of ShuffleNetV2 (Ma et al. 2018): half of the channels pass, the others go through a branch.

    kernel 3, 5 or 7: 1x1, depthwise, 1x1; kernel 0: "Xception", three times depthwise 3x3 and 1x1 (SPOS, Guo et al.
    2020). passed: channels of the other branch of a stride-2 block (0: as many as come in, as in SPOS).
    """
    middle, real = out // 2, w.shortcut if bits == 1 else None

    def pointwise(name: str, y: Value, channels: int) -> Value:
        if real:
            return w.binary(name, y, channels, 1)
        return w.conv(name, y, channels, 1, bits=bits, act="relu")

    def depth(name: str, y: Value, taps: int, step: int) -> Value:
        if real:
            return spatial(w, name, y, taps, step, DEPTHWISE[depthwise])
        return w.conv(name, y, y.channels, taps, step, bits=bits, groups=y.channels)

    if stride == 1:
        kept = w.step("even", "even_channels", x, out=x.channels // 2)
        y = w.step("odd", "odd_channels", x, out=x.channels // 2)
    else:
        kept = pointwise("pass_point", depth("pass_depth", x, kernel or 3, 2), passed or x.channels)
        y = x
    result = out - kept.channels
    if kernel:
        y = pointwise("point0", y, middle)
        y = depth("depth", y, kernel, stride)
        y = pointwise("point1", y, result)
    else:
        for number, channels in enumerate((middle, middle, result)):
            y = depth(f"depth{number}", y, 3, stride if number == 0 else 1)
            y = pointwise(f"point{number}", y, channels)
    return w.step("join", "concat", kept, y, out=out)
