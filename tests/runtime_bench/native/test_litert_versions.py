"""The delegate in other runtimes than the one beside us: their structures must lie where we think."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from bnas.runtime_bench import native_library

from .conftest import ROOT, built, emulator, here, missing
from .litert_files import Case
from .test_litert import RUN_TFLITE, SEED, cases

# package and version (None: the newest), and what to install beside it
RUNTIMES = {
    "oldest": ("ai-edge-litert==1.4.0", "numpy>=2"),
    "newest": ("ai-edge-litert", "numpy>=2"),
}

AARCH64_PACKAGES = (
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libexpat1", "zlib1g", "libssl3"),
    *("libffi8", "libbz2-1.0", "liblzma5", "libc6", "libstdc++6", "libgcc-s1", "libcrypt1"),
)
# Of later wheels an emulated interpreter crashes on whole networks, also without our delegate.
AARCH64_WHEELS = ("ai-edge-litert==1.4.0", "numpy", "flatbuffers", "tqdm", "typing-extensions", "backports.strenum")


@pytest.fixture(scope="module", params=list(RUNTIMES))
def other_python(request: pytest.FixtureRequest) -> str:
    """A Python with one of RUNTIMES: BNAS_LITERT_PYTHON_OLDEST and so on, or an environment made once under build/."""
    name = request.param
    if given := os.environ.get(f"BNAS_LITERT_PYTHON_{name.upper()}"):
        return given
    folder = ROOT / "build" / f"litert-{name}"
    python, complete = folder / "bin" / "python", folder / "complete"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # of the processes that run tests, one makes it and the others wait
        if not complete.exists():
            install = [str(python), "-m", "pip", "install", "--quiet", *RUNTIMES[name]]
            for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], install):
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    missing(f"cannot make an environment with {RUNTIMES[name][0]}: {done.stderr.strip()[-200:]}")
            complete.touch()
    return str(python)


@pytest.fixture(scope="module")
def emulated_python() -> list[str]:
    """The command of an aarch64 Python with LiteRT under qemu-user: BNAS_LITERT_PYTHON_AARCH64, or one made once under
    build/ of Debian's packages and the wheels for aarch64. Nothing of it is installed here."""
    if given := os.environ.get("BNAS_LITERT_PYTHON_AARCH64"):
        return [given]
    qemu = emulator()[0]
    folder = ROOT / "build" / "litert-aarch64"
    complete, root, site = folder / "complete", folder / "root", folder / "site"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not complete.exists():
            for command in _aarch64_commands(folder):
                done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
                if done.returncode:
                    missing(f"cannot make an aarch64 Python: {' '.join(command[:4])}: {done.stderr.strip()[-200:]}")
            for package in folder.glob("*.deb"):
                subprocess.run(["dpkg-deb", "-x", str(package), str(root)], check=True)
            for wheel in folder.glob("*.whl"):
                with zipfile.ZipFile(wheel) as content:
                    content.extractall(site)
            complete.touch()
    return [qemu, "-L", str(root), "-E", f"PYTHONPATH={site}", str(root / "usr/bin/python3.11")]


def _aarch64_commands(folder: Path) -> list[list[str]]:
    for part in ("lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    apt = ["apt-get", "-o", f"Dir::State::lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"]
    apt += ["-o", f"Dir::State::status={folder}/status", "-o", "APT::Architecture=arm64"]
    apt += ["-o", "APT::Architectures=arm64"]
    platforms = ["--platform", "manylinux_2_17_aarch64", "--platform", "manylinux_2_27_aarch64"]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *platforms]
    pip += ["--platform", "manylinux_2_28_aarch64", "--platform", "any", "--python-version", "311", "-d", "."]
    return [[*apt, "update"], [*apt, "download", *AARCH64_PACKAGES], [*pip, *AARCH64_WHEELS]]


def write(folder: Path, found: dict[str, Case]) -> None:
    for number, case in enumerate(found.values()):
        (folder / f"{number:03}.tflite").write_bytes(case.network.file())
        np.savez(folder / f"{number:03}.npz", **case.feeds)


def check_cases(command: list[str], library: str, folder: Path) -> None:
    """Every case, run by another Python."""
    print("seed", SEED)
    found = dict(cases(np.random.default_rng(SEED)))
    write(folder, found)
    done = subprocess.run(
        [*command, str(RUN_TFLITE), library, str(folder)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for number, (name, case) in enumerate(found.items()):
        error, output = folder / f"{number:03}.error", folder / f"{number:03}.out.npz"
        assert not error.exists(), f"{name}: {error.read_text()}"
        case.check(np.load(output)["arr_0"], name)


def test_every_operator_in_other_runtimes(other_python: str, tmp_path: Path) -> None:
    here()
    library = native_library.litert_library() or built("native", native_library.LITERT)
    check_cases([other_python], str(library), tmp_path)


@pytest.mark.slow
def test_every_operator_on_emulated_aarch64(emulated_python: list[str], tmp_path: Path) -> None:
    check_cases(emulated_python, str(built("aarch64", native_library.LITERT)), tmp_path)
