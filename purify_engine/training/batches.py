"""Which images a step sees, and how they are varied. Everything follows from (seed, step)."""

from __future__ import annotations

import random
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from purify_engine.config import require
from purify_engine.types import Images, Labels


def seed_everything(seed: int, name: str) -> None:
    """Seed PyTorch's global generators, dropout's included, from (seed, name)."""
    torch.manual_seed(random.Random(f"{seed}/{name}").getrandbits(63))


def batch_indices(step: int, batch_size: int, count: int, seed: int) -> Tensor:
    """The images of one step, int64 [batch_size]: epochs are laid end to end, each a permutation of its own."""
    positions = torch.arange(step * batch_size, (step + 1) * batch_size, device="cpu")
    epochs, within = positions // count, positions % count
    return torch.cat([_permutation(int(epoch), count, seed)[within[epochs == epoch]] for epoch in epochs.unique()])


@lru_cache(maxsize=4)
def _permutation(epoch: int, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(random.Random(f"{seed}/epoch {epoch}").getrandbits(63))
    return torch.randperm(count, generator=generator, device="cpu")


def pixels(images: Images) -> Images:
    """Stored images as float in [0, 1]: of bytes, their 255ths in float32."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def compact(images: Images) -> Images:
    """float32 images that are whole 255ths as bytes, from which `pixels` gives the very same; others as they are."""
    if images.dtype != torch.float32:
        return images
    stored = torch.empty(images.shape, dtype=torch.uint8, device=images.device)
    for part, kept in zip(images.split(4096), stored.split(4096), strict=True):  # a second float copy may not fit beside it
        kept.copy_((part * 255).round())
        if not torch.equal(pixels(kept), part):
            return images
    return stored


def augment(images: Images, shift: int, flip: bool) -> Images:
    """Shift each image by up to `shift` pixels a side, zeros coming in, and mirror half of them."""
    if flip:
        mirrored = torch.rand(len(images), device=images.device) < 0.5
        images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
    return _shifted(images, shift) if shift else images


def _shifted(images: Images, shift: int) -> Images:
    batch, _, height, width = images.shape
    top, left = torch.randint(2 * shift + 1, (2, batch, 1), device=images.device)
    rows = (top + torch.arange(height, device=images.device)).view(batch, 1, height, 1)
    columns = (left + torch.arange(width, device=images.device)).view(batch, 1, 1, width)
    image = torch.arange(batch, device=images.device).view(batch, 1, 1, 1)
    channel = torch.arange(images.shape[1], device=images.device).view(1, -1, 1, 1)
    return F.pad(images, (shift,) * 4)[image, channel, rows, columns]


def check_training_set(images: Images, labels: Labels | None, in_channels: int, num_classes: int | None = None) -> None:
    """Refuse, in one line, images that are not [N, C, H, W], float in [0, 1] or uint8, and labels that do not match them.

    num_classes: of the network, which labels must be below; the first row whose label is not is named.
    """
    require(images.ndim == 4 and len(images) > 0, "images", "[N, C, H, W] with N at least 1", tuple(images.shape))
    require(images.shape[1] == in_channels, "images", f"of {in_channels} channels, as the network's", tuple(images.shape))
    stored = images.dtype == torch.uint8
    require(stored or images.is_floating_point(), "images", "float in [0, 1], or uint8", images.dtype)
    low, high = (0.0, 1.0) if stored else (float(images.min()), float(images.max()))
    require(low >= 0 and high <= 1, "images", "in [0, 1]", (low, high))
    if labels is not None:
        require(labels.shape == images.shape[:1], "labels", f"one per image, [{len(images)}]", tuple(labels.shape))
    if labels is not None and num_classes is not None:
        outside = ((labels < 0) | (labels >= num_classes)).nonzero().flatten().tolist()
        row = outside[0] if outside else 0
        require(not outside, f"labels[{row}]", f"in [0, {num_classes}), the network's classes", labels[row].item())
