"""Where the kernels under test come from: the Python module, and programs that Python cannot load."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from ..kernel_process import KernelProcess
from .cases import REQUIRE_ALL

ROOT = Path(__file__).resolve().parents[3]
AARCH64_ROOT = "/usr/aarch64-linux-gnu"  # its C library, where Debian's cross-compiler puts it


def missing(what: str) -> NoReturn:
    """Skips; fails under BNAS_REQUIRE_ALL=1."""
    pytest.fail(what) if REQUIRE_ALL else pytest.skip(what)


def built(target: str, name: str) -> Path:
    """build/TARGET/NAME, as `make TARGET` leaves it; BNAS_BUILD is another folder than build."""
    path = Path(os.environ.get("BNAS_BUILD", ROOT / "build"), target, name)
    if not path.is_file():
        missing(f"needs {path.name} for {target}; build it with: make {target}")
    return path


def emulator() -> list[str]:
    """The command that runs an aarch64 program."""
    program = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if program is None:
        missing("needs qemu-aarch64 (Debian: apt install qemu-user)")
    return [program, "-L", AARCH64_ROOT]


def here() -> Any:
    if importlib.util.find_spec("bnas.runtime_bench.native._native") is None:
        missing("needs the native kernels")
    from bnas.runtime_bench.native import _native

    return _native


@pytest.fixture(scope="module", params=["here", "aarch64", "sanitize"])
def kernels(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The functions of bnas.runtime_bench.native._native: in this process, under an emulator, with sanitizers."""
    if request.param == "here":
        yield here()
        return
    command = [*(emulator() if request.param == "aarch64" else []), str(built(request.param, "bnas-kernels"))]
    with KernelProcess(command) as process:
        yield process
