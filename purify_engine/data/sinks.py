"""Where purified images go: the same kind of thing they came from, each file written whole or not at all."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from purify_engine.config import require
from purify_engine.data.pixels import SUFFIXES, encode, to_levels
from purify_engine.data.sources import ArraySource, FileSource, FolderSource
from purify_engine.files import make_durable, write_text, write_whole


class Sink(Protocol):
    """Takes purified images by index, then is closed once; records lie beside the images."""

    def write(self, index: int, image: Tensor) -> None:
        """Item `index`, float [C, H, W] in [0, 1] on the CPU."""
        ...

    def close(self) -> None:
        """Everything is written; make it visible."""
        ...

    def record(self, name: str) -> Path:
        """Where the record `name` (run.json, failed.jsonl) of this output lies."""
        ...


class FolderSink:
    """PNG files under the same relative paths; a file that was no PNG gets `.png` appended, so that a.png and a.jpg stay two."""

    def __init__(self, source: FolderSource, root: Path) -> None:
        inside = source.root.resolve() in (root.resolve(), *root.resolve().parents)
        require(not inside, "output", "a folder outside the source", str(root))
        require(not root.exists() or root.is_dir(), "output", "a folder, as the source is one", str(root))
        require(not root.exists() or not any(root.iterdir()), "output", "a new or an empty folder", str(root))
        self.root = root
        self.names = tuple(map(_as_png, source.names))
        clash = [name for name, count in Counter(self.names).items() if count > 1]
        require(not clash, "source", "free of two images that would be written to one file", ", ".join(clash))
        self.written: list[Path] = []
        root.mkdir(parents=True, exist_ok=True)

    def write(self, index: int, image: Tensor) -> None:
        path = self.root / self.names[index]
        encode(image, path)
        self.written.append(path)

    def close(self) -> None:
        """Every image is in its place already; wait until the disk has them."""
        make_durable(self.written)

    def record(self, name: str) -> Path:
        return self.root / name


class FileSink:
    """One PNG file: at `path` where that ends in .png, else under the source's name in the folder `path`."""

    def __init__(self, source: FileSource, path: Path) -> None:
        names_a_file = path.suffix.lower() in SUFFIXES and not path.is_dir()
        require(not names_a_file or path.suffix.lower() == ".png", "output", "a .png file, lossless, or a folder", str(path))
        require(names_a_file or path.is_dir() or not path.exists(), "output", "a .png file or a folder", str(path))
        self.path = path if names_a_file else path / _as_png(source.path.name)
        require(not self.path.exists(), "output", "a file that does not exist yet", str(self.path))
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, index: int, image: Tensor) -> None:
        encode(image, self.path)

    def close(self) -> None:
        """The image is in its place already; wait until the disk has it."""
        make_durable([self.path] if self.path.exists() else [])

    def record(self, name: str) -> Path:
        return self.path.with_name(f"{self.path.stem}.{name}")


class ArraySink:
    """An array of the source's shape, layout and dtype, in its own file format; the other arrays of a .npz are kept.

    A row that failed holds zeros: its number is in failed.jsonl.
    """

    def __init__(self, source: ArraySource, path: Path) -> None:
        require(path.suffix == source.path.suffix, "output", f"a {source.path.suffix} file, as the source is one", str(path))
        require(not path.exists(), "output", "a file that does not exist yet", str(path))
        self.source, self.path = source, path
        self.array = np.zeros_like(source.array)
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, index: int, image: Tensor) -> None:
        planes = image.numpy()
        pixels = planes.transpose(1, 2, 0) if self.source.layout == "NHWC" else planes.reshape(self.array.shape[1:])
        self.array[index] = to_levels(pixels) if self.array.dtype == np.uint8 else pixels

    def close(self) -> None:
        write_whole(self.path, self._fill)

    def _fill(self, temporary: Path) -> None:
        with temporary.open("wb") as file:
            if self.path.suffix == ".npy":
                np.save(file, self.array, allow_pickle=False)
            else:
                np.savez_compressed(file, **{**self.source.arrays, self.source.key: self.array})  # type: ignore[arg-type]

    def record(self, name: str) -> Path:
        return self.path.with_name(f"{self.path.stem}.{name}")


def open_sink(source: FolderSource | FileSource | ArraySource, output: Path) -> FolderSink | FileSink | ArraySink:
    """The sink of the source's own kind at `output`; ValueError where something is in the way."""
    if isinstance(source, FolderSource):
        return FolderSink(source, output)
    return FileSink(source, output) if isinstance(source, FileSource) else ArraySink(source, output)


def write_record(path: Path, content: Any) -> None:
    """`content` as JSON, or one JSON line per entry where the name ends in .jsonl; appears whole or not at all."""
    lines = [json.dumps(entry) for entry in content] if path.suffix == ".jsonl" else [json.dumps(content, indent=2)]
    write_text(path, "".join(f"{line}\n" for line in lines))


def _as_png(name: str) -> str:
    """The name of the PNG file that is made of an image file; other suffixes are kept in front, so that two stay two."""
    return name if Path(name).suffix.lower() == ".png" else f"{name}.png"
