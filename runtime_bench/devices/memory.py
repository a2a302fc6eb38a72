"""A process that loads a network file and runs it once: `python -m ...devices.memory FILE THREADS`.

Prints {"base_bytes", "peak_bytes"}, see `target.Target.memory`, or null where the system does not tell.
"""

import importlib
import json
import re
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..engines import open_engine
from ..network_file import read

RUNTIMES = {
    ".onnx": ("onnx", "onnxruntime"),
    ".tflite": ("tensorflow.lite.python.schema_py_generated", "larq_compute_engine.tflite.python.interpreter"),
}


def main(path: str, threads: str) -> None:
    file = Path(path)
    _import_runtime(read(file)[2])
    _forget_peak()
    base = _status("VmRSS")
    open_engine(file, int(threads)).call(np.random.default_rng(0))()
    peak = _status("VmHWM")
    print(json.dumps({"base_bytes": base, "peak_bytes": peak} if base and peak else None))


def _import_runtime(suffix: str) -> None:
    """What an engine imports when it loads a file: that is no memory of the file."""
    for name in RUNTIMES[suffix]:
        with suppress(ImportError):
            importlib.import_module(name)


def _forget_peak() -> None:
    """The high-water mark starts again from what is resident (proc(5), clear_refs)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int | None:
    try:
        match = re.search(rf"^{name}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None


if __name__ == "__main__":
    main(*sys.argv[1:])
