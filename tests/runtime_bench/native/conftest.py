"""Where the kernels under test come from: the Python module, and programs that Python cannot load."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from filelock import FileLock

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


def emulator(root: Path | str = AARCH64_ROOT) -> list[str]:
    """The command that runs an aarch64 program. root: its C library, and files in place of this system's."""
    program = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if program is None:
        missing("needs qemu-aarch64 (Debian: apt install qemu-user)")
    return [program, "-L", str(root)]


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


# One processor of a Cortex-A72. The emulator shows programs the host's file instead, and onnxruntime crashes on it.
CPUINFO = """processor\t: {}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""


@pytest.fixture(scope="session")
def aarch64_runtime() -> tuple[Path, Path]:
    """(libonnxruntime.so of the aarch64 wheel, a root folder for the emulator); made once under build/."""
    import onnxruntime

    version = onnxruntime.__version__
    folder = ROOT / "build" / f"ort-{version}-aarch64"
    library, root = folder / "libonnxruntime.so", folder / "root"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(ROOT / "build" / f"{folder.name}.lock"):  # of the processes that run tests, one makes it
        if not library.exists():
            _download(version, folder, library)
        (root / "proc").mkdir(parents=True, exist_ok=True)
        (root / "proc" / "cpuinfo").write_text("".join(CPUINFO.format(i) for i in range(os.cpu_count() or 1)))
        if not (root / "lib").exists():
            (root / "lib").symlink_to(f"{AARCH64_ROOT}/lib")
    return library, root


def _download(version: str, folder: Path, library: Path) -> None:
    platforms = [part for name in ("2_28", "2_27") for part in ("--platform", f"manylinux_{name}_aarch64")]
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *platforms]
    download += ["--python-version", "3.11", "--dest", str(folder), f"onnxruntime=={version}"]
    done = subprocess.run(download, capture_output=True, text=True)
    if done.returncode:
        missing(f"cannot download onnxruntime {version} for aarch64: {done.stderr.strip()[-200:]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        member = next(name for name in wheel.namelist() if "/libonnxruntime.so" in name)
        partial = library.with_suffix(".part")
        partial.write_bytes(wheel.read(member))
        partial.replace(library)
