"""purify::conv3x3 on GPUs: a 3x3 convolution and what stands around it. Specification: purify_engine/reference/layers.py.

An implicit matrix product: out[pixel, k] = sum over taps and channels of x[pixel + tap, c] weight[k, tap, c], 18 C FLOPs each.
x and out are channels_last and `weight` is [K, 3, 3, C] in memory, so both operands lie along c. A program reads
18 C (block_m + block_n) bytes through the L2 cache for block_m block_n outputs; from memory come x, the residual and the weights
once each, and the result goes there once.
Where tiles are too few for the GPU, the 9 C terms are split among programs, and a second launch adds the parts in order.

The norm runs in its own kernel, or in this one's gather, which then applies silu(x slope + offset) to what it reads:
9 ceil(K / block_n) times to every element, two special functions each. A Hopper processor gives 16 of those a cycle and 2048
multiply-adds, so a tile less than 256 channels wide waits for them: `_tiles.conv3x3` decides.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _outputs, _tiles
from ._launch import Launch, capability
from ._variants import Variant
from .group_norm_silu import group_norm_silu


@triton.jit(do_not_specialize=["pixels", "steps"])
def _moments_kernel(
    x_ptr, moments_ptr, pixels, channels, steps, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, CHUNKS: tl.constexpr
):
    """Mean of each channel over a chunk of an image's pixels, and the sum of squares around it: [B, CHUNKS, 2, C]."""
    image, chunk = (tl.program_id(0) // CHUNKS).to(tl.int64), tl.program_id(0) % CHUNKS
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mean = tl.zeros([CHANNELS], tl.float32)
    squares = tl.zeros([CHANNELS], tl.float32)
    count = 0.0
    for step in range(0, steps):
        pixel = (chunk * steps + step) * PIXELS + tl.arange(0, PIXELS)
        inside = (pixel < pixels)[:, None] & (channel < channels)[None, :]
        place = (image * pixels + pixel)[:, None] * channels + channel[None, :]
        x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
        more = tl.sum((pixel < pixels).to(tl.float32), axis=0)
        share = more / tl.maximum(count + more, 1.0)
        shift = tl.sum(x, axis=0) / tl.maximum(more, 1.0)
        apart = tl.where(inside, x - shift[None, :], 0.0)
        shift -= mean
        squares += tl.sum(apart * apart, axis=0) + shift * shift * count * share
        mean += shift * share
        count += more
    place = moments_ptr + tl.program_id(0).to(tl.int64) * 2 * channels + channel
    tl.store(place, mean, mask=channel < channels)
    tl.store(place + channels, squares, mask=channel < channels)


@triton.jit(do_not_specialize=["pixels", "chunk_pixels", "groups", "width"])
def _affine_kernel(
    moments_ptr, affine_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, scale_b, scale_c, shift_b, shift_c,
    pixels, chunk_pixels, channels, groups, width, norm_eps, CHUNKS: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """The norm of one group of one image as an affine map of each channel, x slope + offset: [B, 2, C]."""
    image, group = (tl.program_id(0) // groups).to(tl.int64), tl.program_id(0) % groups
    chunk, within = tl.arange(0, CHUNKS)[:, None], tl.arange(0, BLOCK_W)
    channel, there = group * width + within, within < width
    count = tl.maximum(tl.minimum(pixels - chunk * chunk_pixels, chunk_pixels), 0) * there[None, :]
    place = moments_ptr + (image * CHUNKS + chunk) * 2 * channels + channel[None, :]
    means = tl.load(place, mask=count > 0, other=0.0)
    squares = tl.load(place + channels, mask=count > 0, other=0.0)
    numel, count = (pixels * width).to(tl.float32), count.to(tl.float32)
    mean = tl.sum(tl.sum(count * means, axis=1), axis=0) / numel
    squares += count * (means - mean) * (means - mean)
    rstd = 1 / tl.sqrt(tl.sum(tl.sum(squares, axis=1), axis=0) / numel + norm_eps)

    slope = rstd * tl.load(weight_ptr + channel, mask=there).to(tl.float32)
    offset = tl.load(bias_ptr + channel, mask=there).to(tl.float32) - mean * slope
    if scale_ptr is not None:
        factor = 1 + tl.load(scale_ptr + image * scale_b + channel * scale_c, mask=there).to(tl.float32)
        slope, offset = slope * factor, offset * factor
    if shift_ptr is not None:
        offset += tl.load(shift_ptr + image * shift_b + channel * shift_c, mask=there).to(tl.float32)
    tl.store(affine_ptr + image * 2 * channels + channel, slope, mask=there)
    tl.store(affine_ptr + (image * 2 + 1) * channels + channel, offset, mask=there)


@triton.jit
def _places(rows, columns, pixels, out_channels):
    """Where a tile of the result lies, and which of it exists."""
    inside = (rows < pixels)[:, None] & (columns < out_channels)[None, :]
    return rows.to(tl.int64)[:, None] * out_channels + columns[None, :], inside


@triton.jit
def _surroundings(
    rows, columns, places, inside, bias_ptr, temb_ptr, residual_ptr, image_pixels, out_channels, temb_b, temb_k,
    ONE_TEMB: tl.constexpr,
):  # fmt: skip
    """residual + bias + temb of a tile, which its sums begin with; with ONE_TEMB its pixels share an embedding."""
    known = columns < out_channels
    y = tl.zeros(inside.shape, tl.float32)
    if residual_ptr is not None:
        y += tl.load(residual_ptr + places, mask=inside, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + columns, mask=known, other=0.0).to(tl.float32)[None, :]
    if temb_ptr is not None:
        if ONE_TEMB:
            of_image = temb_ptr + (tl.min(rows, axis=0) // image_pixels).to(tl.int64) * temb_b
            y += tl.load(of_image + columns * temb_k, mask=known, other=0.0).to(tl.float32)[None, :]
        else:
            of_images = temb_ptr + (rows // image_pixels).to(tl.int64)[:, None] * temb_b
            y += tl.load(of_images + columns[None, :] * temb_k, mask=inside, other=0.0).to(tl.float32)
    return y


@triton.jit(do_not_specialize=["pixels", "height", "width", "splits"])
def _conv3x3_kernel(
    x_ptr, weight_ptr, affine_ptr, bias_ptr, temb_ptr, residual_ptr, out_ptr,
    pixels, height, width, channels, out_channels, temb_b, temb_k, gain, splits,
    UPSAMPLE: tl.constexpr, ONE_TEMB: tl.constexpr, WHOLE: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A tile [BLOCK_M pixels, BLOCK_N channels] of the result; with PARTS, of its share of the terms: [splits, pixels, K]."""
    # Programs that read the same pixels run side by side; all weights stay in the L2 cache.
    blocks_n = tl.cdiv(out_channels, BLOCK_N)
    rows = (tl.program_id(0) // blocks_n) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = (tl.program_id(0) % blocks_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    image, h, w = rows // (width * height), rows // width % height, rows % width
    # Bit 3 r + s: does the tap (r - 1, s - 1) fall inside the image?
    above_below = 0b000111000 | tl.where(h > 0, 0b000000111, 0) | tl.where(h < height - 1, 0b111000000, 0)
    left_right = 0b010010010 | tl.where(w > 0, 0b001001001, 0) | tl.where(w < width - 1, 0b100100100, 0)
    taps = tl.where(rows < pixels, above_below & left_right, 0)

    inner = tl.arange(0, BLOCK_C)
    x_at = x_ptr + rows.to(tl.int64)[:, None] * channels + inner[None, :]
    # columns beyond K repeat earlier ones, and are not stored
    weight_at = weight_ptr + (columns % out_channels).to(tl.int64)[None, :] * (9 * channels) + inner[:, None]
    blocks_c = tl.cdiv(channels, BLOCK_C)
    share = tl.cdiv(9 * blocks_c, splits)
    first = tl.program_id(1) * share
    tap, start = first // blocks_c, first % blocks_c * BLOCK_C
    places, inside = _places(rows, columns, pixels, out_channels)
    y = _surroundings(
        rows, columns, places, inside, bias_ptr, temb_ptr, residual_ptr, height * width, out_channels, temb_b, temb_k, ONE_TEMB
    )
    for _ in range(first, tl.minimum(first + share, 9 * blocks_c)):
        down, right = tap // 3 - 1, tap % 3 - 1
        known = ((taps >> tap) & 1 != 0)[:, None]
        if UPSAMPLE:
            pixel = (image * (height // 2) + (h + down) // 2) * (width // 2) + (w + right) // 2
            x_from = x_ptr + pixel.to(tl.int64)[:, None] * channels + inner[None, :] + start
        else:
            x_from = x_at + ((down * width + right) * channels + start)
        if WHOLE:
            x = tl.load(x_from, mask=known, other=0.0)
            weight = tl.load(weight_at + (tap * channels + start))
        else:
            x = tl.load(x_from, mask=known & (start + inner < channels)[None, :], other=0.0)
            weight = tl.load(weight_at + (tap * channels + start), mask=(start + inner < channels)[:, None], other=0.0)
        if affine_ptr is not None:
            map_ptr = affine_ptr + (tl.min(image, axis=0) * 2).to(tl.int64) * channels + start + inner
            slope = tl.load(map_ptr, mask=start + inner < channels, other=0.0)
            offset = tl.load(map_ptr + channels, mask=start + inner < channels, other=0.0)
            normed = tl.where(known, x.to(tl.float32) * slope[None, :] + offset[None, :], 0.0)  # outside the image silu(0) = 0
            x = (normed / (1 + tl.exp(-normed))).to(x.dtype)
        y = tl.dot(x, weight, y)
        start += BLOCK_C
        tap = tl.where(start < channels, tap, tap + 1)
        start = tl.where(start < channels, start, 0)

    # computed again, rather than kept in registers all the while
    places, inside = _places(rows, columns, pixels, out_channels)
    if PARTS:
        out_ptr += tl.program_id(1).to(tl.int64) * pixels * out_channels
    else:
        y *= gain
    tl.store(out_ptr + places, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["pixels", "image_pixels"])
def _sum_kernel(
    parts_ptr, bias_ptr, temb_ptr, residual_ptr, out_ptr,
    pixels, image_pixels, out_channels, temb_b, temb_k, gain,
    SPLITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The result from its parts, which are added in order."""
    blocks_n = tl.cdiv(out_channels, BLOCK_N)
    rows = (tl.program_id(0) // blocks_n) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = (tl.program_id(0) % blocks_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    places, inside = _places(rows, columns, pixels, out_channels)
    y = _surroundings(
        rows, columns, places, inside, bias_ptr, temb_ptr, residual_ptr, image_pixels, out_channels, temb_b, temb_k, False
    )
    for _ in tl.static_range(SPLITS):
        y += tl.load(parts_ptr + places, mask=inside, other=0.0)
        parts_ptr += pixels * out_channels
    tl.store(out_ptr + places, (y * gain).to(out_ptr.dtype.element_ty), mask=inside)


Norm = tuple[Tensor, Tensor, Tensor | None, Tensor | None, int, float]  # weight, bias, scale, shift, num_groups, norm_eps
Around = tuple[Tensor | None, Tensor | None, Tensor | None, float, bool]  # bias, temb, residual, gain, upsample


def conv3x3(x: Tensor, weight: Tensor, norm: Norm | None, around: Around) -> Tensor:
    """`reference.layers.conv3x3` in 16 bits, any channels: [B, K, H, W] in channels_last. What is not channels_last is copied."""
    *_, upsample = around
    sizes = [size * (2 if upsample else 1) for size in x.shape[2:]]
    out = _outputs.empty((x.shape[0], weight.shape[0], *sizes), x.dtype, x.device, channels_last=True)
    if out.numel():
        tile = _tiles.conv3x3(*_problem(x, weight, upsample))
        if norm is not None and not _takes_norm(tile, out):
            x, norm = group_norm_silu(x, norm), None
        for launch in _launches(out, x, weight, norm, around, tile):
            launch.run()
    return out


def declines(x: Tensor) -> str | None:
    """Why images are not for this kernel; None if they are."""
    if x.dtype not in (torch.float16, torch.bfloat16):
        return "it multiplies in 16 bits"
    return None if x.shape[1] else "there are no channels"


def wins(x: Tensor, weight: Tensor, upsample: bool) -> bool:
    """Whether `_tiles.CONV3X3_WINS` lists the shape: it was measured to be faster than cuDNN. Upsampling was not measured.

    Nor were more than `_tiles.MOST_IMAGES`: many small images have as many pixels as a few large ones, and cuDNN is faster there.
    """
    return not upsample and len(x) <= _tiles.MOST_IMAGES and _problem(x, weight, upsample) in _tiles.CONV3X3_WINS


def _problem(x: Tensor, weight: Tensor, upsample: bool) -> tuple[int, int, int, tuple[int, int]]:
    """The arguments of `_tiles.conv3x3`: pixels of the result, channels, output channels, compute capability."""
    batch, channels, height, width = x.shape
    return batch * height * width * (4 if upsample else 1), channels, weight.shape[0], capability(x)


def _takes_norm(tile: _tiles.ConvTile, out: Tensor) -> bool:
    """Does the tile apply the norm as it gathers? Its pixels must belong to one image, so that each channel has one map."""
    return tile.takes_norm and out.shape[2:].numel() % tile.block_m == 0


def _launches(out: Tensor, x: Tensor, weight: Tensor, norm: Norm | None, around: Around, tile: _tiles.ConvTile) -> list[Launch]:
    """The moments and the affine maps of a norm that the gather applies, the convolution, and the sum of its parts."""
    *_, upsample = around
    x = x.contiguous(memory_format=torch.channels_last)
    if weight.dtype != x.dtype or not weight.is_contiguous(memory_format=torch.channels_last):
        weight = weight.to(x.dtype, memory_format=torch.channels_last)
    (batch, out_channels, height, width), channels = out.shape, x.shape[1]
    pixels, image_pixels = batch * height * width, height * width
    surroundings, one_temb = _around(out, around, image_pixels % tile.block_m == 0)
    before, affine = ([], None) if norm is None else _norm(x, norm)
    programs = _tiles.cdiv(pixels, tile.block_m) * _tiles.cdiv(out_channels, tile.block_n)
    tensors = {"x_ptr": x, "weight_ptr": weight, "affine_ptr": affine}
    sizes = {"pixels": pixels, "height": height, "width": width, "channels": channels, "splits": tile.splits}
    blocks = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_C": tile.block_c, "PARTS": False}
    constants = {"UPSAMPLE": upsample, "ONE_TEMB": one_temb, "WHOLE": channels % tile.block_c == 0} | blocks
    convolution = tensors | surroundings | sizes | constants
    if tile.splits == 1:
        return [*before, Launch(_conv3x3_kernel, (programs, 1), convolution, tile.num_warps, tile.num_stages)]

    parts = _outputs.empty((tile.splits, pixels, out_channels), torch.float32, x.device)
    convolution |= {"out_ptr": parts, "PARTS": True, "bias_ptr": None, "temb_ptr": None, "residual_ptr": None}
    rows, columns = _tiles.sum_of_parts(out_channels)
    grid = (_tiles.cdiv(pixels, rows) * _tiles.cdiv(out_channels, columns),)
    blocks = {"SPLITS": tile.splits, "BLOCK_M": rows, "BLOCK_N": columns}
    total = {"parts_ptr": parts, "pixels": pixels, "image_pixels": image_pixels} | surroundings | blocks
    return [
        *before,
        Launch(_conv3x3_kernel, (programs, tile.splits), convolution, tile.num_warps, tile.num_stages),
        Launch(_sum_kernel, grid, total),
    ]


def _around(out: Tensor, around: Around, one_image: bool) -> tuple[dict[str, Any], bool]:
    """The arguments of `_surroundings`, and whether a tile has one embedding: a shared one, or that of its only image."""
    bias, temb, residual, gain, _ = around
    shared = temb is None or temb.shape[0] == 1
    return {
        "out_ptr": out,
        "bias_ptr": None if bias is None else bias.contiguous(),
        "temb_ptr": temb,
        "residual_ptr": None if residual is None else residual.contiguous(memory_format=torch.channels_last),
        "out_channels": out.shape[1],
        "temb_b": 0 if temb is None or shared else temb.stride(0),
        "temb_k": 0 if temb is None else temb.stride(1),
        "gain": float(gain),
    }, shared or one_image


def _norm(x: Tensor, norm: Norm) -> tuple[list[Launch], Tensor]:
    """Two launches, and the affine maps that they fill: [B, 2, C] in float32."""
    weight, bias, scale, shift, groups, norm_eps = norm
    batch, channels, height, width = x.shape
    tile = _tiles.moments(channels, height * width)
    moments = _outputs.empty((batch, tile.chunks, 2, channels), torch.float32, x.device)
    affine = _outputs.empty((batch, 2, channels), torch.float32, x.device)
    both = {"moments_ptr": moments, "pixels": height * width, "channels": channels, "CHUNKS": tile.chunks}
    first = {"x_ptr": x, "steps": tile.steps, "PIXELS": tile.pixels, "CHANNELS": tile.channels}
    second = {"affine_ptr": affine, "weight_ptr": weight.contiguous(), "bias_ptr": bias.contiguous(), "norm_eps": float(norm_eps)}
    for name, row in (("scale", scale), ("shift", shift)):
        strides = (0, 0) if row is None else row.stride()
        second |= {f"{name}_ptr": row, f"{name}_b": strides[0], f"{name}_c": strides[1]}
    second |= {"chunk_pixels": tile.steps * tile.pixels, "groups": groups, "width": channels // groups}
    second |= {"BLOCK_W": _tiles.power_of_two(channels // groups)}
    return [
        Launch(_moments_kernel, (batch * tile.chunks, _tiles.cdiv(channels, tile.channels)), both | first),
        Launch(_affine_kernel, (batch * groups,), both | second),
    ], affine


# Images, channels, output channels, pixels a side: few tiles, split; 128 wide; 16 wide; 256 wide, which takes its norm along.
_LAYERS = ((1, 256, 256, 8), (64, 128, 128, 32), (64, 128, 3, 32), (64, 256, 256, 16))


def variants() -> list[Variant]:
    """What is compiled ahead of time, in bfloat16: convolutions at the start of a block, upsampling or not, and at its end."""
    found = []
    for batch, channels, out_channels, size in _LAYERS:
        x, weight = _blank(batch, channels, size, size), _blank(out_channels, channels, 3, 3)
        bias, temb, row = weight.new_empty(out_channels), weight.new_empty(1, out_channels), weight.new_empty(channels)
        for upsample, ends_block in ((False, False), (False, True), (True, False)):
            out = _blank(batch, out_channels, *(2 * size if upsample else size,) * 2)
            tile = _tiles.conv3x3(*_problem(x, weight, upsample))
            norm = (row, row, None, None, 32, 1e-6) if _takes_norm(tile, out) else None
            around = (bias, None, out, 1.0, upsample) if ends_block else (bias, temb, None, 1.0, upsample)
            found += [launch.variant("conv3x3") for launch in _launches(out, x, weight, norm, around, tile)]
    return list({str(variant): variant for variant in found}.values())


def _blank(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta").contiguous(memory_format=torch.channels_last)
