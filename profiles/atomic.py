"""Files that are either old or new, never half-written: temporary file, fsync, rename."""

import os
import tempfile
from pathlib import Path


def write_bytes(path: Path | str, data: bytes) -> None:
    """Replace `path` by `data` in one step. On any failure the old file stays and no temporary is left."""
    path = Path(path)
    name = ""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException as error:
        if name:
            Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # the user never sees the temporary
        raise


def write_text(path: Path | str, text: str) -> None:
    write_bytes(path, text.encode())
