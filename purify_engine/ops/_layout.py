"""In which memory format results are stored: the specification's rules, for the engines that compute in a format of their own."""

from __future__ import annotations

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether [B, C, H, W] is stored channels_last, and not contiguous as well (as with one channel, or one pixel)."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def in_layout_of(x: Tensor, y: Tensor) -> Tensor:
    """`y` stored as `x` is: channels_last if `x` is that and nothing else, contiguous otherwise."""
    return y.contiguous(memory_format=torch.channels_last if is_channels_last(x) else torch.contiguous_format)


def of_convolution(x: Tensor, weight: Tensor, residual: Tensor | None = None) -> torch.memory_format:
    """The memory format of PyTorch's convolution: a residual's own; else channels_last if x or the weight is that."""
    if residual is not None and not residual.is_contiguous() and not is_channels_last(residual):
        residual = None
    decisive = (x, weight) if residual is None else (residual,)
    return torch.channels_last if any(map(is_channels_last, decisive)) else torch.contiguous_format
