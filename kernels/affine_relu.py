"""purify::affine_relu and its gradient on GPUs. Specification: purify_engine/reference/layers.py.

One pass each way between the blocks of a residual classifier. Forward it reads two images and writes two, 8 bytes an element in
16 bits, where the passes one after the other take 14; backward it reads three and writes one. Products and sums are float32, and
the sum is rounded before the line is taken of it, since that is what the next sum reads.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _images, _outputs, _tiles
from ._launch import Launch
from ._variants import Variant


@triton.jit
def _of_channel(values_ptr, first, element, pixels, CHANNELS: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr):
    """The value of every element's channel, float32."""
    # In 32 bits, from the program's own first channel on: neighbours read neighbours.
    along = ((first % CHANNELS).to(tl.int32) + tl.arange(0, BLOCK)) % CHANNELS
    channel = along if LAST else element // pixels % CHANNELS
    if LAST and CHANNELS % 8 == 0:  # eight neighbours do not wrap, and are read by one access
        channel = tl.max_contiguous(tl.multiple_of(channel, 8), 8)
    return tl.load(values_ptr + channel).to(tl.float32)


@triton.jit
def _affine_relu_kernel(
    sum_ptr, y_ptr, x_ptr, slope_ptr, offset_ptr, residual_ptr, numel, pixels,
    CHANNELS: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    first = tl.program_id(0).to(tl.int64) * BLOCK
    element = first + tl.arange(0, BLOCK)
    inside = element < numel
    total = tl.load(x_ptr + element, mask=inside)
    if residual_ptr is not None:
        residual = _images.rounded(tl.load(residual_ptr + element, mask=inside), DTYPE)
        total = (residual.to(tl.float32) + total.to(tl.float32)).to(DTYPE)
        tl.store(sum_ptr + element, total, mask=inside)
    slope = _of_channel(slope_ptr, first, element, pixels, CHANNELS, LAST, BLOCK)
    offset = _of_channel(offset_ptr, first, element, pixels, CHANNELS, LAST, BLOCK)
    y = total.to(tl.float32) * slope + offset
    tl.store(y_ptr + element, tl.where(y < 0, 0.0, y).to(DTYPE), mask=inside)  # NaN stays


@triton.jit
def _affine_relu_backward_kernel(
    grad_ptr, grad_y_ptr, y_ptr, slope_ptr, grad_sum_ptr, numel, pixels,
    CHANNELS: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * BLOCK
    element = first + tl.arange(0, BLOCK)
    inside = element < numel
    y = tl.load(y_ptr + element, mask=inside).to(tl.float32)
    grad = tl.load(grad_y_ptr + element, mask=inside).to(tl.float32)
    grad = tl.where(y <= 0, 0.0, grad) * _of_channel(slope_ptr, first, element, pixels, CHANNELS, LAST, BLOCK)
    if grad_sum_ptr is not None:
        grad += tl.load(grad_sum_ptr + element, mask=inside).to(tl.float32)
    tl.store(grad_ptr + element, grad.to(grad_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _masked_sum_kernel(out_ptr, one_ptr, other_ptr, y_ptr, numel, BLOCK: tl.constexpr):
    """Rounded as PyTorch does, one operation after the other: the same bits."""
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = element < numel
    one, other = tl.load(one_ptr + element, mask=inside), tl.load(other_ptr + element, mask=inside)
    total = (one.to(tl.float32) + other.to(tl.float32)).to(out_ptr.dtype.element_ty)
    y = tl.load(y_ptr + element, mask=inside).to(tl.float32)
    tl.store(out_ptr + element, tl.where(y <= 0, 0.0, total), mask=inside)


def affine_relu(x: Tensor, slope: Tensor, offset: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`reference.layers.affine_relu`, of 16 or 32 bits."""
    x, last = _images.readable(x)
    y = _outputs.empty(x.shape, x.dtype, x.device, channels_last=last)
    total = None if residual is None else _outputs.empty(x.shape, x.dtype, x.device, channels_last=last)
    if y.numel():
        _forward(total, y, x, slope, offset, _stored_as(residual, last), last).run()
    return x.new_empty(0) if total is None else total, y


def affine_relu_backward(grad_y: Tensor, y: Tensor, slope: Tensor, grad_sum: Tensor | None = None) -> Tensor:
    """`reference.layers.affine_relu_backward`, of 16 or 32 bits."""
    y, last = _images.readable(y)
    grad = _outputs.empty(y.shape, grad_y.dtype, y.device, channels_last=last)
    if grad.numel():
        grad_y = grad_y.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        _backward(grad, grad_y, y, slope, _stored_as(grad_sum, last), last).run()
    return grad


def masked_sum(one: Tensor, other: Tensor, y: Tensor) -> Tensor:
    """one + other where y > 0, else 0; all of one shape and dtype, of 16 or 32 bits."""
    y, last = _images.readable(y)
    out = _outputs.empty(y.shape, one.dtype, y.device, channels_last=last)
    if out.numel():
        layout = torch.channels_last if last else torch.contiguous_format
        _masked_sum(out, one.contiguous(memory_format=layout), other.contiguous(memory_format=layout), y).run()
    return out


def _masked_sum(out: Tensor, one: Tensor, other: Tensor, y: Tensor) -> Launch:
    tile = _tiles.elementwise()
    arguments = {"out_ptr": out, "one_ptr": one, "other_ptr": other, "y_ptr": y, "numel": y.numel(), "BLOCK": tile.block}
    return Launch(_masked_sum_kernel, (_tiles.cdiv(y.numel(), tile.block),), arguments, tile.num_warps)


def _stored_as(images: Tensor | None, last: bool) -> Tensor | None:
    return None if images is None else images.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _forward(
    total: Tensor | None, y: Tensor, x: Tensor, slope: Tensor, offset: Tensor, residual: Tensor | None, last: bool
) -> Launch:
    arguments = {"sum_ptr": total, "y_ptr": y, "x_ptr": x, "slope_ptr": slope.contiguous()}
    return _launch(_affine_relu_kernel, {**arguments, "offset_ptr": offset.contiguous(), "residual_ptr": residual}, x, last)


def _backward(grad: Tensor, grad_y: Tensor, y: Tensor, slope: Tensor, grad_sum: Tensor | None, last: bool) -> Launch:
    arguments = {"grad_ptr": grad, "grad_y_ptr": grad_y, "y_ptr": y, "slope_ptr": slope.contiguous(), "grad_sum_ptr": grad_sum}
    return _launch(_affine_relu_backward_kernel, arguments, y, last)


def _launch(kernel: object, tensors: dict[str, Tensor | None], x: Tensor, last: bool) -> Launch:
    tile = _tiles.elementwise()
    sizes = {"numel": x.numel(), "pixels": x.shape[2] * x.shape[3], "CHANNELS": x.shape[1], "LAST": last, "BLOCK": tile.block}
    return Launch(kernel, (_tiles.cdiv(x.numel(), tile.block),), {**tensors, **sizes}, tile.num_warps)


def variants() -> list[Variant]:
    """What is compiled ahead of time: WRN-28-10's stages in bfloat16 and channels_last, with a sum to write and without."""
    found = []
    for channels, size in ((160, 32), (320, 16), (640, 8)):
        x = torch.empty(2, channels, size, size, dtype=torch.bfloat16, device="meta")
        x, values = x.contiguous(memory_format=torch.channels_last), x.new_empty(channels)
        for other in (x, None):
            found.append(_forward(other, x, x, values, values, other, True).variant("affine_relu"))
            found.append(_backward(x, x, x, values, other, True).variant("affine_relu_backward"))
    return [*found, _masked_sum(x, x, x, x).variant("masked_sum")]
