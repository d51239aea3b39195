"""One image file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from purify_engine.config import require
from purify_engine.data.items import ImageShape, Item, Part, Skipped, parts_of
from purify_engine.data.pixels import decode


class FileSource:
    """One image file."""

    kind = "file"
    classes: tuple[str, ...] | None = None
    labels: np.ndarray | None = None
    skipped: Sequence[Skipped] = ()

    def __init__(self, path: Path, shape: ImageShape) -> None:
        require(shape.channels in (1, 3), "channels", "1 or 3 for an image file", shape.channels)
        self.root, self.shape = path, shape

    def __len__(self) -> int:
        return 1

    def name(self, id: int) -> str:
        return self.root.name

    def parts(self, size: int) -> Sequence[Part]:
        return parts_of(1, size)

    def items(self, part: Part) -> Iterator[Item]:
        yield Item(0, self.root.name, self.root)

    def decode(self, item: Item) -> np.ndarray:
        return self.shape.require_size(decode(self.root, self.shape.channels))

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": self.kind, "items": 1, "name": self.root.name}
