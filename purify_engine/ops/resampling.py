"""3x3 convolutions that double or halve an image, as one 4x4 convolution of stride 2: no pass that repeats or pads pixels.

Doubled by repeating every pixel, an image is read by two taps of three at the same pixel. So the pixels of a row come out of
two taps each: at the even ones w0 meets the pixel before and w1 + w2 the pixel itself, at the odd ones w0 + w1 the pixel itself
and w2 the next. That is the transposed convolution by (w2, w1 + w2, w0 + w1, w0), along either axis: 4/9 of the products.
Halved behind zeros at the right and below, an image is read from its first pixel on: a first tap of zero, in front of which
padding all around adds what is not looked at, makes (0, w0, w1, w2) of it.

In 16 bits on GPUs, and by frozen filters alone, since the sums are computed once, in float32, and kept.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from purify_engine.ops import _layout, switches
from purify_engine.ops._packed import PackedWeights, is_constant
from purify_engine.ops.conv2d import conv2d
from purify_engine.types import Images

_filters = PackedWeights()


def downsampled(x: Images, weight: Tensor, bias: Tensor | None = None) -> Images:
    """A 3x3 convolution of every second pixel, zeros right and below alone: [B, C, H, W], [K, C, 3, 3] -> [B, K, H // 2, W // 2].

    (TensorFlow's padding "same", where H and W are even.) `bias` [K]. Differentiable in every tensor, any number of times.
    """
    if not (switches.runs("padded_downsample", x) and is_constant(weight)):
        return conv2d(F.pad(x, (0, 1, 0, 1)), weight, bias, (2, 2))
    return F.conv2d(x, _filters_of(x, weight, "padded"), bias, stride=2, padding=1)


def is_transposed(x: Images, weight: Tensor) -> bool:
    """Whether `upsampled` computes conv3x3(upsample=True) of `x`."""
    return switches.runs("transposed_upsample", x) and is_constant(weight)


def upsampled(x: Images, weight: Tensor, bias: Tensor | None = None) -> Images:
    """The 3x3 convolution, padding 1, of an image whose pixels are repeated 2x2: [B, C, H, W], [K, C, 3, 3] -> [B, K, 2H, 2W].

    By frozen filters; `bias` [K]. Differentiable in x and bias, any number of times.
    """
    return F.conv_transpose2d(x, _filters_of(x, weight, "transposed"), bias, stride=2, padding=1)


def _filters_of(x: Images, weight: Tensor, kind: str) -> Tensor:
    """The 4x4 filters that are kept beside a weight, in the dtype of `x` and the memory format that the result will have."""
    layout = _layout.of_convolution(x, weight)
    return _filters.of(weight, (kind, x.dtype, layout), lambda: _made(weight, kind).to(x.dtype, memory_format=layout))


@torch.inference_mode(False)  # autograd may save them
@torch.no_grad()
def _made(weight: Tensor, kind: str) -> Tensor:
    wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    if kind == "padded":
        return F.pad(wide, (1, 0, 1, 0))
    return _doubled(_doubled(wide, 2), 3).transpose(0, 1)


def _doubled(weight: Tensor, axis: int) -> Tensor:
    first, second, third = weight.unbind(axis)
    return torch.stack((third, second + third, first + second, first), axis)
