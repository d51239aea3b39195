"""The forward process in one shot, one guided reverse step and its corrections, and the way back to images.

docs/math.md E4, E7, E25, E26, E9.
"""

from __future__ import annotations

import torch
from torch import Tensor

from purify_engine.reference.philox import philox_normal
from purify_engine.types import Ids, Images, Key, Marginal, Rows, Step


def diffuse(x_start: Images, noise: Images, marginal: Marginal) -> Images:
    """x_t = sqrt(alpha_bar) x_start + sqrt(1 - alpha_bar) noise (E4; Ho et al. 2020, equation 4)."""
    signal, sigma = marginal.to(x_start.dtype)
    return signal * x_start + sigma * noise


def update(x_t: Images, eps: Images, grad: Images | None, noise: Images, row: Tensor) -> Images:
    """One guided reverse step x_i -> x_j, for every sampler (E7).

    `row` = (a, b, d, c) of this step, written by the sampler; `grad` is the unscaled gradient of the guidance objective G,
    None where nothing guides.
    """
    a, b, d, c = row.to(x_t.dtype)
    mean = a * x_t + b * eps
    return (mean if grad is None else mean + d * grad) + c * noise


def with_eps_clipped(x_t: Images, eps: Images, marginal: Marginal) -> tuple[Images, Images]:
    """(x_t, eps'): the noise prediction under which the estimate of the clean image lies in [-1, 1] (E25, consistent)."""
    signal, sigma = marginal.to(x_t.dtype)
    return x_t, (x_t - signal * _clipped_estimate(x_t, eps, signal, sigma)) / sigma


def with_x0_clipped(x_t: Images, eps: Images, marginal: Marginal) -> tuple[Images, Images]:
    """(x_t', eps): the noised image of which that would be so, eps being what it is (E25, x0 only)."""
    signal, sigma = marginal.to(x_t.dtype)
    return signal * _clipped_estimate(x_t, eps, signal, sigma) + sigma * eps, eps


def _clipped_estimate(x_t: Images, eps: Images, signal: Tensor, sigma: Tensor) -> Images:
    return ((x_t - sigma * eps) / signal).clamp(-1, 1)


def learned_log_variance(v: Images, bounds: Tensor) -> Images:
    """The logarithm of each pixel's variance, v = -1 at the lower of the two `bounds` and 1 at the upper (E26)."""
    low, high = bounds.to(v.dtype)
    share = (v + 1) / 2
    return share * high + (1 - share) * low


def q_sample(
    x_start: Images, marginal: Marginal, step: Step, key: Key, ids: Ids, *, net_dtype: torch.dtype | None = None
) -> tuple[Images, Images]:
    """`x_start` noised to `marginal` with the normals of (key, id, step), and the copy that the networks read (E4, E5)."""
    x_start = x_start.contiguous()
    return _with_network_copy(diffuse(x_start, _noise_like(x_start, step, key, ids), marginal), net_dtype)


def guided_step(
    x_t: Images,
    eps: Images,
    grad: Images | None,
    rows: Rows,
    step: Step,
    key: Key,
    ids: Ids,
    *,
    net_dtype: torch.dtype | None = None,
) -> tuple[Images, Images]:
    """Row `step` of the plan executed with the normals of (key, id, step); and the copy that the networks read (E5, E7)."""
    x_t, eps = x_t.contiguous(), eps.to(x_t.dtype)
    grad = None if grad is None else grad.to(x_t.dtype)
    row = rows.index_select(0, step).squeeze(0)
    return _with_network_copy(update(x_t, eps, grad, _noise_like(x_t, step, key, ids), row), net_dtype)


def to_images(x: Images, dtype: torch.dtype) -> Images:
    """Model space [-1, 1] to images: floats in [0, 1], or uint8 in [0, 255], rounded to the nearest (E9)."""
    images = ((x + 1) / 2).clamp(0, 1)
    return images.mul(255).round().to(dtype) if dtype == torch.uint8 else images.to(dtype)


def _noise_like(x: Images, step: Step, key: Key, ids: Ids) -> Images:
    return philox_normal(key, ids, step, x.shape[1:].numel(), dtype=x.dtype).view_as(x)


def _with_network_copy(x_t: Images, net_dtype: torch.dtype | None) -> tuple[Images, Images]:
    if net_dtype is None:
        return x_t, x_t.new_empty(0)
    return x_t, x_t.to(net_dtype, memory_format=torch.channels_last, copy=True)
