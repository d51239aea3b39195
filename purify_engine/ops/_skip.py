"""A skip beside an image, as a U-Net's decoder has it: more channels, which need not be written into one tensor to be read."""

from __future__ import annotations

import torch
from torch import Tensor

from purify_engine.ops import _bypass, autocast
from purify_engine.ops._extension import are_launches_observed
from purify_engine.types import Images


def are_read_apart(x: Images, skip: Images) -> bool:
    """Whether [B, C, H, W] and [B, C', H, W] may be read where they are: on CPUs, float32, channels_last, where grad mode is off.

    Two that do not fit together are for `torch.cat` to refuse.
    """
    if torch.is_grad_enabled() or autocast.is_on("cpu") or _bypass.is_forbidden():
        return False
    # A recording of the CPU's is told of launches, and so misses nothing. Asked first: a transform says nothing about layouts.
    if _bypass.is_observed() and not are_launches_observed():
        return False
    alike = x.dim() == skip.dim() == 4 and x.shape[0] == skip.shape[0] and x.shape[2:] == skip.shape[2:]
    return alike and _is_fit(x) and _is_fit(skip)


def joined(x: Images, skip: Images | None) -> Images:
    """[B, C + C', H, W] in one tensor; x itself without a skip."""
    return x if skip is None else torch.cat([x, skip], dim=1)


def _is_fit(image: Tensor) -> bool:
    plain = _bypass.is_plain(image) and image.dtype == torch.float32 and image.device.type == "cpu"
    return plain and image.is_contiguous(memory_format=torch.channels_last)
