"""One PNG file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from purify_engine.config import require
from purify_engine.data.items import Item, ItemError, Outcome, Part, Source, Written
from purify_engine.data.pixels import SUFFIXES, encode
from purify_engine.data.sinks.folder import as_png, write_png
from purify_engine.files import make_durable


class FileSink:
    """One PNG file: at `path` where that ends in .png, else under the source's name in the folder `path`."""

    def __init__(self, source: Source, path: Path) -> None:
        names_a_file = path.suffix.lower() in SUFFIXES and not path.is_dir()
        require(not names_a_file or path.suffix.lower() == ".png", "output", "a .png file, lossless, or a folder", str(path))
        require(names_a_file or path.is_dir() or not path.exists(), "output", "a .png file or a folder", str(path))
        self.output = path if names_a_file else path / as_png(source.root.name)

    def prepare(self) -> None:
        self.output.parent.mkdir(parents=True, exist_ok=True)

    def encode(self, item: Item, image: np.ndarray) -> bytes:
        return encode(image)

    def write(self, part: Part, outcomes: Iterable[Outcome]) -> tuple[list[Written], list[tuple[Item, ItemError]]]:
        ((item, encoded),) = outcomes
        if isinstance(encoded, ItemError):
            return [], [(item, encoded)]
        written = write_png(self.output, self.output.name, encoded)
        make_durable([self.output])
        return [written], []

    def assemble(self, parts: Sequence[Part], failed: Sequence[int], written: Iterable[Written]) -> list[Written]:
        """The image is in its place already."""
        return []

    def record(self, name: str) -> Path:
        return self.output.with_name(f"{self.output.stem}.{name}")

    def holds(self, written: Written) -> Path:
        return self.output.parent / written.file
