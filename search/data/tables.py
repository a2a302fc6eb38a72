"""Image sets in Arrow tables, one row per image: finding the columns, the classes and the bytes."""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bnas.profiles.errors import InputError, unknown

from .assemble import Options, Pictures, assemble, need_train
from .form import Picture
from .image_set import ImageSet

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "labels", "fine_label")


class Table(Protocol):
    """The rows of one split."""

    @property
    def name(self) -> str:
        """How to call it in a message."""

    @property
    def schema(self) -> "pa.Schema": ...

    def read(self, column: str) -> "Iterator[tuple[str, int, pa.Array]]":
        """A column piece by piece: (where it is stored, its first row there counted from 0, values)."""


def from_tables(name: str, tables: Mapping[str, Table], options: Options, *, follow: bool) -> ImageSet:
    """The set whose splits are these tables. follow: a row without bytes may name a file that holds them."""
    need_train(name, tables)
    model = tables["train"]
    image = find_column(model, "image", options.image_column, IMAGE_COLUMNS)
    label = find_column(model, "label", options.label_column, LABEL_COLUMNS)
    values = {split: list(labels(table, label)) for split, table in tables.items()}
    names = class_names(model.schema, label)
    codes, classes = classes_of([value for _, value in values["train"]], names)
    splits = {
        split: Pictures(numbered(values[split], codes), partial(pictures, table, image, follow))
        for split, table in tables.items()
    }
    return assemble(name, classes, splits, options)


def find_column(table: Table, what: str, wanted: str | None, usual: tuple[str, ...]) -> str:
    """The wanted column, or the first of the usual ones that the table has."""
    columns = table.schema.names
    if wanted is not None:
        if wanted not in columns:
            raise unknown(f"column of {table.name}", wanted, columns)
        return wanted
    for column in usual:
        if column in columns:
            return column
    raise InputError(
        f"{table.name}: no {what} column ({' or '.join(usual)}) among {', '.join(columns)}; "
        f"name it with --{what}-column"
    )


def labels(table: Table, column: str) -> Iterator[tuple[str, object]]:
    """(where, label) of every row; a label is an integer, a text or a truth value."""
    for where, start, array in table.read(column):
        for row, value in enumerate(array.to_pylist(), start):
            if not isinstance(value, int | str):
                raise InputError(
                    f"{where} row {row}: {column} is {repr(value)[:40]}, not a class number or name; "
                    f"correct it or choose another --label-column"
                )
            yield f"{where} row {row}", value


def class_names(schema: "pa.Schema", column: str) -> tuple[str, ...] | None:
    """Names of the label numbers 0, 1, … as the Hugging Face `datasets` package writes them into a schema."""
    try:
        features: Any = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[column]["names"])
    except (KeyError, TypeError, ValueError):
        return None


def classes_of(train_labels: list[object], names: tuple[str, ...] | None) -> tuple[dict[object, int], tuple[str, ...]]:
    """Class index of every label value, and the class names; without `names` the sorted values of train."""
    if names and all(isinstance(value, int) for value in train_labels):
        return {index: index for index in range(len(names))}, names
    found = sorted(set(train_labels), key=lambda value: (isinstance(value, str), value))
    return {value: index for index, value in enumerate(found)}, tuple(str(value) for value in found)


def numbered(values: list[tuple[str, object]], codes: dict[object, int]) -> np.ndarray:
    """Class indices int64 [N] of (where, label) pairs."""
    for where, value in values:
        if value not in codes:
            raise InputError(f"{where}: label {value!r} is none of the {len(codes)} classes; correct or remove it")
    return np.array([codes[value] for _, value in values], dtype=np.int64)


def pictures(table: Table, column: str, follow: bool) -> Iterator[Picture]:
    """The image of every row: plain bytes, or the `bytes` of a struct."""
    for where, start, array in table.read(column):
        for row, value in enumerate(array.to_pylist(), start):
            content = value.get("bytes") if isinstance(value, dict) else value
            if content is None and follow and isinstance(value, dict) and value.get("path"):
                content = Path(value["path"])
            if not isinstance(content, bytes | Path):
                raise InputError(
                    f"{where} row {row}: {column} holds no encoded image (type {array.type}); "
                    f"expected bytes or struct<bytes, path>; choose another --image-column"
                )
            yield Picture(f"{where} row {row}", content)
