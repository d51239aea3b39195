"""Items of a source as tensors, for training and evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from purify_engine.config import require
from purify_engine.data.items import Item, ItemError, Part, Source

if TYPE_CHECKING:
    from purify_engine.types import Images

LEVELS = np.float32(255)


def read_all(source: Source, part_size: int = 256) -> Images:
    """Every image of a source, float32 [N, C, H, W]; ValueError names the first that is no good."""
    return read_rows(source, range(len(source)), part_size)


def read_rows(source: Source, rows: Sequence[int], part_size: int = 256) -> Images:
    """The images of some rows in their order, float32 [B, C, H, W]; only these are decoded. ValueError as `read_all`."""
    import torch

    wanted, found = set(rows), dict[int, np.ndarray]()
    for part in source.parts(part_size):
        if not wanted.isdisjoint(part.ids):
            found |= {item.id: image for item, image in _decoded(source, (i for i in source.items(part) if i.id in wanted))}
    return torch.from_numpy(np.stack(_of_one_shape(source, [(row, found[row]) for row in rows])))


def read_part(source: Source, part: Part) -> list[np.ndarray]:
    """The images of a part, float32 [C, H, W] in [0, 1], all of one shape; ValueError names the first that is no good."""
    return _of_one_shape(source, [(item.id, image) for item, image in _decoded(source, source.items(part))])


def _decoded(source: Source, items: Iterable[Item]) -> Iterator[tuple[Item, np.ndarray]]:
    for item in items:
        try:
            yield item, in_unit_range(source.decode(item))
        except ItemError as reason:
            raise ValueError(f"every image must be readable, {item.name}: {reason}") from reason


def _of_one_shape(source: Source, images: Sequence[tuple[int, np.ndarray]]) -> list[np.ndarray]:
    for id, image in images:
        first = images[0][1].shape
        require(image.shape == first, source.name(id), f"of the first image's shape {list(first)}", list(image.shape))
    return [image for _, image in images]


def in_unit_range(image: np.ndarray) -> np.ndarray:
    """Levels of 8 bits as float32 in [0, 1]; what is float32 already is left as it is."""
    return image / LEVELS if image.dtype == np.uint8 else image
