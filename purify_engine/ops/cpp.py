"""The C++ room: launchers that hand `purify_engine._C` bare pointers. A missing extension is fine, a broken one is an error.

A launcher makes its inputs contiguous and of one dtype, allocates what the kernel fills, and gives the result the layout that the
reference would have. The arguments were checked before (`checks.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from purify_engine.ops.rooms import enter
from purify_engine.reference.layers import in_layout_of, is_channels_last

INTERFACE = 2  # of the extension that these launchers know how to call

room = enter("_C", INTERFACE)


def philox(key: Tensor, ids: Tensor, step: Tensor, numel: int) -> Tensor:
    """`reference.philox.philox` in C++."""
    out = empty((len(ids), numel), torch.int64)
    batch = _Batch(key, ids, step, numel)
    _kernel("philox")(out.data_ptr(), batch.arguments)
    return out


def philox_normal(key: Tensor, ids: Tensor, step: Tensor, numel: int, *, dtype: torch.dtype) -> Tensor:
    """`reference.philox.philox_normal` in C++."""
    out = empty((len(ids), numel), dtype)
    batch = _Batch(key, ids, step, numel)
    _kernel("philox_normal", dtype)(out.data_ptr(), batch.arguments)
    return out


def q_sample(
    x_start: Tensor, marginal: Tensor, step: Tensor, key: Tensor, ids: Tensor, *, net_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """`reference.process.q_sample` in C++."""
    x_start, marginal = x_start.contiguous(), marginal.contiguous()
    x_t = empty(x_start.shape, x_start.dtype)
    batch = _Batch(key, ids, step, x_start.shape[1:].numel())
    _kernel("q_sample", x_t.dtype)(x_t.data_ptr(), x_start.data_ptr(), marginal.data_ptr(), batch.arguments)
    return x_t, _network_copy(x_t, net_dtype)


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
    """`reference.process.guided_step` in C++."""
    x_t, eps, rows = x_t.contiguous(), _plain(eps, x_t.dtype), rows.contiguous()
    grad = None if grad is None else _plain(grad, x_t.dtype)
    x_next = empty(x_t.shape, x_t.dtype)
    batch = _Batch(key, ids, step, x_t.shape[1:].numel())
    pointers = (pointer(tensor) for tensor in (x_next, x_t, eps, grad, rows))
    _kernel("guided_step", x_t.dtype)(*pointers, len(rows), batch.arguments)
    return x_next, _network_copy(x_next, net_dtype)


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
    """`reference.layers.group_norm_silu` in C++, channels_last images as they are in float32."""
    if x.dtype == torch.float32 and is_channels_last(x):
        return _group_norm_silu_last(x, (weight, bias, scale, shift), num_groups, norm_eps, silu)
    norm = _Norm(x, (weight, bias, scale, shift), num_groups, norm_eps, silu)
    y = empty(x.shape, norm.dtype)
    _kernel("group_norm_silu", norm.dtype)(y.data_ptr(), norm.arguments)
    return in_layout_of(x, y.to(x.dtype))


def _group_norm_silu_last(
    x: Tensor, affine: tuple[Tensor | None, ...], num_groups: int, norm_eps: float, silu: bool
) -> Tensor:
    norm = _Norm(x, affine, num_groups, norm_eps, silu, torch.channels_last)
    y = empty(x.shape, torch.float32, torch.channels_last)
    _kernel("group_norm_silu_last")(y.data_ptr(), norm.arguments)
    return y


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
    """`reference.layers.group_norm_silu_backward` in C++."""
    affine = (weight, bias, scale, shift)
    norm = _Norm(x, affine, num_groups, norm_eps, silu)
    grad_out = _plain(grad_out, norm.dtype)
    grad_x = empty(x.shape, norm.dtype)
    grads = [None if tensor is None else empty(tensor.shape, norm.dtype) for tensor in affine]
    pointers = (pointer(tensor) for tensor in (grad_x, *grads, grad_out))
    _kernel("group_norm_silu_backward", norm.dtype)(*pointers, norm.arguments)
    like_inputs = (
        x.new_empty(0) if grad is None else grad.to(tensor.dtype)  # type: ignore[union-attr]
        for grad, tensor in zip(grads, affine, strict=True)
    )
    return in_layout_of(x, grad_x.to(x.dtype)), *like_inputs  # type: ignore[return-value]


def empty(shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    """The one place where launchers allocate what kernels fill: a test poisons it here."""
    return torch.empty(shape, dtype=dtype, memory_format=layout)


class _Batch:
    """The noise arguments of a batch, kept alive while the kernel reads them."""

    def __init__(self, key: Tensor, ids: Tensor, step: Tensor, numel: int) -> None:
        self._alive = key, step, ids = key, step, ids.contiguous()
        self.arguments = (len(ids), numel, key.data_ptr(), step.data_ptr(), ids.data_ptr(), torch.get_num_threads())


class _Norm:
    """The arguments of both directions of group_norm_silu, in float64 if `x` is, else in float32."""

    def __init__(
        self,
        x: Tensor,
        affine: tuple[Tensor | None, ...],
        num_groups: int,
        norm_eps: float,
        silu: bool,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        plain = [None if tensor is None else _plain(tensor, self.dtype) for tensor in affine]
        self._alive = [x.to(self.dtype).contiguous(memory_format=layout), *plain]
        pointers = (pointer(tensor) for tensor in self._alive)
        batch, channels, height, width = x.shape
        sizes = (batch, channels, height * width, num_groups)
        self.arguments = (*pointers, *sizes, norm_eps, silu, torch.get_num_threads())


def _kernel(op: str, dtype: torch.dtype | None = None) -> Any:
    return getattr(room, op if dtype is None else f"{op}_{str(dtype).removeprefix('torch.')}")


def _plain(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype).contiguous()


def pointer(tensor: Tensor | None) -> int:
    """Where a tensor's first element lies; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def _network_copy(x: Tensor, net_dtype: torch.dtype | None) -> Tensor:
    """The copy that the networks read: channels_last, in their dtype, sharing no memory with `x`."""
    return x.new_empty(0) if net_dtype is None else x.to(net_dtype, memory_format=torch.channels_last, copy=True)
