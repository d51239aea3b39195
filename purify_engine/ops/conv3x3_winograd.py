"""3x3 convolutions on CPUs: Winograd's minimal filtering by `csrc/conv3x3_winograd.cpp` where it wins, else PyTorch's own.

Filters are packed on first use, and again when they change, as they are or transformed (`Tiling.keep`). What trains, and what is
not float32, takes the plain path. Results are not those of direct convolution to the bit: F(4x4) is about twice as wrong.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from purify_engine.ops import cpp
from purify_engine.ops.stamp import Packings, is_frozen
from purify_engine.ops.winograd_tiles import Tiling, tiling
from purify_engine.reference import layers
from purify_engine.types import Images


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
) -> Images:
    """`reference.layers.conv3x3` in C++."""
    chosen = _tiling(x, weight, upsample, flip=False)
    if norm_weight is not None and norm_bias is not None:
        x = cpp.group_norm_silu(x, norm_weight, norm_bias, scale, shift, num_groups, norm_eps)
    if chosen is None:
        return layers.convolved(x, weight, bias, temb, residual, gain, upsample)
    y = convolved(x, weight, chosen, bias=bias, temb=temb, residual=residual, gain=gain, upsample=upsample)
    return y.contiguous(memory_format=_layout(x, weight, residual))


def conv3x3_backward(grad_out: Images, weight: Tensor, upsample: bool = False) -> Images:
    """`reference.layers.conv3x3_backward` in C++: a convolution as well, by filters turned round."""
    chosen = _tiling(grad_out, weight, upsample=False, flip=True)
    if chosen is None:
        return layers.conv3x3_backward(grad_out, weight, upsample)
    layout = _layout(grad_out, weight, None)
    grad = convolved(grad_out, weight, chosen, flip=True)
    return layers.downsampled(grad, upsample).contiguous(memory_format=layout)


def relu_conv3x3(
    x: Images,
    weight: Tensor,
    bias: Tensor | None = None,
    slope: Tensor | None = None,
    offset: Tensor | None = None,
    residual: Images | None = None,
) -> Images:
    """`reference.layers.relu_conv3x3` in C++."""
    chosen = _tiling(x, weight, upsample=False, flip=False)
    if chosen is None:
        return layers.relu_conv3x3(x, weight, bias, slope, offset, residual)
    relu = (None, _plain(slope), _plain(offset), True)
    y = convolved(x, weight, chosen, relu=relu, bias=bias, residual=residual)
    return y.contiguous(memory_format=_layout(x, weight, residual))


def relu_conv3x3_backward(
    grad_out: Images,
    x: Images,
    weight: Tensor,
    slope: Tensor | None = None,
    offset: Tensor | None = None,
) -> Images:
    """`reference.layers.relu_conv3x3_backward` in C++."""
    chosen = _tiling(grad_out, weight, upsample=False, flip=True)
    if chosen is None:
        return layers.relu_conv3x3_backward(grad_out, x, weight, slope, offset)
    relu = (_channels_last(x.float()), _plain(slope), _plain(offset), False)
    return layers.in_layout_of(x, convolved(grad_out, weight, chosen, flip=True, relu=relu))


_packings = Packings()


def packed(weight: Tensor, kept: int, flip: bool) -> Tensor:
    """`weight` [K, C, 3, 3] in the order in which the kernel reads it; with `flip`, for the gradient to the input.

    Transformed for F(kept x kept, 3x3), or as it is where `kept` is 0.
    """
    room: Any = cpp.room
    return _packings.of(weight, (kept, flip, room.instruction_set()), lambda: _pack(weight, kept, flip))


def _pack(weight: Tensor, kept: int, flip: bool) -> Tensor:
    room: Any = cpp.room
    plain = weight.detach().contiguous()
    into, out_of, strides = *_channels(weight, flip), (9 * weight.shape[1], 9)
    stride, out_stride = strides if flip else strides[::-1]
    filters = torch.empty(room.conv3x3_winograd_packed_size(kept, into, out_of), dtype=torch.float32, device="cpu")
    arguments = (plain, into, out_of, stride, out_stride, flip, torch.get_num_threads())
    cpp.launch("conv3x3_winograd_pack", filters, kept, arguments)
    return filters


# Of a ReLU: its x where its gradient is asked for, slope and offset of its lines, whether it stands before the convolution.
Relu = tuple[Images | None, Tensor | None, Tensor | None, bool]


def convolved(
    x: Images,
    weight: Tensor,
    chosen: Tiling,
    *,
    flip: bool = False,
    relu: Relu = (None, None, None, False),
    bias: Tensor | None = None,
    temb: Tensor | None = None,
    residual: Images | None = None,
    gain: float = 1.0,
    upsample: bool = False,
) -> Images:
    """gain (residual + conv(up(x)) + bias + temb), channels_last; x behind a ReLU, or the convolution behind its gradient."""
    x, filters = _channels_last(x), packed(weight, chosen.results if chosen.keep else 0, flip)
    into, out_of = _channels(weight, flip)
    batch, _, height, width = x.shape
    zoom = 2 if upsample else 1
    y = cpp.empty((batch, out_of, zoom * height, zoom * width), torch.float32, torch.channels_last)
    given = x, filters, _plain(bias), _plain(temb), None if residual is None else _channels_last(residual.float())
    temb_stride = 0 if temb is None or len(temb) == 1 else out_of
    sizes = (batch, zoom * height, zoom * width, into, out_of, temb_stride)
    how = (gain, upsample, chosen.results, chosen.keep, chosen.block, torch.get_num_threads())
    cpp.launch("conv3x3_winograd", y, given, relu, sizes, *how)
    return y


def _tiling(x: Images, weight: Tensor, upsample: bool, flip: bool) -> Tiling | None:
    """How to tile, or None where the plain path is to be taken."""
    if x.dtype != torch.float32 or weight.dtype != torch.float32 or not is_frozen([weight]) or x.numel() == 0:
        return None
    batch, _, height, width = x.shape
    zoom = 2 if upsample else 1
    room: Any = cpp.room
    return tiling(batch, zoom * height, zoom * width, *_channels(weight, flip), room.instruction_set())


def _channels(weight: Tensor, flip: bool) -> tuple[int, int]:
    """Channels in and out."""
    out_of, into = weight.shape[:2]
    return (out_of, into) if flip else (into, out_of)


def _channels_last(x: Images) -> Images:
    return x.contiguous(memory_format=torch.channels_last)


def _plain(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.to(torch.float32).contiguous()


def _layout(x: Images, weight: Tensor, residual: Images | None) -> torch.memory_format:
    """The memory format of the reference's result: a residual's own; else channels_last if x or the weight is that."""
    if residual is not None and not residual.is_contiguous() and not layers.is_channels_last(residual):
        residual = None
    decisive = (x, weight) if residual is None else (residual,)
    return torch.channels_last if any(map(layers.is_channels_last, decisive)) else torch.contiguous_format
