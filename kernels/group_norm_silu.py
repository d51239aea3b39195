"""purify::group_norm_silu, its gradient and sum_norm_silu's on GPUs. Specification: purify_engine/reference/.

x is walked as it lies, NCHW or channels_last, by tiles of channels and pixels (`_norm.py`). Where a tile holds its groups whole,
one launch reads x and writes y once: 4 bytes an element in bfloat16, and 6 backward. Else a group is cut into chunks, one a
program: a launch before leaves the moments of every chunk, and what needs those of a group pools them (Chan et al. 1983): 6
bytes an element, and 12 backward, where the sums over a channel's pixels are yet another launch. Nothing is added atomically and
no tile depends on the batch, so neither do an image's bits.

Deviations are taken from a group's first element before anything is summed: a large mean costs no digits. Everything is float32,
but for float32 groups so small that time does not count and a rounding does, which are float64 throughout.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _images, _norm, _outputs, _tiles
from ._launch import Launch
from ._variants import Variant


@triton.jit
def _moments_kernel(
    moments_ptr, x_ptr, pixels,
    NUM_GROUPS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, GROUPS: tl.constexpr, PIXELS: tl.constexpr,
    BLOCKS: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """(mean deviation, sum of the squares around it) of one chunk of every group: [B, groups, chunks, 2].

    Every place of the tile keeps the moments of what passes it (Welford 1962); they are pooled at the end.
    """
    CHUNK: tl.constexpr = BLOCKS * PIXELS
    ACC: tl.constexpr = tl.float64 if WIDE else tl.float32
    image, start, chunk, group, channel, exists, origin = _norm.begin(
        x_ptr, pixels, NUM_GROUPS, WIDTH, PADDED, GROUPS, CHUNK, LAST, ACC
    )
    means, squares = tl.zeros((GROUPS * PADDED, PIXELS), ACC), tl.zeros((GROUPS * PADDED, PIXELS), ACC)
    seen = tl.zeros((1, 1), ACC)
    for block in range(BLOCKS):
        first = chunk * CHUNK + block * PIXELS
        at, inside, deviation = _norm.read(
            x_ptr + start, origin, channel, exists, first, pixels, NUM_GROUPS * WIDTH, PIXELS, LAST
        )
        apart = tl.where(inside, deviation - means, 0.0)
        seen += 1
        means += apart * (1 / seen)
        squares += apart * (deviation - means)
    left = pixels - chunk * CHUNK
    counts = tl.maximum(tl.minimum((left - tl.arange(0, PIXELS) + PIXELS - 1) // PIXELS, BLOCKS), 0)
    counts = tl.where(exists[:, None], counts[None, :], 0).to(ACC)
    mean, around = _norm.moments(means, squares, counts, WIDTH * tl.minimum(left, CHUNK), PADDED, GROUPS)
    at = moments_ptr + 2 * ((image * NUM_GROUPS + group) * tl.cdiv(pixels, CHUNK) + chunk)
    tl.store(at, mean, mask=exists & (channel % WIDTH == 0))
    tl.store(at + 1, around, mask=exists & (channel % WIDTH == 0))


@triton.jit
def _normalise_kernel(
    y_ptr, x_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, moments_ptr, scale_stride, shift_stride, pixels,
    NUM_GROUPS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, GROUPS: tl.constexpr, PIXELS: tl.constexpr,
    BLOCKS: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr, CHUNKS: tl.constexpr, NORM_EPS: tl.constexpr,
    SILU: tl.constexpr,
):  # fmt: skip
    CHUNK: tl.constexpr = BLOCKS * PIXELS
    ACC: tl.constexpr = tl.float64 if WIDE else tl.float32
    image, start, chunk, group, channel, exists, origin = _norm.begin(
        x_ptr, pixels, NUM_GROUPS, WIDTH, PADDED, GROUPS, CHUNK, LAST, ACC
    )
    weight, offset = _norm.affine(
        weight_ptr, bias_ptr, scale_ptr, shift_ptr, scale_stride, shift_stride, image, channel, exists, ACC
    )
    if CHUNKS > 1:
        mean, rstd = _norm.pooled(moments_ptr, image, group, exists, pixels, NUM_GROUPS, WIDTH, CHUNK, CHUNKS, NORM_EPS)
    for block in range(BLOCKS):
        first = chunk * CHUNK + block * PIXELS
        at, inside, deviation = _norm.read(
            x_ptr + start, origin, channel, exists, first, pixels, NUM_GROUPS * WIDTH, PIXELS, LAST
        )
        if CHUNKS == 1:
            mean, rstd = _norm.whole(deviation, inside, WIDTH * pixels, PADDED, GROUPS, NORM_EPS)
        centred = tl.where(inside, deviation - mean[:, None], 0.0)
        y = centred * (rstd * weight)[:, None] + offset[:, None]
        if SILU:
            gate, _ = _norm.sigmoid(y)
            y = y * gate
        tl.store(y_ptr + start + at, y, mask=inside)


@triton.jit
def _sums_kernel(
    sums_ptr, grad_out_ptr, x_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, moments_ptr, scale_stride, shift_stride, pixels,
    NUM_GROUPS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, GROUPS: tl.constexpr, PIXELS: tl.constexpr,
    BLOCKS: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr, CHUNKS: tl.constexpr, NORM_EPS: tl.constexpr,
    SILU: tl.constexpr,
):  # fmt: skip
    """Over a chunk of every channel, sums of the gradient through SiLU and of its product with normed x: [B, C, chunks, 2]."""
    CHUNK: tl.constexpr = BLOCKS * PIXELS
    ACC: tl.constexpr = tl.float64 if WIDE else tl.float32
    image, start, chunk, group, channel, exists, origin = _norm.begin(
        x_ptr, pixels, NUM_GROUPS, WIDTH, PADDED, GROUPS, CHUNK, LAST, ACC
    )
    weight, offset = _norm.affine(
        weight_ptr, bias_ptr, scale_ptr, shift_ptr, scale_stride, shift_stride, image, channel, exists, ACC
    )
    if CHUNKS > 1:
        mean, rstd = _norm.pooled(moments_ptr, image, group, exists, pixels, NUM_GROUPS, WIDTH, CHUNK, CHUNKS, NORM_EPS)
    grads, products = tl.zeros((GROUPS * PADDED, PIXELS), ACC), tl.zeros((GROUPS * PADDED, PIXELS), ACC)
    for block in range(BLOCKS):
        first = chunk * CHUNK + block * PIXELS
        at, inside, deviation = _norm.read(
            x_ptr + start, origin, channel, exists, first, pixels, NUM_GROUPS * WIDTH, PIXELS, LAST
        )
        centred = tl.where(inside, deviation - mean[:, None], 0.0)
        grad = tl.load(grad_out_ptr + start + at, mask=inside, other=0.0).to(ACC)
        grad = _norm.through_silu(grad, centred, rstd * weight, offset, SILU)
        grads += grad
        products += grad * centred
    sums = sums_ptr + 2 * ((image * (NUM_GROUPS * WIDTH) + channel) * tl.cdiv(pixels, CHUNK) + chunk)
    tl.store(sums, _norm.row_sums(grads, x_ptr.dtype.element_ty), mask=exists)
    tl.store(sums + 1, rstd * _norm.row_sums(products, x_ptr.dtype.element_ty), mask=exists)


@triton.jit
def _backward_kernel(
    grad_x_ptr, sums_ptr, parts_ptr, grad_out_ptr, grad_sum_ptr, x_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, moments_ptr,
    scale_stride, shift_stride, pixels,
    NUM_GROUPS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, GROUPS: tl.constexpr, PIXELS: tl.constexpr,
    BLOCKS: tl.constexpr, LAST: tl.constexpr, WIDE: tl.constexpr, CHUNKS: tl.constexpr, NORM_EPS: tl.constexpr,
    SILU: tl.constexpr,
):  # fmt: skip
    """grad_x plus grad_sum, and those sums over all of a channel where they are wanted: [B, C, 2].

    Where there are chunks, `parts` is what `_sums_kernel` left.
    """
    CHUNK: tl.constexpr = BLOCKS * PIXELS
    ACC: tl.constexpr = tl.float64 if WIDE else tl.float32
    image, start, chunk, group, channel, exists, origin = _norm.begin(
        x_ptr, pixels, NUM_GROUPS, WIDTH, PADDED, GROUPS, CHUNK, LAST, ACC
    )
    weight, offset = _norm.affine(
        weight_ptr, bias_ptr, scale_ptr, shift_ptr, scale_stride, shift_stride, image, channel, exists, ACC
    )
    if CHUNKS > 1:
        mean, rstd = _norm.pooled(moments_ptr, image, group, exists, pixels, NUM_GROUPS, WIDTH, CHUNK, CHUNKS, NORM_EPS)
        row, chunks = image * (NUM_GROUPS * WIDTH) + channel, tl.cdiv(pixels, CHUNK)
        grads, products = _norm.parts(parts_ptr, row, exists, chunks, CHUNKS)
        of_grad, of_normed = tl.sum(grads, axis=1), tl.sum(products, axis=1)
        level = _norm.over_groups(weight * of_grad, PADDED, GROUPS) / (WIDTH * pixels)
        tilt = _norm.over_groups(weight * of_normed, PADDED, GROUPS) / (WIDTH * pixels)
    for block in range(BLOCKS):
        first = chunk * CHUNK + block * PIXELS
        at, inside, deviation = _norm.read(
            x_ptr + start, origin, channel, exists, first, pixels, NUM_GROUPS * WIDTH, PIXELS, LAST
        )
        if CHUNKS == 1:
            mean, rstd = _norm.whole(deviation, inside, WIDTH * pixels, PADDED, GROUPS, NORM_EPS)
        centred = tl.where(inside, deviation - mean[:, None], 0.0)
        grad = tl.load(grad_out_ptr + start + at, mask=inside, other=0.0).to(ACC)
        grad = _norm.through_silu(grad, centred, rstd * weight, offset, SILU)
        if CHUNKS == 1:
            of_grad = _norm.row_sums(grad, x_ptr.dtype.element_ty)
            of_normed = rstd * _norm.row_sums(grad * centred, x_ptr.dtype.element_ty)
            level = _norm.over_groups(weight * of_grad, PADDED, GROUPS) / (WIDTH * pixels)
            tilt = _norm.over_groups(weight * of_normed, PADDED, GROUPS) / (WIDTH * pixels)
        # Selected, the product stays rounded: a group of one element has no gradient, a fused multiply-add would leave it one.
        towards = tl.where(inside, weight[:, None] * grad, 0.0) - level[:, None]
        grad_x = rstd[:, None] * (towards - centred * (rstd * tilt)[:, None])
        if grad_sum_ptr is not None:
            grad_x += tl.load(grad_sum_ptr + start + at, mask=inside, other=0.0).to(ACC)
        tl.store(grad_x_ptr + start + at, grad_x, mask=inside)
        if block == 0 and sums_ptr is not None:
            sums = sums_ptr + 2 * (image * (NUM_GROUPS * WIDTH) + channel)
            tl.store(sums, of_grad, mask=exists & (chunk == 0))
            tl.store(sums + 1, of_normed, mask=exists & (chunk == 0))


@triton.jit
def _parameters_kernel(
    grad_weight_ptr, grad_bias_ptr, grad_scale_ptr, grad_shift_ptr, sums_ptr, weight_ptr, bias_ptr, scale_ptr,
    scale_stride, images, channels, IMAGES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The gradients of everything but x from the sums [B, C, 2], in the order of the images."""
    ACC: tl.constexpr = sums_ptr.dtype.element_ty
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    weight = tl.load(weight_ptr + channel, mask=channel < channels).to(ACC)
    bias = tl.load(bias_ptr + channel, mask=channel < channels).to(ACC)
    grad_weight, grad_bias = tl.zeros((CHANNELS,), ACC), tl.zeros((CHANNELS,), ACC)
    for start in range(0, images, IMAGES):
        image = (start + tl.arange(0, IMAGES)).to(tl.int64)[:, None]
        there = (image < images) & (channel < channels)[None, :]
        row = image * channels + channel[None, :]
        of_grad = tl.load(sums_ptr + 2 * row, mask=there, other=0.0)
        of_normed = tl.load(sums_ptr + 2 * row + 1, mask=there, other=0.0)
        if grad_shift_ptr is not None:
            tl.store(grad_shift_ptr + row, _images.rounded(of_grad, grad_shift_ptr.dtype.element_ty), mask=there)
        if scale_ptr is not None:
            grad_scale = weight[None, :] * of_normed + bias[None, :] * of_grad
            tl.store(grad_scale_ptr + row, _images.rounded(grad_scale, grad_scale_ptr.dtype.element_ty), mask=there)
            gain = 1 + tl.load(scale_ptr + image * scale_stride + channel[None, :], mask=there, other=0.0).to(ACC)
            of_grad, of_normed = gain * of_grad, gain * of_normed
        grad_weight += tl.sum(of_normed, axis=0)
        grad_bias += tl.sum(of_grad, axis=0)
    tl.store(grad_weight_ptr + channel, _images.rounded(grad_weight, grad_weight_ptr.dtype.element_ty), mask=channel < channels)
    tl.store(grad_bias_ptr + channel, _images.rounded(grad_bias, grad_bias_ptr.dtype.element_ty), mask=channel < channels)


