"""The ops in numpy's long double: the truth that float64 results are held to (docs/math.md E4, E5, E7, E17).

The words of the noise are the reference's; all that rounds is written here once more.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from purify_engine.reference.philox import philox
from purify_engine.testing.yardstick import Extended, extended
from purify_engine.types import Ids, Images, Key, Marginal, Rows, Step

PI = 4 * np.arctan(np.longdouble(1))


def philox_normal(key: Key, ids: Ids, step: Step, numel: int, *, dtype: torch.dtype | None = None) -> Extended:
    """Standard normals, [B, numel], by Box and Muller."""
    words = philox(key, ids, step, numel + numel % 2).numpy().astype(np.longdouble) / 2**32
    radius, angle = np.sqrt(-2 * np.log(words[:, 0::2] + 2.0**-33)), 2 * PI * words[:, 1::2]
    drawn = np.empty_like(words)
    drawn[:, 0::2], drawn[:, 1::2] = radius * np.cos(angle), radius * np.sin(angle)
    return drawn[:, :numel]


def q_sample(
    x_start: Images, marginal: Marginal, step: Step, key: Key, ids: Ids, *, net_dtype: Any = None
) -> tuple[Extended, ...]:
    """x_t, and the same as the networks' copy."""
    signal, sigma = extended(marginal)
    x_t = signal * extended(x_start) + sigma * _noise_like(x_start, step, key, ids)
    return x_t, x_t if net_dtype else np.empty(0, np.longdouble)


def guided_step(
    x_t: Images, eps: Images, grad: Images | None, rows: Rows, step: Step, key: Key, ids: Ids, *, net_dtype: Any = None
) -> tuple[Extended, ...]:
    """x_j, and the same as the networks' copy."""
    a, b, d, c = extended(rows)[int(step)]
    x_next = a * extended(x_t) + b * extended(eps) + c * _noise_like(x_t, step, key, ids)
    x_next = x_next if grad is None else x_next + d * extended(grad)
    return x_next, x_next if net_dtype else np.empty(0, np.longdouble)


def _noise_like(x: Images, step: Step, key: Key, ids: Ids) -> Extended:
    return philox_normal(key, ids, step, x.shape[1:].numel()).reshape(x.shape)


def group_norm_silu(
    x: Any, weight: Any, bias: Any, scale: Any, shift: Any, num_groups: int, norm_eps: float, silu: bool = True
) -> Extended:
    """The layer's value; tensors or arrays in, of the shapes that `reference.layers.group_norm_silu` takes."""
    normed, _ = _normed(extended(x), num_groups, norm_eps)
    y = _gain(scale) * (_rows(weight) * normed + _rows(bias)) + _rows(shift)
    return y * _sigmoid(y) if silu else y


def group_norm_silu_backward(
    grad_out: Any, x: Any, weight: Any, bias: Any, scale: Any, shift: Any, num_groups: int, norm_eps: float, silu: bool = True
) -> tuple[Extended, ...]:
    """(grad_x, grad_weight, grad_bias, grad_scale, grad_shift), the last two empty where there is no scale or shift."""
    normed, rstd = _normed(extended(x), num_groups, norm_eps)
    affine = _rows(weight) * normed + _rows(bias)
    grad = extended(grad_out)
    if silu:
        gate = _sigmoid(y := _gain(scale) * affine + _rows(shift))
        grad = grad * (gate + y * gate * _sigmoid(-y))
    nothing = np.empty(0, np.longdouble)
    grad_scale = nothing if scale is None else (grad * affine).sum((2, 3))
    grad_shift = nothing if shift is None else grad.sum((2, 3))
    grad = grad * _gain(scale)
    to_normed = _grouped(grad * _rows(weight), num_groups)
    by_group = _grouped(normed, num_groups)
    grad_x = rstd * (to_normed - _mean(to_normed) - by_group * _mean(to_normed * by_group))
    grad_x = grad_x.reshape(normed.shape)
    return grad_x, (grad * normed).sum((0, 2, 3)), grad.sum((0, 2, 3)), grad_scale, grad_shift


def residual_sum(x: Any, bias: Any = None, residual: Any = None, gain: float = 1.0) -> Extended:
    """The sum behind a convolution."""
    return _total(x, residual, bias, None, None, gain)


def sum_norm_silu(x: Any, residual: Any, bias: Any, temb: Any, skip: Any, *norm: Any) -> tuple[Extended, ...]:
    """(sum, y), the sum empty where it is not wanted."""
    weight, norm_bias, scale, shift, num_groups, norm_eps, gain, silu, write_sum = norm
    total = _total(x, residual, bias, temb, skip, gain)
    y = group_norm_silu(total, weight, norm_bias, scale, shift, num_groups, norm_eps, silu)
    return total if write_sum else np.empty(0, np.longdouble), y


def affine_relu(x: Any, slope: Any, offset: Any, residual: Any = None) -> tuple[Extended, ...]:
    """(sum, y), the sum empty where there is no residual."""
    total = _total(x, residual, None, None, None, 1)
    return np.empty(0, np.longdouble) if residual is None else total, np.maximum(_rows(slope) * total + _rows(offset), 0)


def affine_relu_backward(grad_y: Any, y: Any, slope: Any, grad_sum: Any = None) -> Extended:
    """The gradient to the sum."""
    through = np.where(extended(y) > 0, extended(grad_y), 0) * _rows(slope)
    return _total(through, grad_sum, None, None, None, 1)


def sum_norm_silu_backward(grad_y: Any, total: Any, *others: Any) -> Extended:
    """The gradient to the sum."""
    weight, norm_bias, scale, shift, grad_sum, num_groups, norm_eps, silu = others
    grad, *_ = group_norm_silu_backward(grad_y, total, weight, norm_bias, scale, shift, num_groups, norm_eps, silu)
    return grad if grad_sum is None else grad + extended(grad_sum)


def _total(x: Any, residual: Any, bias: Any, temb: Any, skip: Any, gain: float) -> Extended:
    total = extended(x) + _rows(bias) + _rows(temb) + (0 if residual is None else extended(residual))
    total = np.longdouble(gain) * total
    return total if skip is None else np.concatenate([total, extended(skip)], axis=1)


def _normed(x: Extended, num_groups: int, norm_eps: float) -> tuple[Extended, Extended]:
    """The normalised input [B, C, H, W], and the reciprocal standard deviation of every group."""
    groups = _grouped(x, num_groups)
    centred = groups - _mean(groups)
    rstd = 1 / np.sqrt(_mean(centred**2) + np.longdouble(norm_eps))
    return (centred * rstd).reshape(x.shape), rstd


def _mean(groups: Extended) -> Extended:
    """The mean of every group; of nothing it is 0."""
    count = math.prod(groups.shape[2:])
    return groups.sum((2, 3, 4), keepdims=True) / max(count, 1)


def _grouped(x: Extended, num_groups: int) -> Extended:
    batch, channels, height, width = x.shape
    return x.reshape(batch, num_groups, channels // num_groups, height, width)


def _rows(values: Any) -> Extended:
    """[C] or [B, C] as something that broadcasts over [B, C, H, W]; None as 0."""
    return np.longdouble(0) if values is None else extended(values)[..., None, None]


def _gain(scale: Any) -> Extended:
    return 1 + _rows(scale)


def _sigmoid(x: Extended) -> Extended:
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, 1) / (1 + small)
