"""The words of offline purification: a source's items, the parts they are worked on in, and what sources and sinks must do.

A source is cut into parts of consecutive items. A part is read, purified, written and committed as one: its record in the
manifest is written once its files are on the disk, so a part without a record is done again and nothing else is. What becomes of
a part follows from the part alone, so neither the order of parts, nor who works on them, nor a resumed run changes a byte.

Nothing here needs torch: images are NumPy arrays until they are purified.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np


class ItemError(ValueError):
    """One image that cannot be purified, and why, in a line; the rest of the data set goes on."""


# Of the machine or its disk rather than of one file: while a source is listed they end the run, since what cannot be listed now
# may be there the next time, and every id behind it would be another.
PASSING = {errno.EIO, errno.ENOSPC, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN}


def is_passing(error: BaseException) -> bool:
    """Whether `error` may be gone the next time, though the source is the same."""
    return isinstance(error, OSError) and error.errno in PASSING


def raise_passing(error: BaseException) -> None:
    """Raise `error` where it is passing; all else is of one file or folder, and left to the caller."""
    if is_passing(error):
        raise error


@dataclass(frozen=True)
class ImageShape:
    """Which images are taken."""

    channels: int
    """Of an image: 1 grey, 3 colour."""
    size: int | None = None
    """Pixels a side; None where any size will do."""
    refusal: Callable[[int, int], str | None] | None = field(default=None, compare=False)  # two functions are hardly ever equal
    """(height, width) -> why such images are not taken, in words, or None; decides in the place of `size`."""
    clip: bool = False
    """Numbers of arrays that lie outside of [0, 1] are cut to it, in place of refusing their image."""

    def refused(self, height: int, width: int) -> str | None:
        """Why images of `height` by `width` pixels are not taken, None where they are."""
        if self.refusal is not None:
            return self.refusal(height, width)
        is_taken = self.size is None or height == width == self.size
        return None if is_taken else f"the network takes {self.size}x{self.size}: resize it first"

    def require_size(self, image: np.ndarray) -> np.ndarray:
        """`image` [C, H, W]; ItemError where its size is not taken."""
        height, width = image.shape[1:]
        refused = self.refused(height, width)
        if refused is not None:
            raise ItemError(f"is {width}x{height} pixels, {refused}")
        return image


class Skipped(NamedTuple):
    """Something that lies in the source and is no item of it."""

    name: str
    reason: str


@dataclass(frozen=True)
class Part:
    """Consecutive items of a source, worked on and committed as one."""

    index: int
    """Its place among the parts of the source: 0, 1, 2, ..."""
    first: int
    """The id of its first item."""
    count: int
    """How many items; their ids are first, first + 1, ..."""
    container: str = ""
    """The source's file that holds them all, relative to the source's root; empty where each item is a file."""
    place: int = 0
    """Its place among the parts of its container: 0, 1, 2, ..."""
    places: int = 1
    """How many parts its container has."""

    @property
    def ids(self) -> range:
        return range(self.first, self.first + self.count)


@dataclass(frozen=True)
class Item:
    """One image as its source holds it. Its id is its place in the source, and so the key of its noise."""

    id: int
    name: str
    """Relative to the source's root, as reports print it."""
    content: bytes | Path | np.ndarray | ItemError
    """Encoded bytes, the file that holds them, or numbers; or why it could not even be read."""
    extras: Any = None
    """What goes along unpurified: other members of a tar's sample, other columns of a row."""


def parts_of(count: int, size: int, *, container: str = "", after: Part | None = None) -> list[Part]:
    """`count` items in parts of `size` at most, all of one container; they follow on `after`."""
    index, first = (0, 0) if after is None else (after.index + 1, after.first + after.count)
    starts = range(0, count, size)
    places = len(starts)
    return [Part(index + n, first + start, min(size, count - start), container, n, places) for n, start in enumerate(starts)]


class Source(Protocol):
    """A finite, ordered set of images."""

    kind: str  # "folder", "file", "list", "array", "webdataset", "parquet", "arrow"
    root: Path  # what was named on the command line
    shape: ImageShape
    classes: tuple[str, ...] | None  # names of the classes in the order of their numbers, where the source has names
    skipped: Sequence[Skipped]  # everything that lies there and is no item, each with its reason

    @property
    def labels(self) -> np.ndarray | None:
        """int64 [N], where the source has them."""
        ...

    def __len__(self) -> int:
        """How many items."""
        ...

    def name(self, id: int) -> str:
        """Of item `id`."""
        ...

    def parts(self, size: int) -> Sequence[Part]:
        """All items in order, in parts of `size` at most; no part reaches over two containers."""
        ...

    def items(self, part: Part) -> Iterator[Item]:
        """Its `part.count` items in order: reading alone, by one thread. What cannot be read is an item that holds the error."""
        ...

    def decode(self, item: Item) -> np.ndarray:
        """uint8 or float32 [C, H, W], the latter in [0, 1]; in a pool of threads. ItemError where the image is no good."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Plain data that differs where the source's items do: a run is resumed only where it is the same."""
        ...


class Written(NamedTuple):
    """A file of the output, complete and on the disk."""

    file: str  # relative to the output
    size: int  # bytes
    sha256: str


class Outcome(NamedTuple):
    """What became of an item: what `Sink.encode` made of the purified image, or why there is none."""

    item: Item
    encoded: Any  # or ItemError


class Sink(Protocol):
    """Where purified images go: the same kind of thing that they came from."""

    output: Path  # what was named on the command line

    def prepare(self) -> None:
        """Make the folders. ValueError where something of another kind is in the way, OSError where it cannot be written."""
        ...

    def encode(self, item: Item, image: np.ndarray) -> Any:
        """`image`, float32 [C, H, W] in [0, 1], as it will be written; in a pool of threads. ItemError costs this item alone."""
        ...

    def write(self, part: Part, outcomes: Iterable[Outcome]) -> tuple[list[Written], list[tuple[Item, ItemError]]]:
        """Write a part from its outcomes, which come in order: its files, on the disk on return, and what failed, in order.

        Writing the same part again replaces what it wrote before, whole or not at all. OSError where the disk is full or broken.
        """
        ...

    def assemble(self, parts: Sequence[Part], failed: Sequence[int], written: Iterable[Written]) -> list[Written]:
        """After the last part, of the whole source: make what is one file for all of them (arrays). Other sinks do nothing.

        failed: ids. written: what the records of all parts name.
        """
        ...

    def record(self, name: str) -> Path:
        """Where the record `name` (run.json, manifest.jsonl, failed.jsonl, ...) of this output lies."""
        ...

    def holds(self, written: Written) -> Path:
        """The path of a file that a record names, for `verify`."""
        ...


class Compute(Protocol):
    """Purifies batches; the pipeline starts one before it asks for the last one's result."""

    def start(self, images: np.ndarray, ids: np.ndarray) -> Any:
        """Begin with `images`, uint8 or float32 in [0, 1], [B, C, H, W], whose noise is keyed by `ids`, int64 [B]."""
        ...

    def finish(self, started: Any) -> np.ndarray:
        """The purified images, float32 [B, C, H, W]."""
        ...

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether a smaller batch might do; if so, what the failed one held is free again."""
        ...

    def identity(self) -> dict[str, Any]:
        """Plain data that differs where the results do: a run is resumed only where it is the same."""
        ...
