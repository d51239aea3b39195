"""purify::sum_norm_silu, and group_norm_silu in 16 bits, on GPUs. Specification: purify_engine/reference/sums.py.

For 16-bit channels_last images. What is still to be added to x (a residual, a convolution's bias, a time embedding) is added
while the norm reads it, and a skip is read where it is: no pass of its own over the image, no torch.cat. Where a slab of groups
fits in a program's registers, one launch reads every image once and writes y, and the sum where it is wanted. Else the groups are
cut into chunks: a launch before adds, writes the sum and leaves the moments of every chunk, which are pooled (Chan et al. 1983).

The arithmetic is float32: mean first, then the squares around it, both from registers. Nothing is added atomically and no tile
depends on the batch, so neither do an image's bits.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _outputs, _slab, _tiles, group_norm_silu
from ._launch import Launch, capability
from ._variants import Variant
from .group_norm_silu import Norm


@triton.jit
def _whole_kernel(
    y_ptr, sum_ptr, x_ptr, residual_ptr, skip_ptr, bias_ptr, temb_ptr, weight_ptr, offset_ptr, scale_ptr, shift_ptr,
    temb_stride, scale_stride, shift_stride, gain,
    PIXELS: tl.constexpr, OWN: tl.constexpr, CHANNELS: tl.constexpr, STORED: tl.constexpr, WIDTH: tl.constexpr,
    UNIT: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, ROWS: tl.constexpr, NORM_EPS: tl.constexpr,
    SILU: tl.constexpr,
):  # fmt: skip
    """A slab of whole groups, in registers."""
    slabs: tl.constexpr = CHANNELS // (FIRST + SECOND)
    image, start = (tl.program_id(0) // slabs).to(tl.int64), tl.program_id(0) % slabs * (FIRST + SECOND)
    pixel = tl.arange(0, ROWS)
    inside = None if ROWS == PIXELS else pixel < PIXELS
    one = _slab.read(
        x_ptr, residual_ptr, skip_ptr, bias_ptr, temb_ptr, sum_ptr, temb_stride, gain, image, pixel, inside, start,
        PIXELS, OWN, CHANNELS, STORED, FIRST,
    )  # fmt: skip
    if SECOND > 0:
        two = _slab.read(
            x_ptr, residual_ptr, skip_ptr, bias_ptr, temb_ptr, sum_ptr, temb_stride, gain, image, pixel, inside, start + FIRST,
            PIXELS, OWN, CHANNELS, STORED, SECOND,
        )  # fmt: skip
        one, two, rstd, rstd_two = _slab.centred_two(one, two, inside, WIDTH, UNIT, PIXELS, NORM_EPS)
        slope, offset = _slab.affine(
            weight_ptr, offset_ptr, scale_ptr, shift_ptr, scale_stride, shift_stride, image, start + FIRST, SECOND
        )
        slope *= rstd_two
        _slab.write(y_ptr, two, slope, offset, image, pixel, inside, start + FIRST, PIXELS, CHANNELS, SILU)
    else:
        one, rstd = _slab.centred(one, inside, WIDTH, PIXELS, NORM_EPS)
    slope, offset = _slab.affine(weight_ptr, offset_ptr, scale_ptr, shift_ptr, scale_stride, shift_stride, image, start, FIRST)
    _slab.write(y_ptr, one, slope * rstd, offset, image, pixel, inside, start, PIXELS, CHANNELS, SILU)


@triton.jit
def _twice_kernel(
    y_ptr, sum_ptr, x_ptr, residual_ptr, skip_ptr, bias_ptr, temb_ptr, weight_ptr, offset_ptr, scale_ptr, shift_ptr,
    temb_stride, scale_stride, shift_stride, gain,
    PIXELS: tl.constexpr, OWN: tl.constexpr, CHANNELS: tl.constexpr, STORED: tl.constexpr, WIDTH: tl.constexpr,
    FIRST: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr, PASS: tl.constexpr, NORM_EPS: tl.constexpr,
    SILU: tl.constexpr,
):  # fmt: skip
    """A slab of whole groups that registers do not hold, read tile by tile, and once more while the cache holds it."""
    slabs: tl.constexpr = CHANNELS // FIRST
    image, start = (tl.program_id(0) // slabs).to(tl.int64), tl.program_id(0) % slabs * FIRST
    pivot, total, around = _slab.moments(
        x_ptr, residual_ptr, skip_ptr, bias_ptr, temb_ptr, sum_ptr, temb_stride, gain, image, tl.full((), 0, tl.int32), start,
        PIXELS, OWN, CHANNELS, STORED, WIDTH, FIRST, ROWS, BLOCKS, PASS,
    )  # fmt: skip
    mean = _slab.on_channels(pivot + total / (WIDTH * PIXELS), WIDTH)
    slope, offset = _slab.affine(weight_ptr, offset_ptr, scale_ptr, shift_ptr, scale_stride, shift_stride, image, start, FIRST)
    slope *= _slab.on_channels(_slab.rstd(around / (WIDTH * PIXELS), NORM_EPS), WIDTH)
    if sum_ptr is not None:
        tl.debug_barrier()  # what other threads have written is read
    for block in range(BLOCKS):
        pixel = block * ROWS + tl.arange(0, ROWS)
        inside = None if PIXELS % (ROWS * BLOCKS) == 0 else pixel < PIXELS
        if sum_ptr is not None:
            values = _slab.loaded(sum_ptr, image, start, pixel, inside, PIXELS, STORED, FIRST)
        else:
            values = _slab.read(
                x_ptr, residual_ptr, skip_ptr, bias_ptr, temb_ptr, None, temb_stride, gain, image, pixel, inside, start,
                PIXELS, OWN, CHANNELS, OWN, FIRST,
            )  # fmt: skip
        _slab.write(y_ptr, values - mean, slope, offset, image, pixel, inside, start, PIXELS, CHANNELS, SILU)


@triton.jit
def _moments_kernel(
    moments_ptr, sum_ptr, x_ptr, residual_ptr, skip_ptr, bias_ptr, temb_ptr, temb_stride, gain,
    PIXELS: tl.constexpr, OWN: tl.constexpr, CHANNELS: tl.constexpr, STORED: tl.constexpr, UNIT: tl.constexpr,
    FIRST: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr, PASS: tl.constexpr,
):  # fmt: skip
    """Write the sum; (mean, sum of the squares around it) of one chunk of every unit: [B, units, chunks, 2]."""
    CHUNK: tl.constexpr = ROWS * BLOCKS
    image, chunk, start = _place(PIXELS, CHANNELS, FIRST, CHUNK)
    pivot, total, around = _slab.moments(
        x_ptr, residual_ptr, skip_ptr, bias_ptr, temb_ptr, sum_ptr, temb_stride, gain, image, chunk, start,
        PIXELS, OWN, CHANNELS, STORED, UNIT, FIRST, ROWS, BLOCKS, PASS,
    )  # fmt: skip
    count = tl.minimum(PIXELS - chunk * CHUNK, CHUNK) * UNIT
    unit = image * (CHANNELS // UNIT) + start // UNIT + tl.arange(0, FIRST // UNIT)
    at = moments_ptr + 2 * (unit * ((PIXELS + CHUNK - 1) // CHUNK) + chunk)
    tl.store(at, pivot + total / count)
    tl.store(at + 1, around)


@triton.jit
def _apply_kernel(
    y_ptr, x_ptr, skip_ptr, moments_ptr, weight_ptr, offset_ptr, scale_ptr, shift_ptr, scale_stride, shift_stride,
    PIXELS: tl.constexpr, OWN: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, UNIT: tl.constexpr,
    FIRST: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr, CHUNKS: tl.constexpr, NORM_EPS: tl.constexpr,
    SILU: tl.constexpr,
):  # fmt: skip
    """Norm and SiLU of a chunk: of the sum, or of x where nothing was added; and of the skip where it is not behind the sum."""
    CHUNK: tl.constexpr = ROWS * BLOCKS
    image, chunk, start = _place(PIXELS, CHANNELS, FIRST, CHUNK)
    mean, rstd = _slab.pooled(moments_ptr, image, start, PIXELS, CHANNELS, WIDTH, UNIT, FIRST, CHUNK, CHUNKS, NORM_EPS)
    slope, offset = _slab.affine(weight_ptr, offset_ptr, scale_ptr, shift_ptr, scale_stride, shift_stride, image, start, FIRST)
    slope *= rstd
    for block in range(BLOCKS):
        pixel = chunk * CHUNK + block * ROWS + tl.arange(0, ROWS)
        inside = None if PIXELS % CHUNK == 0 else pixel < PIXELS
        values = _slab.read(
            x_ptr, None, skip_ptr, None, None, None, 0, None, image, pixel, inside, start, PIXELS, OWN, CHANNELS, OWN, FIRST
        )
        _slab.write(y_ptr, values - mean, slope, offset, image, pixel, inside, start, PIXELS, CHANNELS, SILU)


@triton.jit
def _place(PIXELS: tl.constexpr, CHANNELS: tl.constexpr, FIRST: tl.constexpr, CHUNK: tl.constexpr):
    """(image, chunk, first channel) of a program; neighbours in memory are neighbours in time."""
    slabs: tl.constexpr = CHANNELS // FIRST
    chunks: tl.constexpr = (PIXELS + CHUNK - 1) // CHUNK
    rest = tl.program_id(0) // slabs
    return (rest // chunks).to(tl.int64), rest % chunks, tl.program_id(0) % slabs * FIRST


class Parts(NamedTuple):
    """What the sum is of: gain (x + residual + bias + temb), [B, C, H, W]; and a skip [B, C', H, W] whose channels follow."""

    x: Tensor
    residual: Tensor | None = None
    bias: Tensor | None = None  # [C]
    temb: Tensor | None = None  # [B or 1, C]
    gain: float = 1.0
    skip: Tensor | None = None

    @property
    def adds(self) -> bool:
        """Whether the sum is another image than x."""
        return self.gain != 1 or not (self.residual is self.bias is self.temb is None)


def sum_norm_silu(
    x: Tensor,
    residual: Tensor | None,
    bias: Tensor | None,
    temb: Tensor | None,
    gain: float,
    skip: Tensor | None,
    norm: Norm,
    silu: bool,
    write_sum: bool,
) -> tuple[Tensor | None, Tensor]:
    """(gain (x + residual + bias + temb), the skip's channels behind it; its norm and SiLU). No sum unless it is to be written.

    Added in float32, or in float64 if x is, and rounded to x's dtype before it is normed. What these kernels do not take (32 and
    64 bits, NCHW, groups that no slab holds) is added by PyTorch and normed by group_norm_silu.
    """
    parts = Parts(x, residual, bias, temb, gain, skip)
    tile = _tile(parts, norm)
    if tile is None:
        added, y = _one_by_one(parts, norm, silu)
        return (added if write_sum else None), y
    last = not x.is_contiguous()  # one pixel lies the same either way, and keeps its strides
    shape = x.shape[0], norm[0].shape[0], *x.shape[2:]
    y, total = _outputs.empty(shape, x.dtype, x.device, last), None
    if write_sum or (tile.cut and parts.adds):
        total = _outputs.empty(shape if write_sum else x.shape, x.dtype, x.device, last)
    for launch in _launches(y, total, parts, norm, silu, tile):
        launch.run()
    return (total if write_sum else None), y


def _tile(parts: Parts, norm: Norm) -> _tiles.SlabTile | None:
    """How these images are cut; None where that cannot be done, or they are not such images."""
    x = parts.x
    for image in (x, parts.residual, parts.skip):
        if image is not None and (image.dtype != x.dtype or not image.is_contiguous(memory_format=torch.channels_last)):
            return None
    batch, own, height, width = x.shape
    elements = own * height * width
    if x.dtype.itemsize != 2 or not batch * elements or capability(x) < (8, 0) or elements >= 2**30:
        return None
    return _tiles.slab(norm[0].shape[0], own, height * width, norm[4])


def _one_by_one(parts: Parts, norm: Norm, silu: bool) -> tuple[Tensor, Tensor]:
    """By PyTorch's sums and the other kernel."""
    x, residual, bias, temb, gain, skip = parts
    total = x.float() if x.dtype.itemsize == 2 else x
    total = total if residual is None else total + residual
    total = total if bias is None else total + bias[:, None, None]
    total = total if temb is None else total + temb[:, :, None, None]
    total = (total * gain if gain != 1 else total).to(x.dtype)
    total = total if skip is None else torch.cat([total, skip.to(x.dtype)], dim=1)
    y = group_norm_silu.group_norm_silu(total, norm, silu)
    return (total.clone() if total is x else total), y


def _launches(y: Tensor, total: Tensor | None, parts: Parts, norm: Norm, silu: bool, tile: _tiles.SlabTile) -> list[Launch]:
    """One where a program holds its groups whole, else two."""
    images, channels, height, width = y.shape
    own = parts.x.shape[1]
    stored = own if total is None else total.shape[1]
    slabs, compiled_in = _compiled_in(tile, height * width, own, channels, stored, *norm[4:], silu)
    programs = (images * slabs,)
    if not tile.cut:
        kernel = _twice_kernel if tile.blocks > 1 else _whole_kernel
        arguments = {"y_ptr": y, **_summands(total, parts), **_affine(norm), **compiled_in[0]}
        return [Launch(kernel, programs, arguments, tile.num_warps)]
    unit, chunks = compiled_in[0]["UNIT"], tile.chunks(height * width)
    moments = _outputs.empty((images, channels // unit, chunks, 2), torch.float32, y.device)
    before = {"moments_ptr": moments, **_summands(total, parts), **compiled_in[0]}
    after = {
        "y_ptr": y,
        "x_ptr": parts.x if total is None else total,
        "skip_ptr": parts.skip if stored < channels else None,
        "moments_ptr": moments,
        **_affine(norm),
        **compiled_in[1],
    }
    return [Launch(_moments_kernel, programs, before, tile.num_warps), Launch(_apply_kernel, programs, after, tile.num_warps)]


@cache  # of every layer, in every step
def _compiled_in(
    tile: _tiles.SlabTile, pixels: int, own: int, channels: int, stored: int, num_groups: int, norm_eps: float, silu: bool
) -> tuple[int, list[dict[str, Any]]]:
    """(programs of an image, what is compiled into each kernel that runs), not to be changed."""
    chunks, group = tile.chunks(pixels), channels // num_groups
    slabs = chunks * (channels // (tile.first + tile.second))
    once = min(tile.rows, max(1, 256 * tile.num_warps // tile.first))  # rows that the threads read at a time, 8 channels each
    cut = {"PIXELS": pixels, "OWN": own, "CHANNELS": channels, "FIRST": tile.first}
    ways = {"ROWS": tile.rows, "WIDTH": group, "NORM_EPS": norm_eps, "SILU": silu}
    steps, unit = {"BLOCKS": tile.blocks, "PASS": once}, {"UNIT": group & -group}
    if not tile.cut and tile.blocks > 1:
        return slabs, [{**cut, **ways, **steps, "STORED": stored}]
    if not tile.cut:
        return slabs, [{**cut, **unit, **ways, "STORED": stored, "SECOND": tile.second}]
    before = {**cut, **unit, **steps, "ROWS": tile.rows, "STORED": stored}
    chunked = {"BLOCKS": tile.blocks, "CHUNKS": _tiles.power_of_two(chunks)}
    return slabs, [before, {**cut, **unit, "OWN": stored, **ways, **chunked}]


def _summands(total: Tensor | None, parts: Parts) -> dict[str, Any]:
    """The sum's arguments."""
    temb = None if parts.temb is None else _side_by_side(parts.temb)
    return {
        "sum_ptr": total,
        "x_ptr": parts.x,
        "residual_ptr": parts.residual,
        "skip_ptr": parts.skip,
        "bias_ptr": None if parts.bias is None else parts.bias.contiguous(),
        "temb_ptr": temb,
        "temb_stride": _stride(temb),
        "gain": None if parts.gain == 1 else float(parts.gain),
    }


def _affine(norm: Norm) -> dict[str, Any]:
    """The norm's arguments."""
    weight, offset, scale, shift, _, _ = norm
    scale = None if scale is None else _side_by_side(scale)
    shift = None if shift is None else _side_by_side(shift)
    return {
        "weight_ptr": _side_by_side(weight),
        "offset_ptr": _side_by_side(offset),
        "scale_ptr": scale,
        "shift_ptr": shift,
        "scale_stride": _stride(scale),
        "shift_stride": _stride(shift),
    }


def _side_by_side(rows: Tensor) -> Tensor:
    """Channels side by side, images as far apart as they are: scale and shift are often two halves of one tensor."""
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _stride(rows: Tensor | None) -> int:
    """How far apart two images' rows are; one row is every image's."""
    return 0 if rows is None or rows.shape[0] == 1 else rows.stride(0)


# Channels of x and of the skip, and pixels a side: layers of DDPM on CIFAR-10 (whole groups) and of ADM at 256x256 (chunks).
_LAYERS = (
    ((128, 0, 32), (256, 0, 16), (256, 0, 8), (256, 256, 4), (256, 128, 32), (256, 128, 16)),
    ((256, 0, 256), (512, 256, 64), (1024, 512, 16), (1024, 1024, 8)),
)


def variants() -> list[Variant]:
    """What is compiled ahead of time: these layers in bfloat16, a norm alone and with all that may be added before it."""
    found = []
    for layers, modulated in zip(_LAYERS, (False, True), strict=True):
        for own, others, side in layers:
            for adds in (False, True):
                found += [launch.variant("sum_norm_silu") for launch in _layer(own, others, side, 32, modulated, adds)]
    found += [launch.variant("sum_norm_silu") for launch in _layer(1, 0, 1, 1, modulated=False, adds=True)]  # one element
    return list({str(variant): variant for variant in found}.values())


def _layer(own: int, others: int, side: int, groups: int, modulated: bool, adds: bool) -> list[Launch]:
    """What a layer launches; `adds` a residual, a bias and a time embedding, and writes the sum."""

    def images(channels: int) -> Tensor:
        empty = torch.empty(2, channels, side, side, dtype=torch.bfloat16, device="meta")
        return empty.contiguous(memory_format=torch.channels_last)

    channels = own + others
    rows = torch.empty(2, 2 * channels, dtype=torch.bfloat16, device="meta").chunk(2, dim=1) if modulated else (None, None)
    line = torch.empty(2, channels, dtype=torch.bfloat16, device="meta")
    norm, x, skip = (*line, *rows, groups, 1e-5), images(own), images(others) if others else None
    parts = Parts(x, x, line[0, :own], line[:, :own], 1.0, skip) if adds else Parts(x, skip=skip)
    tile = _tiles.slab(channels, own, side**2, groups)
    assert tile is not None
    total = images(channels) if adds else None
    return _launches(images(channels), total, parts, norm, True, tile)
