"""The layers that have kernels: GroupNorm + scale-shift + SiLU with its gradient, attention (docs/math.md E17, E18)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from purify_engine.types import Images


def _in_layout_of(x: Tensor, y: Tensor) -> Tensor:
    """`y` stored as `x` is: channels_last if `x` is that and nothing else, contiguous otherwise."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return y.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _per_channel(values: Tensor, dtype: torch.dtype) -> Tensor:
    """[C] or [B, C] as something that broadcasts over [B, C, H, W]."""
    return values.to(dtype)[..., None, None]


def group_norm_silu(
    x: Images,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    num_groups: int,
    norm_eps: float,
    silu: bool = True,
) -> Images:
    """GroupNorm (Wu & He 2018), then `* (1 + scale) + shift` where given, then SiLU unless `silu` is false.

    `weight` and `bias` are [C], `scale` and `shift` [B, C]. The result has the dtype and the memory format of `x`.
    """
    y = torch.group_norm(x, num_groups, weight.to(x.dtype), bias.to(x.dtype), norm_eps)
    if scale is not None:
        y = y * (1 + _per_channel(scale, x.dtype))
    if shift is not None:
        y = y + _per_channel(shift, x.dtype)
    return _in_layout_of(x, F.silu(y) if silu else y)


def group_norm_silu_backward(
    grad_out: Images,
    x: Images,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    num_groups: int,
    norm_eps: float,
    silu: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradient of `group_norm_silu` at `x`: (grad_x, grad_weight, grad_bias, grad_scale, grad_shift).

    The gradient of a scale or shift that is not there is an empty tensor. Differentiable itself: its own gradient is autograd's.
    """
    dtype, spatial, group = x.dtype, (2, 3), (2, 3, 4)
    grouped = x.unflatten(1, (num_groups, -1))
    centred = grouped - grouped.mean(group, keepdim=True)
    rstd = torch.rsqrt(centred.square().mean(group, keepdim=True) + norm_eps)
    normed = (centred * rstd).flatten(1, 2)
    affine = normed * _per_channel(weight, dtype) + _per_channel(bias, dtype)
    gain = 1 if scale is None else 1 + _per_channel(scale, dtype)
    grad = grad_out.to(dtype)
    if silu:
        y = affine * gain if shift is None else affine * gain + _per_channel(shift, dtype)
        gate = torch.sigmoid(y)
        grad = grad * gate * (1 + y * (1 - gate))

    grad_scale = x.new_empty(0) if scale is None else (grad * affine).sum(spatial).to(scale.dtype)
    grad_shift = x.new_empty(0) if shift is None else grad.sum(spatial).to(shift.dtype)
    grad = grad * gain
    grad_weight = (grad * normed).sum((0, *spatial)).to(weight.dtype)
    grad_bias = grad.sum((0, *spatial)).to(bias.dtype)

    normed = centred * rstd
    towards_x = (grad * _per_channel(weight, dtype)).unflatten(1, (num_groups, -1))
    along = (towards_x * normed).mean(group, keepdim=True)
    grad_x = rstd * (towards_x - towards_x.mean(group, keepdim=True) - normed * along)
    return _in_layout_of(x, grad_x.flatten(1, 2)), grad_weight, grad_bias, grad_scale, grad_shift


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v over [B, heads, tokens, head_dim] (Vaswani et al. 2017)."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    return torch.softmax(scores, dim=-1) @ v
