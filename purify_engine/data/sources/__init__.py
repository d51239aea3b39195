"""Where images come from. `open_source` tells by what lies at a path which kind it is.

An item's id is its place in the source, and so the key of its noise: by sorted relative path in a folder, by row in an array.
"""

from __future__ import annotations

from pathlib import Path

from purify_engine.config import require
from purify_engine.data.items import ImageShape, Source
from purify_engine.data.pixels import SUFFIXES
from purify_engine.data.sources.array import ArraySource
from purify_engine.data.sources.arrow import ArrowSource, is_dataset
from purify_engine.data.sources.folder import FolderSource
from purify_engine.data.sources.image import FileSource
from purify_engine.data.sources.listing import ListSource
from purify_engine.data.sources.parquet import SUFFIX, ParquetSource, is_parquet
from purify_engine.data.sources.shards import is_pattern, is_shards
from purify_engine.data.sources.webdataset import WebDatasetSource

__all__ = [
    "ArraySource",
    "ArrowSource",
    "FileSource",
    "FolderSource",
    "ListSource",
    "ParquetSource",
    "WebDatasetSource",
    "open_source",
]


def require_source(path: Path) -> None:
    """ValueError where there is nothing at `path`; of a pattern of tar shards, opening it tells."""
    there = path.exists() or is_pattern(path)
    require(there, "source", "an existing image folder, .npy or .npz file, .parquet file, tar shard, or image file", str(path))


def open_source(path: Path, shape: ImageShape, column: str | None = None) -> Source:
    """The source at `path`, by what it is. ValueError, in a line that says what to do, where it is of no kind.

    column: of tables, which holds the images; needed where several do.
    """
    require_source(path)
    if path.is_dir() and is_dataset(path):
        return ArrowSource(path, shape, column)
    if path.suffix == SUFFIX or (path.is_dir() and is_parquet(path)):
        return ParquetSource(path, shape, column)
    require(column is None, "column", "None where the source is no Parquet file and no Hugging Face dataset", column)
    if is_pattern(path) or is_shards(path):
        return WebDatasetSource(path, shape)
    if path.is_dir():
        return FolderSource(path, shape)
    if path.suffix.lower() in SUFFIXES:
        return FileSource(path, shape)
    if path.suffix.lower() == ".txt":
        return ListSource(path, shape)
    files = "a .npy or a .npz file, a .parquet or a .tar file, a .txt file with the path of an image a line"
    images = f"or an image ({', '.join(sorted(SUFFIXES))})"
    require(path.suffix in (".npy", ".npz"), "source", f"an image folder, {files}, {images}", str(path))
    return ArraySource(path, shape)
