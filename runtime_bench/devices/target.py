"""What every device can do: two interfaces, for the device and for a file loaded on it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from bnas.profiles.schema import EngineInfo

Source = Path | bytes
Format = Literal["onnx", "tflite"]
FORMATS: tuple[Format, ...] = ("onnx", "tflite")
ISA = "BNAS_ISA"  # the environment variable that forces a path of the kernels


class Session(Protocol):
    """A network file loaded on a device. Names as in `engines.Engine`."""

    name: str
    runtime: str
    version: str
    operators: str | None
    threads: int
    load_ms: float
    metadata: Mapping[str, Any]
    means_of: int | None  # how many runs each sample is the mean of; None: samples are single runs

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the image input. Raises InputError if the file takes something else."""

    @property
    def input_layout(self) -> str:
        """NCHW or NHWC."""

    def timed(self, untimed: int, timed: int) -> list[int]:
        """`untimed` runs, then the ns of each of `timed` ones, all on the same random inputs."""

    def infer(self, x: np.ndarray) -> np.ndarray:
        """The first output for x float32 [N, ...], in the file's own layout."""

    def close(self) -> None:
        """Unloads the file; calling it again, or after the device is gone, does nothing."""


class Target(Protocol):
    """A device that is ready to run network files."""

    url: str
    local: bool
    emulated: bool

    def describe(self) -> dict[str, Any]:
        """`machine.Facts.describe`, now."""

    def state(self) -> dict[str, Any]:
        """`health.state`, now, of the CPUs in use."""

    def fingerprint(self) -> str:
        """`machine.Facts.fingerprint`."""

    def usable_cores(self) -> int:
        """The CPUs in use."""

    def bound_gmacs(self) -> float | None:
        """As `native_library.bound_gmacs`; None under an emulator."""

    def engine(self, format: Format = "onnx") -> EngineInfo:
        """What executes 1-bit units in files of `format` there: the key of a latency table measured on this device.
        Raises InputError where there is nothing for them."""

    def open(self, source: Source, threads: int = 1, *, kernels: bool = True) -> Session:
        """Load a .onnx or .tflite file, or its bytes. Raises InputError naming a file that is bad."""

    def memory(self, source: Source, threads: int) -> dict[str, int] | None:
        """{"base_bytes", "peak_bytes"} of a process of its own: resident before it loads the file, and at most until it
        has run it once. None where that cannot be told."""

    def unit_profile(self, source: Source, threads: int, runs: int) -> Sequence[dict[str, Any]]:
        """[{"name", "op", "ms"}]: what each node takes, the median over `runs`; empty where there is no profiler."""
