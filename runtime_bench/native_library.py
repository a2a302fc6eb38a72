"""What was compiled when bnas was installed: where it lies, and which kernels it chooses on this processor."""

import ctypes
from collections.abc import Collection
from pathlib import Path

from bnas.profiles.errors import InputError

LIBRARY = "libbnas_ort.so"  # the operators of domain ai.bnas for onnxruntime
LITERT = "libbnas_litert.so"  # Larq Compute Engine's operators for LiteRT, an external delegate
RUNNER = "bnas-runner"
# Those in it; a file with others runs by its function bodies, and says so.
OPERATORS = frozenset(
    {
        "BinaryConv2d",
        "BinaryConv2dSkip",
        "BinaryConv2dFromBits",
        "BinaryConv2dBits",
        "ByteConv2d",
        "ImageConv2d",
        "PackSigns",
        "BinaryMaxPool2d",
    }
)
PREFIX = "native-"  # of the engine's name; the path follows: native-avx512
REFERENCE = PREFIX + "reference"  # the naive loops that are the specification: no speed is claimed for them
LITERT_PREFIX = "litert-" + PREFIX  # of the engine's name where the delegate computes: litert-native-avx512
LITERT_REFERENCE = "litert-" + REFERENCE
NOT_BUILT = (
    "the native kernels of bnas were not built when it was installed; install a C++17 compiler (Debian: apt install "
    "g++), then bnas again, where its pyproject.toml lies: pip install --force-reinstall --no-deps --no-cache-dir ."
)


def operator_library() -> Path | None:
    """The operator library, None if it was not built."""
    return _built(LIBRARY)


def library_for(operators: Collection[str]) -> Path | None:
    """The operator library if it was built and knows all these operators of domain ai.bnas (and there are any)."""
    return _built(LIBRARY) if operators and OPERATORS.issuperset(operators) else None


def path_of(name: str) -> Path:
    """LIBRARY, LITERT or RUNNER. Raises InputError, saying how to get it, if it was not built."""
    path = _built(name)
    if path is None:
        raise InputError(f"{name} is missing: {NOT_BUILT}")
    return path


def engine_name() -> str:
    """`native-avx512` or what else the operator library runs here and now; BNAS_ISA decides if it is set.

    Raises InputError if the library was not built or BNAS_ISA names no path of this processor.
    """
    isa = _call(path_of(LIBRARY), "bnas_isa")
    if not isa:
        raise InputError(_wrong_isa())
    return PREFIX + isa


def version() -> str:
    """Of the operator library. Raises InputError if it was not built."""
    return _call(path_of(LIBRARY), "bnas_native_version")


def litert_library() -> Path | None:
    """The delegate, None if it was not built."""
    return _built(LITERT)


def litert_engine_name() -> str:
    """`litert-native-avx512` or what else the delegate runs here and now. Raises as `engine_name` does."""
    isa = _call(path_of(LITERT), "bnas_isa")
    if not isa:
        raise InputError(_wrong_isa())
    return LITERT_PREFIX + isa


def litert_version() -> str:
    """Of the delegate. Raises InputError if it was not built."""
    return _call(path_of(LITERT), "bnas_native_version")


def bound_gmacs(seconds: float = 0.2) -> float | None:
    """10^9 binary MACs a second that the chosen path's counting reaches on one core's registers; None without kernels.

    Raises InputError if BNAS_ISA names no path of this processor.
    """
    if operator_library() is None:
        return None
    isa = engine_name().removeprefix(PREFIX)
    from .native._native import bound_gmacs as measured

    return float(measured(isa, seconds)) if isa != "reference" else None


def _built(name: str) -> Path | None:
    from . import native

    found = (Path(folder, name) for folder in native.__path__)  # an editable install has two folders
    return next((path for path in found if path.is_file()), None)


def _call(library: Path, function: str) -> str:
    call = getattr(ctypes.CDLL(str(library)), function)
    call.restype = ctypes.c_char_p
    return (call() or b"").decode()


def _wrong_isa() -> str:
    from .native._native import selected

    try:
        selected()
    except ValueError as error:
        return f"{error}; leave it unset for the fastest"
    return "the native kernels do not run on this processor"
