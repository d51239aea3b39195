"""Rows of tables with a column of encoded images: what Parquet files and Hugging Face's dataset folders have in common.

Needs pyarrow, which is imported when a table is. No extension type is made, and so no code that a file names is run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from purify_engine.config import require
from purify_engine.data.items import ImageShape, Item, ItemError, Part, Skipped, parts_of, raise_passing
from purify_engine.data.pixels import decode
from purify_engine.foreign import imported

LABELS = ("label", "labels", "cls")
FIELDS = ({"bytes"}, {"bytes", "path"})  # of Hugging Face's images
ROWS_A_BYTE = 8  # a file that says it has more is not believed: even its list of rows would fill the memory


class Row(NamedTuple):
    """What goes along with an image unpurified."""

    batch: Any
    """pyarrow's RecordBatch that holds the row."""
    place: int
    """The row in it."""
    path: str | None
    """The image's file name."""


class Table(Protocol):
    """A file of a source, whose rows are read in order."""

    rows: int
    schema: Any  # pyarrow's

    def read(self, column: str, start: int) -> Iterator[tuple[bytes | ItemError, Row | None]]:
        """Every row from `start` on, `rows` in all; one that cannot be read is its error."""
        ...

    def column(self, name: str) -> list[Any]:
        """The values of a column, None where there is none, `rows` in all."""
        ...

    def fingerprint(self) -> Any:
        """Plain data that differs where the content does."""
        ...


class Broken:
    """A file that cannot be read: one item that fails."""

    rows, schema = 1, None

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def read(self, column: str, start: int) -> Iterator[tuple[bytes | ItemError, Row | None]]:
        yield ItemError(self.reason), None

    def column(self, name: str) -> list[Any]:
        return [None]

    def fingerprint(self) -> Any:
        return "cannot be read"  # the reason may hold a path, which is another one from another folder or machine


