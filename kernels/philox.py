"""purify::philox and purify::philox_normal on GPUs. Specification: purify_engine/reference/philox.py.

Nothing is read: 8 bytes written an element for words, 4 or 8 for normals.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _images, _outputs, _philox, _tiles
from ._launch import Launch
from ._variants import Variant


@triton.jit
def _philox_kernel(out_ptr, key_ptr, ids_ptr, step_ptr, numel, KEY_STRIDE: tl.constexpr, QUADS: tl.constexpr):
    """Words where `out` is int64, normals where it is float32 or float64."""
    image, block, element = _images.tile(numel, QUADS)
    key, id, step = tl.load(key_ptr + image * KEY_STRIDE), tl.load(ids_ptr + image), tl.load(step_ptr)
    if out_ptr.dtype.element_ty == tl.int64:
        w0, w1, w2, w3 = _philox.words(key, id, step, block)
        drawn = _philox.interleaved(w0, w1, w2, w3)
    else:
        drawn = _philox.normals(key, id, step, block, out_ptr.dtype.element_ty)
    tl.store(out_ptr + image * numel + element, drawn, mask=element < numel)


def philox(key: Tensor, ids: Tensor, step: Tensor, numel: int) -> Tensor:
    """`reference.philox.philox`: int64 [B, numel] in [0, 2**32)."""
    return _drawn(key, ids, step, numel, torch.int64)


def philox_normal(key: Tensor, ids: Tensor, step: Tensor, numel: int, *, dtype: torch.dtype) -> Tensor:
    """`reference.philox.philox_normal`: [B, numel] in float32 or float64."""
    return _drawn(key, ids, step, numel, dtype)


def _drawn(key: Tensor, ids: Tensor, step: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
    out = _outputs.empty((len(ids), numel), dtype, ids.device)
    if out.numel():
        _launch(out, key, ids, step).run()
    return out


def _launch(out: Tensor, key: Tensor, ids: Tensor, step: Tensor) -> Launch:
    images, numel = out.shape
    tile = _tiles.noise()
    pointers = {"out_ptr": out, "key_ptr": key.contiguous(), "ids_ptr": ids.contiguous(), "step_ptr": step}
    arguments = {**pointers, "numel": numel, "KEY_STRIDE": key.dim(), "QUADS": tile.quads}
    return Launch(_philox_kernel, _images.programs(images, numel, tile), arguments, tile.num_warps, fp_fusion=False)


def variants() -> list[Variant]:
    """What is compiled ahead of time: words, and normals of both precisions, for images of 3x32x32."""
    ids, scalar = (torch.empty(shape, dtype=torch.int64, device="meta") for shape in (1, ()))
    kinds = {"philox": [torch.int64], "philox_normal": [torch.float32, torch.float64]}
    outs = [(op, torch.empty(1, 3072, dtype=dtype, device="meta")) for op, dtypes in kinds.items() for dtype in dtypes]
    return [_launch(out, scalar, ids, scalar).variant(op) for op, out in outs]
