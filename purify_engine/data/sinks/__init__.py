"""Where purified images go: the same kind of thing they came from."""

from __future__ import annotations

from pathlib import Path

from purify_engine.data.items import Sink, Source
from purify_engine.data.sinks.array import ArraySink
from purify_engine.data.sinks.arrow import ArrowSink
from purify_engine.data.sinks.folder import FolderSink
from purify_engine.data.sinks.image import FileSink
from purify_engine.data.sinks.parquet import ParquetSink
from purify_engine.data.sinks.webdataset import WebDatasetSink
from purify_engine.data.sources import (
    ArraySource,
    ArrowSource,
    FileSource,
    FolderSource,
    ListSource,
    ParquetSource,
    WebDatasetSource,
)

__all__ = ["ArraySink", "ArrowSink", "FileSink", "FolderSink", "ParquetSink", "WebDatasetSink", "open_sink"]


def open_sink(source: Source, output: Path) -> Sink:
    """The sink of the source's own kind at `output`; ValueError where something of another kind is in the way."""
    if isinstance(source, FolderSource | ListSource):
        return FolderSink(source, output)
    if isinstance(source, WebDatasetSource):
        return WebDatasetSink(source, output)
    if isinstance(source, FileSource):
        return FileSink(source, output)
    if isinstance(source, ParquetSource):
        return ParquetSink(source, output)
    if isinstance(source, ArrowSource):
        return ArrowSink(source, output)
    assert isinstance(source, ArraySource)
    return ArraySink(source, output)
