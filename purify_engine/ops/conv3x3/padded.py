"""3x3 convolutions from or to a few channels, in 16 bits on GPUs, behind channels of zeros (docs/math.md E19).

Matrix units read 8 channels at a time. For images of 3 channels cuDNN pads and reorders by passes of its own, or runs kernels
that use no matrix unit. Here the filters are padded once and kept, and an image gets its zeros in front of the convolution. Of a
result the channels that are meant are read where they lie by the pass that adds the bias.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from purify_engine.ops import _layout, switches
from purify_engine.ops._packed import PackedWeights, is_constant
from purify_engine.types import Images

MATRIX_UNIT = 8  # channels come in multiples of these where matrix units read them as they lie

_filters = PackedWeights()


def runs(x: Images, weight: Tensor) -> bool:
    """Whether a convolution of `x` by `weight` [K, C, 3, 3], padding 1, is to run so: K or C is less than 8, and it is frozen."""
    if not switches.runs("padded_channels", x):
        return False
    out_channels, channels, *size = weight.shape
    fits = size == [3, 3] and 0 < min(out_channels, channels) < MATRIX_UNIT and weight.dtype == x.dtype
    return fits and is_constant(weight)


def convolved(x: Images, weight: Tensor, bias: Tensor | None = None) -> Images:
    """The convolution, differentiable in x and bias, any number of times."""
    out_channels, missing = len(weight), -len(weight) % MATRIX_UNIT
    x, filters = widened(x, weight, outputs=missing)
    if not missing:
        return F.conv2d(x, filters, bias, padding=1)
    y = F.conv2d(x, filters, padding=1)[:, :out_channels]
    return y.clone() if bias is None else y + bias[:, None, None]  # both without gaps, in the same order


def widened(x: Images, weight: Tensor, outputs: int = 0) -> tuple[Images, Tensor]:
    """(x, weight), both with zeros for input channels up to a multiple of 8; the filters with this many more outputs."""
    missing = -x.shape[1] % MATRIX_UNIT
    x = F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x
    layout = _layout.of_convolution(x, weight)  # of one channel, only now
    filters = _filters.of(weight, (outputs, layout), lambda: _padded(weight, outputs, missing, layout))
    return x, filters


@torch.inference_mode(False)  # autograd may save them
@torch.no_grad()
def _padded(weight: Tensor, outputs: int, inputs: int, layout: torch.memory_format) -> Tensor:
    return F.pad(weight.detach(), (0, 0, 0, 0, 0, inputs, 0, outputs)).contiguous(memory_format=layout)
