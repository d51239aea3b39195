"""The C++ room: launchers that hand `purify_engine._C` bare pointers. A missing extension is fine, a broken one is an error.

A launcher makes its inputs contiguous and of one dtype, allocates what the kernel fills, and gives the result the layout that the
reference would have. The arguments were checked before (`checks.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from purify_engine.ops.registry import admits_cpp, is_observed, is_plain
from purify_engine.ops.rooms import enter
from purify_engine.reference.layers import in_layout_of, is_channels_last

INTERFACE = 3  # of the extension that these launchers know how to call

room = enter("_C", INTERFACE)

Listener = Callable[[Callable[..., None], tuple[Any, ...]], None]

_thread = threading.local()


def launch(kernel: str, *arguments: Any) -> None:
    """Run a kernel of the room. Where it takes addresses, also inside of tuples, it is given tensors, or None for address 0."""
    function = getattr(room, kernel)
    function(*addressed(arguments))
    listener: Listener | None = getattr(_thread, "listener", None)
    if listener is not None:
        listener(function, arguments)


def addressed(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments, every tensor replaced by the address of its first element."""
    return tuple([_address(value) for value in arguments])


def _address(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.data_ptr()
    if value is None:
        return 0
    return addressed(value) if isinstance(value, tuple) else value


def takes(*tensors: Tensor) -> bool:
    """Whether float32 tensors on a CPU may go past PyTorch's dispatcher: no engine is forced against it, and nobody looks on."""
    fit = all(is_plain(tensor) and tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)
    return fit and admits_cpp() and (is_heard() or not is_observed())


def is_heard() -> bool:
    """Whether somebody listens to the launches of this thread."""
    return getattr(_thread, "listener", None) is not None


@contextmanager
def heard(listener: Listener) -> Iterator[None]:
    """Tell `listener` of every launch in this thread: (function of the room, arguments of `launch`), after it ran."""
    outer, _thread.listener = getattr(_thread, "listener", None), listener
    try:
        yield
    finally:
        _thread.listener = outer


def philox(key: Tensor, ids: Tensor, step: Tensor, numel: int) -> Tensor:
    """`reference.philox.philox` in C++."""
    out = empty((len(ids), numel), torch.int64)
    launch("philox", out, _batch(key, ids, step, numel))
    return out


def philox_normal(key: Tensor, ids: Tensor, step: Tensor, numel: int, *, dtype: torch.dtype) -> Tensor:
    """`reference.philox.philox_normal` in C++."""
    out = empty((len(ids), numel), dtype)
    launch(_named("philox_normal", dtype), out, _batch(key, ids, step, numel))
    return out


def q_sample(
    x_start: Tensor, marginal: Tensor, step: Tensor, key: Tensor, ids: Tensor, *, net_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """`reference.process.q_sample` in C++."""
    x_start, marginal = x_start.contiguous(), marginal.contiguous()
    x_t = empty(x_start.shape, x_start.dtype)
    batch = _batch(key, ids, step, x_start.shape[1:].numel())
    launch(_named("q_sample", x_t.dtype), x_t, x_start, marginal, batch)
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
    batch = _batch(key, ids, step, x_t.shape[1:].numel())
    launch(_named("guided_step", x_t.dtype), x_next, x_t, eps, grad, rows, len(rows), batch)
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
    affine = weight, bias, scale, shift
    if x.dtype == torch.float32 and is_channels_last(x):
        return group_norm_silu_last(x, None, affine, num_groups, norm_eps, silu)
    y = empty(x.shape, _computed_in(x))
    launch(_named("group_norm_silu", y.dtype), y, _norm(x, affine, num_groups, norm_eps, silu))
    return in_layout_of(x, y.to(x.dtype))


def group_norm_silu_last(
    x: Tensor, beside: Tensor | None, affine: tuple[Tensor | None, ...], num_groups: int, norm_eps: float, silu: bool
) -> Tensor:
    """The same of float32 channels_last images, the channels of `beside` [B, C', H, W] behind those of x."""
    batch, own, height, width = x.shape
    channels = own if beside is None else own + beside.shape[1]
    y = empty((batch, channels, height, width), torch.float32, torch.channels_last)
    norm = _norm(x, affine, num_groups, norm_eps, silu, torch.channels_last, channels)
    launch("group_norm_silu_last", y, norm, beside, own)
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
    dtype = _computed_in(x)
    grad_x = empty(x.shape, dtype)
    grads = [None if tensor is None else empty(tensor.shape, dtype) for tensor in affine]
    norm = _norm(x, affine, num_groups, norm_eps, silu)
    launch(_named("group_norm_silu_backward", dtype), grad_x, *grads, _plain(grad_out, dtype), norm)
    like_inputs = (
        x.new_empty(0) if grad is None else grad.to(tensor.dtype)  # type: ignore[union-attr]
        for grad, tensor in zip(grads, affine, strict=True)
    )
    return in_layout_of(x, grad_x.to(x.dtype)), *like_inputs  # type: ignore[return-value]


def empty(shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    """The one place where launchers allocate what kernels fill: a test poisons it here."""
    return torch.empty(shape, dtype=dtype, device="cpu", memory_format=layout)  # whatever the default device is


def _batch(key: Tensor, ids: Tensor, step: Tensor, numel: int) -> tuple[Any, ...]:
    """The noise arguments of a batch."""
    return len(ids), numel, key, step, ids.contiguous(), torch.get_num_threads()


def _norm(
    x: Tensor,
    affine: tuple[Tensor | None, ...],
    num_groups: int,
    norm_eps: float,
    silu: bool,
    layout: torch.memory_format = torch.contiguous_format,
    channels: int | None = None,
) -> tuple[Any, ...]:
    """The arguments of both directions of group_norm_silu; `channels` where x has not all of them."""
    dtype = _computed_in(x)
    plain = (None if tensor is None else _plain(tensor, dtype) for tensor in affine)
    batch, own, height, width = x.shape
    images = x.to(dtype).contiguous(memory_format=layout)
    return images, *plain, batch, channels or own, height * width, num_groups, norm_eps, silu, torch.get_num_threads()


def _computed_in(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _named(op: str, dtype: torch.dtype) -> str:
    return f"{op}_{str(dtype).removeprefix('torch.')}"


def _plain(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype).contiguous()


def _network_copy(x: Tensor, net_dtype: torch.dtype | None) -> Tensor:
    """The copy that the networks read: channels_last, in their dtype, sharing no memory with `x`."""
    return x.new_empty(0) if net_dtype is None else x.to(net_dtype, memory_format=torch.channels_last, copy=True)
