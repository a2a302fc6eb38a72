"""What is pushed to a device: the runner, the operators and onnxruntime, for its processor and C library."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bnas.profiles.errors import InputError

from .. import machine, native_library
from . import elf

FOLDER = "BNAS_KIT"  # a folder with a folder for each processor, aarch64 and so on, holding the files below
ARCHES = ("aarch64", "x86_64")
ONNXRUNTIME = "libonnxruntime.so"
# glibc's own loader and what onnxruntime and the runner load, for systems with another C library or an older one.
LOADERS = {"aarch64": "ld-linux-aarch64.so.1", "x86_64": "ld-linux-x86-64.so.2"}
_LIBRARIES = (
    "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libgcc_s.so.1", "libstdc++.so.6",
)  # fmt: skip
_SYSTEM_FOLDERS = ("/usr/{arch}-linux-gnu/lib", "/lib/{arch}-linux-gnu", "/usr/lib/{arch}-linux-gnu")
_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
_CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Kit:
    """Files here; `loader`: glibc's loader first and then its libraries, empty where the device's own will do."""

    arch: str
    runner: Path
    operators: Path | None
    onnxruntime: Path
    loader: tuple[Path, ...] = ()

    @property
    def files(self) -> dict[str, Path]:
        """Name on the device -> file here."""
        ours = {native_library.RUNNER: self.runner, native_library.LIBRARY: self.operators}
        named = {ONNXRUNTIME: self.onnxruntime, **{path.name: path for path in self.loader}}
        return {name: path for name, path in ours.items() if path} | named

    @property
    def needs(self) -> tuple[elf.Version, str]:
        """(glibc version, the file that asks for it)."""
        asked = {name: elf.read(path) for name, path in self.files.items() if path not in self.loader}
        return max((found.glibc, name) for name, found in asked.items() if found and found.glibc)


def find(facts: machine.Facts, name: str, *, emulated: bool = False) -> Kit:
    """The kit that runs on a machine called `name`, looked for in BNAS_KIT, where bnas is installed, in a checkout.

    Raises InputError, with both sides and the remedy, where none fits: another processor, another C library or one too
    old (and no loader at hand to bring our own), a file that is not there.
    """
    kit = locate(check_arch(facts, name))
    for file in kit.files.values():
        found = elf.read(file)
        if found is None or found.arch != kit.arch:
            built = f"built for {found.arch}" if found else "no program or library"
            raise InputError(f"{file} is {built}, but {name} needs {kit.arch}; build it for that, or unset {FOLDER}")
    return kit if emulated else _fitted(kit, facts, name)


def check_arch(facts: machine.Facts, name: str) -> str:
    """Its processor, if there are kits for it."""
    if facts.arch in ARCHES:
        return facts.arch
    hint = "install a 64-bit system on it" if facts.arch.startswith("arm") else "bench on another device"
    raise InputError(f"{name} is {facts.arch}, but bnas has programs for {' and '.join(ARCHES)} only; {hint}")


def locate(arch: str) -> Kit:
    """The files for a processor. Raises InputError saying how to get what is missing."""
    given = os.environ.get(FOLDER)
    folders = [Path(given, arch)] if given else []
    folders.append(_CHECKOUT / "build" / arch)
    if arch == machine_arch():
        return Kit(
            arch,
            _first(folders[: bool(given)], native_library.RUNNER) or native_library.path_of(native_library.RUNNER),
            _first(folders[: bool(given)], native_library.LIBRARY) or native_library.operator_library(),
            _first(folders[: bool(given)], ONNXRUNTIME + "*") or installed_onnxruntime(),
        )
    runner = _first(folders, native_library.RUNNER)
    if runner is None:
        looked = " or ".join(map(str, folders))
        raise InputError(
            f"{native_library.RUNNER} for {arch} is in neither of: {looked}; build it in a checkout of bnas with: "
            f"make {arch} (Debian: apt install g++-{arch.replace('_', '-')}-linux-gnu), or name a folder that has "
            f"{arch}/{native_library.RUNNER} in {FOLDER}"
        )
    return Kit(
        arch,
        runner,
        _first([runner.parent], native_library.LIBRARY),
        _first(folders, ONNXRUNTIME + "*") or downloaded_onnxruntime(arch),
    )


def check_kernels(kit: Kit) -> None:
    """Raises InputError, saying how to get them, if it has no operators: networks run by their function bodies then."""
    if kit.operators is None and kit.arch == machine_arch():
        native_library.path_of(native_library.LIBRARY)
    elif kit.operators is None:
        raise InputError(
            f"{native_library.LIBRARY} is not in {kit.runner.parent}, so networks run in float arithmetic, several "
            f"times slower; put it there: make {kit.arch}, in a checkout of bnas, leaves it in build/{kit.arch}"
        )


def machine_arch() -> str:
    """This machine's, as kits call it."""
    return "aarch64" if machine.is_arm64() else "x86_64"


