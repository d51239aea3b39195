"""A folder of images with its class folders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from purify_engine.config import require
from purify_engine.data.items import ImageShape, Item, Part, Skipped, parts_of
from purify_engine.data.pixels import SUFFIXES, decode


class FolderSource:
    """Every image below a folder, in the sorted order of its relative path."""

    kind = "folder"

    def __init__(self, root: Path, shape: ImageShape) -> None:
        require(shape.channels in (1, 3), "channels", "1 or 3 for an image folder", shape.channels)
        files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        self.root, self.shape = root, shape
        self.names = tuple(name for name in files if _is_image(Path(name)))
        self.skipped: Sequence[Skipped] = tuple(Skipped(name, "no image") for name in files if not _is_image(Path(name)))
        require(bool(self.names), "source", f"a folder with images in it ({', '.join(sorted(SUFFIXES))})", str(root))
        self.classes, self.labels = class_folders(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, id: int) -> str:
        return self.names[id]

    def parts(self, size: int) -> Sequence[Part]:
        return parts_of(len(self), size)

    def items(self, part: Part) -> Iterator[Item]:
        for id in part.ids:
            yield Item(id, self.names[id], self.root / self.names[id])

    def decode(self, item: Item) -> np.ndarray:
        if isinstance(item.content, Exception):
            raise item.content
        assert not isinstance(item.content, np.ndarray)
        return self.shape.require_size(decode(item.content, self.shape.channels))

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": self.kind, "items": len(self), "names": names_digest(self.names)}


def names_digest(names: Sequence[str]) -> str:
    """One hash of the names in their order."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def class_folders(names: Sequence[str]) -> tuple[tuple[str, ...] | None, np.ndarray | None]:
    """The sorted names of the first folders are the classes 0, 1, ...; None where an image lies in no folder."""
    folders = [name.split("/")[0] for name in names if "/" in name]
    if len(folders) < len(names):
        return None, None
    classes = tuple(sorted(set(folders)))
    number = {folder: index for index, folder in enumerate(classes)}
    return classes, np.array([number[folder] for folder in folders], dtype=np.int64)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
