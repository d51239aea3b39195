"""One array in a .npy or .npz file."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from purify_engine.config import RANGE_ROUNDING, require
from purify_engine.data.items import ImageShape, Item, ItemError, Part, Skipped, parts_of
from purify_engine.data.sources.npy import CHUNK, Archive, Header, one_line, open_npy

CLASSES = ("classes", "class_names")  # under which a .npz file holds the names of its classes
MOST_NAMES = 2**24  # bytes of them


class ArraySource:
    """The images of a .npy file, or of a .npz file's array `images` (else its only array of three or four dimensions).

    They are read a few rows at a time. What a .npz file holds beside them is kept in `archive`.
    """

    kind = "array"
    skipped: Sequence[Skipped] = ()

    def __init__(self, path: Path, shape: ImageShape) -> None:
        self.root, self.shape = path, shape
        try:
            self.archive = Archive(path) if path.suffix == ".npz" else None
            self.key = "images" if self.archive is None else _images_key(self.archive.headers, path)
            self.rows = open_npy(path) if self.archive is None else self.archive.rows(self.key)
        except OSError:
            raise
        except Exception as broken:  # zipfile, zlib and numpy each have their own ways to fail
            raise _unreadable(path, broken) from broken
        self.header = self.rows.header
        is_pixels = self.header.dtype == np.uint8 or self.header.dtype.kind == "f"
        require(is_pixels, "dtype", "uint8 or a float", str(self.header.dtype))
        self.layout = _layout(self.header.shape, shape)
        require(self.header.array_bytes > 0, "source", "a file with at least one image", str(path))
        self.labels = _labels(self.archive, len(self))
        self.classes = _classes(self.archive)

    def __len__(self) -> int:
        return self.header.shape[0]

    def name(self, id: int) -> str:
        return str(id)

    def parts(self, size: int) -> Sequence[Part]:
        return parts_of(len(self), size)

    def items(self, part: Part) -> Iterator[Item]:
        at_once = max(1, CHUNK // (self.header.array_bytes // len(self)))
        for first in range(part.first, part.first + part.count, at_once):
            count = min(at_once, part.first + part.count - first)
            yield from map(Item, range(first, first + count), map(str, range(first, first + count)), self._rows(first, count))

    def decode(self, item: Item) -> np.ndarray:
        if isinstance(item.content, ItemError):
            raise item.content
        row = item.content
        assert isinstance(row, np.ndarray)
        pixels = row if row.dtype == np.uint8 else self._checked(row)
        planes = pixels.transpose(2, 0, 1) if self.layout == "NHWC" else pixels.reshape(self.shape.channels, *pixels.shape[-2:])
        return np.ascontiguousarray(planes)

    def fingerprint(self) -> dict[str, Any]:
        """With the checksum of every array: the whole file was read for it."""
        checksums = {"images": _checksum(self.root)} if self.archive is None else self.archive.checksums()
        shape = {"shape": list(self.header.shape), "dtype": self.header.dtype.str}
        return {"kind": self.kind, "items": len(self), "images": self.key, **shape, "crc32": checksums}

    def _rows(self, first: int, count: int) -> Sequence[np.ndarray | ItemError]:
        """Rows that lie beside one that cannot be read are read alone."""
        try:
            return list(self.rows.read(first, count))
        except ItemError as unreadable:
            return [unreadable] if count == 1 else [row for n in range(count) for row in self._rows(first + n, 1)]

    def _checked(self, row: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity, and is refused as such
            pixels = row.astype(np.float32)
        if not np.isfinite(pixels).all():
            raise ItemError("holds NaN or infinity")
        if self.shape.clip:
            pixels = pixels.clip(0, 1)
        low, high = float(pixels.min()), float(pixels.max())
        if low < -RANGE_ROUNDING or high > 1 + RANGE_ROUNDING:
            found = f"lies in [{low:.8g}, {high:.8g}], must lie in [0, 1]"
            raise ItemError(f"{found}: rescale it first (purify, evaluate: or --clip-input)")
        return pixels.clip(0, 1) if low < 0 or high > 1 else pixels  # rounding, which the purifier takes for what it is


def _unreadable(path: Path, broken: Exception) -> ValueError:
    return ValueError(f"source must be a readable .npy or .npz file without pickles, got {str(path)!r}: {one_line(broken)}")


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _images_key(headers: dict[str, Header], path: Path) -> str:
    candidates = ["images"] if "images" in headers else [name for name, header in headers.items() if len(header.shape) in (3, 4)]
    contents = ", ".join(f"{name} {header.shape}" for name, header in headers.items()) or "nothing"
    require(len(candidates) == 1, "source", "a file with one array named images", f"{path.name} with {contents}")
    return candidates[0]


def _layout(shape: tuple[int, ...], wanted: ImageShape) -> str:
    channels, size = wanted.channels, wanted.size
    side = size or "any"
    layouts: dict[str, tuple[int | str, ...]] = {"NCHW": (channels, "H", "W"), "NHWC": ("H", "W", channels)}
    if channels == 1:
        layouts["NHW"] = ("H", "W")
    mend = ""
    for layout, axes in layouts.items():
        if len(shape) == len(axes) + 1 and all(axis in (n, "H", "W") for n, axis in zip(shape[1:], axes, strict=True)):
            height, width = (shape[1 + axes.index(axis)] for axis in ("H", "W"))
            refused = wanted.refused(height, width)
            if refused is None:
                return layout
            mend = mend or f"; {refused}"
    said = f"[N, {channels}, {side}, {side}] or [N, {side}, {side}, {channels}]"
    raise ValueError(f"images must be {said}, got {list(shape)}{mend}")


def _labels(archive: Archive | None, count: int) -> np.ndarray | None:
    header = None if archive is None else archive.headers.get("labels")
    if archive is None or header is None:
        return None
    is_one_per_image = header.dtype.kind in "iu" and header.shape == (count,)
    require(is_one_per_image, "labels", f"integers [{count}]", f"{header.dtype} {list(header.shape)}")
    return archive.array("labels").astype(np.int64)


def _classes(archive: Archive | None) -> tuple[str, ...] | None:
    """The names of the classes, where an array of strings holds them."""
    for name in CLASSES:
        header = None if archive is None else archive.headers.get(name)
        if archive is not None and header is not None and header.dtype.kind == "U" and len(header.shape) == 1:
            require(header.array_bytes <= MOST_NAMES, name, f"{MOST_NAMES} bytes of names at most", header.array_bytes)
            return tuple(archive.array(name).tolist())
    return None
