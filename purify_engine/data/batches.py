"""Which images are purified in one batch: those of one shape, in order, as many as are pinned. It follows from the part alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np

from purify_engine.data.items import Item
from purify_engine.data.reading import in_unit_range

MOST_NUMBERS = 2**27  # of the images of a batch: 512 MiB as float32. Purifying one takes about five times as much


class Held(NamedTuple):
    """An image that waits to be purified."""

    item: Item
    image: np.ndarray
    result: Future[Any]


class Batcher:
    """Groups the images of a part by their shapes."""

    def __init__(self) -> None:
        self.groups: dict[tuple[int, ...], list[Held]] = {}
        self.numbers = 0  # since all groups were empty

    def add(self, held: Held, batch_size: int) -> Iterator[list[Held]]:
        """What is complete now that `held` is there: `batch_size` images, or fewer where they are more than MOST_NUMBERS."""
        shape = held.image.shape
        self.groups.setdefault(shape, []).append(held)
        self.numbers += held.image.size
        if len(self.groups[shape]) >= min(batch_size, max(1, MOST_NUMBERS // max(1, held.image.size))):
            yield self.groups.pop(shape)
        if self.numbers > MOST_NUMBERS:  # nothing waits for its like for longer than that
            yield from self.flush()

    def flush(self) -> Iterator[list[Held]]:
        """What is left, in the order of the shapes' first images."""
        groups, self.groups, self.numbers = self.groups, {}, 0
        yield from groups.values()


def stacked(batch: list[Held]) -> np.ndarray:
    """[B, C, H, W]: uint8 where all are, else float32 in [0, 1]."""
    images = [held.image for held in batch]
    if len({image.dtype for image in images}) > 1:
        images = [in_unit_range(image) for image in images]
    return np.stack(images)
