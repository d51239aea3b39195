"""Two images side by side along the channels, as a U-Net's decoder has them, read where they are: nobody writes them together.

On CPUs, of float32 channels_last images, where grad mode is off. Elsewhere `torch.cat` comes first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from purify_engine.ops import checks, cpp
from purify_engine.types import Images


def is_read_apart(x: Images, beside: Images) -> bool:
    """Whether the functions below take these two images, [B, C, H, W] and [B, C', H, W]; others are for `torch.cat` to refuse."""
    if cpp.room is None or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not cpp.takes(x, beside):
        return False
    alike = x.dim() == 4 and x.shape[0] == beside.shape[0] and x.shape[2:] == beside.shape[2:]
    return alike and all(image.is_contiguous(memory_format=torch.channels_last) for image in (x, beside))


def group_norm_silu(x: Images, beside: Images, weight: Tensor, bias: Tensor, num_groups: int, norm_eps: float) -> Images:
    """`ops.group_norm_silu` of the two, to the bit: [B, C + C', H, W]; `weight` and `bias` [C + C']."""
    checks.side_by_side(x, beside, weight, bias, num_groups)
    return cpp.group_norm_silu_last(x, beside, (weight, bias, None, None), num_groups, norm_eps, silu=True)


def conv1x1(x: Images, beside: Images, weight: Tensor, bias: Tensor | None) -> Images:
    """`ops.conv1x1` of the two, a matrix product each: `weight` [K, C + C', 1, 1], `bias` [K] -> [B, K, H, W]."""
    own, others = weight.flatten(1).split((x.shape[1], beside.shape[1]), dim=1)
    y = F.linear(x.permute(0, 2, 3, 1), own, bias)
    y.view(-1, len(weight)).addmm_(beside.permute(0, 2, 3, 1).reshape(-1, beside.shape[1]), others.t())
    return y.permute(0, 3, 1, 2)
