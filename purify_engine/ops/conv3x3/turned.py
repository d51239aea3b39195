"""Frozen 3x3 convolutions in 16 bits on GPUs, whose gradient to x is a forward convolution by turned filters (docs/math.md E19).

The gradient of a convolution by [K, C, 3, 3] is one by [C, K, 3, 3], both taps reversed. cuDNN runs forward convolutions faster
than its gradients of the same size. The gradient of that gradient is the convolution that it began with.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from purify_engine.ops import switches
from purify_engine.ops._arguments import Around
from purify_engine.ops._gradient import Rule
from purify_engine.ops._packed import PackedWeights, is_constant
from purify_engine.ops.conv3x3 import padded
from purify_engine.ops.conv3x3.padded import MATRIX_UNIT
from purify_engine.reference import layers as reference
from purify_engine.types import Images

_packed_weights = PackedWeights()


def runs(x: Images, weight: Tensor) -> bool:
    """Whether the gradient of a convolution of `x` by `weight` [K, C, 3, 3], padding 1, is to be taken so."""
    if not switches.runs("turned_filters", x):
        return False
    out_of, into, height, width = weight.shape
    whole = (height, width) == (3, 3) and out_of % MATRIX_UNIT == 0 and into % MATRIX_UNIT == 0
    return (whole or padded.runs(x, weight)) and weight.dtype == x.dtype and is_constant(weight)


def filters(weight: Tensor) -> Tensor:
    """`weight` [K, C, 3, 3] turned round: [C, K, 3, 3], channels_last; kept beside it."""
    return _packed_weights.of(weight, "turned", lambda: _turned(weight))


def _turned(weight: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return weight.detach().flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)


def surrounded(x: Images, weight: Tensor, around: Around) -> Images:
    """`conv3x3` after its norm, with this gradient."""
    bias, temb, residual, gain, upsample = around
    h = F.interpolate(x, scale_factor=2.0, mode="nearest") if upsample else x
    y = convolved(h, weight, filters(weight), bias, pads=padded.runs(x, weight))
    return reference.surrounded(y, temb, residual, gain, x.dtype)


def convolved(x: Images, weight: Tensor, turned: Tensor, bias: Tensor | None = None, *, pads: bool = False) -> Images:
    """The convolution by `weight`, padding 1; its gradient is the one by `turned`, whose gradient is by `weight` again.

    `pads`: by padded.py. It is said, since a backward pass has a thread of its own, which does not know how switches are set.
    """
    return _Convolution.apply(x, weight, turned, None if bias is None else bias.to(x.dtype), pads)


class _Convolution(Rule):
    """Linear in x; the filters are constants."""

    @staticmethod
    def forward(x: Images, weight: Tensor, turned: Tensor, bias: Tensor | None, pads: bool) -> Images:
        return padded.convolved(x, weight, bias) if pads else F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Images) -> None:
        _, weight, turned, _, ctx.pads = inputs
        ctx.save_for_backward(weight, turned)

    @staticmethod
    def backward(ctx: Any, grad: Images) -> tuple[Tensor | None, ...]:
        weight, turned = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        to_x = convolved(grad, turned, weight, pads=ctx.pads) if wanted[0] else None
        return to_x, None, None, grad.sum((0, 2, 3)) if wanted[3] else None, None
