"""Data sets, purifiers and sinks for measuring what an offline run costs beside the purifier."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from purify_engine.data.compute import PurifierCompute
from purify_engine.data.items import ImageShape, Item, ItemError, Outcome, Part, Written, parts_of
from purify_engine.purifier import GuidedPurifier

IMAGES_A_FOLDER = 1000


def photographs(folder: Path, side: int, count: int) -> Path:
    """Colour PNG files in class folders: smooth shapes with a little noise, which compress as photographs do."""
    generator = np.random.default_rng(side)
    for index in range(count):
        cells = generator.integers(0, 256, (max(2, side // 16),) * 2 + (3,), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
        levels = (smooth + generator.integers(-6, 7, smooth.shape)).clip(0, 255).astype(np.uint8)
        path = folder / f"{index // IMAGES_A_FOLDER:03}" / f"{index:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(levels).save(path)
    return folder


class Unchanged:
    """A purifier that costs nothing: what is left is the run's own cost."""

    def start(self, images: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return images

    def finish(self, started: np.ndarray) -> np.ndarray:
        return started / np.float32(255)

    def is_out_of_memory(self, error: BaseException) -> bool:
        return False

    def identity(self) -> dict[str, Any]:
        return {}


class Memory:
    """A source without files: the same image again and again; `seen` is called with the id of each that is read."""

    kind, root, classes, labels, skipped = "memory", Path("memory"), None, None, ()

    def __init__(self, image: np.ndarray, count: int, seen: Any = lambda id: None) -> None:
        self.image, self.count, self.seen = image, count, seen
        self.shape = ImageShape(len(image), image.shape[-1])

    def __len__(self) -> int:
        return self.count

    def name(self, id: int) -> str:
        return str(id)

    def parts(self, size: int) -> Sequence[Part]:
        return parts_of(self.count, size)

    def items(self, part: Part) -> Iterator[Item]:
        for id in part.ids:
            self.seen(id)
            yield Item(id, str(id), self.image)

    def decode(self, item: Item) -> np.ndarray:
        return self.image.copy()

    def fingerprint(self) -> dict[str, Any]:
        return {"items": self.count}


class Nowhere:
    """A sink that encodes as folders do, and writes only the records."""

    def __init__(self, output: Path) -> None:
        self.output = output

    def prepare(self) -> None:
        self.output.mkdir(parents=True, exist_ok=True)

    def encode(self, item: Item, image: np.ndarray) -> Any:
        from purify_engine.data.pixels import encode

        return encode(image)

    def write(self, part: Part, outcomes: Iterable[Outcome]) -> tuple[list[Written], list[tuple[Item, ItemError]]]:
        return [], [(item, encoded) for item, encoded in outcomes if isinstance(encoded, ItemError)]

    def assemble(self, parts: Sequence[Part], failed: Sequence[int], written: Sequence[Written]) -> list[Written]:
        return []

    def record(self, name: str) -> Path:
        return self.output / name

    def holds(self, written: Written) -> Path:
        return self.output / written.file


def bare_loop(purifier: GuidedPurifier, images: torch.Tensor, batch_size: int) -> float:
    """Seconds of the same batches with nothing around them: tensors in memory in, tensors out."""
    compute = PurifierCompute(purifier)
    started = time.perf_counter()
    for first in range(0, len(images), batch_size):
        batch = images[first : first + batch_size].numpy()
        compute.finish(compute.start(batch, np.arange(first, first + len(batch), dtype=np.int64)))
    return time.perf_counter() - started
