"""A .npz file packed anew: one array replaced, which rows failed beside it, all others kept. The same bytes every time."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator
from typing import IO

import numpy as np

from purify_engine.data.sources.npy import CHUNK, Archive

PURIFIED = "purified"  # the array that says which rows were
MEMBER = 2**10  # bytes that a member takes at most beside its content
EXPANDED = 1000  # where nothing can be compressed, one byte in so many is added


def most_bytes(archive: Archive, rows: int) -> int:
    """How large what `pack` makes can be."""
    sizes = [member.file_size + len(member.filename) * 4 for member in archive.members.values()] + [rows]
    return sum(size + size // EXPANDED + MEMBER for size in sizes)


def pack(file: IO[bytes], archive: Archive, key: str, rows: IO[bytes], purified: np.ndarray | None) -> None:
    """Fill `file` with the arrays of `archive`, of `key` the .npy file `rows`, and `purified` bool [N] unless it is None.

    Each is compressed as it was; times are none.
    """
    with zipfile.ZipFile(archive.path) as old, zipfile.ZipFile(file, "w") as new:
        for name, member in archive.members.items():
            if name == PURIFIED and purified is not None:
                continue
            if name == key:
                _add(new, member.filename, member.compress_type, _chunks(rows))
            else:
                with old.open(member) as content:
                    _add(new, member.filename, member.compress_type, _chunks(content))
        if purified is not None:
            mask = io.BytesIO()
            np.save(mask, purified, allow_pickle=False)
            _add(new, f"{PURIFIED}.npy", archive.members[key].compress_type, [mask.getvalue()])
    file.truncate()


def _add(archive: zipfile.ZipFile, name: str, compress_type: int, content: Iterable[bytes]) -> None:
    member = zipfile.ZipInfo(name)  # whose time is 1980, as NumPy's own are
    member.compress_type = compress_type
    with archive.open(member, "w", force_zip64=True) as file:
        for chunk in content:
            file.write(chunk)


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk
