"""Image sets of the Hugging Face hub, by name, through the `datasets` package (extra `hub`)."""

import atexit
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from bnas.profiles.errors import InputError

from .assemble import SPLIT_NAMES, Options, need_train
from .image_set import ImageSet
from .packages import needs
from .tables import from_tables

if TYPE_CHECKING:
    import pyarrow as pa

WELL_KNOWN = ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100")
BATCH_ROWS = 256  # in memory at a time


def load(data: str, options: Options) -> ImageSet:
    """The set called `data` on the hub, downloaded or from the local cache of `datasets`."""
    hint = suggestion(data)
    prepare()
    try:
        with needs("hub", "the package 'datasets'"):
            import datasets
    except InputError as error:
        raise InputError(f"{data!r} is no file or folder; {hint}to take it from the hub: {error}") from error
    try:
        found = datasets.load_dataset(data)
    except Exception as error:  # of datasets, huggingface_hub, the HTTP library, pyarrow, …
        reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        raise InputError(f"{data!r} is no file or folder, and not available from the hub; {hint}{reason}") from error
    splits = {SPLIT_NAMES[split]: HubTable(f"{data} {split}", found[split]) for split in found if split in SPLIT_NAMES}
    need_train(data, splits or found)
    return from_tables(data, splits, options, follow=True)


@dataclass(frozen=True)
class HubTable:
    """One split of a downloaded set."""

    name: str
    dataset: Any

    @property
    def schema(self) -> "pa.Schema":
        return self.dataset.features.arrow_schema

    def read(self, column: str) -> "Iterator[tuple[str, int, pa.Array]]":
        row = 0
        for table in self.dataset.select_columns(column).with_format("arrow").iter(BATCH_ROWS):
            yield self.name, row, table.column(0).combine_chunks()
            row += len(table)


def suggestion(data: str) -> str:
    """A hint at the well-known name that a bare word resembles. Raises `InputError` if that is surely meant."""
    if data in WELL_KNOWN or "/" in data:
        return ""
    if get_close_matches(data, ("digits",), cutoff=0.75):
        raise InputError(f"unknown data {data!r}; did you mean 'digits'? (a set of the hub is given as owner/name)")
    near = get_close_matches(data, WELL_KNOWN, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}? " if near else ""


def prepare() -> None:
    """Settings of `datasets` that it reads when first imported: where it may write, and whether there is a network."""
    provide_cache()
    if "HF_HUB_OFFLINE" not in os.environ and not reachable():
        os.environ["HF_HUB_OFFLINE"] = "1"  # sets in the cache still load; the others fail now, not in 25 s


def reachable() -> bool:
    """Whether the hub's address can be resolved, or is left to a proxy."""
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    try:
        return bool(getproxies() or socket.getaddrinfo(host, 443))
    except OSError:
        return False


def provide_cache() -> None:
    """Let `datasets` use a temporary folder if its usual one cannot be written."""
    usual = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    try:
        Path(usual).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=usual):
            pass
    except (OSError, RuntimeError):  # RuntimeError: this user has no home at all
        folder = tempfile.mkdtemp(prefix="bnas-hub-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["HF_HOME"] = folder
