"""Images that are a file each: what folders and lists of paths have in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from purify_engine.config import require
from purify_engine.data.items import ImageShape, Item, ItemError, Part, Skipped, parts_of
from purify_engine.data.pixels import decode
from purify_engine.data.sources.names import Names


class Files:
    """Image files by name; the place among the names is the image's id. Which names there are, its classes below say."""

    kind: str
    called: str

    def __init__(self, root: Path, shape: ImageShape) -> None:
        require(shape.channels in (1, 3), "channels", f"1 or 3 for {self.called}", shape.channels)
        self.root, self.shape = root, shape
        self.names: Sequence[str] = Names()
        self.skipped: Sequence[Skipped] = ()
        self.classes: tuple[str, ...] | None = None
        self.labels: np.ndarray | None = None
        self.unreadable: dict[str, str] = {}  # names of items that are known to fail -> why

    def __len__(self) -> int:
        return len(self.names)

    def name(self, id: int) -> str:
        return self.names[id]

    def path(self, id: int) -> Path:
        """Where item `id` lies."""
        return self.root / self.names[id]

    def parts(self, size: int) -> Sequence[Part]:
        return parts_of(len(self), size)

    def items(self, part: Part) -> Iterator[Item]:
        for id in part.ids:
            name = self.name(id)
            yield Item(id, name, ItemError(self.unreadable[name]) if name in self.unreadable else self.path(id))

    def decode(self, item: Item) -> np.ndarray:
        if isinstance(item.content, ItemError):
            raise item.content
        assert not isinstance(item.content, np.ndarray)
        return self.shape.require_size(decode(item.content, self.shape.channels))

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": self.kind, "items": len(self)}

    def _number_classes(self) -> None:
        """The sorted names of the first folders are the classes 0, 1, ...; none where an image lies in no folder."""
        runs = list(_runs(self.names))
        if not runs or any(folder is None for folder, _ in runs):
            return
        self.classes = tuple(sorted({str(folder) for folder, _ in runs}))
        number = {folder: index for index, folder in enumerate(self.classes)}
        self.labels = np.repeat([number[str(folder)] for folder, _ in runs], [count for _, count in runs]).astype(np.int64)


def _runs(names: Iterable[str]) -> Iterator[tuple[str | None, int]]:
    """(first folder, how many of the names that follow one another lie in it); None for names without a folder."""
    current, count = None, 0
    for name in names:
        folder, slash, _ = name.partition("/")
        of_name = folder if slash else None
        if count and of_name != current:
            yield current, count
            count = 0
        current, count = of_name, count + 1
    if count:
        yield current, count
