"""purify::residual_sum on GPUs. Specification: purify_engine/reference/sums.py.

One pass: in 16 bits 4 bytes read an element and 2 written, where PyTorch's passes one after the other read 6 and write 4. Every
operation is rounded to x's dtype, so that the result is theirs to the bit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _images, _outputs, _tiles
from ._launch import Launch
from ._variants import Variant


@triton.jit
def _residual_sum_kernel(
    out_ptr, x_ptr, bias_ptr, residual_ptr, numel, pixels,
    CHANNELS: tl.constexpr, GAIN: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    first = tl.program_id(0).to(tl.int64) * BLOCK
    element = first + tl.arange(0, BLOCK)
    inside = element < numel
    total = tl.load(x_ptr + element, mask=inside)
    if bias_ptr is not None:
        # In 32 bits, from the program's own first channel on: neighbours read neighbours.
        along = ((first % CHANNELS).to(tl.int32) + tl.arange(0, BLOCK)) % CHANNELS
        channel = along if LAST else element // pixels % CHANNELS
        if LAST and CHANNELS % 8 == 0:  # eight neighbours do not wrap, and are read by one access
            channel = tl.max_contiguous(tl.multiple_of(channel, 8), 8)
        bias = _images.rounded(tl.load(bias_ptr + channel), DTYPE)
        total = (total.to(tl.float32) + bias.to(tl.float32)).to(DTYPE)
    if residual_ptr is not None:
        residual = _images.rounded(tl.load(residual_ptr + element, mask=inside), DTYPE)
        total = (residual.to(tl.float32) + total.to(tl.float32)).to(DTYPE)
    if GAIN != 1:
        total = (total.to(tl.float32) * GAIN).to(DTYPE)
    tl.store(out_ptr + element, total, mask=inside)


def residual_sum(x: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, gain: float = 1.0) -> Tensor:
    """`reference.sums.residual_sum`, of 16 or 32 bits."""
    x, last = _images.readable(x)
    out = _outputs.empty(x.shape, x.dtype, x.device, channels_last=last)
    if out.numel():
        layout = torch.channels_last if last else torch.contiguous_format
        residual = None if residual is None else residual.contiguous(memory_format=layout)
        _launch(out, x, None if bias is None else bias.contiguous(), residual, gain, last).run()
    return out


def _launch(out: Tensor, x: Tensor, bias: Tensor | None, residual: Tensor | None, gain: float, last: bool) -> Launch:
    tile = _tiles.elementwise()
    arguments = {
        "out_ptr": out,
        "x_ptr": x,
        "bias_ptr": bias,
        "residual_ptr": residual,
        "numel": x.numel(),
        "pixels": x.shape[2] * x.shape[3],
        "CHANNELS": x.shape[1],
        "GAIN": float(gain),
        "LAST": last,
        "BLOCK": tile.block,
    }
    return Launch(_residual_sum_kernel, (_tiles.cdiv(x.numel(), tile.block),), arguments, tile.num_warps)


def variants() -> list[Variant]:
    """What is compiled ahead of time: what a U-Net resamples, in bfloat16 and channels_last, with DDPM++'s gain and without."""
    found = []
    for channels, size, gain in ((128, 32, 1.0), (256, 8, 1.0), (256, 16, 0.5**0.5)):
        x = torch.empty(2, channels, size, size, dtype=torch.bfloat16, device="meta")
        x, bias = x.contiguous(memory_format=torch.channels_last), x.new_empty(channels)
        found.append(_launch(x, x, bias, x, gain, True).variant("residual_sum"))
    return found
