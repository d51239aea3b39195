"""3x3 convolutions on CPUs by Winograd's minimal filtering (`csrc/conv3x3_winograd.cpp`), where it wins over PyTorch's own.

Filters are packed on first use, and again when they change, as they are or transformed (`Tiling.keep`). Results are not those of
direct convolution to the bit: F(4x4) is about twice as wrong.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from purify_engine.ops import _extension
from purify_engine.ops._arguments import Affine, Around
from purify_engine.ops._packed import PackedWeights, is_frozen
from purify_engine.ops.conv3x3.tiling import Tiling, tiling
from purify_engine.types import Images


class Relu(NamedTuple):
    """relu(slope x + offset) before a convolution; or its gradient behind one, for which it takes the x."""

    gradient_at: Images | None = None
    affine: Affine = Affine()
    before: bool = False


ALONE, NO_RELU = Around(), Relu()

_packed_weights = PackedWeights()


def declines(x: Images, weight: Tensor, around: Around, *, flip: bool = False) -> str | None:
    """Why a convolution is not for Winograd's filtering; with `flip`, that of a gradient by filters turned round."""
    if x.dtype != torch.float32 or weight.dtype != torch.float32:
        return "it computes in float32"
    if x.numel() == 0:
        return "there are no images"
    if torch.compiler.is_compiling():
        return "compilers see PyTorch's operations only"
    if not is_frozen([weight]):
        return "its filters may change, and packed ones would not be used again"
    tiled = tiling_of(x, weight, around, flip=flip) is not None
    return None if tiled else "PyTorch's convolution is faster here, or more accurate"


def tiling_of(x: Images, weight: Tensor, around: Around, *, flip: bool = False) -> Tiling | None:
    """How to tile; None where direct convolution is to be taken."""
    batch, _, height, width = x.shape
    into, out_of = _channels(weight, flip)
    zoom = around.zoom
    return tiling(batch, zoom * height, zoom * width, into, out_of, _extension.extension.instruction_set())


def convolved(
    x: Images, weight: Tensor, around: Around = ALONE, *, flip: bool = False, relu: Relu = NO_RELU, tile: Tiling | None = None
) -> Images:
    """`around` a convolution, channels_last; x behind a ReLU, or the convolution behind its gradient.

    `tile` replaces the table's. With `flip` by filters turned round, which is the gradient of a convolution to its x.
    """
    tile = tile or tiling_of(x, weight, around, flip=flip)
    assert tile is not None, "declined"
    filters = packed(weight, tile.results if tile.keep else 0, flip)
    into, out_of = _channels(weight, flip)
    batch, _, height, width = x.shape
    bias, temb, residual, gain, upsample = around
    zoom = around.zoom
    y = _extension.empty((batch, out_of, zoom * height, zoom * width), torch.float32, torch.channels_last)
    given = _channels_last(x), filters, _dense(bias), _dense(temb), _channels_last(residual)
    temb_stride = 0 if temb is None or len(temb) == 1 else out_of
    sizes = (batch, zoom * height, zoom * width, into, out_of, temb_stride)
    gate = (_channels_last(relu.gradient_at), *map(_dense, relu.affine), relu.before)
    how = (gain, upsample, tile.results, tile.keep, tile.block, torch.get_num_threads())
    _extension.launch("conv3x3_winograd", y, given, gate, sizes, *how)
    return y


def packed(weight: Tensor, kept: int, flip: bool) -> Tensor:
    """`weight` [K, C, 3, 3] in the order in which the kernel reads it; with `flip`, for the gradient to the input.

    Transformed for F(kept x kept, 3x3), or as it is where `kept` is 0.
    """
    kind = kept, flip, _extension.extension.instruction_set()
    return _packed_weights.of(weight, kind, lambda: _pack(weight, kept, flip))


def _pack(weight: Tensor, kept: int, flip: bool) -> Tensor:
    plain = weight.detach().contiguous()
    into, out_of, strides = *_channels(weight, flip), (9 * weight.shape[1], 9)
    stride, out_stride = strides if flip else strides[::-1]
    size = _extension.extension.conv3x3_winograd_packed_size(kept, into, out_of)
    filters = torch.empty(size, dtype=torch.float32, device="cpu")
    arguments = (plain, into, out_of, stride, out_stride, flip, torch.get_num_threads())
    _extension.launch("conv3x3_winograd_pack", filters, kept, arguments)
    return filters


def _channels(weight: Tensor, flip: bool) -> tuple[int, int]:
    """Channels in and out."""
    out_of, into, _, _ = weight.shape
    return (out_of, into) if flip else (into, out_of)


def _channels_last(images: Images | None) -> Images | None:
    return None if images is None else _extension.in_dtype(images, torch.float32).contiguous(memory_format=torch.channels_last)


def _dense(values: Tensor | None) -> Tensor | None:
    return None if values is None else _extension.dense(values, torch.float32)