class TableSource:
    """The rows of all tables below `root`, by the sorted names of the files."""

    kind: str

    def __init__(
        self, root: Path, shape: ImageShape, tables: Mapping[str, Table], skipped: Sequence[Skipped], column: str | None
    ) -> None:
        require(shape.channels in (1, 3), "channels", f"1 or 3 for {self.kind} files", shape.channels)
        self.root, self.shape = root, shape
        self.column = _chosen_column(root, tables, column)
        self.tables = {name: table for name, table in tables.items() if table.schema is None or self.column in table.schema.names}
        others = [Skipped(name, f"has no column {self.column}") for name in tables if name not in self.tables]
        self.skipped: Sequence[Skipped] = (*skipped, *others)
        ends = np.cumsum([table.rows for table in self.tables.values()], dtype=np.int64)
        self.starts = np.concatenate([[0], ends[:-1]])  # the first id of each table
        self.firsts = dict(zip(self.tables, self.starts.tolist(), strict=True))
        self.count = int(ends[-1])
        require(self.count > 0, "source", f"{self.kind} files with at least one row", str(root))
        self.label, self.classes = _labelled(self.tables.values())
        self._open: tuple[str, int, Iterator[tuple[bytes | ItemError, Row | None]]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies in other processes read on their own."""
        return {**vars(self), "_open": None}

    def __len__(self) -> int:
        return self.count

    def name(self, id: int) -> str:
        place = int(np.searchsorted(self.starts, id, "right")) - 1
        return f"{list(self.tables)[place]}[{id - self.starts[place]}]"

    def parts(self, size: int) -> Sequence[Part]:
        parts: list[Part] = []
        for name, table in self.tables.items():
            parts += parts_of(table.rows, size, container=name, after=parts[-1] if parts else None)
        return parts

    def items(self, part: Part) -> Iterator[Item]:
        start = part.first - self.firsts[part.container]
        rows = self._rows(part.container, start)
        for id in part.ids:
            content, row = next(rows)
            yield Item(id, f"{part.container}[{id - part.first + start}]", content, row)
        self._open = (part.container, start + part.count, rows)

    def decode(self, item: Item) -> np.ndarray:
        if isinstance(item.content, ItemError):
            raise item.content
        assert isinstance(item.content, bytes)
        return self.shape.require_size(decode(item.content, self.shape.channels))

    def fingerprint(self) -> dict[str, Any]:
        files = {name: [table.rows, table.fingerprint()] for name, table in self.tables.items()}
        return {"kind": self.kind, "items": len(self), "column": self.column, "files": files}

    @property
    def labels(self) -> np.ndarray | None:
        """int64 [N] of the column of labels; -1 where a row has none."""
        if self.label is None:
            return None
        values = [value for table in self.tables.values() for value in table.column(self.label)]
        return np.array([-1 if value is None else value for value in values], np.int64)

    def _rows(self, name: str, start: int) -> Iterator[tuple[bytes | ItemError, Row | None]]:
        """Rows from `start` on: read on where the last part ended, if this one follows it."""
        last, self._open = self._open, None
        follows = last is not None and last[:2] == (name, start)
        return last[2] if last is not None and follows else self.tables[name].read(self.column, start)


def rows_of(batch: Any, column: str, first: int = 0) -> Iterator[tuple[bytes | ItemError, Row | None]]:
    """The rows of a batch of pyarrow's from `first` on. Nothing is read of a row whose offsets lead out of its buffers."""
    values, is_sound = batch.column(column), _fault([batch]) is None
    for index in range(first, batch.num_rows):
        fault = None if is_sound else _fault(_cells(batch, index))
        value = values[index].as_py() if fault is None else None
        content, path = (value["bytes"], value.get("path")) if isinstance(value, dict) else (value, None)
        if content is not None:
            yield content, Row(batch, index, path)
        else:
            empty = "holds the name of a file, which is not looked for, and no image" if path else "holds no image"
            yield ItemError(fault or empty), None


def _cells(batch: Any, index: int) -> Iterator[Any]:
    """The cells of a row, those of structs one by one: of a struct, pyarrow checks all rows whichever is asked for."""
    is_struct = pyarrow().types.is_struct
    for column in batch.columns:
        cell = column.slice(index, 1)
        yield from cell.flatten() if is_struct(cell.type) else [cell]


def _fault(arrays: Iterable[Any]) -> str | None:
    """What is wrong with the buffers of arrays or batches."""
    try:
        for array in arrays:
            array.validate(full=True)
    except Exception as broken:  # pyarrow's errors are of many kinds
        return why(broken)
    return None


def found_files(root: Path, suffix: str) -> tuple[list[str], list[Skipped], dict[str, Broken]]:
    """(files below `root` whose names end in `suffix`, sorted; all else; folders that cannot be read).

    Links to files are followed, since the Hub's cache consists of them; those to folders are not.
    """
    names: list[str] = []
    skipped: list[Skipped] = []
    broken: dict[str, Broken] = {}

    def unreadable(error: OSError) -> None:
        raise_passing(error)
        broken[Path(error.filename).relative_to(root).as_posix()] = Broken(f"the folder cannot be read: {error.strerror}")

    for folder, folders, files in os.walk(root, onerror=unreadable):
        below = Path(folder).relative_to(root)
        for name in [name for name in folders if name.startswith(".") or Path(folder, name).is_symlink()]:
            folders.remove(name)
            skipped.append(Skipped(f"{(below / name).as_posix()}/", "a hidden folder, or a link to a folder"))
        for name in files:
            path = (below / name).as_posix()
            if name.startswith(".") or not name.endswith(suffix):
                skipped.append(Skipped(path, f"its name is hidden, or does not end in {suffix}"))
            elif not Path(folder, name).is_file():
                skipped.append(Skipped(path, "no file"))
            else:
                names.append(path)
    return sorted(names), sorted(skipped), broken


def pyarrow(module: str = "pyarrow") -> Any:
    """pyarrow, or a module of it; ModuleNotFoundError, with the command that installs it, where it is missing."""
    return imported(module, "pyarrow", "parquet")


def why(broken: Exception) -> str:
    """Why a file could not be read, in a line."""
    return f"cannot be read: {type(broken).__name__}: {' '.join(str(broken).split())[:200]}"


def sound(schema: Any) -> Any:
    """`schema`, where each column has a name of its own; ValueError elsewhere."""
    names = schema.names
    if [schema.get_field_index(name) for name in names] != list(range(len(names))):
        raise ValueError("its columns have no names of their own")
    return schema


def believed(rows: int, path: Path) -> int:
    """`rows`, where a file of this size can have so many; ValueError elsewhere."""
    if not 0 <= rows <= ROWS_A_BYTE * path.stat().st_size:
        raise ValueError(f"it says that it has {rows} rows")
    return rows


def _chosen_column(root: Path, tables: Mapping[str, Table], wanted: str | None) -> str:
    schemas = [table.schema for table in tables.values() if table.schema is not None]
    found = list(dict.fromkeys(name for schema in schemas for name in image_columns(schema)))
    if wanted is not None:
        fit = [name for schema in schemas for name in schema.names if _holds_images(schema.field(name).type)]
        require(wanted in fit, "column", f"one that holds images ({', '.join(dict.fromkeys(fit)) or 'there is none'})", wanted)
        return wanted
    broken = next((table.reason for table in tables.values() if isinstance(table, Broken)), None)
    seen = broken if broken and not schemas else ", ".join(dict.fromkeys(name for schema in schemas for name in schema.names))
    columns = "a table with a column of images, struct{bytes, path} or binary"
    require(bool(found), "source", columns, f"{root} ({seen})")
    require(len(found) == 1, "column", f"one of {', '.join(found)}, which all hold images", wanted)
    return found[0]


def image_columns(schema: Any) -> list[str]:
    """The columns that hold images: those that Hugging Face's metadata calls so, else all structs, else all of bytes."""
    types = pyarrow().types
    fit = [name for name in schema.names if _holds_images(schema.field(name).type)]
    features = _features(schema)
    called = [name for name in fit if features.get(name, {}).get("_type") == "Image"]
    return called or [name for name in fit if types.is_struct(schema.field(name).type)] or fit


def _holds_images(kind: Any) -> bool:
    types = pyarrow().types
    if types.is_struct(kind):
        fields = {kind.field(place).name: kind.field(place).type for place in range(kind.num_fields)}
        is_named = "path" not in fields or types.is_string(fields["path"]) or types.is_large_string(fields["path"])
        return set(fields) in FIELDS and is_named and _holds_bytes(fields["bytes"])
    return _holds_bytes(kind)


def _holds_bytes(kind: Any) -> bool:
    types = pyarrow().types
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """What Hugging Face's metadata says of each column; none where there is none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def _labelled(tables: Sequence[Table] | Any) -> tuple[str | None, tuple[str, ...] | None]:
    """(the column of labels, the names of the classes), where all tables agree on them."""
    found = [_labels_of(table.schema) for table in tables if table.schema is not None]
    if not found or any(label != found[0][0] for label, _ in found):
        return None, None
    names = {classes for _, classes in found}
    require(len(names) == 1, "source", "of files that name the same classes", [list(classes or ()) for classes in names])
    return found[0]


def _labels_of(schema: Any) -> tuple[str | None, tuple[str, ...] | None]:
    types, features = pyarrow().types, _features(schema)
    whole = [name for name in schema.names if types.is_integer(schema.field(name).type)]
    classed = [name for name in whole if features.get(name, {}).get("_type") == "ClassLabel"]
    label = next((name for name in LABELS if name in whole), classed[0] if len(classed) == 1 else None)
    names = features.get(label or "", {}).get("names")
    is_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return label, tuple(names) if isinstance(names, list) and is_names else None
