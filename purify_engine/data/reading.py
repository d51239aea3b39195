"""Items of a source as tensors, for training and evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from purify_engine.config import require
from purify_engine.data.items import ItemError, Part, Source

if TYPE_CHECKING:
    from purify_engine.types import Images

LEVELS = np.float32(255)


def read_all(source: Source, part_size: int = 256) -> Images:
    """Every image of a source, float32 [N, C, H, W]; ValueError names the first that is no good."""
    import torch

    images = [image for part in source.parts(part_size) for image in read_part(source, part)]
    return torch.from_numpy(np.stack(images))


def read_part(source: Source, part: Part) -> list[np.ndarray]:
    """The images of a part, float32 [C, H, W] in [0, 1], all of one shape; ValueError names the first that is no good."""
    images: list[np.ndarray] = []
    for item in source.items(part):
        try:
            images.append(in_unit_range(source.decode(item)))
        except ItemError as reason:
            raise ValueError(f"every image must be readable, {item.name}: {reason}") from reason
        same = images[-1].shape == images[0].shape
        require(same, item.name, f"of the first image's shape {list(images[0].shape)}", list(images[-1].shape))
    return images


def in_unit_range(image: np.ndarray) -> np.ndarray:
    """Levels of 8 bits as float32 in [0, 1]; what is float32 already is left as it is."""
    return image / LEVELS if image.dtype == np.uint8 else image
