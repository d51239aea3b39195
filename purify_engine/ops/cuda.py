"""The CUDA C++ room: launchers that hand `purify_engine._cuda` device pointers and torch's current stream.

A missing extension is fine, a broken one is an error. A launcher hands its inputs over in the layout and the precision they come
in wherever the kernels read those, allocates what the kernels fill, and never looks at a number on the device. What they do not
take (8-bit floats, an image or a group of 2**30 elements) it leaves to the next engine.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from purify_engine.ops.rooms import enter
from purify_engine.reference.layers import in_layout_of, is_channels_last

INTERFACE = 1  # of the extension that these launchers know how to call

_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}  # csrc/cuda/ops.h
_MOST_ELEMENTS = 2**30  # of an image, or of a group: the kernels count them in 32 bits
_MOST_CHANNELS = 256  # of a group that is read in channels_last: a block spans a pixel of it

Images = tuple[int, int, bool]
Channels = tuple[int, int, int]

room = enter("_cuda", INTERFACE)


def philox(key: Tensor, ids: Tensor, step: Tensor, numel: int) -> Tensor:
    """`reference.philox.philox` in CUDA."""
    if numel >= _MOST_ELEMENTS:
        return NotImplemented
    out, batch = empty((len(ids), numel), torch.int64, ids.device), _Batch(key, ids, step, 1, numel)
    if out.numel():
        launch("philox", ids.device, out.data_ptr(), batch.arguments)
    return out


def philox_normal(key: Tensor, ids: Tensor, step: Tensor, numel: int, *, dtype: torch.dtype) -> Tensor:
    """`reference.philox.philox_normal` in CUDA."""
    if numel >= _MOST_ELEMENTS:
        return NotImplemented
    out, batch = empty((len(ids), numel), dtype, ids.device), _Batch(key, ids, step, 1, numel)
    if out.numel():
        launch("philox_normal", ids.device, _images(out), batch.arguments)
    return out


def q_sample(
    x_start: Tensor, marginal: Tensor, step: Tensor, key: Tensor, ids: Tensor, *, net_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """`reference.process.q_sample` in CUDA."""
    if not _takes(x_start, net_dtype):
        return NotImplemented
    x_start, marginal = x_start.contiguous(), marginal.contiguous()
    x_t, x_net = _outputs(x_start, net_dtype)
    batch = _Batch(key, ids, step, x_t.shape[1], x_t.shape[2:].numel())
    if x_t.numel():
        images = (_images(tensor) for tensor in (x_t, x_net, x_start))
        launch("q_sample", x_t.device, *images, marginal.data_ptr(), batch.arguments)
    return x_t, x_net


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
    """`reference.process.guided_step` in CUDA, but that a step beyond the plan makes NaN: the host never learns the step."""
    if not _takes(x_t, net_dtype):
        return NotImplemented
    x_t, rows, given = x_t.contiguous(), rows.contiguous(), _common_dtype(x_t, eps, grad)
    eps, grad = _dense(eps.to(given)), None if grad is None else _dense(grad.to(given))
    x_next, x_net = _outputs(x_t, net_dtype)
    batch = _Batch(key, ids, step, x_t.shape[1], x_t.shape[2:].numel())
    if x_t.numel():
        images = (_images(tensor) for tensor in (x_next, x_net, x_t, eps, grad))
        launch("guided_step", x_t.device, *images, rows.data_ptr(), len(rows), batch.arguments)
    return x_next, x_net


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    num_groups: int,
    norm_eps: float,
    silu: bool = True,
) -> Tensor:
    """`reference.layers.group_norm_silu` in CUDA."""
    affine = (weight, bias, scale, shift)
    if not _Norm.takes(x, affine, num_groups):
        return NotImplemented
    norm = _Norm(x, affine, num_groups, norm_eps, silu)
    y = norm.empty_images()
    if x.numel():
        arguments = norm.arguments(y)
        workspace = norm.workspace(room.group_norm_silu_workspace(arguments))  # type: ignore[union-attr]
        launch("group_norm_silu", x.device, y.data_ptr(), workspace.data_ptr(), arguments)
    return in_layout_of(x, y)


def group_norm_silu_backward(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    num_groups: int,
    norm_eps: float,
    silu: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`reference.layers.group_norm_silu_backward` in CUDA."""
    affine = (weight, bias, scale, shift)
    if not _Norm.takes(x, affine, num_groups):
        return NotImplemented
    norm = _Norm(x, affine, num_groups, norm_eps, silu)
    grad_out = grad_out.to(x.dtype).contiguous(memory_format=norm.format)
    grad_x = norm.empty_images()
    grads = [x.new_empty(0) if tensor is None else empty(tensor.shape, tensor.dtype, x.device) for tensor in affine]
    if x.numel():
        arguments = norm.arguments(grad_x, grad_out)
        workspace = norm.workspace(room.group_norm_silu_backward_workspace(arguments))  # type: ignore[union-attr]
        targets = (grad_x.data_ptr(), *(_channels(tensor) for tensor in grads))
        launch("group_norm_silu_backward", x.device, targets, workspace.data_ptr(), grad_out.data_ptr(), arguments)
    else:
        grads = [torch.zeros_like(grad) for grad in grads]
    return in_layout_of(x, grad_x), *grads  # type: ignore[return-value]