Affine = tuple[Tensor | None, ...]  # weight [C], bias [C], scale [B, C] or None, shift [B, C] or None


Norm = tuple[Tensor, Tensor, Tensor | None, Tensor | None, int, float]  # weight, bias, scale, shift, num_groups, norm_eps


def group_norm_silu(x: Tensor, norm: Norm, silu: bool = True) -> Tensor:
    """`reference.layers.group_norm_silu`, in one launch or in two."""
    *affine, num_groups, norm_eps = norm
    x, last = _images.readable(x)
    y = _outputs.empty(x.shape, x.dtype, x.device, channels_last=last)
    if y.numel():
        for launch in _forward(y, x, tuple(affine), num_groups, norm_eps, silu):
            launch.run()
    return y


def group_norm_silu_backward(
    grad_out: Tensor, x: Tensor, norm: Norm, silu: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`reference.layers.group_norm_silu_backward`, in two launches or in four."""
    *affine, num_groups, norm_eps = norm
    x, last = _images.readable(x)
    grad_x = _outputs.empty(x.shape, x.dtype, x.device, channels_last=last)
    grads = [None if given is None else _outputs.empty(given.shape, given.dtype, x.device) for given in affine]
    if grad_x.numel():
        for launch in _backward(grad_x, grads, grad_out, x, tuple(affine), num_groups, norm_eps, silu):
            launch.run()
    else:
        grads = [None if grad is None else grad.zero_() for grad in grads]  # sums over nothing
    return grad_x, *(x.new_empty(0) if grad is None else grad for grad in grads)  # type: ignore[return-value]


def sum_norm_silu_backward(grad_y: Tensor, total: Tensor, norm: Norm, grad_sum: Tensor | None, silu: bool = True) -> Tensor:
    """`reference.sums.sum_norm_silu_backward`, in one launch or in three."""
    *affine, num_groups, norm_eps = norm
    total, last = _images.readable(total)
    grad = _outputs.empty(total.shape, total.dtype, total.device, channels_last=last)
    if grad.numel():
        for launch in _backward(grad, None, grad_y, total, tuple(affine), num_groups, norm_eps, silu, grad_sum):
            launch.run()
    return grad


class _Norm:
    """One call: x cut into tiles, `tensors` of which a program holds at a time, and what every launch over them reads."""

    def __init__(self, x: Tensor, affine: Affine, num_groups: int, norm_eps: float, silu: bool, tensors: int) -> None:
        images, channels, height, width = x.shape
        self.x, self.pixels, (_, last) = x, height * width, _images.readable(x)
        tile = _tiles.group_norm(channels, self.pixels, num_groups, x.element_size(), last, tensors)
        self.chunks, self.num_warps = _tiles.cdiv(self.pixels, tile.pixels * tile.blocks), tile.num_warps
        self.programs = (images * _tiles.cdiv(num_groups, tile.groups) * self.chunks,)
        group = {"NUM_GROUPS": num_groups, "WIDTH": channels // num_groups, "PADDED": tile.padded, "GROUPS": tile.groups}
        self.cut = {**group, "PIXELS": tile.pixels, "BLOCKS": tile.blocks, "LAST": last, "WIDE": tile.wide}
        self.norm = {"CHUNKS": _tiles.power_of_two(self.chunks), "NORM_EPS": norm_eps, "SILU": silu}
        # Channels side by side, images as far apart as they are: scale and shift are often two halves of one tensor.
        self.affine = [given if given is None or given.stride(-1) == 1 else given.contiguous() for given in affine]
        self.moments = self.pairs(images, num_groups, self.chunks) if self.chunks > 1 else None
        # Of small groups terms cancel to the last digit, in groups of one element all of them: an unrounded product stays behind.
        self.fp_fusion = channels // num_groups * self.pixels >= _tiles.SMALL_GROUP

    def pairs(self, *shape: int) -> Tensor:
        """Two numbers each about parts of x."""
        return _outputs.empty((*shape, 2), torch.float64 if self.cut["WIDE"] else torch.float32, self.x.device)

    def before(self) -> list[Launch]:
        """The launch that takes the moments of every chunk, where groups are cut."""
        if self.moments is None:
            return []
        arguments = {"moments_ptr": self.moments, "x_ptr": self.x, "pixels": self.pixels, **self.cut}
        return [Launch(_moments_kernel, self.programs, arguments, self.num_warps)]

    def launch(self, kernel: Any, **tensors: Tensor | None) -> Launch:
        """A kernel that normalises; `tensors` are its own."""
        weight, bias, scale, shift = self.affine
        arguments = {
            **tensors,
            "x_ptr": self.x,
            "weight_ptr": weight,
            "bias_ptr": bias,
            "scale_ptr": scale,
            "shift_ptr": shift,
            "moments_ptr": self.moments,
            "scale_stride": _stride(scale),
            "shift_stride": _stride(shift),
            "pixels": self.pixels,
            **self.cut,
            **self.norm,
        }
        return Launch(kernel, self.programs, arguments, self.num_warps, fp_fusion=self.fp_fusion)

    def parameters(self, grads: list[Tensor | None], sums: Tensor) -> Launch:
        """The kernel that makes the gradients of weight, bias, scale and shift of the sums over pixels."""
        weight, bias, scale, _ = self.affine
        grad_weight, grad_bias, grad_scale, grad_shift = grads
        images, channels, _ = sums.shape
        tile = _tiles.over_images()
        arguments = {
            "grad_weight_ptr": grad_weight,
            "grad_bias_ptr": grad_bias,
            "grad_scale_ptr": grad_scale,
            "grad_shift_ptr": grad_shift,
            "sums_ptr": sums,
            "weight_ptr": weight,
            "bias_ptr": bias,
            "scale_ptr": scale,
            "scale_stride": _stride(scale),
            "images": images,
            "channels": channels,
            "IMAGES": tile.images,
            "CHANNELS": tile.channels,
        }
        return Launch(_parameters_kernel, (_tiles.cdiv(channels, tile.channels),), arguments, tile.num_warps)


def _stride(rows: Tensor | None) -> int:
    return 0 if rows is None else rows.stride(0)


def _forward(y: Tensor, x: Tensor, affine: Affine, num_groups: int, norm_eps: float, silu: bool) -> list[Launch]:
    norm = _Norm(x, affine, num_groups, norm_eps, silu, tensors=1)
    return [*norm.before(), norm.launch(_normalise_kernel, y_ptr=y)]


def _backward(
    grad_x: Tensor,
    grads: list[Tensor | None] | None,
    grad_out: Tensor,
    x: Tensor,
    affine: Affine,
    num_groups: int,
    norm_eps: float,
    silu: bool,
    grad_sum: Tensor | None = None,
) -> list[Launch]:
    """`grads` None: those of the parameters are not wanted."""
    norm = _Norm(x, affine, num_groups, norm_eps, silu, tensors=2)
    layout = torch.channels_last if norm.cut["LAST"] else torch.contiguous_format
    grad_out = grad_out.contiguous(memory_format=layout)
    grad_sum = None if grad_sum is None else grad_sum.contiguous(memory_format=layout)
    launches, parts, sums = norm.before(), None, None if grads is None else norm.pairs(*x.shape[:2])
    if norm.chunks > 1:
        parts = norm.pairs(*x.shape[:2], norm.chunks)
        launches.append(norm.launch(_sums_kernel, sums_ptr=parts, grad_out_ptr=grad_out))
    images = {"grad_x_ptr": grad_x, "grad_out_ptr": grad_out, "grad_sum_ptr": grad_sum}
    launches.append(norm.launch(_backward_kernel, **images, sums_ptr=sums, parts_ptr=parts))
    return launches if grads is None or sums is None else [*launches, norm.parameters(grads, sums)]


# Channels and pixels a side, of layers of the published networks: DDPM on CIFAR-10 (whole groups), ADM at 256x256 (chunks).
_CIFAR_10, _ADM = ((128, 32), (256, 16), (384, 32), (512, 4)), ((256, 256), (512, 128), (768, 64), (1024, 16), (2048, 8))


def variants() -> list[Variant]:
    """What is compiled ahead of time: both directions of these layers in bfloat16 and channels_last, some in float32 and NCHW."""
    found = []
    for shapes, modulated in ((_CIFAR_10, False), (_ADM, True)):
        for channels, size in shapes:
            x = torch.empty(2, channels, size, size, dtype=torch.bfloat16, device="meta")
            found += _both(x.contiguous(memory_format=torch.channels_last), modulated)
        found += _both(torch.empty(2, *shapes[0], shapes[0][1], device="meta"), modulated)
    found += [variant for dtype in (torch.float32, torch.float64) for variant in _of_single_elements(dtype)]
    return list({str(variant): variant for variant in found}.values())


def _both(x: Tensor, modulated: bool) -> list[Variant]:
    rows = torch.empty(len(x), 2 * x.shape[1], dtype=x.dtype, device="meta").chunk(2, dim=1) if modulated else (None, None)
    affine, grad = (*torch.empty(2, x.shape[1], device="meta"), *rows), torch.empty_like(x)
    forward = _forward(grad, x, affine, 32, 1e-5, True)
    backward = _backward(grad, list(affine), grad, x, affine, 32, 1e-5, True)
    backward += _backward(grad, None, grad, x, affine, 32, 1e-5, True, grad)
    return [launch.variant("group_norm_silu") for launch in forward] + [
        launch.variant("group_norm_silu_backward") for launch in backward
    ]


def _of_single_elements(dtype: torch.dtype) -> list[Variant]:
    """Groups of one element, whose gradient is 0."""
    x, line = torch.empty(1, 1, 1, 1, dtype=dtype, device="meta"), torch.empty(1, dtype=dtype, device="meta")
    launches = _backward(x, [line, line, None, None], x, x, (line, line, None, None), 1, 1e-5, silu=False)
    return [launch.variant("group_norm_silu_backward") for launch in launches if launch.kernel is _backward_kernel]
