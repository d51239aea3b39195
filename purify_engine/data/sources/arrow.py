"""Hugging Face's dataset folders, as `save_to_disk` writes them: Arrow streams that state.json names, of one split or several.

Streams are mapped and read batch by batch. The library `datasets` is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from purify_engine.data.items import ImageShape, ItemError, Skipped, raise_passing
from purify_engine.data.sources.tables import Broken, Row, Table, TableSource, believed, found_files, pyarrow, rows_of, sound, why

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
SUFFIX = ".arrow"
END = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream that is whole


class ArrowSource(TableSource):
    """The rows of a dataset, or of all splits of several, in the order of the files' names.

    A stream that is cut short ends in one more item, which fails.
    """

    kind = "arrow"

    def __init__(self, path: Path, shape: ImageShape, column: str | None = None) -> None:
        self.states = {name: _json(path / name / STATE) for name in _splits(path)}
        self.infos = {name: _json(path / name / INFO) for name in self.states}
        listed = [f"{name}/{file}" if name else file for name, state in self.states.items() for file in _data_files(state)]
        names, skipped, broken = found_files(path, SUFFIX)
        lost: dict[str, Table] = {name: Broken("is missing, though state.json names it") for name in listed if name not in names}
        tables = {name: _opened(path / name) for name in listed if name in names}
        described = {SPLITS, *(f"{name}/{file}" if name else file for name in self.states for file in (STATE, INFO))}
        skipped = [entry for entry in skipped if entry.name not in described]
        skipped += [Skipped(name, "state.json does not name it") for name in names if name not in listed]
        super().__init__(path, shape, dict(sorted({**broken, **lost, **tables}.items())), sorted(skipped), column)

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "fingerprints": {name: state.get("_fingerprint") for name, state in self.states.items()}}


class ArrowTable:
    """One stream, whose batches were counted."""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, path.stat().st_size
        self.rows, self.cut = 0, None if _ends(path) else "the file is cut short: it has no end mark"
        with pyarrow().memory_map(str(path)) as file, pyarrow("pyarrow.ipc").open_stream(file) as stream:
            self.schema = sound(stream.schema)
            try:
                for batch in stream:
                    batch.validate()
                    self.rows += batch.num_rows
            except Exception as broken:  # pyarrow's errors are of many kinds
                raise_passing(broken)
                self.cut = why(broken)
        self.whole = believed(self.rows, path)
        self.rows += self.cut is not None

    def read(self, column: str, start: int) -> Iterator[tuple[bytes | ItemError, Row | None]]:
        first, reason = start, self.cut or "cannot be read"
        try:
            for begins, batch in self._batches():
                for row in rows_of(batch, column, max(0, first - begins)):
                    first += 1
                    yield row
        except Exception as broken:  # as above
            reason = why(broken)
        for _ in range(first, self.rows):
            yield ItemError(reason), None

    def column(self, name: str) -> list[Any]:
        values = [value for _, batch in self._batches() for value in batch.column(name).to_pylist()]
        return values + [None] * (self.rows - len(values))

    def fingerprint(self) -> Any:
        return self.size

    def _batches(self) -> Iterator[tuple[int, Any]]:
        """(the first row of a batch, the batch), as far as all of them could be counted."""
        begins = 0
        with pyarrow().memory_map(str(self.path)) as file, pyarrow("pyarrow.ipc").open_stream(file) as stream:
            while begins < self.whole:
                batch = stream.read_next_batch()
                yield begins, batch
                begins += batch.num_rows


def is_dataset(path: Path) -> bool:
    """Whether `save_to_disk` of Hugging Face's datasets wrote the folder."""
    return (path / SPLITS).is_file() or ((path / STATE).is_file() and (path / INFO).is_file())


def _splits(path: Path) -> list[str]:
    """The folders of the splits; "" alone for a dataset without."""
    if not (path / SPLITS).is_file():
        return [""]
    names = _json(path / SPLITS).get("splits")
    if not isinstance(names, list) or not all(map(_is_plain, names)):
        raise ValueError(f"source must have a {SPLITS} that names folders in it, got {names!r}")
    return names


def _data_files(state: dict[str, Any]) -> list[str]:
    if state.get("_indices_data_files"):
        raise ValueError("source must be a dataset without indices (load it, call flatten_indices() and save it again)")
    files = state.get("_data_files")
    names = [file.get("filename") if isinstance(file, dict) else None for file in files] if isinstance(files, list) else [None]
    if not all(map(_is_plain, names)):
        raise ValueError(f"source must have a {STATE} that names files beside it, got {files!r}")
    return sorted(str(name) for name in names)


def _is_plain(name: Any) -> bool:
    """Whether a name is that of something in the same folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and "\0" not in name


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as broken:
        raise ValueError(f"source must have a readable {path.name}, got {str(path)!r}: {why(broken)}") from broken
    if not isinstance(content, dict):
        raise ValueError(f"source must have a {path.name} that is one object, got {str(path)!r}")
    return content


def _ends(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(END)))
        return file.read() == END


def _opened(path: Path) -> Table:
    try:
        return ArrowTable(path)
    except ModuleNotFoundError:
        raise
    except Exception as broken:  # as above
        raise_passing(broken)
        return Broken(why(broken))
