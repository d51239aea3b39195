"""Parquet files with a column of encoded images: one file, or all that lie below a folder, such as a clone from the Hub."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from purify_engine.data.items import ImageShape, ItemError, raise_passing
from purify_engine.data.pixels import SUFFIXES
from purify_engine.data.sources.tables import Broken, Row, Table, TableSource, believed, found_files, pyarrow, rows_of, sound, why

SUFFIX = ".parquet"
BESIDE_IMAGES = "metadata" + SUFFIX  # in Hugging Face's folders of images
AT_ONCE = 32  # rows that are decompressed together
BUFFER = 2**20  # bytes of a column that are read together


class ParquetSource(TableSource):
    """The rows of Parquet files in the order of their names: column `column`, or the only one that holds images.

    A file that cannot be read is one item that fails; so is each row of a group of rows that cannot.
    """

    kind = "parquet"

    def __init__(self, path: Path, shape: ImageShape, column: str | None = None) -> None:
        names, skipped, broken = found_files(path, SUFFIX) if path.is_dir() else ([""], [], {})
        tables = {name or path.name: _opened(path / name) for name in names}
        super().__init__(path, shape, dict(sorted({**broken, **tables}.items())), skipped, column)


class ParquetTable:
    """One file: its schema and its groups of rows are known, their content is not read yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._file() as file:
            self.schema = sound(file.schema_arrow)
            self.groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self.rows = believed(sum(self.groups) if min(self.groups, default=0) >= 0 else -1, path)

    def read(self, column: str, start: int) -> Iterator[tuple[bytes | ItemError, Row | None]]:
        first = 0
        for group, count in enumerate(self.groups):
            if first + count > start:
                yield from self._group(group, count, column, max(0, start - first))
            first += count

    def column(self, name: str) -> list[Any]:
        with self._file() as file:
            return list(file.read([name], use_threads=False).column(0).to_pylist())

    def fingerprint(self) -> Any:
        """The size, and a hash of the end, where the places, sizes and extremes of all columns stand."""
        with self.path.open("rb") as file:
            size = file.seek(-8, 2) + 8
            length = int.from_bytes(file.read(4), "little")
            file.seek(size - 8 - length)
            return [size, hashlib.sha256(file.read(length)).hexdigest()]

    def _file(self) -> Any:
        return pyarrow("pyarrow.parquet").ParquetFile(self.path, memory_map=False, buffer_size=BUFFER, pre_buffer=False)

    def _group(self, group: int, count: int, column: str, skip: int) -> Iterator[tuple[bytes | ItemError, Row | None]]:
        """Exactly the rows of a group from `skip` on, whatever is in it."""
        read, reason = 0, "the group of rows ends before its last row"
        try:
            with self._file() as file:
                for batch in file.iter_batches(AT_ONCE, row_groups=[group], use_threads=False):
                    for row in rows_of(batch.slice(0, count - read), column, max(0, skip - read)):
                        skip += 1
                        yield row
                    read += batch.num_rows
        except Exception as broken:  # pyarrow's errors are of many kinds
            reason = why(broken)
        for _ in range(skip, count):
            yield ItemError(reason), None


def is_parquet(path: Path) -> bool:
    """Whether a folder is one of Parquet files, as clones from the Hub are: the first images or tables found in it are such."""
    walks = (islice(os.walk(folder, onerror=raise_passing), 1) for folder in (path, path / "data"))
    first = [name for walk in walks for _, _, names in walk for name in names]
    if any(name.endswith(SUFFIX) and name != BESIDE_IMAGES for name in first):
        return True
    for _, folders, names in os.walk(path, onerror=raise_passing):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        suffixes = {Path(name).suffix.lower() for name in names if name != BESIDE_IMAGES}
        if suffixes & (SUFFIXES | {SUFFIX}):
            return SUFFIX in suffixes
    return False


def _opened(path: Path) -> Table:
    try:
        return ParquetTable(path)
    except ModuleNotFoundError:
        raise
    except Exception as broken:  # pyarrow's errors are of many kinds
        raise_passing(broken)
        return Broken(why(broken))
