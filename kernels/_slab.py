"""Device functions of sum_norm_silu: a slab is some whole groups of neighbouring channels, by pixels of a channels_last image.

A slab is read as one tile [ROWS, FIRST], or as two, [ROWS, FIRST] and [ROWS, SECOND], where its channels are no power of two: 96
are 64 and 32. No lane is idle then, and each thread reads 16 bytes at a time. A unit is as many channels as the largest power of
two that divides a group's: a whole group, or a third of one of 12 channels. What belongs to a group is kept for every unit of it.
"""

import triton
import triton.language as tl
from triton.runtime.jit import JITFunction


@triton.jit
def _nothing():
    pass


# Whether instructions can be named; not in the interpreter.
NATIVE = tl.constexpr(isinstance(_nothing, JITFunction))


@triton.jit
def read(
    x_ptr, residual_ptr, skip_ptr, bias_ptr, temb_ptr, sum_ptr, temb_stride, gain, image, pixel, inside, start,
    PIXELS: tl.constexpr, OWN: tl.constexpr, CHANNELS: tl.constexpr, STORED: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """gain (x + residual + bias + temb), rounded as it is stored, in float32 [ROWS, SIZE]; of the skip what it holds.

    `inside` says which pixels exist; None stands for all. Both are written to a sum of STORED channels where there is one.
    """
    if OWN < CHANNELS:
        if start >= OWN:
            values = loaded(skip_ptr, image, start - OWN, pixel, inside, PIXELS, CHANNELS - OWN, SIZE)
            if sum_ptr is not None and STORED > OWN:
                store(sum_ptr, values, image, start, pixel, inside, PIXELS, STORED)
        else:
            values = summed(
                x_ptr, residual_ptr, bias_ptr, temb_ptr, sum_ptr, temb_stride, gain, image, start, pixel, inside,
                PIXELS, OWN, STORED, SIZE,
            )  # fmt: skip
    else:
        values = summed(
            x_ptr, residual_ptr, bias_ptr, temb_ptr, sum_ptr, temb_stride, gain, image, start, pixel, inside,
            PIXELS, OWN, STORED, SIZE,
        )  # fmt: skip
    return values


@triton.jit
def summed(
    x_ptr, residual_ptr, bias_ptr, temb_ptr, sum_ptr, temb_stride, gain, image, start, pixel, inside,
    PIXELS: tl.constexpr, OWN: tl.constexpr, STORED: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """The sum of what there is of it; stored where it is wanted."""
    channel = start + tl.arange(0, SIZE)
    values = loaded(x_ptr, image, start, pixel, inside, PIXELS, OWN, SIZE)
    if residual_ptr is not None:
        values += loaded(residual_ptr, image, start, pixel, inside, PIXELS, OWN, SIZE)
    if bias_ptr is not None or temb_ptr is not None:
        line = tl.zeros((SIZE,), tl.float32)
        if bias_ptr is not None:
            line += tl.load(bias_ptr + channel).to(tl.float32)
        if temb_ptr is not None:
            line += tl.load(temb_ptr + image * temb_stride + channel).to(tl.float32)
        values += line[None, :]
    if gain is not None:
        values *= gain
    if residual_ptr is not None or bias_ptr is not None or temb_ptr is not None or gain is not None:
        values = rounded(values, x_ptr.dtype.element_ty)
    if sum_ptr is not None:
        store(sum_ptr, values, image, start, pixel, inside, PIXELS, STORED)
    return values


@triton.jit
def loaded(
    ptr, image, start, pixel, inside, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    """[ROWS, SIZE] of an image, from its channel `start` on, in float32; 0 where there is no pixel."""
    at = ptr + image * (CHANNELS * PIXELS) + start + pixel[:, None] * CHANNELS + tl.arange(0, SIZE)[None, :]
    values = tl.load(at) if inside is None else tl.load(at, mask=inside[:, None], other=0.0)
    return values.to(tl.float32)


@triton.jit
def store(ptr, values, image, start, pixel, inside, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """Write a tile, rounded, where `loaded` would read it."""
    SIZE: tl.constexpr = values.shape[1]
    at = ptr + image * (CHANNELS * PIXELS) + start + pixel[:, None] * CHANNELS + tl.arange(0, SIZE)[None, :]
    tl.store(at, values.to(ptr.dtype.element_ty), mask=None if inside is None else inside[:, None])


@triton.jit
def rounded(values, DTYPE: tl.constexpr):
    """As they come back from memory. Two at a time: one by one is what ptxas makes of a plain conversion, at twice the time."""
    PAIRS: tl.constexpr = NATIVE and values.numel > 1
    if PAIRS and DTYPE.is_bf16():
        values = tl.inline_asm_elementwise(
            "{ .reg .b32 both; cvt.rn.bf16x2.f32 both, $3, $2; shl.b32 $0, both, 16; and.b32 $1, both, 0xffff0000; }",
            "=r,=r,r,r", [values], dtype=tl.float32, is_pure=True, pack=2,
        )  # fmt: skip
    elif PAIRS and DTYPE.is_fp16():
        values = tl.inline_asm_elementwise(
            "{ .reg .b32 both; .reg .b16 low, high; cvt.rn.f16x2.f32 both, $3, $2; mov.b32 {low, high}, both;"
            " cvt.f32.f16 $0, low; cvt.f32.f16 $1, high; }",
            "=f,=f,f,f", [values], dtype=tl.float32, is_pure=True, pack=2,
        )  # fmt: skip
    else:
        values = values.to(DTYPE).to(tl.float32)
    return values


@triton.jit
def units(values, UNIT: tl.constexpr):
    """[ROWS, SIZE] -> [SIZE / UNIT], the sums; first over what one thread holds."""
    ROWS: tl.constexpr = values.shape[0]
    SIZE: tl.constexpr = values.shape[1]
    NEAR: tl.constexpr = UNIT if UNIT < 8 else 8
    near = tl.sum(tl.sum(tl.reshape(values, (ROWS, SIZE // NEAR, NEAR)), axis=2), axis=0)
    return tl.sum(tl.reshape(near, (SIZE // UNIT, UNIT // NEAR)), axis=1)


@triton.jit
def moments(
    x_ptr, residual_ptr, skip_ptr, bias_ptr, temb_ptr, sum_ptr, temb_stride, gain, image, chunk, start,
    PIXELS: tl.constexpr, OWN: tl.constexpr, CHANNELS: tl.constexpr, STORED: tl.constexpr, UNIT: tl.constexpr,
    SIZE: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr, PASS: tl.constexpr,
):  # fmt: skip
    """Write the sum of a chunk; its units' (pivot, sum of what differs from it, sum of the squares around the mean).

    The pivot is the mean of the chunk's first tile: what is summed up from there is as small as the spread.
    """
    CHUNK: tl.constexpr = ROWS * BLOCKS
    NEAR: tl.constexpr = UNIT if UNIT < 8 else 8
    pixel = chunk * CHUNK + tl.arange(0, ROWS)
    inside = None if PIXELS % CHUNK == 0 else pixel < PIXELS
    values = read(
        x_ptr, residual_ptr, skip_ptr, bias_ptr, temb_ptr, sum_ptr, temb_stride, gain, image, pixel, inside, start,
        PIXELS, OWN, CHANNELS, STORED, SIZE,
    )  # fmt: skip
    left = tl.minimum(PIXELS - chunk * CHUNK, ROWS) * UNIT
    pivot = units(existing(values, inside), UNIT) / left
    of_all = on_channels(pivot, UNIT)
    values = existing(values - of_all, inside)
    sums, squares = near(values, NEAR, PASS), near(values * values, NEAR, PASS)
    for block in range(1, BLOCKS):
        pixel = chunk * CHUNK + block * ROWS + tl.arange(0, ROWS)
        there = None if PIXELS % CHUNK == 0 else pixel < PIXELS
        values = read(
            x_ptr, residual_ptr, skip_ptr, bias_ptr, temb_ptr, sum_ptr, temb_stride, gain, image, pixel, there, start,
            PIXELS, OWN, CHANNELS, STORED, SIZE,
        )  # fmt: skip
        values = existing(values - of_all, there)
        sums += near(values, NEAR, PASS)
        squares += near(values * values, NEAR, PASS)
    count = tl.minimum(PIXELS - chunk * CHUNK, CHUNK) * UNIT
    total = far(sums, UNIT, NEAR)
    around = tl.maximum(far(squares, UNIT, NEAR) - total * total / count, 0.0)
    return pivot, total, around


@triton.jit
def near(values, NEAR: tl.constexpr, PASS: tl.constexpr):
    """[ROWS, SIZE] -> [PASS, SIZE / NEAR], the sums over what one thread holds where the threads cover PASS rows at a time."""
    ROWS: tl.constexpr = values.shape[0]
    SIZE: tl.constexpr = values.shape[1]
    return tl.sum(tl.sum(tl.reshape(values, (ROWS // PASS, PASS, SIZE // NEAR, NEAR)), axis=3), axis=0)


@triton.jit
def far(values, UNIT: tl.constexpr, NEAR: tl.constexpr):
    """[PASS, SIZE / NEAR] -> [SIZE / UNIT], the rest of those sums."""
    return tl.sum(tl.reshape(tl.sum(values, axis=0), (values.shape[1] * NEAR // UNIT, UNIT // NEAR)), axis=1)


@triton.jit
def pooled(
    moments_ptr, image, start, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, UNIT: tl.constexpr,
    SIZE: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, NORM_EPS: tl.constexpr,
):  # fmt: skip
    """(mean, reciprocal standard deviation) [1, SIZE], from the moments of the chunks of every unit of a channel's group."""
    PARTS: tl.constexpr = WIDTH // UNIT
    MANY: tl.constexpr = (PIXELS + CHUNK - 1) // CHUNK
    first = (start // UNIT + tl.arange(0, SIZE // UNIT)) // PARTS * PARTS
    chunk = tl.arange(0, CHUNKS)[None, :]
    counts = UNIT * tl.maximum(tl.minimum(PIXELS - chunk * CHUNK, CHUNK), 0)
    at = moments_ptr + 2 * ((image * (CHANNELS // UNIT) + first[:, None]) * MANY + chunk)
    there = (chunk < MANY) & (first >= 0)[:, None]
    total = tl.zeros((SIZE // UNIT,), tl.float32)
    for part in tl.static_range(PARTS):
        total += tl.sum(counts * tl.load(at + 2 * MANY * part, mask=there, other=0.0), axis=1)
    mean, around = total / (WIDTH * PIXELS), tl.zeros((SIZE // UNIT,), tl.float32)
    for part in tl.static_range(PARTS):
        apart = tl.load(at + 2 * MANY * part, mask=there, other=0.0) - mean[:, None]
        around += tl.sum(tl.load(at + 2 * MANY * part + 1, mask=there, other=0.0) + counts * apart * apart, axis=1)
    return on_channels(mean, UNIT), on_channels(rstd(around / (WIDTH * PIXELS), NORM_EPS), UNIT)


@triton.jit
def over_groups(one, two, WIDTH: tl.constexpr, UNIT: tl.constexpr):
    """Two tiles side by side -> the sums over their groups, padded to a power of two."""
    FIRST: tl.constexpr = one.shape[1]
    SECOND: tl.constexpr = two.shape[1]
    group = tl.arange(0, SECOND // UNIT)  # FIRST and SECOND make three units a group, or more
    of_one = tl.arange(0, FIRST // UNIT) // (WIDTH // UNIT)
    of_two = (FIRST // UNIT + tl.arange(0, SECOND // UNIT)) // (WIDTH // UNIT)
    return _matching(units(one, UNIT), of_one, group) + _matching(units(two, UNIT), of_two, group)


@triton.jit
def of_groups(values, START: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, UNIT: tl.constexpr):
    """What is kept for every group, on the channels from START on, as a row of a tile."""
    unit = START // UNIT + tl.arange(0, SIZE // UNIT)
    return on_channels(_matching(values, tl.arange(0, values.shape[0]), unit // (WIDTH // UNIT)), UNIT)


@triton.jit
def _matching(values, index, wanted):
    """The sums of the values whose index is wanted."""
    return tl.sum(tl.where(index[None, :] == wanted[:, None], values[None, :], 0.0), axis=1)


@triton.jit
def on_channels(values, UNIT: tl.constexpr):
    """What is kept for every unit, on each of its channels, as a row of a tile."""
    UNITS: tl.constexpr = values.shape[0]
    return tl.reshape(tl.broadcast_to(values[:, None], (UNITS, UNIT)), (1, UNITS * UNIT))


@triton.jit
def centred(one, inside, WIDTH: tl.constexpr, PIXELS: tl.constexpr, NORM_EPS: tl.constexpr):
    """A tile that holds its groups whole, less their means; and [1, SIZE], their reciprocal standard deviations."""
    one = _less(one, units(existing(one, inside), WIDTH) / (WIDTH * PIXELS), inside, WIDTH)
    return one, on_channels(rstd(units(one * one, WIDTH) / (WIDTH * PIXELS), NORM_EPS), WIDTH)


@triton.jit
def centred_two(
    one, two, inside, WIDTH: tl.constexpr, UNIT: tl.constexpr, PIXELS: tl.constexpr, NORM_EPS: tl.constexpr
):  # fmt: skip
    """`centred` of two tiles that hold their groups together."""
    mean = over_groups(existing(one, inside), existing(two, inside), WIDTH, UNIT) / (WIDTH * PIXELS)
    one = existing(one - of_groups(mean, 0, one.shape[1], WIDTH, UNIT), inside)
    two = existing(two - of_groups(mean, one.shape[1], two.shape[1], WIDTH, UNIT), inside)
    each = rstd(over_groups(one * one, two * two, WIDTH, UNIT) / (WIDTH * PIXELS), NORM_EPS)
    return one, two, of_groups(each, 0, one.shape[1], WIDTH, UNIT), of_groups(each, one.shape[1], two.shape[1], WIDTH, UNIT)


@triton.jit
def rstd(variance, NORM_EPS: tl.constexpr):
    return 1 / tl.sqrt(variance + NORM_EPS)


@triton.jit
def _less(values, mean, inside, UNIT: tl.constexpr):
    return existing(values - on_channels(mean, UNIT), inside)


@triton.jit
def existing(values, inside):
    """Zero where there is no pixel."""
    return values if inside is None else tl.where(inside[:, None], values, 0.0)


@triton.jit
def affine(
    weight_ptr, offset_ptr, scale_ptr, shift_ptr, scale_stride, shift_stride, image, start, SIZE: tl.constexpr
):  # fmt: skip
    """What normed elements are multiplied by, and what is added to them, [1, SIZE]: w (1 + scale), b (1 + scale) + shift."""
    channel = start + tl.arange(0, SIZE)
    weight = tl.load(weight_ptr + channel).to(tl.float32)
    offset = tl.load(offset_ptr + channel).to(tl.float32)
    if scale_ptr is not None:
        gain = 1 + tl.load(scale_ptr + image * scale_stride + channel).to(tl.float32)
        weight, offset = weight * gain, offset * gain
    if shift_ptr is not None:
        offset += tl.load(shift_ptr + image * shift_stride + channel).to(tl.float32)
    return weight[None, :], offset[None, :]


@triton.jit
def sigmoid(y):
    """1 / (1 + e^-y), to a few units in the last place of float32, and 0 where it is below float32's normal numbers."""
    gate = y * -1.4426950408889634
    if NATIVE:
        gate = tl.inline_asm_elementwise(
            "{ .reg .f32 e; ex2.approx.ftz.f32 e, $1; add.ftz.f32 e, e, 0f3F800000; rcp.approx.ftz.f32 $0, e; }",
            "=f,f", [gate], dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip
    else:
        gate = 1 / (1 + tl.exp2(gate))
    return gate


@triton.jit
def write(y_ptr, centred, slope, offset, image, pixel, inside, start, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
          SILU: tl.constexpr):  # fmt: skip
    """Store SiLU(centred * slope + offset)."""
    y = centred * slope + offset
    if SILU:
        y = y * sigmoid(y)
    store(y_ptr, y, image, start, pixel, inside, PIXELS, CHANNELS)
