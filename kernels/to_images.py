"""purify::to_images on GPUs. Specification: purify_engine/reference/process.py.

One pass: 4 bytes read an element of float32, 1 written for bytes and 4 for floats, in either memory format.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _images, _outputs, _tiles
from ._launch import Launch
from ._variants import Variant


@triton.jit
def _to_images_kernel(out_ptr, x_ptr, numel, BLOCK: tl.constexpr):
    x_type: tl.constexpr = x_ptr.dtype.element_ty
    DTYPE: tl.constexpr = x_type if x_type.primitive_bitwidth == 64 else tl.float32
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = element < numel
    images = (tl.load(x_ptr + element, mask=inside).to(DTYPE) + 1) * 0.5
    images = tl.where(images < 0, 0.0, tl.where(images > 1, 1.0, images))  # NaN stays
    if out_ptr.dtype.element_ty == tl.uint8:
        beside: tl.constexpr = 2.0 ** (DTYPE.fp_mantissa_width)  # leaves no bit to a fraction: rounds half to even
        images = (images * 255 + beside) - beside
    tl.store(out_ptr + element, _images.rounded(images, out_ptr.dtype.element_ty), mask=inside)


def to_images(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`reference.process.to_images`."""
    x, last = _images.readable(x)
    out = _outputs.empty(x.shape, dtype, x.device, channels_last=last)
    if out.numel():
        _launch(out, x).run()
    return out


def _launch(out: Tensor, x: Tensor) -> Launch:
    tile = _tiles.elementwise()
    # One rounding for images * 255 + beside, and another byte than the reference's comes out where the product lies near a half.
    arguments = {"out_ptr": out, "x_ptr": x, "numel": x.numel(), "BLOCK": tile.block}
    return Launch(_to_images_kernel, (_tiles.cdiv(x.numel(), tile.block),), arguments, tile.num_warps, fp_fusion=False)


def variants() -> list[Variant]:
    """What is compiled ahead of time: float32 images of 3x256x256 as bytes and as floats."""
    x = torch.empty(1, 3, 256, 256, device="meta")
    return [_launch(x.to(dtype), x).variant("to_images") for dtype in (torch.uint8, torch.float32)]
