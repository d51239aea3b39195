"""What stands between two convolutions of a U-Net: a sum, and the norm that reads it (docs/math.md E17, E19)."""

from __future__ import annotations

import torch
from torch import Tensor

from purify_engine.reference.layers import group_norm_silu, group_norm_silu_backward, in_layout_of
from purify_engine.types import Images


def residual_sum(x: Images, bias: Tensor | None = None, residual: Images | None = None, gain: float = 1.0) -> Images:
    """gain (residual + (x + bias)), stored as x is, always in memory of its own.

    x [B, C, H, W], `bias` [C], `residual` of x's shape. Each of the operations is rounded to x's dtype, as where a convolution
    adds its bias and a residual and a gain follow.
    """
    return apart_from(x, in_layout_of(x, summed(x, bias, None, residual, gain)))


def sum_norm_silu(
    x: Images,
    residual: Images | None,
    bias: Tensor | None,
    temb: Tensor | None,
    skip: Images | None,
    weight: Tensor,
    norm_bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    num_groups: int,
    norm_eps: float,
    gain: float = 1.0,
    silu: bool = True,
    write_sum: bool = True,
) -> tuple[Images, Images]:
    """(sum, y): sum = gain (residual + x + bias + temb), the channels of `skip` behind it; y its `group_norm_silu`.

    x and `residual` [B, K, H, W], `bias` [K], `temb` [B or 1, K], `skip` [B, C', H, W], the norm of K + C' channels, whose groups
    may straddle both. y is of the sum as it is rounded to x's dtype. Without `write_sum` the sum is an empty tensor.
    """
    total = summed(x, bias, temb, residual, gain)
    total = in_layout_of(x, total if skip is None else torch.cat([total, skip.to(x.dtype)], dim=1))
    y = group_norm_silu(total, weight, norm_bias, scale, shift, num_groups, norm_eps, silu)
    return (apart_from(x, total) if write_sum else x.new_empty(0)), in_layout_of(x, y)


def sum_norm_silu_backward(
    grad_y: Images,
    total: Images,
    weight: Tensor,
    norm_bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    grad_sum: Images | None,
    num_groups: int,
    norm_eps: float,
    silu: bool = True,
) -> Images:
    """The gradient of `sum_norm_silu` to its sum: through the norm at `total`, plus what reaches the sum itself.

    All three images [B, C, H, W]; the result is stored as `total` is. Differentiable itself.
    """
    grad, *_ = group_norm_silu_backward(grad_y, total, weight, norm_bias, scale, shift, num_groups, norm_eps, silu)
    return grad if grad_sum is None else in_layout_of(total, grad + grad_sum.to(grad.dtype))


def summed(x: Images, bias: Tensor | None, temb: Tensor | None, residual: Images | None, gain: float) -> Images:
    """gain (residual + ((x + bias) + temb)); x itself where there is nothing to add."""
    for values in (bias, temb):
        if values is not None:
            x = x + values.to(x.dtype)[..., None, None]
    if residual is not None:
        x = residual.to(x.dtype) + x
    return x if gain == 1 else x * gain


def apart_from(x: Tensor, y: Tensor) -> Tensor:
    """`y`, or a copy where it is `x` itself."""
    return y.clone() if y is x else y
