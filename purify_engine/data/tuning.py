"""How many images a batch, and how many threads: measured once where a run begins, then pinned, as bytes may depend on both."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from purify_engine.config import OfflineConfig
from purify_engine.data.batches import MOST_NUMBERS
from purify_engine.data.items import Compute, ItemError, Source

FEWEST = 200  # images that a run must have to be measured: measuring purifies three at least
WORTH = 30.0  # seconds: a run that is estimated to be shorter is not measured
SHARE = 0.02  # of a run's estimated time that measuring may take
GAIN = 1.05  # by how much a larger batch, or more threads, must be faster
LARGEST = 512
LOOKED_AT = 8  # items in which an image is looked for

Pinned = dict[str, Any]


def measured(compute: Compute, source: Source, config: OfflineConfig, usual: Pinned) -> Pinned:
    """`usual` with the batch_size and threads that are fastest here, but for those that `config` says.

    batch_size doubles while that is faster and memory allows it; then threads are halved while that is not slower. `usual` is
    taken where a run is too short for measuring to pay (of few images, or of less than half a minute) or no image can be read.
    """
    is_said = config.batch_size is not None and (config.threads is not None or config.workers > 1)
    image = None if is_said or len(source) < FEWEST else _an_image(source, config.part_size)
    if image is None:
        return usual
    trial = _Trial(compute, image)
    alone = trial.seconds(1)
    if alone * len(source) < WORTH:
        return usual
    trial.until = time.monotonic() + SHARE * alone * len(source)
    batch_size = config.batch_size or _fastest_batch(trial, alone, config.part_size)
    threads = usual.get("threads")
    if config.threads is None and config.workers == 1:
        threads = _fewest_threads(trial, batch_size, threads)
    return {**usual, "batch_size": batch_size, "threads": threads}


class _Trial:
    """Batches of one image, many times over."""

    def __init__(self, compute: Compute, image: np.ndarray) -> None:
        self.compute, self.image = compute, image
        self.until = float("inf")

    def seconds(self, size: int) -> float:
        """Of a batch of `size`, the faster of two; the first ever prepares what others find."""
        return min([self._run(size), self._run(size), self._run(size)][1:])

    def has_time_for(self, seconds: float) -> bool:
        """Whether three batches of so many seconds may be measured."""
        return time.monotonic() + 3 * seconds <= self.until

    def _run(self, size: int) -> float:
        images, ids = np.stack([self.image] * size), np.arange(size, dtype=np.int64)
        started = time.perf_counter()
        self.compute.finish(self.compute.start(images, ids))
        return time.perf_counter() - started


def _fastest_batch(trial: _Trial, alone: float, part_size: int) -> int:
    """No batch is larger than a part; an image more that takes as much longer is no gain."""
    most = min(LARGEST, part_size, max(1, MOST_NUMBERS // trial.image.size))
    best, rate, size, seconds = 1, 1 / alone, 2, alone
    while size <= most and size <= 4 * best and trial.has_time_for(2 * seconds):  # two doublings in vain: enough
        try:
            seconds = trial.seconds(size)
        except BaseException as error:
            if not trial.compute.is_out_of_memory(error):
                raise
            break
        if size / seconds > GAIN * rate:
            best, rate = size, size / seconds
        size *= 2
    return best


def _fewest_threads(trial: _Trial, batch_size: int, usual: int | None) -> int | None:
    compute: Any = trial.compute
    choices = compute.thread_choices() if hasattr(compute, "thread_choices") else []
    if not choices:
        return usual
    taken, best, seconds = choices[0], float("inf"), 0.0
    for threads in choices:
        if not trial.has_time_for(seconds):
            break
        compute.use_threads(threads)
        seconds = trial.seconds(batch_size)
        if seconds > GAIN * best:
            break
        taken, best = threads, min(best, seconds)
    compute.use_threads(choices[0])
    return int(taken)


def _an_image(source: Source, part_size: int) -> np.ndarray | None:
    """The first that can be read, of the first few."""
    for item in _first_items(source, part_size):
        try:
            return source.decode(item)
        except ItemError:
            continue
    return None


def _first_items(source: Source, part_size: int) -> Iterator[Any]:
    for part in source.parts(part_size)[:1]:
        for _, item in zip(range(LOOKED_AT), source.items(part), strict=False):
            yield item
