"""An array in its own file format."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from purify_engine.config import require
from purify_engine.data.items import Item, ItemError, Outcome, Part, Written
from purify_engine.data.pixels import to_levels
from purify_engine.data.sources.array import ArraySource
from purify_engine.files import write_whole


class ArraySink:
    """An array of the source's shape, layout and dtype, in its own file format; the other arrays of a .npz are kept.

    A row that failed holds zeros: its number is in failed.jsonl.
    """

    def __init__(self, source: ArraySource, path: Path) -> None:
        require(path.suffix == source.root.suffix, "output", f"a {source.root.suffix} file, as the source is one", str(path))
        require(not path.is_dir(), "output", f"a {source.root.suffix} file, as the source is one", str(path))
        self.source, self.output = source, path
        self.array = np.zeros_like(source.array)

    def prepare(self) -> None:
        self.output.parent.mkdir(parents=True, exist_ok=True)

    def encode(self, item: Item, image: np.ndarray) -> np.ndarray:
        pixels = image.transpose(1, 2, 0) if self.source.layout == "NHWC" else image.reshape(self.array.shape[1:])
        return to_levels(pixels) if self.array.dtype == np.uint8 else pixels

    def write(self, part: Part, outcomes: Iterable[Outcome]) -> tuple[list[Written], list[tuple[Item, ItemError]]]:
        failed: list[tuple[Item, ItemError]] = []
        for item, encoded in outcomes:
            if isinstance(encoded, ItemError):
                failed.append((item, encoded))
            else:
                self.array[item.id] = encoded
        return [], failed

    def assemble(self, parts: Sequence[Part], failed: Sequence[int]) -> list[Written]:
        if len(failed) == len(self.array):
            return []
        write_whole(self.output, self._fill)
        content = self.output.read_bytes()
        return [Written(self.output.name, len(content), hashlib.sha256(content).hexdigest())]

    def _fill(self, temporary: Path) -> None:
        with temporary.open("wb") as file:
            if self.output.suffix == ".npy":
                np.save(file, self.array, allow_pickle=False)
            else:
                np.savez_compressed(file, **{**self.source.arrays, self.source.key: self.array})  # type: ignore[arg-type]

    def record(self, name: str) -> Path:
        return self.output.with_name(f"{self.output.stem}.{name}")

    def holds(self, written: Written) -> Path:
        return self.output.parent / written.file
