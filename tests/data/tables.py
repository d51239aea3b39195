"""Small tables of images, as Parquet files and as datasets of Hugging Face's."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from purify_engine.config import OfflineConfig
from purify_engine.data import ImageShape, open_sink, open_source
from purify_engine.data.run import run
from tests.data.darkened import Darkened

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

FEATURES = {
    "image": {"_type": "Image"},
    "label": {"_type": "ClassLabel", "names": ["cat", "dog"]},
    "text": {"dtype": "string", "_type": "Value"},
}
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema(
    [("image", IMAGE), ("label", pa.int64()), ("text", pa.string())],
    metadata={"huggingface": json.dumps({"info": {"features": FEATURES}}), "note": "kept"},
)
INFO = {"features": FEATURES, "license": "MIT", "splits": {"train": {"num_examples": 9}}}
STATE = {
    "_data_files": [], "_fingerprint": "0123456789abcdef", "_format_columns": None, "_format_kwargs": {},
    "_format_type": None, "_output_all_columns": False, "_split": None,
}  # fmt: skip


def png(level, size=(5, 4)):
    file = io.BytesIO()
    Image.new("L", size, level).save(file, "PNG")
    return file.getvalue()


def table(count, first=0, bad=(), schema=SCHEMA):
    """Rows whose images are `first`, `first` + 1, ... grey; the content of those in `bad` is cut short."""
    rows = range(first, first + count)
    images = [{"bytes": png(row)[: -20 if row in bad else None], "path": f"{row}.jpg"} for row in rows]
    labels, texts = [row % 2 for row in rows], [f"row {row}" for row in rows]
    return pa.table([pa.array(images, IMAGE), pa.array(labels), pa.array(texts)], schema)


def write_parquet(path, tables, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, tables[0].schema, **options) as writer:
        for rows in tables:
            writer.write_table(rows)


def write_stream(path, batches):
    with pa.ipc.new_stream(path, batches[0].schema) as stream:
        for batch in batches:
            stream.write_table(batch)


def write_dataset(folder, shards):
    """As `save_to_disk` does: {file name: tables}."""
    folder.mkdir(parents=True)
    for name, batches in shards.items():
        write_stream(folder / name, batches)
    (folder / "state.json").write_text(json.dumps({**STATE, "_data_files": [{"filename": name} for name in shards]}))
    (folder / "dataset_info.json").write_text(json.dumps(INFO))


class Killed(Exception):  # noqa: N818 - stands for the end of the process
    pass


def purified(path, output, part_size=3, parts=None, retry=False, compute=None):
    """Run, and end after so many parts."""
    source, seen = open_source(path, ImageShape(1)), []

    def told(event, **facts):
        seen.append(event)
        if seen.count("part") == parts:
            raise Killed

    config = OfflineConfig(part_size=part_size, retry_failed=retry)
    return run(compute or Darkened(), source, open_sink(source, output), config=config, told=told)


def tree(folder, *left_out):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in left_out
    }


def level(content):
    """The grey of an image that `png` made."""
    (grey,) = np.unique(np.asarray(Image.open(io.BytesIO(content))))
    return int(grey)