def empty(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, memory_format: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """The one place where launchers allocate what kernels fill: a test poisons it here."""
    return torch.empty(shape, dtype=dtype, device=device, memory_format=memory_format)


def launch(kernel: str, device: torch.device, *arguments: Any) -> None:
    """Queue a kernel of the extension on the device's current stream. If that fails it is a RuntimeError with the op's name."""
    with torch.cuda.device(device):
        getattr(room, kernel)(torch.cuda.current_stream().cuda_stream, *arguments)


class _Batch:
    """The noise arguments of a batch, kept alive until the kernel is queued."""

    def __init__(self, key: Tensor, ids: Tensor, step: Tensor, channels: int, pixels: int) -> None:
        self._alive = key, step, ids = key, step, ids.contiguous()
        self.arguments = (len(ids), channels, pixels, key.data_ptr(), step.data_ptr(), ids.data_ptr())


class _Norm:
    """The arguments of both directions of group_norm_silu: x in its own dtype, the rest in that or in the arithmetic's."""

    def __init__(self, x: Tensor, affine: tuple[Tensor | None, ...], num_groups: int, norm_eps: float, silu: bool) -> None:
        batch, channels, *pixels = x.shape
        native = is_channels_last(x) and channels // num_groups <= _MOST_CHANNELS
        self.format = torch.channels_last if native else torch.contiguous_format
        self.work = torch.float64 if x.dtype == torch.float64 else torch.float32
        self._x = x.contiguous(memory_format=self.format)
        self._affine = [None if tensor is None else self._plain(tensor) for tensor in affine]
        self._rest = (batch, channels, torch.Size(pixels).numel(), num_groups, norm_eps, silu)

    @staticmethod
    def takes(x: Tensor, affine: tuple[Tensor | None, ...], num_groups: int) -> bool:
        known = all(tensor is None or tensor.dtype in _CODES for tensor in (x, *affine))
        return known and x.shape[1:].numel() // num_groups < _MOST_ELEMENTS

    def _plain(self, tensor: Tensor) -> Tensor:
        """Numbers that lie side by side within an image, in a dtype that the kernels read."""
        tensor = tensor if tensor.dtype in (self._x.dtype, self.work) else tensor.to(self.work)
        return tensor if tensor.stride(-1) == 1 else tensor.contiguous()

    def empty_images(self) -> Tensor:
        return empty(self._x.shape, self._x.dtype, self._x.device, self.format)

    def workspace(self, size: int) -> Tensor:
        """Memory of this many bytes."""
        return empty(((size + 7) // 8,), torch.int64, self._x.device)

    def arguments(self, *others: Tensor) -> tuple[Any, ...]:
        """What the extension takes for a norm; `others` are the images besides x that the kernels touch."""
        aligned = not any(images.data_ptr() % 16 for images in (self._x, *others))
        return (_images(self._x), *(_channels(tensor) for tensor in self._affine), *self._rest, aligned)


def _takes(x: Tensor, net_dtype: torch.dtype | None) -> bool:
    return x.shape[1:].numel() < _MOST_ELEMENTS and (net_dtype is None or net_dtype in _CODES)


def _outputs(x: Tensor, net_dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """Where a kernel leaves images like `x`, and the channels_last copy of them that the networks read."""
    x_next = empty(x.shape, x.dtype, x.device)
    return x_next, x.new_empty(0) if net_dtype is None else empty(x.shape, net_dtype, x.device, torch.channels_last)


def _common_dtype(x_t: Tensor, eps: Tensor, grad: Tensor | None) -> torch.dtype:
    """What the kernel reads eps and grad in: as they come where they are of one dtype and no wider than x_t, else that of x_t."""
    as_they_come = x_t.dtype == torch.float32 and eps.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return eps.dtype if as_they_come and (grad is None or grad.dtype == eps.dtype) else x_t.dtype


def _dense(x: Tensor) -> Tensor:
    return x if is_channels_last(x) else x.contiguous()


def _images(x: Tensor | None) -> Images:
    return (0, 0, False) if x is None or not x.numel() else (x.data_ptr(), _CODES[x.dtype], x.dim() == 4 and is_channels_last(x))


def _channels(values: Tensor | None) -> Channels:
    """[C] or [B, C]."""
    if values is None or not values.numel():
        return 0, 0, 0
    return values.data_ptr(), _CODES[values.dtype], values.stride(0) if values.dim() == 2 else 0
