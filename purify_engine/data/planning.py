"""What a run would take, before anything is written: how many images, how much disk, how long.

Some images, spread over the source, are decoded, purified and encoded; what they took is multiplied.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from purify_engine.config.offline import OfflineConfig
from purify_engine.data.items import Compute, Item, ItemError, Part, Sink, Source
from purify_engine.data.manifest import Manifest

SAMPLED = 48  # images that are decoded, and purified as far as SECONDS let
SECONDS = 10.0  # that purifying them may take, about
RECORD = 300  # bytes of a manifest's record, an image
SPARE = 1.05  # of the disk: a plan is an estimate


@dataclass(frozen=True)
class Plan:
    """What a run would do, as far as some of its images tell."""

    items: int
    """Images in the source."""
    left: int
    """Of them, those that are still to be done: a run may have begun."""
    parts: int
    """What is committed as one."""
    classes: int | None
    """Class names, where the source has them."""
    skipped: int
    """Things in the source that are no images."""
    sampled: int
    """Images that were looked at."""
    unreadable: int
    """Of those, how many cannot be purified."""
    sizes: Mapping[str, int]
    """How many of those are "WIDTHxHEIGHT"."""
    disk_bytes: int
    """That what is left will need, about."""
    free_bytes: int
    """That are free where it will lie."""
    seconds: float | None
    """That what is left will take, about; None where no image of the sample can be purified."""

    @property
    def refusal(self) -> str | None:
        """Why the run should not begin, in a line."""
        if self.disk_bytes * SPARE <= self.free_bytes:
            return None
        return f"the output needs about {self.disk_bytes:,} bytes and {self.free_bytes:,} are free: choose another disk"

    def as_record(self) -> dict[str, Any]:
        return {**vars(self), "sizes": dict(self.sizes), "refusal": self.refusal}


def plan(compute: Compute, source: Source, sink: Sink, config: OfflineConfig | None = None, *, batch_size: int = 64) -> Plan:
    """What purifying `source` into `sink` would take; `batch_size` where `config` has none. Writes nothing.

    OSError where the place of the output cannot be looked at.
    """
    config = config or OfflineConfig()
    parts = source.parts(config.part_size)
    items = _sample(source, parts)
    done = Manifest(sink).done()
    left = sum(part.count for part in parts if part.index not in done)
    images, decoding = _decoded(source, items)
    purified, computing = _purified(compute, images, config.batch_size or batch_size)
    sizes, encoding = _encoded(sink, purified)
    place = _existing(sink.output)
    written = (_on_disk(sizes, source, place) + RECORD) * left
    readers = config.decoders or os.cpu_count() or 1
    seconds = left * max(computing, (decoding + encoding) / readers) if purified else None
    return Plan(
        items=len(source),
        left=left,
        parts=len(parts),
        classes=None if source.classes is None else len(source.classes),
        skipped=len(source.skipped),
        sampled=len(items),
        unreadable=len(items) - len(images),
        sizes=dict(sorted(Counter(f"{image.shape[2]}x{image.shape[1]}" for _, image in images).items())),
        disk_bytes=round(written),
        free_bytes=shutil.disk_usage(place).free,
        seconds=seconds,
    )


def _sample(source: Source, parts: Any) -> list[Item]:
    """Some items of a few parts from the first to the last."""
    chosen = sorted({round(place) for place in np.linspace(0, len(parts) - 1, min(len(parts), 8))})
    items: list[Item] = []
    for place in chosen:
        part: Part = parts[place]
        most = -(-SAMPLED // len(chosen))
        items += [item for _, item in zip(range(most), source.items(part), strict=False)]
    return items


def _decoded(source: Source, items: list[Item]) -> tuple[list[tuple[Item, np.ndarray]], float]:
    """(those that can be read, seconds an image)."""
    started, images = time.perf_counter(), []
    for item in items:
        try:
            images.append((item, source.decode(item)))
        except ItemError:
            continue
    return images, (time.perf_counter() - started) / max(1, len(items))


def _purified(
    compute: Compute, images: list[tuple[Item, np.ndarray]], batch_size: int
) -> tuple[list[tuple[Item, np.ndarray]], float]:
    """(images of the commonest size and depth with what became of them, seconds an image); the first one warms up, uncounted."""
    if not images:
        return [], 0.0
    common = Counter((image.shape, image.dtype) for _, image in images).most_common(1)[0][0]
    alike = [(item, image) for item, image in images if (image.shape, image.dtype) == common]
    _batch(compute, alike[:1])
    _, alone = _batch(compute, alike[:1])
    many = [alike[place % len(alike)] for place in range(max(1, min(batch_size, int(SECONDS / max(alone, 1e-9)))))]
    purified, seconds = _batch(compute, many)
    return list(zip([item for item, _ in many], purified, strict=True))[: len(alike)], seconds / len(many)


def _batch(compute: Compute, images: list[tuple[Item, np.ndarray]]) -> tuple[np.ndarray, float]:
    started, ids = time.perf_counter(), np.array([item.id for item, _ in images], dtype=np.int64)
    purified = compute.finish(compute.start(np.stack([image for _, image in images]), ids))
    return purified, time.perf_counter() - started


def _encoded(sink: Sink, purified: list[tuple[Item, np.ndarray]]) -> tuple[list[int], float]:
    """(bytes of each image, seconds an image)."""
    started, sizes = time.perf_counter(), list[int]()
    for item, image in purified:
        with suppress(ItemError):  # one that has no place in the output
            sizes.append(_bytes_of(sink.encode(item, image.clip(0, 1))))
    return sizes, (time.perf_counter() - started) / max(1, len(purified))


def _bytes_of(encoded: Any) -> int:
    """Of what a sink makes of an image: bytes, numbers, or several of them."""
    if isinstance(encoded, bytes | bytearray):
        return len(encoded)
    if isinstance(encoded, np.ndarray):
        return encoded.nbytes
    if isinstance(encoded, dict):
        return sum(map(_bytes_of, encoded.values()))
    return sum(map(_bytes_of, encoded)) if isinstance(encoded, list | tuple) else 0


def _on_disk(sizes: list[int], source: Source, place: Path) -> float:
    """Bytes an image; where each is a file of its own, it takes whole blocks."""
    block = os.statvfs(place).f_frsize if source.kind in ("folder", "file", "list") else 1
    return float(np.mean([-(-size // block) * block for size in sizes])) if sizes else 0.0


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())
