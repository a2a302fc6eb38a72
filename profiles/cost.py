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


def params(w: Workload) -> int:
    """Trained values of the deployed unit: weights, plus scale, bias, shifts and slopes per channel."""
    weights = w.out_channels * (w.in_channels // w.groups) * w.kernel * w.kernel
    if w.kind == "binary_conv":
        return weights + 2 * w.out_channels + w.in_channels + _activation_params(w)
    if w.kind == "conv":
        return weights + w.out_channels + _activation_params(w)
    if w.kind == "head":
        return w.in_channels * w.out_channels + w.out_channels
    return 0


def _activation_params(w: Workload) -> int:
    return w.out_channels * (3 if "rprelu" in w.epilogue else 1 if "prelu" in w.epilogue else 0)


def model_bytes(w: Workload) -> int:
    """Bytes of the unit's constants in the file: weights at their width, everything per channel in float32."""
    if w.kind not in ("binary_conv", "conv", "head"):
        return 0
    kernel = 1 if w.kind == "head" else w.kernel
    weights = w.out_channels * (w.in_channels // w.groups) * kernel * kernel
    if w.bits == 1:
        packed_channels = -(-(w.in_channels // w.groups) // 8)
        weight_bytes = w.out_channels * kernel * kernel * packed_channels
    else:
        weight_bytes = weights * w.bits // 8
    return weight_bytes + 4 * (params(w) - weights)


def activation_bytes(w: Workload) -> int:
    """Bytes read and written per call at batch 1: input, residual and output in their formats."""
    inputs = _tensor_bytes(w.in_channels, w.height * w.width, w.input_format)
    outputs = _tensor_bytes(w.out_channels, w.out_height * w.out_width, w.output_format)
    residual = 4 * w.out_channels * w.out_height * w.out_width if "residual" in w.epilogue else 0
    return inputs + outputs + residual


def _tensor_bytes(channels: int, pixels: int, format: str) -> int:
    return -(-channels // 8) * pixels if format == "bits" else 4 * channels * pixels
