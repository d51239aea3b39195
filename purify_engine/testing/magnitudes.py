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
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from purify_engine.reference import layers, sums
from purify_engine.reference.philox import philox
from purify_engine.types import Ids, Images, Key, Marginal, Rows, Step

Magnitudes = tuple[np.ndarray | None, ...]

# Of 200,000 guided steps of one element 0.8 % err by more than twice PyTorch's error and a rounding of the result. Of 67,000 of
# three elements 4 do, of 50,000 of four none; at sixteen none needs more than 0.6 of what it is allowed.
FEW = 16


def magnitudes(op: str, arguments: Sequence[Any], keywords: dict[str, Any]) -> Magnitudes | None:
    """Of every result of a call; None for an op that needs none. (`to_images` has one sum, and every engine rounds it once.)"""
    return _OF[op](*arguments, **keywords) if op in _OF else None


def philox_normal(key: Key, ids: Ids, step: Step, numel: int, *, dtype: torch.dtype) -> Magnitudes:
    return (_of_few(_normals(key, ids, step, numel, dtype)),)


def q_sample(
    x_start: Images, marginal: Marginal, step: Step, key: Key, ids: Ids, *, net_dtype: torch.dtype | None = None
) -> Magnitudes:
    signal, sigma = marginal.abs()
    return _with_copy(signal * _size(x_start) + sigma * _normals_like(x_start, step, key, ids), x_start, net_dtype)


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
    terms = a * _size(x_t) + b * _size(eps) + c * _normals_like(x_t, step, key, ids)
    return _with_copy(terms if grad is None else terms + d * _size(grad), x_t, net_dtype)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Magnitudes:
    weights, queries = _uncertain_weights(q, k)
    return (_of_few(weights @ _size(v), queries),)


def attention_backward(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Magnitudes:
    weights, queries = _uncertain_weights(q, k)
    grad = _size(grad_out)
    towards = grad @ _size(v).transpose(-2, -1)
    scores = weights * (towards + (weights * towards).sum(-1, keepdim=True)) / math.sqrt(q.shape[-1])
    grads = scores @ _size(k), scores.transpose(-2, -1) @ _size(q), weights.transpose(-2, -1) @ grad
    return tuple(_of_few(size, queries) for size in grads)


def group_norm_silu(
    x: Images,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    num_groups: int,
    norm_eps: float,
    silu: bool = True,
) -> Magnitudes:
    return (_of_few(_norm(x, weight, bias, scale, shift, num_groups, norm_eps).activated(silu)),)


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
) -> Magnitudes:
    """What is left of a group of n has n - 2 degrees of freedom. In the sums over pixels, errors add up as their squares do."""
    norm = _norm(x, weight, bias, scale, shift, num_groups, norm_eps)
    normed, grad = norm.normed.abs(), _size(grad_out) * norm.slope_of_silu() if silu else _size(grad_out)
    through = norm.gain.abs() * grad
    to_normed, by_group = (part.unflatten(1, (num_groups, -1)) for part in (norm.weight.abs() * through, normed))
    level, tilt = (part.mean((2, 3, 4), keepdim=True) for part in (to_normed, to_normed * by_group))
    grad_x = (norm.rstd * (to_normed + level + by_group * tilt)).flatten(1, 2)
    sums = (through * normed, (0, 2, 3)), (through, (0, 2, 3)), (grad * norm.affine, (2, 3)), (grad, (2, 3))
    per_channel = [_of_few(torch.linalg.vector_norm(part, dim=over)) for part, over in sums]
    given = [True, True, scale is not None, shift is not None]
    freedom = grad_x.numel() - 2 * norm.rstd.numel()
    return _of_few(grad_x, freedom), *(size if there else None for size, there in zip(per_channel, given, strict=True))


def residual_sum(x: Images, bias: Tensor | None = None, residual: Images | None = None, gain: float = 1.0) -> Magnitudes:
    given: list[Any] = [None if part is None else _size(part) for part in (x, bias, None, residual)]
    return (_of_few(_total(given, gain)),)


def sum_norm_silu(x: Images, residual: Any, bias: Any, temb: Any, skip: Any, *norm: Any) -> Magnitudes:
    """Of the sum, and of y: its own roundings, and those of the sum, which the norm takes for spread. The skip has none."""
    weight, norm_bias, scale, shift, num_groups, norm_eps, gain, silu, write_sum = norm
    sizes: list[Any] = [None if part is None else _size(part) for part in (x, bias, temb, residual)]
    exact: list[Any] = [None if part is None else part.double() for part in (x, bias, temb, residual)]
    terms, total = _total(sizes, gain), _total(exact, gain)
    if skip is not None:
        total = torch.cat([total, skip.double()], dim=1)
        terms = torch.cat([terms, torch.zeros_like(skip, dtype=torch.float64)], dim=1)
    taken = _norm(total, weight, norm_bias, scale, shift, num_groups, norm_eps)
    to_normed, by_group = (part.abs().unflatten(1, (num_groups, -1)) for part in (terms, taken.normed))
    level, tilt = (part.mean((2, 3, 4), keepdim=True) for part in (to_normed, to_normed * by_group))
    through = (taken.rstd * (to_normed + level + by_group * tilt)).flatten(1, 2) * (taken.weight * taken.gain).abs()
    size = taken.activated(silu) + (1.1 if silu else 1) * through
    return (_of_few(terms) if write_sum else None), _of_few(size)


