"""How large the numbers are that a result is put together from: what a rounding is measured by where few results are judged.

The yardstick allows twice the largest error of honest PyTorch. Of many results that is a measurement, of few it is luck: a sum
whose terms cancel may come out right to the last digit in one order of summation, and in another wrong by a rounding of its
largest term. So where there are fewer than FEW results, each is allowed one rounding of its own terms, carried through the
operations that follow, in place of one rounding of the largest result.

A function is named after its op and takes its arguments. It gives an array for every result, or None where the largest result
stands for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from purify_engine.reference import layers
from purify_engine.reference.philox import philox
from purify_engine.testing.norm_magnitudes import (
    Magnitudes,
    group_norm_silu,
    group_norm_silu_backward,
    norm_sizes,
    of_few,
    residual_sum,
    size_of,
    sum_norm_silu,
    sum_norm_silu_backward,
)
from purify_engine.types import Ids, Images, Key, Marginal, Rows, Step


def magnitudes(op: str, arguments: Sequence[Any], keywords: dict[str, Any]) -> Magnitudes | None:
    """Of every result of a call; None for an op that needs none. (`to_images` has one sum, and every engine rounds it once.)"""
    return _OF[op](*arguments, **keywords) if op in _OF else None


def philox_normal(key: Key, ids: Ids, step: Step, numel: int, *, dtype: torch.dtype) -> Magnitudes:
    return (of_few(_normals(key, ids, step, numel, dtype)),)


def q_sample(
    x_start: Images, marginal: Marginal, step: Step, key: Key, ids: Ids, *, net_dtype: torch.dtype | None = None
) -> Magnitudes:
    signal, sigma = marginal.abs()
    return _with_copy(signal * size_of(x_start) + sigma * _normals_like(x_start, step, key, ids), x_start, net_dtype)


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
) -> Magnitudes:
    a, b, d, c = rows[step].abs()
    terms = a * size_of(x_t) + b * size_of(eps) + c * _normals_like(x_t, step, key, ids)
    return _with_copy(terms if grad is None else terms + d * size_of(grad), x_t, net_dtype)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Magnitudes:
    weights, queries = _uncertain_weights(q, k)
    return (of_few(weights @ size_of(v), queries),)


def attention_backward(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Magnitudes:
    weights, queries = _uncertain_weights(q, k)
    grad = size_of(grad_out)
    towards = grad @ size_of(v).transpose(-2, -1)
    scores = weights * (towards + (weights * towards).sum(-1, keepdim=True)) / math.sqrt(q.shape[-1])
    grads = scores @ size_of(k), scores.transpose(-2, -1) @ size_of(q), weights.transpose(-2, -1) @ grad
    return tuple(of_few(size, queries) for size in grads)


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
) -> Magnitudes:
    h = size_of(x)
    if norm_weight is not None and norm_bias is not None:
        h = norm_sizes(x, norm_weight, norm_bias, scale, shift, num_groups, norm_eps).activated(True)
    plus, embedded, skip = (None if part is None else size_of(part) for part in (bias, temb, residual))
    return (of_few(layers.convolved(h, size_of(weight), plus, embedded, skip, gain, upsample)),)


def conv3x3_backward(grad_out: Images, weight: Tensor, upsample: bool = False) -> Magnitudes:
    return (of_few(layers.conv3x3_backward(size_of(grad_out), size_of(weight), upsample)),)


def relu_conv3x3(
    x: Images,
    weight: Tensor,
    bias: Tensor | None = None,
    slope: Tensor | None = None,
    offset: Tensor | None = None,
    residual: Images | None = None,
) -> Magnitudes:
    given = [None if part is None else size_of(part) for part in (x, weight, bias, slope, offset, residual)]
    return (of_few(layers.relu_conv3x3(*given)),)  # type: ignore[arg-type]


def relu_conv3x3_backward(
    grad_out: Images, x: Images, weight: Tensor, slope: Tensor | None = None, offset: Tensor | None = None
) -> Magnitudes:
    size = layers.conv3x3_backward(size_of(grad_out), size_of(weight))
    return (of_few(size if slope is None else size * size_of(slope)[:, None, None]),)


def affine_relu(x: Images, slope: Tensor, offset: Tensor, residual: Images | None = None) -> Magnitudes:
    total = size_of(x) + (0 if residual is None else size_of(residual))
    y = of_few(size_of(slope)[:, None, None] * total + size_of(offset)[:, None, None])
    return None if residual is None else of_few(total), y


def affine_relu_backward(grad_y: Images, y: Images, slope: Tensor, grad_sum: Images | None = None) -> Magnitudes:
    return (of_few(size_of(grad_y) * size_of(slope)[:, None, None] + (0 if grad_sum is None else size_of(grad_sum))),)


def _uncertain_weights(q: Tensor, k: Tensor) -> tuple[Tensor, int]:
    """The softmax's weights, each times what a rounding of its exponent makes of it; and how many queries there are.

    The exponent is a score less the logarithm of a sum over T keys: no larger than M = max_j sum_d |q_d k_jd| / sqrt(D), and
    M + ln T. In half precision it is rounded as float32, which is nothing.
    """
    wide, keys = q.double(), k.double()
    scale = 1 / math.sqrt(q.shape[-1])
    weights = torch.softmax(wide @ keys.transpose(-2, -1) * scale, dim=-1)
    if torch.finfo(q.dtype).bits >= 32 and weights.numel():
        exponent = (wide.abs() @ keys.abs().transpose(-2, -1) * scale).amax(-1, keepdim=True)
        weights = weights * (1 + exponent + math.log(k.shape[-2]))
    return weights, weights.shape[:-1].numel()


def _normals(key: Key, ids: Ids, step: Step, numel: int, dtype: torch.dtype) -> Tensor:
    """r + 1/r, with Box and Muller's r = sqrt(-2 log u): cosine and sine are wrong by a rounding of 1, and log u by one of u.

    The 33 bits of u are exact in float64.
    """
    words = philox(key, ids, step, numel + numel % 2).double()
    radius = torch.sqrt(-2 * torch.log(words[:, 0::2] * 2.0**-32 + 2.0**-33)).repeat_interleave(2, dim=1)[:, :numel]
    return radius if dtype == torch.float64 else radius + 1 / radius


def _normals_like(x: Images, step: Step, key: Key, ids: Ids) -> Tensor:
    return _normals(key, ids, step, x.shape[1:].numel(), x.dtype).reshape(x.shape)


def _with_copy(terms: Tensor, x: Images, net_dtype: torch.dtype | None) -> Magnitudes:
    """Of a result and the networks' copy of it. Where that is less precise, its own rounding is all that counts."""
    size = of_few(terms)
    return size, size if net_dtype == x.dtype else None


_OF: dict[str, Callable[..., Magnitudes]] = {
    measure.__name__: measure
    for measure in (
        philox_normal,
        q_sample,
        guided_step,
        attention,
        attention_backward,
        group_norm_silu,
        group_norm_silu_backward,
        residual_sum,
        sum_norm_silu,
        sum_norm_silu_backward,
        conv3x3,
        conv3x3_backward,
        relu_conv3x3,
        relu_conv3x3_backward,
        affine_relu,
        affine_relu_backward,
    )
}
