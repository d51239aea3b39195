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
    """`image` [C, H, W], made smaller by whole pixels' means until its longer side is at most `most`: a page stays small."""
    by = -(-max(image.shape[1:]) // most)
    if by == 1:
        return image
    channels, height, width = image.shape[0], max(1, image.shape[1] // by), max(1, image.shape[2] // by)
    tall, wide = min(image.shape[1], height * by), min(image.shape[2], width * by)
    blocks = image[:, :tall, :wide].reshape(channels, height, tall // height, width, wide // width)
    return blocks.mean(axis=(2, 4))


def _uri(pixels: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
