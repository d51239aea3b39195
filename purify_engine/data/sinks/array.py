"""An array in its own file format, written row by row.

Rows go to their places in one file beside the output, `.NAME.part`, which has its full size before anything is computed: a disk
that is too small is found at once. What the records say of the rows is held against them before the output appears, by a rename.
A .npz file is packed of them then; as much room again is set aside for it.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Sequence, Set
from pathlib import Path
from typing import IO

import numpy as np

from purify_engine.config import require
from purify_engine.data.items import Item, ItemError, Outcome, Part, Written
from purify_engine.data.pixels import to_levels
from purify_engine.data.sinks.archive import PURIFIED, most_bytes, pack
from purify_engine.data.sources.array import ArraySource
from purify_engine.data.sources.npy import CHUNK, Rows, open_rows, rows_name
from purify_engine.files import make_durable, publish, write_new


class ArraySink:
    """An array of the source's shape, layout and dtype, in its own file format; the other arrays of a .npz are kept.

    A row that failed holds zeros; where there is one, a .npz says in `purified`, bool [N], which are none of them. Where all
    failed there is no file.
    """

    def __init__(self, source: ArraySource, path: Path) -> None:
        suffix = source.root.suffix
        require(path.suffix == suffix and not path.is_dir(), "output", f"a {suffix} file, as the source is one", str(path))
        require(path.resolve() != source.root.resolve(), "output", "a file that does not exist yet", str(path))
        _refuse_other_masks(source)
        self.source, self.output = source, path
        self.shape, self.dtype = source.header.shape, source.header.dtype
        self.row = source.header.array_bytes // len(source)
        self.header = _header(self.shape, self.dtype)
        self.partial, self.packed = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.part.zip")

    def prepare(self) -> None:
        """Make the folder, and set aside the room for every row."""
        self.output.parent.mkdir(parents=True, exist_ok=True)
        size = len(self.header) + self.row * len(self.source)
        with _opened(self.partial) as file:  # which others may have made, and written rows to: those stay
            _set_aside(file, size, self.partial)
            file.truncate(size)
            _write_at(file, 0, self.header)
        if self.source.archive is not None:
            with _opened(self.packed) as file:
                _set_aside(file, most_bytes(self.source.archive, len(self.source)), self.packed)
        make_durable([self.partial])

    def encode(self, item: Item, image: np.ndarray) -> np.ndarray:
        pixels = image.transpose(1, 2, 0) if self.source.layout == "NHWC" else image
        pixels = pixels[0] if self.source.layout == "NHW" else pixels
        if pixels.shape != self.shape[1:]:
            raise ItemError(f"became {list(pixels.shape)}, and the array's rows are {list(self.shape[1:])}")
        return to_levels(pixels) if self.dtype == np.uint8 else pixels

    def write(self, part: Part, outcomes: Iterable[Outcome]) -> tuple[list[Written], list[tuple[Item, ItemError]]]:
        rows = np.zeros((part.count, *self.shape[1:]), self.dtype)
        failed: list[tuple[Item, ItemError]] = []
        for place, (item, encoded) in enumerate(outcomes):
            if isinstance(encoded, ItemError):
                failed.append((item, encoded))
            else:
                rows[place] = encoded
        if not self.partial.exists():  # a run that was finished is taken up again, for what had failed
            self._take_up()
        content = rows.reshape(-1).view(np.uint8).data
        with self.partial.open("r+b") as file:
            _write_at(file, len(self.header) + part.first * self.row, content)
        make_durable([self.partial])
        return [Written(self._named(part), len(content), hashlib.sha256(content).hexdigest())], failed

    def assemble(self, parts: Sequence[Part], failed: Sequence[int], written: Iterable[Written]) -> list[Written]:
        """The output, of rows that are as they were written. ValueError where some are not."""
        if len(failed) == len(self.source):
            for path in (self.partial, self.packed, self.output):
                path.unlink(missing_ok=True)
            return []
        if self.partial.exists() or not self.output.exists():
            self._check(parts, written, set(failed))
            whole = self._pack(failed) if self.source.archive is not None else self.partial
            publish(whole, self.output)
            self.partial.unlink(missing_ok=True)
        with self.output.open("rb") as file:
            return [Written(self.output.name, self.output.stat().st_size, _sha256(file))]

    def record(self, name: str) -> Path:
        return self.output.with_name(f"{self.output.stem}.{name}")

    def holds(self, written: Written) -> Path:
        return self.output.parent / written.file.split("[")[0]

    def _named(self, part: Part) -> str:
        key = None if self.source.archive is None else self.source.key
        return rows_name(self.output.name, key, part.first, part.count)

    def _take_up(self) -> None:
        """The file of the rows, out of the finished output."""
        if not self.output.exists():
            return self.prepare()
        rows, at_once = open_rows(self.output, self.source.key), max(1, CHUNK // self.row)

        def fill(temporary: Path) -> None:
            with temporary.open("wb") as file:
                file.write(self.header)
                for first in range(0, len(self.source), at_once):
                    file.write(rows.read(first, min(at_once, len(self.source) - first)).tobytes())

        return write_new(self.partial, fill)  # several processes may be at this point, and one at its first rows already

    def _check(self, parts: Sequence[Part], written: Iterable[Written], failed: Set[int]) -> None:
        known = {file.file: file.sha256 for file in written}
        rows = open_rows(self.partial, "") if self.partial.exists() else None
        for part in parts:
            name = self._named(part)
            is_there = rows is not None and _sha256_of(rows, part) == known.get(name)
            again = "" if failed.isdisjoint(part.ids) else "give --retry-failed, where a retry was interrupted, or "
            mend = f"{again}remove {self.record('run.json').name} and {self.record('manifest.jsonl').name} to begin anew"
            require(is_there, "output", f"made of the rows that were recorded ({mend})", f"other rows at {name}")

    def _pack(self, failed: Sequence[int]) -> Path:
        assert self.source.archive is not None
        purified = np.ones(len(self.source), np.bool_)
        purified[list(failed)] = False
        if PURIFIED in self.source.archive.headers:
            purified &= self.source.archive.array(PURIFIED)
        with self.partial.open("rb") as rows, _opened(self.packed) as file:
            pack(file, self.source.archive, self.source.key, rows, None if purified.all() else purified)
        return self.packed


def _sha256_of(rows: Rows, part: Part) -> str:
    try:
        return rows.sha256(part.first, part.count)
    except ItemError as unreadable:  # no image's fault: these are our own
        if isinstance(unreadable.__cause__, OSError):
            raise unreadable.__cause__ from None
        raise


def _refuse_other_masks(source: ArraySource) -> None:
    header = None if source.archive is None else source.archive.headers.get(PURIFIED)
    if header is not None:
        is_ours = header.dtype == np.bool_ and header.shape == (len(source),)
        allowed = f"without an array {PURIFIED}, or with one that is bool [{len(source)}]"
        require(is_ours, "source", allowed, f"{header.dtype} {list(header.shape)}")


def _header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def _opened(path: Path) -> IO[bytes]:
    """A file to read and write, made where there is none, for whom the umask lets."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")


def _set_aside(file: IO[bytes], size: int, path: Path) -> None:
    """Take the room on the disk for a file of `size` bytes, whose content stays."""
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OSError(error.errno, f"{os.strerror(error.errno or 0)}, for an array of {size} bytes", str(path)) from error


def _write_at(file: IO[bytes], offset: int, content: bytes | memoryview) -> None:
    view = memoryview(content)
    while view:
        done = os.pwrite(file.fileno(), view, offset)
        view, offset = view[done:], offset + done


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
