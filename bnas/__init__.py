"""Search, train, export and bench 1-bit convolutional networks that meet a latency budget on your device."""

import os

__version__ = "0.1.0"

# onnxruntime's newer wheels for Linux send events to their maker and leave an identifier in the user's cache folder,
# unless this is set before they are loaded. Whoever wants that sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def ops_library_path() -> str:
    """Where the operators of domain `ai.bnas` lie, for onnxruntime's `SessionOptions.register_custom_ops_library`.

    Raises InputError, saying how to get them, if they were not built when bnas was installed.
    """
    from bnas.runtime_bench import native_library

    return str(native_library.path_of(native_library.LIBRARY))


def litert_delegate_path() -> str:
    """Where the delegate lies that runs Larq Compute Engine's operators in stock LiteRT, for its `load_delegate`.

    Raises InputError, saying how to get it, if it was not built when bnas was installed.
    """
    from bnas.runtime_bench import native_library

    return str(native_library.path_of(native_library.LITERT))
