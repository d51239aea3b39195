"""NumPy's files, read a few rows at a time: arrays that are larger than memory, and never a pickle.

Rows are read by their position instead of mapped: memory stays flat, and a disk that fails is an error in place of a signal.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from purify_engine.data.items import ItemError

LOCAL_HEADER = struct.Struct("<26xHH")  # of a member of a zip file: where the lengths of its name and its extra field stand
ROWS = re.compile(r"(?P<file>[^/]+\.np[yz])(\[(?P<key>.*)\])?\[(?P<first>\d{1,18}):(?P<end>\d{1,18})\]", re.DOTALL)
ENCRYPTED = 0x1
CHUNK = 2**20  # bytes that are read at once
_OPENING = threading.Lock()
MOST_AT_ONCE = 2**30  # bytes of one call: Linux reads 2 GiB at most


class Header(NamedTuple):
    """What a .npy file says of its array."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype
    size: int
    """Bytes of the header: the array begins after them."""

    @property
    def array_bytes(self) -> int:
        numbers = 1
        for axis in self.shape:  # as Python's integers: a shape that lies may be huge
            numbers *= axis
        return numbers * self.dtype.itemsize


@dataclass(frozen=True)
class Rows:
    """The rows of an array that begins at byte `offset` of `path`, or of the temporary file `inflated`."""

    path: Path
    header: Header
    offset: int
    member: zipfile.ZipInfo | None = None
    """What `inflated` is made of."""
    inflated: IO[bytes] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies in other processes have a temporary file of their own."""
        if self.member is not None:
            return _inflated_rows, (self.path, self.header, self.member)
        return Rows, (self.path, self.header, self.offset)

    def read(self, first: int, count: int) -> np.ndarray:
        """`count` rows from row `first` on. ItemError where the file holds fewer or cannot be read."""
        try:
            with self._opened() as file:
                return self._gathered(file, first, count) if self._is_scattered else self._run(file, first, count)
        except (OSError, ValueError) as broken:
            raise ItemError(f"cannot be read: {one_line(broken)}") from broken

    def sha256(self, first: int, count: int) -> str:
        """Of the bytes of `count` rows from row `first` on."""
        return hashlib.sha256(np.ascontiguousarray(self.read(first, count)).reshape(-1).view(np.uint8).data).hexdigest()

    @property
    def _is_scattered(self) -> bool:
        """Whether a row's numbers lie all over the file."""
        return self.header.is_fortran and len(self.header.shape) > 1

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        if self.inflated is not None:
            yield self.inflated
        else:
            with self.path.open("rb") as file:
                yield file

    def _run(self, file: IO[bytes], first: int, count: int) -> np.ndarray:
        rows = np.empty((count, *self.header.shape[1:]), self.header.dtype)
        row, view, done = rows.nbytes // count, rows.reshape(-1).view(np.uint8).data, 0
        while done < rows.nbytes:
            got = os.preadv(file.fileno(), [view[done : done + MOST_AT_ONCE]], self.offset + first * row + done)
            if got == 0:
                raise ValueError(f"the file ends within row {first + done // row}")
            done += got
        return rows

    def _gathered(self, file: IO[bytes], first: int, count: int) -> np.ndarray:
        mapped = np.memmap(file, self.header.dtype, "r", self.offset, self.header.shape, "F")
        return mapped[first : first + count].copy()


