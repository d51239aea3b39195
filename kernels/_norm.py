"""Device functions of group_norm_silu: what a program reads, the moments of its groups, and the way through SiLU.

A tile is [rows, PIXELS]. Its rows are the channels of GROUPS neighbouring groups, WIDTH each, padded to PADDED, a power of two.
What belongs to a group is kept on every one of its rows. A chunk is what one program goes through of its groups' pixels.
"""

import triton
import triton.language as tl


@triton.jit
def begin(
    x_ptr, pixels,
    NUM_GROUPS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, GROUPS: tl.constexpr, CHUNK: tl.constexpr,
    LAST: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """(image, where it starts, chunk) of a program, (group, channel, whether it exists, its group's first element) of its rows.

    Programs that are neighbours in memory are neighbours in time.
    """
    tiles: tl.constexpr = (NUM_GROUPS + GROUPS - 1) // GROUPS
    rest, chunks = tl.program_id(0) // tiles, tl.cdiv(pixels, CHUNK)
    first = tl.program_id(0) % tiles * GROUPS
    row = tl.arange(0, GROUPS * PADDED)
    group = first + row // PADDED
    if WIDTH == PADDED:  # said so that the compiler sees neighbours: it reads 16 bytes at a time
        channel = first * WIDTH + row
        exists = channel < NUM_GROUPS * WIDTH
    else:
        channel = group * WIDTH + row % PADDED
        exists = (group < NUM_GROUPS) & (row % PADDED < WIDTH)
    image = (rest // chunks).to(tl.int64)
    start = image * (NUM_GROUPS * WIDTH * pixels)
    origin = tl.load(x_ptr + start + group * (WIDTH if LAST else WIDTH * pixels), mask=exists, other=0.0).to(ACC)
    return image, start, rest % chunks, group, channel, exists, origin


@triton.jit
def read(x_ptr, origin, channel, exists, first_pixel, pixels, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, LAST: tl.constexpr):
    """Where an image stores a tile, which of it exists, and how far it deviates from the first elements of its groups."""
    pixel = first_pixel + tl.arange(0, PIXELS)
    inside = exists[:, None] & (pixel < pixels)[None, :]
    at = pixel[None, :] * CHANNELS + channel[:, None] if LAST else channel[:, None] * pixels + pixel[None, :]
    return at, inside, tl.load(x_ptr + at, mask=inside, other=0.0).to(origin.dtype) - origin[:, None]


@triton.jit
def over_groups(values, PADDED: tl.constexpr, GROUPS: tl.constexpr):
    """The sum over the rows of every group, on each of them."""
    sums = tl.sum(tl.reshape(values, (GROUPS, PADDED)), axis=1)
    return tl.reshape(tl.broadcast_to(sums[:, None], (GROUPS, PADDED)), (GROUPS * PADDED,))


@triton.jit
def moments(means, squares, counts, count, PADDED: tl.constexpr, GROUPS: tl.constexpr):
    """Mean of every group and the sum of the squares around it, on every row, from those of its parts (Chan et al. 1983)."""
    mean = over_groups(tl.sum(counts * means, axis=1), PADDED, GROUPS) / count
    apart = means - mean[:, None]
    return mean, over_groups(tl.sum(squares + counts * apart * apart, axis=1), PADDED, GROUPS)


@triton.jit
def rstd(around, count, NORM_EPS: tl.constexpr):
    """1 / sqrt(around / count + eps). In float64 the root comes last: it halves the errors before it."""
    if around.dtype == tl.float64:
        counts = tl.zeros_like(around) + count  # eps times an integer would be of float32
        root = tl.sqrt(counts / (around + counts * NORM_EPS))
    else:
        root = 1 / tl.sqrt(around / count + NORM_EPS)
    return root


@triton.jit
def whole(deviation, inside, count, PADDED: tl.constexpr, GROUPS: tl.constexpr, NORM_EPS: tl.constexpr):
    """Mean and reciprocal standard deviation of every row's group, from a tile that holds it whole."""
    mean, around = moments(deviation, 0.0, inside.to(deviation.dtype), count, PADDED, GROUPS)
    return mean, rstd(around, count, NORM_EPS)


@triton.jit
def parts(ptr, row, exists, chunks, CHUNKS: tl.constexpr):
    """The two numbers that every chunk left for each row: [rows, CHUNKS] each."""
    chunk = tl.arange(0, CHUNKS)[None, :]
    at, there = ptr + 2 * (row[:, None] * chunks + chunk), exists[:, None] & (chunk < chunks)
    return tl.load(at, mask=there, other=0.0), tl.load(at + 1, mask=there, other=0.0)


@triton.jit
def pooled(
    moments_ptr, image, group, exists, pixels,
    NUM_GROUPS: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, NORM_EPS: tl.constexpr,
):  # fmt: skip
    """Mean and reciprocal standard deviation of every row's group, from the moments of its chunks."""
    means, squares = parts(moments_ptr, image * NUM_GROUPS + group, exists, tl.cdiv(pixels, CHUNK), CHUNKS)
    left = pixels - tl.arange(0, CHUNKS) * CHUNK
    counts = (WIDTH * tl.maximum(tl.minimum(left, CHUNK), 0)).to(means.dtype)[None, :]
    mean = tl.sum(counts * means, axis=1) / (WIDTH * pixels)
    apart = means - mean[:, None]
    return mean, rstd(tl.sum(squares + counts * apart * apart, axis=1), WIDTH * pixels, NORM_EPS)


@triton.jit
def affine(weight_ptr, bias_ptr, scale_ptr, shift_ptr, scale_stride, shift_stride, image, channel, exists, ACC: tl.constexpr):
    """What a row's normed elements are multiplied by, and what is added to them: w (1 + scale), b (1 + scale) + shift."""
    weight = tl.load(weight_ptr + channel, mask=exists, other=0.0).to(ACC)
    bias = tl.load(bias_ptr + channel, mask=exists, other=0.0).to(ACC)
    if scale_ptr is not None:
        gain = 1 + tl.load(scale_ptr + image * scale_stride + channel, mask=exists, other=0.0).to(ACC)
        weight, bias = weight * gain, bias * gain
    if shift_ptr is not None:
        bias += tl.load(shift_ptr + image * shift_stride + channel, mask=exists, other=0.0).to(ACC)
    return weight, bias


@triton.jit
def sigmoid(y):
    """sigmoid(y) and sigmoid(-y): neither is 1 less the other, which would leave no digits of the smaller."""
    small = tl.exp(-tl.abs(y))
    larger = 1 / (1 + small)
    smaller = small * larger
    return tl.where(y < 0, smaller, larger), tl.where(y < 0, larger, smaller)


@triton.jit
def row_sums(values, X_TYPE: tl.constexpr):
    """[rows, pixels] -> [rows], in float64 unless x is of 16 bits: where terms cancel, a gradient is no better than this sum."""
    return tl.sum(values if X_TYPE.primitive_bitwidth == 16 else values.to(tl.float64), axis=1).to(values.dtype)


@triton.jit
def through_silu(grad, centred, slope, offset, SILU: tl.constexpr):
    """The gradient to what SiLU is applied to."""
    if SILU:
        y = centred * slope[:, None] + offset[:, None]
        gate, rest = sigmoid(y)
        grad = grad * gate * (1 + y * rest)
    return grad
