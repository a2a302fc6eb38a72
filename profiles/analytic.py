"""Cost models: what a unit should cost by arithmetic when nobody has measured it. Pure functions of a `Workload`."""

from . import cost
from .workload import Workload


def roofline_ms(
    w: Workload,
    *,
    tera_ops: float,
    weight_bits: float,
    bandwidth_gb_s: float,
    derate: float,
    launch_floor_us: float,
) -> float:
    """max(2 * macs / (derate * peak), bytes / (derate * bandwidth)) + launch floor, in ms.

    tera_ops: peak 10^12 operations per second, two per multiply-accumulate. Every unit is one kernel launch, so
    units without arithmetic (pooling, duplication, averaging) cost their bytes and the floor.
    Source: Williams et al. 2009 (the roofline model), plus a constant per kernel.
    """
    compute_s = 2 * cost.macs(w) / (derate * tera_ops * 1e12)
    memory_s = moved_bytes(w, weight_bits) / (derate * bandwidth_gb_s * 1e9)
    return 1e3 * max(compute_s, memory_s) + 1e-3 * launch_floor_us


def moved_bytes(w: Workload, weight_bits: float) -> float:
    """Bytes to and from memory per call: tensors in the file's formats, weights at `weight_bits`, the rest float32."""
    return cost.activation_bytes(w) + cost.weights(w) * weight_bits / 8 + cost.constant_bytes(w)


def mac_linear_ms(w: Workload, *, binary_ms_per_gmac: float, float_ms_per_gmac: float) -> float:
    """Multiply-accumulates times their price, in ms.

    The prices are fitted to whole networks and so include the glue between convolutions; a unit without
    multiply-accumulates therefore adds nothing of its own.
    """
    return 1e-9 * (binary_ms_per_gmac * cost.binary_macs(w) + float_ms_per_gmac * cost.float_macs(w))
