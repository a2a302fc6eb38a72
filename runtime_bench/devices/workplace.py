"""A private folder on a device, which is gone when nobody needs it any more, however that came about."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from bnas.profiles.errors import InputError

from .errors import ConnectionLost, DeviceError
from .transport import PATIENCE, Source, Transport, size_of

PARENT = "BNAS_DEVICE_FOLDER"  # where on the device the folder is made
PREFIX = "bnas-"
KEPT = "bnas-kit"
UNCHECKED = 2**20  # bytes for which the room is not asked beforehand: a full disk is noticed then, too
SPARE_MB = 8  # for what runs write: traces, inputs, outputs

# Makes the folder, says its name and waits: when its standard input ends, because we closed it, were killed, or the
# connection broke, it removes the folder. So nothing has to reach the device any more for the device to be clean.
_GUARD = """
umask 077
parent=$1
if [ -z "$parent" ]; then
for d in "$TMPDIR" /tmp /data/local/tmp; do [ -n "$d" ] && [ -d "$d" ] && [ -w "$d" ] && parent=$d && break; done
fi
folder=$(mktemp -d "$parent/$2XXXXXX") || exit 1
trap : HUP INT TERM
printf 'folder\\t%s\\n' "$folder"
exec 2> /dev/null
cat > /dev/null
rm -rf "$folder" || { sleep 1; rm -rf "$folder"; }
"""
# $1: a folder named by the user, or nothing; prints the one that is kept, and what it holds: by its content, because a
# disk that was full or pulled leaves files of the right name and size. Where that cannot be told, nothing is there.
_KEEP = """
umask 077
place=$1
if [ -z "$place" ]; then
if [ -d /data/local/tmp ] && [ -w /data/local/tmp ]; then place=/data/local/tmp
else place=${XDG_CACHE_HOME:-$HOME/.cache}; fi
fi
folder=$place/$2
mkdir -p "$folder" || exit 1
printf 'folder\\t%s\\n' "$folder"
sha256sum "$folder"/*/* 2> /dev/null
true
"""
# $1: the folder that is kept, behind it the folders in use. Others may belong to another bnas that measures right now,
# so they are only removed when no command has used them for a month.
_TIDY = """
kept=$1
shift
touch -c "$@"
find "$kept" -mindepth 1 -maxdepth 1 -type d -name '[0-9a-f]*' -mtime +30 -exec rm -rf {} + 2> /dev/null
true
"""
_FREE = 'df -Pk "$1" | tail -n 1'


class Workplace:
    """A folder `bnas-XXXXXX` (mode 700) for the life of this object. Files lie in it by their content, under names of
    ours. With `keep`, what `put_kit` brings lies in a folder that stays, and is not brought again."""

    def __init__(self, transport: Transport, *, keep: bool = False) -> None:
        self._transport = transport
        self._closed = False
        self._there: dict[str, str] = {}  # path -> SHA-256 of what it holds
        parent = os.environ.get(PARENT, "")
        if parent and not re.fullmatch(r"/[^\x00-\x1f]*", parent):
            raise InputError(f"{PARENT} {parent!r} is not an absolute path on the device")
        self._guard = transport.start(["sh", "-c", _GUARD, "sh", parent, PREFIX])
        self.folder = self._announced()
        if not self.folder.startswith("/") or not Path(self.folder).name.startswith(PREFIX):
            result = self._guard.ended()
            if transport.lost(result):
                raise transport.loss(result)
            raise InputError(
                f"cannot make a folder on {transport.name} ({result.reason}); choose one that can be written with "
                f"{PARENT}"
            )
        try:
            self._kit = self._kept(parent) if keep else self.folder
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Workplace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Has the folder removed, and waits until it is."""
        if not self._closed:
            self._closed = True
            self._guard.hang_up()
            self._guard.ended(30)

    def free(self) -> int | None:
        """Bytes that can still be written."""
        return self._free(self.folder)

    def put(self, name: str, source: Source) -> str:
        """The path of a file with this content in the private folder. `name` is ours, never the user's."""
        return self._put(self.folder, {name: source})[name]

    def put_kit(self, files: Mapping[str, Source]) -> dict[str, str]:
        """The same for several files, in the folder that is kept, if one is; what it held for others is tidied up."""
        places = self._put(self._kit, files)
        if self._kit != self.folder:
            self._transport.script(_TIDY, self._kit, *(path.rpartition("/")[0] for path in places.values()))
        return places

    def path(self, name: str) -> str:
        """Of a file to come."""
        return f"{self.folder}/{name}"

    def drop(self, *paths: str) -> None:
        """Removes files of the private folder."""
        for path in paths:
            self._there.pop(path, None)
        self._transport.run(["rm", "-f", "--", *paths])

    def _announced(self) -> str:
        """The folder that the guard names; empty if there is none."""
        while (line := self._guard.line(PATIENCE)) is not None:
            name, tab, folder = line.partition("\t")
            if tab and name == "folder":
                return folder
        return ""

    def _put(self, folder: str, files: Mapping[str, Source]) -> dict[str, str]:
        digests = {name: _digest(source) for name, source in files.items()}
        places = {name: f"{folder}/{digest[:16]}/{name}" for name, digest in digests.items()}
        missing = {name: source for name, source in files.items() if self._there.get(places[name]) != digests[name]}
        if (size := sum(map(size_of, missing.values()))) > UNCHECKED:
            self._check_room(folder, size)
        for name, source in missing.items():
            self._push(source, places[name])
            self._there[places[name]] = digests[name]
        return places

    def _push(self, source: Source, path: str) -> None:
        try:
            self._transport.push(source, path)
        except ConnectionLost:
            raise
        except DeviceError as error:
            raise self._full_or(error, source, path) from None

    def _check_room(self, folder: str, size: int) -> None:
        free = self._free(folder)
        if free is not None and free < size + SPARE_MB * 2**20:
            raise _full(size, free, folder)

    def _full_or(self, error: DeviceError, source: Source, path: str) -> DeviceError:
        """The error in other words if the disk is full."""
        folder = path.rpartition("/")[0]
        if "No space left" in str(error) or "quota" in str(error).lower() or "too large" in str(error):
            return _full(size_of(source), self._free(folder.rpartition("/")[0]) or 0, folder.rpartition("/")[0])
        return error

    def _free(self, folder: str) -> int | None:
        match = re.search(r"\s(\d+)\s+-?\d+%", self._transport.script(_FREE, folder).text)
        return int(match[1]) * 1024 if match else None

    def _kept(self, parent: str) -> str:
        result = self._transport.script(_KEEP, parent, KEPT)
        rows = [line.rstrip("\r") for line in result.text.splitlines()]
        folder = next((row.removeprefix("folder\t") for row in rows if row.startswith("folder\t")), "")
        if result.code or not folder:
            raise InputError(f"cannot make a folder to keep on {self._transport.name}: {result.reason}")
        sums = (re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", row) for row in rows)
        self._there |= {found[2]: found[1] for found in sums if found}
        return folder


def _full(size: int, free: int, folder: str) -> DeviceError:
    return DeviceError(
        f"No space left on device: needs {size / 2**20 + SPARE_MB:.0f} MB, {free / 2**20:.0f} MB free in {folder}; "
        f"choose another with {PARENT}"
    )


def _digest(source: Source) -> str:
    data = source if isinstance(source, bytes) else source.read_bytes()
    return hashlib.sha256(data).hexdigest()
