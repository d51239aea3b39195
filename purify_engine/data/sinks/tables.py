"""Tables of the source's columns, the images purified: one file a part, since a part is there whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from purify_engine.config import require
from purify_engine.data.items import Item, ItemError, Outcome, Part, Written
from purify_engine.data.pixels import encode
from purify_engine.data.sinks.folder import as_png, refuse_names_of_records
from purify_engine.data.sinks.in_folder import DIGITS, InFolder, part_name
from purify_engine.data.sources.tables import Row, TableSource, pyarrow
from purify_engine.files import write_whole

CHUNK = 2**20


class TableSink(InFolder):
    """Files of the source's kind in folders as the source's; the other columns, the schema and its metadata as they were.

    A file of one part keeps its name; the parts of a larger one are files whose names end in their numbers. Rows that failed are
    left out, and a part of which all rows failed is no file.
    """

    def __init__(self, source: TableSource, output: Path) -> None:
        inside = source.root.resolve() in (output.resolve(), *output.resolve().parents)
        require(not inside, "output", "a folder outside the source", str(output))
        files = f"a folder, in which each part of the source's rows is a {source.kind} file"
        is_file = output.is_file() or output.suffix == PurePosixPath(next(iter(source.tables))).suffix
        require(not is_file, "output", files, str(output))
        refuse_names_of_records(source.tables)
        clash = _clash(source)
        require(clash is None, "source", "free of a file that is named as a part of another", clash)
        self.source, self.output = source, output

    def encode(self, item: Item, image: np.ndarray) -> bytes:
        return encode(image)

    def write(self, part: Part, outcomes: Iterable[Outcome]) -> tuple[list[Written], list[tuple[Item, ItemError]]]:
        images: list[bytes] = []
        rows: list[Row] = []
        failed: list[tuple[Item, ItemError]] = []
        for item, encoded in outcomes:
            if isinstance(encoded, ItemError):
                failed.append((item, encoded))
            else:
                images.append(encoded)
                rows.append(item.extras)
        name = part_name(part)
        path = self.output / name
        if not rows:
            path.unlink(missing_ok=True)
            return [], failed
        table = self._table(rows, images)
        write_whole(path, lambda temporary: self.fill(temporary, table, part))
        return [Written(name, path.stat().st_size, _sha256(path))], failed

    def fill(self, path: Path, table: Any, part: Part) -> None:
        """Write pyarrow's `table`, the rows of a part, to `path`."""
        raise NotImplementedError

    def _table(self, rows: list[Row], images: list[bytes]) -> Any:
        """The rows of the source with `images` in the place of theirs."""
        pa = pyarrow()
        table = pa.Table.from_batches([batch.slice(first, count) for batch, first, count in _runs(rows)])
        place = table.schema.get_field_index(self.source.column)
        field = table.schema.field(place)
        names = [row.path and as_png(row.path) for row in rows]
        fields = [field.type.field(number).name for number in range(field.type.num_fields)]
        values = [{"bytes": image, "path": name} for image, name in zip(images, names, strict=True)] if fields else images
        return table.set_column(place, field, pa.array(values, field.type))


def _clash(source: TableSource) -> str | None:
    """A file that could be a part of another, by its name."""
    for name in source.tables:
        file = PurePosixPath(name)
        stem, dash, number = file.stem.rpartition("-")
        of = str(file.with_name(f"{stem}{file.suffix}")) if dash else ""
        if of in source.tables and number.isdecimal() and len(number) >= DIGITS:
            return f"{name} beside {of}"
    return None


def _runs(rows: list[Row]) -> Iterator[tuple[Any, int, int]]:
    """(batch, first row, how many) of rows that follow one another in it."""
    first = 0
    for last, row in enumerate(rows):
        following = rows[last + 1] if last + 1 < len(rows) else None
        if following is None or following.batch is not row.batch or following.place != row.place + 1:
            yield row.batch, rows[first].place, last - first + 1
            first = last + 1


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
