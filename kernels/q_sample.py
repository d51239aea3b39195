"""purify::q_sample on GPUs. Specification: purify_engine/reference/process.py.

One pass, the noise drawn in registers: 4 bytes read and 4 written an element of float32, and 2 more for a copy in bfloat16. The
sum is rounded once, as in guided_step.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _images, _outputs, _philox, _tiles
from ._launch import Launch
from ._variants import Variant


@triton.jit
def _q_sample_kernel(
    x_t_ptr,
    x_net_ptr,
    x_start_ptr,
    marginal_ptr,
    step_ptr,
    key_ptr,
    ids_ptr,
    channels,
    pixels,
    KEY_STRIDE: tl.constexpr,
    QUADS: tl.constexpr,
):
    DTYPE: tl.constexpr = x_start_ptr.dtype.element_ty
    numel = channels * pixels
    image, block, element = _images.tile(numel, QUADS)
    start, inside = image * numel, element < numel
    x_start = tl.load(x_start_ptr + start + element, mask=inside).to(tl.float64)
    key, id = tl.load(key_ptr + image * KEY_STRIDE), tl.load(ids_ptr + image)
    noise = _philox.normals(key, id, tl.load(step_ptr), block, DTYPE).to(tl.float64)

    signal, sigma = tl.load(marginal_ptr), tl.load(marginal_ptr + 1)
    x_t = (signal * x_start + sigma * noise).to(DTYPE)
    tl.store(x_t_ptr + start + element, x_t, mask=inside)
    if x_net_ptr is not None:
        at = start + _images.place(element, channels, pixels, True)
        tl.store(x_net_ptr + at, _images.rounded(x_t, x_net_ptr.dtype.element_ty), mask=inside)


def q_sample(
    x_start: Tensor, marginal: Tensor, step: Tensor, key: Tensor, ids: Tensor, *, net_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """`reference.process.q_sample`."""
    shape, device = x_start.shape, x_start.device
    x_t = _outputs.empty(shape, x_start.dtype, device)
    x_net = None if net_dtype is None else _outputs.empty(shape, net_dtype, device, channels_last=True)
    if x_t.numel():
        _launch(x_t, x_net, x_start, marginal, step, key, ids).run()
    return x_t, x_t.new_empty(0) if x_net is None else x_net


def _launch(
    x_t: Tensor, x_net: Tensor | None, x_start: Tensor, marginal: Tensor, step: Tensor, key: Tensor, ids: Tensor
) -> Launch:
    images, channels, *size = x_start.shape
    pixels, tile = size[0] * size[1], _tiles.noise()
    arguments = {
        "x_t_ptr": x_t,
        "x_net_ptr": x_net,
        "x_start_ptr": x_start.contiguous(),
        "marginal_ptr": marginal.contiguous(),
        "step_ptr": step,
        "key_ptr": key.contiguous(),
        "ids_ptr": ids.contiguous(),
        "channels": channels,
        "pixels": pixels,
        "KEY_STRIDE": key.dim(),
        "QUADS": tile.quads,
    }
    return Launch(_q_sample_kernel, _images.programs(images, channels * pixels, tile), arguments, tile.num_warps, fp_fusion=False)


def variants() -> list[Variant]:
    """What is compiled ahead of time: float32 images of 3x256x256, with a copy in bfloat16 and without one."""
    x, marginal = torch.empty(1, 3, 256, 256, device="meta"), torch.empty(2, dtype=torch.float64, device="meta")
    ids, scalar = (torch.empty(shape, dtype=torch.int64, device="meta") for shape in (1, ()))
    return [_launch(x, copy, x, marginal, scalar, scalar, ids).variant("q_sample") for copy in (x.bfloat16(), None)]
