"""Whole offline runs without torch: a source, a few additions in the place of a purifier, a sink, the records. Begun in no time.

`RUNS` are what `tests/soak/offspring.py` runs in children: functions that take plain arguments and return an exit code.
"""

from __future__ import annotations

import importlib.util
import io
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from purify_engine.config.offline import OfflineConfig
from purify_engine.data.items import ImageShape
from purify_engine.data.run import run
from purify_engine.data.sinks import open_sink
from purify_engine.data.sources import open_source
from tests.careless_sinks import CARELESS

COUNT, PART, SIDE = 12, 4, 8  # three parts
SOME_FAILED, INPUT_OUTPUT = 3, 5


class Additions:
    """Purifies by adding what the image's id and the batch's size say, so that a wrong id or another batch shows."""

    def start(self, images: np.ndarray, ids: np.ndarray) -> np.ndarray:
        pixels = images.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else images
        return pixels * np.float32(0.5) + (ids % 97).astype(np.float32)[:, None, None, None] / np.float32(200)

    def finish(self, started: np.ndarray) -> np.ndarray:
        return started

    def is_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, MemoryError)

    def identity(self) -> dict[str, Any]:
        return {"config": {"additions": 1}}


def make_folder(root: Path, count: int = COUNT, classes: int = 2, side: int = SIDE) -> Path:
    """PNG images in class folders."""
    for id in range(count):
        path = root / f"class{id * classes // count}" / f"{id:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(id, side))
    return root


def png(id: int, side: int) -> bytes:
    """Noise, drawn by `id`."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(id).integers(0, 256, (side, side), np.uint8)).save(file, "PNG")
    return file.getvalue()


def make_array(root: Path, count: int = COUNT, side: int = SIDE) -> Path:
    """A .npy file of levels."""
    root.mkdir(parents=True, exist_ok=True)
    np.save(root / "in.npy", np.random.default_rng(0).integers(0, 256, (count, side, side, 1), np.uint8))
    return root / "in.npy"


def make_shards(root: Path, count: int = COUNT, shards: int = 3, side: int = SIDE) -> Path:
    """WebDataset's tar shards: an image and its class each."""
    root.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with tarfile.open(root / f"{shard:06}.tar", "w") as archive:
            for id in range(shard * count // shards, (shard + 1) * count // shards):
                for suffix, content in (("cls", b"%d" % (id % 3)), ("png", png(id, side))):
                    member = tarfile.TarInfo(f"{id:06}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return root


def make_tables(root: Path, count: int = COUNT, files: int = 3, side: int = SIDE) -> Path:
    """Parquet files of encoded images and labels."""
    import pyarrow
    import pyarrow.parquet

    root.mkdir(parents=True, exist_ok=True)
    for file in range(files):
        ids = range(file * count // files, (file + 1) * count // files)
        images = [{"bytes": png(id, side), "path": f"{id}.png"} for id in ids]
        table = pyarrow.table({"image": images, "label": [id % 3 for id in ids]})
        pyarrow.parquet.write_table(table, root / f"{file:06}.parquet")
    return root


SOURCES: dict[str, tuple[Callable[[Path], Path], str]] = {  # how one is made, and its output's name
    "folder": (make_folder, "clean"),
    "array": (make_array, "clean.npy"),
    "webdataset": (make_shards, "clean"),
}
if importlib.util.find_spec("pyarrow"):
    SOURCES["parquet"] = make_tables, "clean"


def purify(
    source: str,
    output: str,
    *,
    compute: Any = None,
    sink: str = "",
    quiet: bool = True,
    **config: Any,
) -> int:
    """Purify `source` into `output`, by a sink of CARELESS if one is named; exit codes as on the command line."""
    options = OfflineConfig(**{"part_size": PART, "batch_size": 3, "decoders": 2, **config})
    try:
        images = open_source(Path(source), ImageShape(channels=1))
        summary = run(compute or Additions(), images, CARELESS.get(sink, open_sink)(images, Path(output)), config=options)
    except OSError as error:
        if not quiet:
            print(error, file=sys.stderr)
        return INPUT_OUTPUT
    return SOME_FAILED if summary.failed else 0


def warm() -> None:
    """A run of each kind, so that nothing is imported later."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, (make, output) in SOURCES.items():
            purify(str(make(Path(scratch, name, "in"))), str(Path(scratch, name, output)))


RUNS: dict[str, Callable[..., int]] = {"purify": purify}
