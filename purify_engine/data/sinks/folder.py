"""PNG files in folders."""

from __future__ import annotations

import errno
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from purify_engine.config import require
from purify_engine.data.items import Item, ItemError, Outcome, Part, Source, Written
from purify_engine.data.pixels import encode
from purify_engine.files import make_durable, write_bytes

DISK = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # what concerns every file, not this one alone


class FolderSink:
    """PNG files under the same relative paths; a file that was no PNG gets `.png` appended, so that a.png and a.jpg stay two."""

    def __init__(self, source: Source, output: Path) -> None:
        inside = source.root.resolve() in (output.resolve(), *output.resolve().parents)
        require(not inside, "output", "a folder outside the source", str(output))
        require(not output.exists() or output.is_dir(), "output", "a folder, as the source is one", str(output))
        clash = _clashes(source)
        require(not clash, "source", "free of two images that would be written to one file", ", ".join(clash))
        self.output = output

    def prepare(self) -> None:
        self.output.mkdir(parents=True, exist_ok=True)

    def encode(self, item: Item, image: np.ndarray) -> bytes:
        return encode(image)

    def write(self, part: Part, outcomes: Iterable[Outcome]) -> tuple[list[Written], list[tuple[Item, ItemError]]]:
        written: list[Written] = []
        failed: list[tuple[Item, ItemError]] = []
        for item, encoded in outcomes:
            try:
                if isinstance(encoded, ItemError):
                    raise encoded
                written.append(write_png(self.output / as_png(item.name), as_png(item.name), encoded))
            except ItemError as reason:
                failed.append((item, reason))
        make_durable(self.output / file.file for file in written)
        return written, failed

    def assemble(self, parts: Sequence[Part], failed: Sequence[int], written: Iterable[Written]) -> list[Written]:
        """Every image is in its place already."""
        return []

    def record(self, name: str) -> Path:
        return self.output / name

    def holds(self, written: Written) -> Path:
        return self.output / written.file


def as_png(name: str) -> str:
    """The name of the PNG file that is made of an image file; other suffixes are kept in front, so that two stay two."""
    return name if Path(name).suffix.lower() == ".png" else f"{name}.png"


def write_png(path: Path, name: str, encoded: bytes) -> Written:
    """Write the file, whole or not at all; ItemError where it cannot be, for a reason that concerns this file alone."""
    try:
        write_bytes(path, encoded, durable=False)
    except OSError as error:
        if error.errno in DISK:
            raise
        raise ItemError(f"cannot be written: {error.strerror}") from error
    return Written(name, len(encoded), hashlib.sha256(encoded).hexdigest())


def _clashes(source: Source) -> list[str]:
    names = (as_png(source.name(id)) for id in range(len(source)))
    return [name for name, count in Counter(names).items() if count > 1]
