"""Ops made of other ops: where autograd records, and on engines that have the parts but not the whole."""

from __future__ import annotations

import torch
from torch import Tensor

from purify_engine.reference import layers
from purify_engine.types import Images


def conv3x3(
    x: Images,
    weight: Tensor,
    bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    temb: Tensor | None = None,
    residual: Images | None = None,
    num_groups: int = 1,
    norm_eps: float = 1e-5,
    gain: float = 1.0,
    upsample: bool = False,
) -> Images:
    """`reference.layers.conv3x3`, its norm by the norm's own kernel and the convolution by PyTorch."""
    if norm_weight is not None:
        x = torch.ops.purify.group_norm_silu(x, norm_weight, norm_bias, scale, shift, num_groups, norm_eps)
    return layers.convolved(x, weight, bias, temb, residual, gain, upsample)
