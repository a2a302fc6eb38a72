"""Image sets in parquet: one file, or a folder of files named after their splits."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from bnas.profiles.errors import InputError

from .assemble import SPLIT_NAMES, Options
from .image_set import ImageSet
from .packages import needs
from .tables import from_tables

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIX = ".parquet"
BATCH_ROWS = 256  # in memory at a time


def load(data: str, options: Options) -> ImageSet:
    """The set in file or folder `data`."""
    with needs("search", "pyarrow"):
        import pyarrow.parquet  # noqa: F401

    root = Path(data).expanduser()
    splits = {"train": [root]} if root.is_file() else files_by_split(root)
    tables = {split: ParquetTable(tuple(files)) for split, files in splits.items()}
    return from_tables(root.resolve().stem, tables, options, follow=False)


def files_in(root: Path) -> list[Path]:
    """The parquet files directly in a folder, by name."""
    return sorted(path for path in root.glob(f"*{SUFFIX}") if not path.name.startswith("."))


def files_by_split(root: Path) -> dict[str, list[Path]]:
    """The files of each split, such as train-00000-of-00002.parquet; all are train if no name says a split."""
    splits: dict[str, list[Path]] = {}
    unnamed: list[Path] = []
    for path in files_in(root):
        words = re.split(r"[^a-z]+", path.stem.lower())
        split = next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)
        (unnamed if split is None else splits.setdefault(split, [])).append(path)
    if splits and unnamed:
        raise InputError(f"{unnamed[0]}: the name says no split; begin it with train, validation or test")
    return splits or {"train": unnamed}


@dataclass(frozen=True)
class ParquetTable:
    """The rows of several files, one after the other. A damaged file is an `InputError` that names it."""

    files: tuple[Path, ...]

    @property
    def name(self) -> str:
        return str(self.files[0])

    @cached_property
    def schema(self) -> "pa.Schema":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.read_schema(self.files[0])
        except (pa.ArrowException, OSError) as error:
            raise damaged(self.files[0], error) from error

    def read(self, column: str) -> "Iterator[tuple[str, int, pa.Array]]":
        import pyarrow as pa
        import pyarrow.parquet as pq

        for path in self.files:
            row = 0
            try:
                with pq.ParquetFile(path) as file:
                    if column not in file.schema_arrow.names:
                        raise InputError(f"{path}: no column {column!r}, which {self.name} has; add it")
                    for batch in file.iter_batches(BATCH_ROWS, columns=[column]):
                        yield str(path), row, batch.column(0)
                        row += len(batch)
            except (pa.ArrowException, OSError) as error:
                raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> InputError:
    reason = str(error).partition("\n")[0].rstrip(".")
    return InputError(f"{path}: not readable as parquet ({reason}); write or download it again")
