"""Devices: where network files run. `open_device` gives a `Target`, whatever lies between it and this machine.

`local` runs the engines of this process; every other device gets the runner, the operators and onnxruntime pushed
(`kit`), in a private folder that is removed afterwards (`workplace`), through a `transport`: ssh, adb, or none for the
emulator on this machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..health import throttling
from .address import parse
from .errors import ConnectionLost, DeviceError

if TYPE_CHECKING:
    from .target import Session, Target

__all__ = ["ConnectionLost", "DeviceError", "Session", "Target", "open_device", "throttling"]


@contextmanager
def open_device(
    url: str,
    *,
    keep: bool = False,
    cpus: str | Sequence[int] | None = None,
    isa: str | None = None,
    tflite_benchmark: Path | None = None,
    lce_benchmark: Path | None = None,
) -> Iterator[Target]:
    """The device at `url`: local, ssh://[user@]host[:port], adb:SERIAL, adb:, emulator or emulator+ssh://...

    keep: leave the runner and its libraries on the device, for next time. cpus: the CPU numbers to run on, as "0,2-3"
    or numbers. isa: the path of the kernels (default: BNAS_ISA, else the fastest). The benchmarks are TensorFlow Lite's
    and Larq Compute Engine's programs for the device, which then run .tflite files. Raises InputError for what does not
    fit, before anything is pushed, and DeviceError for what fails later.
    """
    address = parse(url)
    chosen = cpu_numbers(cpus)
    if address.kind == "local":
        from .local import open_local

        with open_local(cpus=chosen, isa=isa, benchmarks=(tflite_benchmark, lce_benchmark)) as here:
            yield here
    else:
        from .remote import open_remote

        with open_remote(
            address, keep=keep, cpus=chosen, isa=isa, tflite_benchmark=tflite_benchmark, lce_benchmark=lce_benchmark
        ) as there:
            yield there


def cpu_numbers(cpus: str | Sequence[int] | None) -> list[int] | None:
    """[0, 2, 3] of "0,2-3"; None of None. Raises InputError for anything else."""
    from .. import machine

    return None if cpus is None else machine.cpu_list(cpus)
