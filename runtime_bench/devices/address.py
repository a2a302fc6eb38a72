"""Device URLs, taken apart strictly: nothing of what passes here can be an option or mean anything to a shell."""

import re
from dataclasses import dataclass
from typing import Literal

from bnas.profiles.errors import InputError, unknown

_USER = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_HOST = r"[A-Za-z0-9_][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?\]"
_SSH = re.compile(rf"(?:(?P<user>{_USER})@)?(?P<host>{_HOST})(?::(?P<port>\d{{1,5}}))?/?")
_SERIAL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:-]*")
_EMULATOR = "emulator"
KINDS = ("local", "ssh://user@host", "adb:SERIAL", "emulator", "emulator+ssh://user@host")

Kind = Literal["local", "here", "ssh", "adb"]


@dataclass(frozen=True)
class Address:
    """`kind` is how the device is reached: `local` and `here` are this machine, the first by the engines of this
    process, the second by programs. `emulated`: programs are aarch64 ones under qemu."""

    url: str
    kind: Kind
    emulated: bool = False
    user: str | None = None
    host: str = ""
    port: int | None = None
    serial: str = ""


def parse(url: str) -> Address:
    """Raises InputError for what is no device URL; `user@host` gets a hint."""
    inner = url.removeprefix(_EMULATOR + "+")
    emulated = inner != url
    if inner.startswith("ssh://"):
        return _ssh(url, inner.removeprefix("ssh://"), emulated)
    if url == "local":
        return Address(url, "local")
    if url == _EMULATOR:
        return Address(url, "here", emulated=True)
    if url.startswith("adb:"):
        serial = url.removeprefix("adb:")
        if serial and not _SERIAL.fullmatch(serial):
            raise InputError(f"device {url!r}: {serial!r} is no serial number; see them with: adb devices")
        return Address(url, "adb", serial=serial)
    if not emulated and "://" not in url and _SSH.fullmatch(url) and ("@" in url or "." in url):
        raise InputError(f"device {url!r} has no kind; did you mean ssh://{url}?")
    raise unknown("device", url, KINDS)


def _ssh(url: str, rest: str, emulated: bool) -> Address:
    match = _SSH.fullmatch(rest)
    if not match:
        raise InputError(f"device {url!r} is not ssh://[user@]host[:port]; options belong into ~/.ssh/config")
    port = int(match["port"]) if match["port"] else None
    if port is not None and not 1 <= port <= 65535:
        raise InputError(f"device {url!r}: port {port} is not from 1 to 65535")
    return Address(url, "ssh", emulated, match["user"], match["host"].strip("[]"), port)
