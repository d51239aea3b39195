"""Data sets in and out: the bundled digits, folders of images, NumPy files, and the pipeline that purifies one into another."""

from purify_engine.data.bundled import digits
from purify_engine.data.pipeline import ItemFailure, PurificationSummary, purify_dataset
from purify_engine.data.sinks import ArraySink, FileSink, FolderSink, Sink, open_sink, write_record
from purify_engine.data.sources import ArraySource, FileSource, FolderSource, ImageShape, Source, open_source, read_all

__all__ = [
    "ArraySink",
    "ArraySource",
    "FileSink",
    "FileSource",
    "FolderSink",
    "FolderSource",
    "ImageShape",
    "ItemFailure",
    "PurificationSummary",
    "Sink",
    "Source",
    "digits",
    "open_sink",
    "open_source",
    "purify_dataset",
    "read_all",
    "write_record",
]
