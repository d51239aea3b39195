"""A source through a purifier into a sink: the next batch is read while this one is purified, and a bad image fails alone."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from purify_engine.config import require
from purify_engine.data.pixels import ItemError
from purify_engine.data.sinks import Sink, write_record
from purify_engine.data.sources import Source
from purify_engine.images import refuse_other_ranges

MOST_NUMBERS = 2**27  # of the images of a batch: 512 MiB. Purifying one takes about five times as much, while the next is read
PurificationProgress = Callable[[int, int, int], None]  # (done, total, failed), after each batch


@dataclass(frozen=True)
class ItemFailure:
    """One input that was not purified."""

    id: int
    name: str
    reason: str


@dataclass(frozen=True)
class PurificationSummary:
    """What became of every input."""

    ok: int
    """Images that were purified and written."""
    failed: tuple[ItemFailure, ...]
    """Those that could not be read, or came out with NaN or infinity, each with its reason."""
    skipped: tuple[str, ...]
    """Names of what lies in the source and is no image."""
    seconds: float
    """Of the whole run."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """How many images of each "WIDTHxHEIGHT" were purified."""

    @property
    def images_per_second(self) -> float:
        return self.ok / max(self.seconds, 1e-9)

    def as_record(self) -> dict[str, Any]:
        counts = {"ok": self.ok, "failed": len(self.failed), "skipped": len(self.skipped)}
        return {**counts, "seconds": round(self.seconds, 3), "images_per_second": round(self.images_per_second, 3)}


def purify_dataset(
    purifier: nn.Module, source: Source, sink: Sink, *, batch_size: int = 64, progress: PurificationProgress | None = None
) -> PurificationSummary:
    """Purify every image of `source` into `sink`, `batch_size` at a time; fewer where 512 MiB hold no more.

    `purifier(images, ids=...)` takes float32 [B, C, H, W] in [0, 1]; noise is keyed by the ids, so batching changes results by
    float rounding at most. Images of several sizes in one batch are given to it size by size. What is written is cut to [0, 1].
    An image that cannot be read, or comes out with NaN or infinity, is listed in failed.jsonl.
    """
    require(batch_size >= 1, "batch_size", "at least 1", batch_size)
    refuse_other_ranges(purifier)
    started, ok, failed, sizes = time.perf_counter(), 0, [], Counter[str]()
    for rows in _read_ahead(source, batch_size):
        failed += [_failure(source, index, row) for index, row in rows if isinstance(row, ItemError)]
        good = [(index, row) for index, row in rows if isinstance(row, Tensor)]
        for index, image in _purified(purifier, good):
            if image.isfinite().all():
                sink.write(index, image.clamp(0, 1))
                ok += 1
                sizes[f"{image.shape[2]}x{image.shape[1]}"] += 1
            else:
                failed.append(_failure(source, index, ItemError("the purified image holds NaN or infinity")))
        if progress is not None:
            progress(ok + len(failed), len(source.names), len(failed))
    sink.close()
    write_record(sink.record("failed.jsonl"), [vars(failure) for failure in failed])
    return PurificationSummary(ok, tuple(failed), source.skipped, time.perf_counter() - started, dict(sizes))


def _purified(purifier: nn.Module, rows: list[tuple[int, Tensor]]) -> list[tuple[int, Tensor]]:
    device = next((buffer.device for buffer in purifier.buffers()), torch.device("cpu"))
    purified: list[tuple[int, Tensor]] = []
    for alike in _by_size(rows):
        indices, images = zip(*alike, strict=True)
        with torch.no_grad():
            out = purifier(torch.stack(images).to(device), ids=torch.tensor(indices, device=device)).cpu()
        purified += zip(indices, out, strict=True)
    return purified


def _by_size(rows: list[tuple[int, Tensor]]) -> list[list[tuple[int, Tensor]]]:
    """The same rows in groups of one shape each."""
    groups: dict[torch.Size, list[tuple[int, Tensor]]] = {}
    for index, image in rows:
        groups.setdefault(image.shape, []).append((index, image))
    return list(groups.values())


def _read_ahead(source: Source, batch_size: int) -> Iterator[list[tuple[int, Tensor | ItemError]]]:
    """Batches of (index, image or why not), the next one being read while the caller works on this one."""
    with ThreadPoolExecutor(max_workers=2) as readers, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # decode() refuses what that warns of
        batches = _batches(source, batch_size)

        def submit(batch: list[int]) -> list[tuple[int, Future[Tensor | ItemError]]]:
            return [(index, readers.submit(_read, source, index)) for index in batch]

        pending = submit(next(batches, []))
        while pending:
            current, pending = pending, submit(next(batches, []))
            yield [(index, future.result()) for index, future in current]


def _batches(source: Source, batch_size: int) -> Iterator[list[int]]:
    """The indices of a source by `batch_size`, fewer where their images would be more than MOST_NUMBERS; at least one."""
    batch, held = list[int](), 0
    for index in range(len(source.names)):
        numbers = source.numbers(index)
        if batch and (len(batch) == batch_size or held + numbers > MOST_NUMBERS):
            yield batch
            batch, held = [], 0
        batch.append(index)
        held += numbers
    if batch:
        yield batch


def _read(source: Source, index: int) -> Tensor | ItemError:
    try:
        return source.read(index)
    except ItemError as reason:
        return reason


def _failure(source: Source, index: int, reason: ItemError) -> ItemFailure:
    return ItemFailure(index, source.names[index], str(reason))
