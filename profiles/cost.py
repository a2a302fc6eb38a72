"""What a workload costs on paper: operations and bytes, one small function per count. Nothing is measured here."""

from .workload import Workload


def macs(w: Workload) -> int:
    """Multiply-accumulates, binary ones included; an addition alone (pooling, averaging) is not counted."""
    if w.kind in ("binary_conv", "conv"):
        return w.out_channels * w.out_height * w.out_width * (w.in_channels // w.groups) * w.kernel * w.kernel
    if w.kind == "head":
        return w.in_channels * w.out_channels
    return 0


def binary_macs(w: Workload) -> int:
    """One xor with its share of the popcount per 1-bit product (XNOR-Net, Rastegari et al. 2016, section 3)."""
    return macs(w) if w.bits == 1 else 0


def float_macs(w: Workload) -> int:
    return macs(w) - binary_macs(w)


def weights(w: Workload) -> int:
    """Values of the unit's kernel or matrix."""
    if w.kind in ("binary_conv", "conv"):
        return w.out_channels * (w.in_channels // w.groups) * w.kernel * w.kernel
    return w.in_channels * w.out_channels if w.kind == "head" else 0


def params(w: Workload) -> int:
    """Trained values, as papers count them: weights, gamma and beta of the batch-norm, shifts, slopes, head's bias."""
    if w.kind in ("binary_conv", "conv"):
        shifts = w.in_channels if w.kind == "binary_conv" else 0
        return weights(w) + 2 * w.out_channels + shifts + _activation_params(w)
    if w.kind == "norm":
        return 2 * w.out_channels
    return weights(w) + w.out_channels if w.kind == "head" else 0


def model_bytes(w: Workload) -> int:
    """Bytes of the unit's constants in the file: weights at their width, 1-bit ones in whole bytes, and the rest."""
    if w.bits != 1:
        return weights(w) * w.bits // 8 + constant_bytes(w)
    packed_channels = -(-(w.in_channels // w.groups) // 8)
    return w.out_channels * w.kernel * w.kernel * packed_channels + constant_bytes(w)


def constant_bytes(w: Workload) -> int:
    """Bytes of all constants but the weights, float32 per channel; the batch-norm is folded.

    Scale, bias and shift for 1 bit; a scale of each channel's integers and a bias for 8, with scale and zero point of
    the input; a bias for 32; and what the activation has.
    """
    if w.kind == "norm":
        return 4 * params(w)
    if w.kind not in ("binary_conv", "conv", "head"):
        return 0
    values = {1: 2 * w.out_channels + w.in_channels, 8: 2 * w.out_channels, 32: w.out_channels}[w.bits]
    return 4 * (values + _activation_params(w)) + (5 if w.bits == 8 else 0)


def _activation_params(w: Workload) -> int:
    return w.out_channels * (3 if "rprelu" in w.epilogue else 1 if "prelu" in w.epilogue else 0)


def activation_bytes(w: Workload) -> int:
    """Bytes read and written per call at batch 1: input, residual and output in their formats."""
    read = w.out_channels if w.kind in ("even_channels", "odd_channels") else w.in_channels
    inputs = _tensor_bytes(read, w.height * w.width, w.input_format)
    outputs = _tensor_bytes(w.out_channels, w.out_height * w.out_width, w.output_format)
    residual = 4 * w.out_channels * w.out_height * w.out_width if "residual" in w.epilogue else 0
    return inputs + outputs + residual


def _tensor_bytes(channels: int, pixels: int, format: str) -> int:
    return -(-channels // 8) * pixels if format == "bits" else 4 * channels * pixels
