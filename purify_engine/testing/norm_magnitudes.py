"""How large the numbers are that norms and the sums before them are put together from: see `magnitudes.py`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from purify_engine.reference import sums
from purify_engine.types import Images

Magnitudes = tuple[np.ndarray | None, ...]

# Of 200,000 guided steps of one element 0.8 % err by more than twice PyTorch's error and a rounding of the result. Of 67,000 of
# three elements 4 do, of 50,000 of four none; at sixteen none needs more than 0.6 of what it is allowed.
FEW = 16


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
    return (of_few(norm_sizes(x, weight, bias, scale, shift, num_groups, norm_eps).activated(silu)),)


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
    norm = norm_sizes(x, weight, bias, scale, shift, num_groups, norm_eps)
    normed, grad = norm.normed.abs(), size_of(grad_out) * norm.slope_of_silu() if silu else size_of(grad_out)
    through = norm.gain.abs() * grad
    to_normed, by_group = (part.unflatten(1, (num_groups, -1)) for part in (norm.weight.abs() * through, normed))
    level, tilt = (part.mean((2, 3, 4), keepdim=True) for part in (to_normed, to_normed * by_group))
    grad_x = (norm.rstd * (to_normed + level + by_group * tilt)).flatten(1, 2)
    sums = (through * normed, (0, 2, 3)), (through, (0, 2, 3)), (grad * norm.affine, (2, 3)), (grad, (2, 3))
    per_channel = [of_few(torch.linalg.vector_norm(part, dim=over)) for part, over in sums]
    given = [True, True, scale is not None, shift is not None]
    freedom = grad_x.numel() - 2 * norm.rstd.numel()
    return of_few(grad_x, freedom), *(size if there else None for size, there in zip(per_channel, given, strict=True))


def residual_sum(x: Images, bias: Tensor | None = None, residual: Images | None = None, gain: float = 1.0) -> Magnitudes:
    given: list[Any] = [None if part is None else size_of(part) for part in (x, bias, None, residual)]
    return (of_few(_total(given, gain)),)


def sum_norm_silu(x: Images, residual: Any, bias: Any, temb: Any, skip: Any, *norm: Any) -> Magnitudes:
    """Of the sum, and of y: its own roundings, and those of the sum, which the norm takes for spread. The skip has none."""
    weight, norm_bias, scale, shift, num_groups, norm_eps, gain, silu, write_sum = norm
    sizes: list[Any] = [None if part is None else size_of(part) for part in (x, bias, temb, residual)]
    exact: list[Any] = [None if part is None else part.double() for part in (x, bias, temb, residual)]
    terms, total = _total(sizes, gain), _total(exact, gain)
    if skip is not None:
        total = torch.cat([total, skip.double()], dim=1)
        terms = torch.cat([terms, torch.zeros_like(skip, dtype=torch.float64)], dim=1)
    taken = norm_sizes(total, weight, norm_bias, scale, shift, num_groups, norm_eps)
    to_normed, by_group = (part.abs().unflatten(1, (num_groups, -1)) for part in (terms, taken.normed))
    level, tilt = (part.mean((2, 3, 4), keepdim=True) for part in (to_normed, to_normed * by_group))
    through = (taken.rstd * (to_normed + level + by_group * tilt)).flatten(1, 2) * (taken.weight * taken.gain).abs()
    size = taken.activated(silu) + (1.1 if silu else 1) * through
    return (of_few(terms) if write_sum else None), of_few(size)


def _total(summands: list[Any], gain: float) -> Tensor:
    x, bias, temb, residual = summands
    return sums.summed(x, bias, temb, residual, gain)


class NormSizes(NamedTuple):
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


def norm_sizes(x: Images, weight: Tensor, bias: Tensor, scale: Any, shift: Any, num_groups: int, norm_eps: float) -> NormSizes:
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
    return NormSizes(rstd, normed, slope, gain, y, affine, gain.abs() * affine + plus.abs())


def of_few(terms: Tensor, results: int | None = None) -> np.ndarray | None:
    """The terms of results that are few; `results`: how many share no rounding, all by default."""
    return terms.numpy() if (terms.numel() if results is None else results) < FEW else None


def sum_norm_silu_backward(grad_y: Images, total: Images, *others: Any) -> Magnitudes:
    """The gradient through the norm, and what is added to it."""
    weight, norm_bias, scale, shift, grad_sum, num_groups, norm_eps, silu = others
    through, *_ = group_norm_silu_backward(grad_y, total, weight, norm_bias, scale, shift, num_groups, norm_eps, silu)
    return (through if through is None or grad_sum is None else through + size_of(grad_sum).numpy(),)


def size_of(tensor: Tensor) -> Tensor:
    return tensor.double().abs()