def _total(summands: list[Any], gain: float) -> Tensor:
    x, bias, temb, residual = summands
    return sums.summed(x, bias, temb, residual, gain)


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
    h = _size(x)
    if norm_weight is not None and norm_bias is not None:
        h = _norm(x, norm_weight, norm_bias, scale, shift, num_groups, norm_eps).activated(True)
    plus, embedded, skip = (None if part is None else _size(part) for part in (bias, temb, residual))
    return (_of_few(layers.convolved(h, _size(weight), plus, embedded, skip, gain, upsample)),)


def conv3x3_backward(grad_out: Images, weight: Tensor, upsample: bool = False) -> Magnitudes:
    return (_of_few(layers.conv3x3_backward(_size(grad_out), _size(weight), upsample)),)


def relu_conv3x3(
    x: Images,
    weight: Tensor,
    bias: Tensor | None = None,
    slope: Tensor | None = None,
    offset: Tensor | None = None,
    residual: Images | None = None,
) -> Magnitudes:
    given = [None if part is None else _size(part) for part in (x, weight, bias, slope, offset, residual)]
    return (_of_few(layers.relu_conv3x3(*given)),)  # type: ignore[arg-type]


def relu_conv3x3_backward(
    grad_out: Images, x: Images, weight: Tensor, slope: Tensor | None = None, offset: Tensor | None = None
) -> Magnitudes:
    size = layers.conv3x3_backward(_size(grad_out), _size(weight))
    return (_of_few(size if slope is None else size * _size(slope)[:, None, None]),)


def affine_relu(x: Images, slope: Tensor, offset: Tensor, residual: Images | None = None) -> Magnitudes:
    total = _size(x) + (0 if residual is None else _size(residual))
    y = _of_few(_size(slope)[:, None, None] * total + _size(offset)[:, None, None])
    return None if residual is None else _of_few(total), y


def affine_relu_backward(grad_y: Images, y: Images, slope: Tensor, grad_sum: Images | None = None) -> Magnitudes:
    return (_of_few(_size(grad_y) * _size(slope)[:, None, None] + (0 if grad_sum is None else _size(grad_sum))),)


class _Norm(NamedTuple):
    """A group norm taken apart, float64: rstd [B, G, 1, 1, 1], the rest broadcasts over [B, C, H, W].

    `affine` and `terms` are sums of absolute values: of what y is before the gain, and of what y is.
    """

    rstd: Tensor
    normed: Tensor
    weight: Tensor
    gain: Tensor
    y: Tensor
    affine: Tensor
    terms: Tensor

    def slope_of_silu(self) -> Tensor:
        """gate (1 + y (1 - gate)), which is 0 near y = -1.28; its own slope is 1/2 at most."""
        gate = torch.sigmoid(self.y)
        return gate * (1 + self.y.abs() * (1 - gate)) + self.terms / 2

    def activated(self, silu: bool) -> Tensor:
        """The result; the slope of SiLU is 1.1 at most."""
        return 1.1 * self.terms + self.y.abs() if silu else self.terms


def _norm(x: Images, weight: Tensor, bias: Tensor, scale: Any, shift: Any, num_groups: int, norm_eps: float) -> _Norm:
    groups = x.double().unflatten(1, (num_groups, -1))
    centred = groups - groups.mean((2, 3, 4), keepdim=True)
    rstd = torch.rsqrt(centred.square().mean((2, 3, 4), keepdim=True) + norm_eps)
    normed = (centred * rstd).flatten(1, 2)
    nothing = torch.zeros((), dtype=torch.float64, device=x.device)
    slope, offset, gain, plus = (
        nothing if part is None else part.double()[..., None, None] for part in (weight, bias, scale, shift)
    )
    gain, affine = 1 + gain, (slope * normed).abs() + offset.abs()
    y = gain * (slope * normed + offset) + plus
    return _Norm(rstd, normed, slope, gain, y, affine, gain.abs() * affine + plus.abs())


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
    size = _of_few(terms)
    return size, size if net_dtype == x.dtype else None


def _of_few(terms: Tensor, results: int | None = None) -> np.ndarray | None:
    """The terms of results that are few; `results`: how many share no rounding, all by default."""
    return terms.numpy() if (terms.numel() if results is None else results) < FEW else None


def _size(tensor: Tensor) -> Tensor:
    return tensor.double().abs()


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
        conv3x3,
        conv3x3_backward,
        relu_conv3x3,
        relu_conv3x3_backward,
        affine_relu,
        affine_relu_backward,
    )
}
