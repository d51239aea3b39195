"""What the matrix ops cost, for PyTorch's FLOP counter: 2 a multiply-add. It counts nothing for norms and activations."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from purify_engine.ops import library as _library  # noqa: F401  (defines torch.ops.purify)

Shape = list[int]


@register_flop_formula(torch.ops.purify.attention)
def attention(q: Shape, k: Shape, v: Shape, *, out_shape: Any = None, **_: Any) -> int:
    """Two matrix products: scores, and their average of the values."""
    return 2 * 2 * math.prod(q) * k[2]


@register_flop_formula(torch.ops.purify.attention_backward)
def attention_backward(grad_out: Shape, q: Shape, k: Shape, v: Shape, *, out_shape: Any = None, **_: Any) -> int:
    """Five: the scores again, the gradient of the weights, and one for each of q, k, v."""
    return 5 * 2 * math.prod(q) * k[2]


@register_flop_formula([torch.ops.purify.conv3x3, torch.ops.purify.relu_conv3x3])
def conv3x3(x: Shape, weight: Shape, *others: Any, out_shape: Any = None, **_: Any) -> int:
    """Nine products an input channel, for each element of the result."""
    return 2 * 9 * weight[1] * math.prod(out_shape)


@register_flop_formula(torch.ops.purify.relu_conv3x3_backward)
def relu_conv3x3_backward(grad_out: Shape, x: Shape, weight: Shape, *others: Any, out_shape: Any = None, **_: Any) -> int:
    """As many as the convolution."""
    return 2 * 9 * weight[1] * math.prod(grad_out)


@register_flop_formula(torch.ops.purify.conv3x3_backward)
def conv3x3_backward(grad_out: Shape, weight: Shape, *others: Any, out_shape: Any = None, **_: Any) -> int:
    """As many as the convolution, before its upsampled pixels are added up."""
    return 2 * 9 * weight[1] * math.prod(grad_out)
