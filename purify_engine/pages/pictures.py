"""Small pictures inside a page: images as PNG data URIs, and what changed between two of them in colours that tell its sign."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable

import numpy as np

# Of a difference of -scale, 0 and +scale: blue, white and red of ColorBrewer's RdBu, told apart by the colour-blind, too.
NEGATIVE, ZERO, POSITIVE = (33, 102, 172), (247, 247, 247), (178, 24, 43)
SHOWN = 0.995  # share of the changes that lie within the scale; those beyond have the colours of its ends
LEAST_SCALE = 1 / 255


def data_uri(image: np.ndarray) -> str:
    """One image [C, H, W] in [0, 1], grey or RGB, as a PNG in a data URI; values outside are clipped, NaN is black."""
    levels = (np.clip(np.nan_to_num(image, nan=0.0), 0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    return _uri(levels[..., 0] if levels.shape[2] == 1 else levels)


def signed_uri(difference: np.ndarray, scale: float) -> str:
    """What changed [C, H, W] as a PNG data URI: red where it grew, blue where it shrank, full at `scale`, white at zero.

    Of a colour image each pixel shows the channel that changed most.
    """
    strongest = np.abs(difference).argmax(axis=0)
    value = np.clip(np.take_along_axis(difference, strongest[None], axis=0)[0] / scale, -1, 1)[..., None]
    ends = np.where(value < 0, np.array(NEGATIVE), np.array(POSITIVE))
    return _uri((np.array(ZERO) + np.abs(value) * (ends - ZERO)).round().astype(np.uint8))


def scale_of(differences: Iterable[np.ndarray]) -> float:
    """The one scale for several differences: all but the largest half percent of their pixels lie within it."""
    changes = [np.abs(difference).max(axis=0).ravel() for difference in differences]
    return max(LEAST_SCALE, float(np.quantile(np.concatenate(changes), SHOWN))) if changes else LEAST_SCALE


def thumbnail(image: np.ndarray, most: int = 128) -> np.ndarray:
    """`image` [C, H, W], made smaller by the means of square blocks until its longer side is at most `most` pixels."""
    return _blocks(image, most).mean(axis=(2, 4))


def strongest(difference: np.ndarray, most: int = 128) -> np.ndarray:
    """The same for what changed, by the largest change of each block: the mean would cancel what has both signs."""
    blocks = _blocks(difference, most)
    highest, lowest = blocks.max(axis=(2, 4)), blocks.min(axis=(2, 4))
    return np.where(highest >= -lowest, highest, lowest)


def _blocks(image: np.ndarray, most: int) -> np.ndarray:
    """[C, rows, h, columns, w]: the blocks of an image; a remainder of rows or columns is left out."""
    channels, *sides = image.shape
    by = -(-max(sides) // most)
    rows, columns = (max(1, side // by) for side in sides)
    height, width = (min(by, side) for side in sides)
    return image[:, : rows * height, : columns * width].reshape(channels, rows, height, columns, width)


def _uri(pixels: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
