"""purify::guided_step on GPUs. Specification: purify_engine/reference/process.py.

One pass, the noise drawn in registers. An element of float32, with eps, grad and the networks' copy in bfloat16, is 4 + 2 + 2
bytes read and 4 + 2 written. x_t is walked in NCHW order, the order of the noise; what is channels_last is read and written where
it lies, in strides of as many elements as there are channels: an image's programs run side by side, and the cache makes lines of
it. The sum is rounded once, for its terms may cancel: ten float64 instructions an element, once in a step of the networks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _images, _outputs, _philox, _tiles
from ._launch import Launch
from ._variants import Variant


@triton.jit
def _guided_step_kernel(
    x_next_ptr,
    x_net_ptr,
    x_t_ptr,
    eps_ptr,
    grad_ptr,
    rows_ptr,
    step_ptr,
    key_ptr,
    ids_ptr,
    num_rows,
    channels,
    pixels,
    EPS_LAST: tl.constexpr,
    GRAD_LAST: tl.constexpr,
    KEY_STRIDE: tl.constexpr,
    QUADS: tl.constexpr,
):
    DTYPE: tl.constexpr = x_t_ptr.dtype.element_ty
    numel = channels * pixels
    image, block, element = _images.tile(numel, QUADS)
    start, inside = image * numel, element < numel
    step = tl.load(step_ptr)
    x_t = tl.load(x_t_ptr + start + element, mask=inside).to(tl.float64)
    eps = tl.load(eps_ptr + start + _images.place(element, channels, pixels, EPS_LAST), mask=inside).to(tl.float64)
    key, id = tl.load(key_ptr + image * KEY_STRIDE), tl.load(ids_ptr + image)
    noise = _philox.normals(key, id, step, block, DTYPE).to(tl.float64)

    row, known = rows_ptr + 4 * step, (step >= 0) & (step < num_rows)
    a = tl.load(row, mask=known, other=float("nan"))  # a kernel cannot raise: a step beyond the plan gives NaN
    b, c = tl.load(row + 1, mask=known), tl.load(row + 3, mask=known)
    x_next = a * x_t + b * eps
    if grad_ptr is not None:
        grad = tl.load(grad_ptr + start + _images.place(element, channels, pixels, GRAD_LAST), mask=inside).to(tl.float64)
        x_next += tl.load(row + 2, mask=known) * grad
    x_next = (x_next + c * noise).to(DTYPE)
    tl.store(x_next_ptr + start + element, x_next, mask=inside)
    if x_net_ptr is not None:
        at = start + _images.place(element, channels, pixels, True)
        tl.store(x_net_ptr + at, _images.rounded(x_next, x_net_ptr.dtype.element_ty), mask=inside)


def guided_step(
    x_t: Tensor,
    eps: Tensor,
    grad: Tensor | None,
    rows: Tensor,
    step: Tensor,
    key: Tensor,
    ids: Tensor,
    *,
    net_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """`reference.process.guided_step`; a step beyond the plan gives NaN."""
    shape, device = x_t.shape, x_t.device
    x_next = _outputs.empty(shape, x_t.dtype, device)
    x_net = None if net_dtype is None else _outputs.empty(shape, net_dtype, device, channels_last=True)
    if x_next.numel():
        _launch(x_next, x_net, x_t, eps, grad, rows, step, key, ids).run()
    return x_next, x_next.new_empty(0) if x_net is None else x_net


def _launch(
    x_next: Tensor,
    x_net: Tensor | None,
    x_t: Tensor,
    eps: Tensor,
    grad: Tensor | None,
    rows: Tensor,
    step: Tensor,
    key: Tensor,
    ids: Tensor,
) -> Launch:
    images, channels, *size = x_t.shape
    pixels, tile = size[0] * size[1], _tiles.noise()
    eps, eps_last = _images.readable(eps)
    grad, grad_last = (None, False) if grad is None else _images.readable(grad)
    arguments = {
        "x_next_ptr": x_next,
        "x_net_ptr": x_net,
        "x_t_ptr": x_t.contiguous(),
        "eps_ptr": eps,
        "grad_ptr": grad,
        "rows_ptr": rows.contiguous(),
        "step_ptr": step,
        "key_ptr": key.contiguous(),
        "ids_ptr": ids.contiguous(),
        "num_rows": len(rows),
        "channels": channels,
        "pixels": pixels,
        "EPS_LAST": eps_last,
        "GRAD_LAST": grad_last,
        "KEY_STRIDE": key.dim(),
        "QUADS": tile.quads,
    }
    programs = _images.programs(images, channels * pixels, tile)
    return Launch(_guided_step_kernel, programs, arguments, tile.num_warps, fp_fusion=False)


def variants() -> list[Variant]:
    """What is compiled ahead of time: images of 3x32x32 and 3x256x256, networks in bfloat16 and float32, guided and not."""
    ids, scalar = (torch.empty(shape, dtype=torch.int64, device="meta") for shape in (1, ()))
    rows = torch.empty(70, 4, dtype=torch.float64, device="meta")
    found = []
    for size, net_dtype, guided in ((32, torch.bfloat16, True), (256, torch.bfloat16, False), (32, torch.float32, True)):
        x = torch.empty(1, 3, size, size, device="meta")
        net = x.to(net_dtype, memory_format=torch.channels_last, copy=True)
        launch = _launch(x, net, x, net, net if guided else None, rows, scalar, scalar, ids)
        found.append(launch.variant("guided_step"))
    return found
