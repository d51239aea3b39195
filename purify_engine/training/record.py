"""What is remembered of a training set: where it came from, and hashes by which another one is told from it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from purify_engine.training.batches import pixels
from purify_engine.types import Images, Labels


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """The images that a network was trained or a scale calibrated on."""

    source: str
    """Where they came from, in words."""
    images: int
    """How many."""
    shape: tuple[int, ...]
    """Of one image, [C, H, W]."""
    sha256: str
    """Of their pixels in float32, row by row."""
    labels_sha256: str | None = None
    """Of their labels in int64; None where labels were not used."""


def remembered(images: Images, labels: Labels | None, source: str) -> TrainingSet:
    """The record of `images` [N, C, H, W], float in [0, 1] or uint8, and `labels` [N]."""
    known = None if labels is None else _sha256(labels.to(torch.int64))
    return TrainingSet(
        source=source, images=len(images), shape=tuple(images.shape[1:]), sha256=_sha256(images), labels_sha256=known
    )


def _sha256(tensor: Tensor) -> str:
    """Of labels in int64, or of images, as float32."""
    digest = hashlib.sha256(repr(tuple(tensor.shape)).encode())
    for part in tensor.detach().split(4096):  # a whole copy of a large set would not fit beside it
        read = part if part.dtype == torch.int64 else pixels(part).float()
        digest.update(read.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