class Archive:
    """The arrays of a .npz file. ValueError where any of it is damaged: every member is read once and its checksum compared."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.headers: dict[str, Header] = {}
        self.members: dict[str, zipfile.ZipInfo] = {}
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if member.flag_bits & ENCRYPTED or member.header_offset < 0:
                    raise ValueError(f"{name} is encrypted, or lies before the file begins")
                if name in self.members:
                    raise ValueError(f"two arrays are named {name}")
                self.headers[name] = _verified(archive, member, name)
                self.members[name] = member

    def rows(self, name: str) -> Rows:
        """The rows of an array: in the archive itself where it is stored as it is, else inflated into a temporary file.

        That file has no name, so nothing is left of it however the process ends; it lies where the variable TMPDIR says.
        """
        member, header = self.members[name], self.headers[name]
        if member.compress_type == zipfile.ZIP_STORED:
            return Rows(self.path, header, _data_offset(self.path, member) + header.size)
        return _inflated_rows(self.path, header, member)

    def array(self, name: str) -> np.ndarray:
        """A whole array, which must be small."""
        header = self.headers[name]
        with zipfile.ZipFile(self.path) as archive, archive.open(self.members[name]) as file:
            file.read(header.size)
            flat = np.frombuffer(file.read(header.array_bytes), header.dtype)
        return flat.reshape(header.shape, order="F" if header.is_fortran else "C")

    def checksums(self) -> dict[str, int]:
        """Of each array, as its header told and as it was found."""
        return {name: member.CRC for name, member in self.members.items()}


def open_npy(path: Path) -> Rows:
    """The array of a .npy file. ValueError where it is cut short, holds pickles, or is no such file."""
    with path.open("rb") as file:
        header = read_header(file)
        size = os.fstat(file.fileno()).st_size
    if header.size + header.array_bytes > size:
        raise ValueError(f"it must hold {header.size + header.array_bytes} bytes and holds {size}")
    return Rows(path, header, header.size)


def open_rows(path: Path, key: str) -> Rows:
    """The array of a .npy file, or the one called `key` of a .npz file, which is read through once while it stays as it is."""
    if path.suffix != ".npz":
        return open_npy(path)
    there = path.stat()
    with _OPENING:
        return _archived_rows(path, key, (there.st_ino, there.st_size, there.st_mtime_ns))


def rows_name(file: str, key: str | None, first: int, count: int) -> str:
    """As what the rows of a part are recorded: "out.npy[0:256]", "out.npz[images][0:256]"."""
    return f"{file}{'' if key is None else f'[{key}]'}[{first}:{first + count}]"


def recorded_rows(name: str) -> tuple[str, str, int, int] | None:
    """What `rows_name` was made of: the file, the key ("" for none), the first row and how many. None for other names."""
    match = ROWS.fullmatch(name)
    if match is None:
        return None
    first, end = int(match["first"]), int(match["end"])
    return match["file"], match["key"] or "", first, end - first


@lru_cache(maxsize=1)
def _archived_rows(path: Path, key: str, as_of: tuple[int, ...]) -> Rows:
    return Archive(path).rows(key)


def read_header(file: IO[bytes]) -> Header:
    """What stands before an array. ValueError where it is no array of plain numbers or strings."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"format version {version[0]}.{version[1]} holds records, no images")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, and pickles are never loaded")
    if min(shape, default=0) < 0:
        raise ValueError(f"its shape is {list(shape)}")
    return Header(shape, is_fortran, dtype, file.tell())


def one_line(broken: Exception) -> str:
    """Why a file could not be read."""
    return " ".join(str(broken).split()) or type(broken).__name__


def _verified(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> Header:
    """The header of a member, once all of it was read: zipfile compares its checksum, and its name in both of its headers."""
    with archive.open(member) as file:
        header = read_header(file)
        size = header.size
        while chunk := file.read(CHUNK):
            size += len(chunk)
    if size != member.file_size or size != header.size + header.array_bytes:
        raise ValueError(f"{name} must hold {header.size + header.array_bytes} bytes and holds {size}")
    return header


def _data_offset(path: Path, member: zipfile.ZipInfo) -> int:
    with path.open("rb") as file:
        file.seek(member.header_offset)
        return member.header_offset + LOCAL_HEADER.size + sum(LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size)))


def _inflated_rows(path: Path, header: Header, member: zipfile.ZipInfo) -> Rows:
    return Rows(path, header, header.size, member, _inflated(path, member))


def _inflated(path: Path, member: zipfile.ZipInfo) -> IO[bytes]:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as its rows are read
    try:
        os.posix_fallocate(file.fileno(), 0, member.file_size)
        with zipfile.ZipFile(path) as archive, archive.open(member) as packed:
            while chunk := packed.read(CHUNK):
                file.write(chunk)
        file.flush()
    except OSError as error:
        file.close()
        mend = f"inflating {path.name} takes {member.file_size} bytes: name another folder by TMPDIR, or save it by np.savez"
        raise OSError(error.errno, f"{error.strerror} ({mend})", tempfile.gettempdir()) from error
    return file