def _fitted(kit: Kit, facts: machine.Facts, name: str) -> Kit:
    """The kit, with a loader where the machine's C library does not do."""
    needed, asking = kit.needs
    same_userland = facts.more.get("userland", kit.arch) == kit.arch
    if same_userland and facts.glibc and elf.version(facts.glibc) >= needed:
        return kit
    if loader := find_loader(kit.arch, needed):
        return Kit(kit.arch, kit.runner, kit.operators, kit.onnxruntime, loader)
    if not same_userland:
        has = f"programs of {facts.more['userland']} alone"
    else:
        has = f"glibc {facts.glibc}" if facts.glibc else facts.libc
    raise InputError(
        f"{asking} needs glibc {needed[0]}.{needed[1]}, but {name} has {has}; use a newer 64-bit system there, or "
        f"have one's C library pushed along (here, Debian: apt install g++-{kit.arch.replace('_', '-')}-linux-gnu)"
    )


def find_loader(arch: str, needed: elf.Version) -> tuple[Path, ...]:
    """glibc's loader and its libraries, at least of version `needed`, as a cross-compiler or this system has them."""
    for pattern in _SYSTEM_FOLDERS:
        folder = Path(pattern.format(arch=arch))
        files = [folder / name for name in (LOADERS[arch], *_LIBRARIES)]
        if all(file.is_file() for file in files):
            own = elf.read(folder / "libc.so.6")
            if own and own.glibc and own.arch == arch and own.glibc >= needed:
                return tuple(files)
    return ()


def installed_onnxruntime() -> Path:
    """The library in this environment's onnxruntime."""
    found = importlib.util.find_spec("onnxruntime")
    folder = Path(found.origin).parent / "capi" if found and found.origin else Path()
    path = _first([folder], ONNXRUNTIME + "*")
    if path is None:
        raise InputError(f"the installed onnxruntime has no {ONNXRUNTIME}; install 1.20 or later")
    return path


def downloaded_onnxruntime(arch: str) -> Path:
    """The library from the wheel of the installed version for `arch`, or of the newest that has one; kept for next
    time in the user's cache folder (XDG_CACHE_HOME). Raises InputError if it cannot be had."""
    version = importlib.metadata.version("onnxruntime")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "bnas")
    folder = cache / f"onnxruntime-{version}-{arch}"
    if path := _first([folder], ONNXRUNTIME + "*"):
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".onnxruntime-", dir=cache) as made:
        wheel = _download(arch, [f"onnxruntime=={version}", "onnxruntime>=1.20"], Path(made))
        unpacked = Path(made, "unpacked")
        unpacked.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            member = next(m for m in archive.namelist() if re.search(r"/capi/libonnxruntime\.so", m))
            (unpacked / Path(member).name).write_bytes(archive.read(member))
        shutil.copytree(unpacked, folder, dirs_exist_ok=True, copy_function=_put)
    path = _first([folder], ONNXRUNTIME + "*")
    assert path is not None
    return path


def _put(source: str, target: str) -> None:
    os.replace(source, target)  # in one step: the same file system


def _download(arch: str, wanted: Iterable[str], folder: Path) -> Path:
    platforms = [part for name in _PLATFORMS for part in ("--platform", f"{name}_{arch}")]
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", *platforms, "--python-version", python, "--dest", str(folder)]
    for requirement in wanted:
        done = subprocess.run([*command, requirement], capture_output=True, text=True, errors="replace", check=False)
        wheels = list(folder.glob("*.whl"))
        if done.returncode == 0 and wheels:
            return wheels[0]
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    raise InputError(
        f"onnxruntime for {arch} cannot be downloaded ({lines[-1][:200] if lines else 'pip failed'}); put "
        f"{ONNXRUNTIME} from its wheel into {arch}/ in a folder named by {FOLDER}"
    )


def _first(folders: Iterable[Path], pattern: str) -> Path | None:
    return next((path for folder in folders for path in sorted(folder.glob(pattern)) if path.is_file()), None)
