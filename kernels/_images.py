"""How the kernels that draw noise walk over images, in NCHW order by whole blocks of four, and where an element lies."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._tiles import NoiseTile, cdiv


@triton.jit
def tile(numel, QUADS: tl.constexpr):
    """(image, counters [QUADS], elements [4 * QUADS]) of this program; the programs of one image are neighbours."""
    tiles = tl.cdiv(numel, 4 * QUADS)
    image, first = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles * QUADS
    return image, first + tl.arange(0, QUADS), 4 * first + tl.arange(0, 4 * QUADS)


@triton.jit
def place(element, channels, pixels, LAST: tl.constexpr):
    """Where an image stores an element (its index in NCHW order): there, or as channels_last has it."""
    return element % pixels * channels + element // pixels if LAST else element


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    """`x` in another precision, as PyTorch rounds it: from float64 to 16 bits by way of float32."""
    return (x.to(tl.float32) if DTYPE.primitive_bitwidth == 16 else x).to(DTYPE)


def readable(x: Tensor) -> tuple[Tensor, bool]:
    """`x` where a kernel can walk it as it lies, else a contiguous copy; and whether that is channels_last and not contiguous."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return (x if last else x.contiguous()), last


def programs(images: int, numel: int, tile: NoiseTile) -> tuple[int]:
    """The grid that `tile` expects over images of `numel` elements."""
    return (images * cdiv(numel, 4 * tile.quads),)
