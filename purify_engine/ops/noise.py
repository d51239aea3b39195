"""purify::philox and purify::philox_normal: the random words and the normals of every image (docs/math.md E5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from purify_engine.config import require
from purify_engine.ops import _check, _cuda, _extension
from purify_engine.ops._registry import IN_PYTORCH, call, define
from purify_engine.ops._triton import kernel, triton
from purify_engine.reference import philox as reference
from purify_engine.types import Ids, Key, Step

EXACT = (torch.float32, torch.float64)  # what normals are drawn in


def philox(key: Key, ids: Ids, step: Step, numel: int) -> Tensor:
    """The random words of `numel` elements of each image: int64 [B, numel] in [0, 2**32) (docs/math.md E5).

    `key`, here and in all ops that draw, is the seed of all images, or int64 [B], one for each; `ids` is int64 [B].
    """
    return call(PHILOX, key, ids, step, numel)


def philox_normal(key: Key, ids: Ids, step: Step, numel: int, *, dtype: torch.dtype) -> Tensor:
    """Standard normals of `numel` elements of each image: [B, numel] in float32 or float64 (docs/math.md E5)."""
    return call(PHILOX_NORMAL, key, ids, step, numel, dtype=dtype)


def check(key: Tensor, ids: Tensor, step: Tensor, numel: int, *, dtype: torch.dtype = torch.float32) -> None:
    """int64 key without dimensions or [B], int64 step without dimensions, int64 ids [B]."""
    for name, tensor, dims in (("step", step, 0), ("ids", ids, 1)):
        if tensor.dtype != torch.int64 or tensor.dim() != dims:
            _check.refuse(name, f"int64 with {dims} dimensions", tensor)
        _check.same_device(name, tensor, ids)
    if key.dtype != torch.int64 or (key.dim() and key.shape != ids.shape):
        _check.refuse("key", f"int64 [], or {list(ids.shape)}, one for each image", key)
    _check.same_device("key", key, ids)
    require(numel >= 0, "numel", "at least 0", numel)
    require(dtype in EXACT, "dtype", "torch.float32 or torch.float64", dtype)


def check_for(x: Tensor, step: Tensor, key: Tensor, ids: Tensor) -> None:
    """The noise arguments for the images `x`."""
    check(key, ids, step, 0)
    if ids.shape != x.shape[:1]:
        _check.refuse("ids", f"int64 [{x.shape[0]}], one for each image", ids)
    _check.same_device("ids", ids, x)


def batch_cpp(key: Tensor, ids: Tensor, step: Tensor, numel: int) -> tuple[Any, ...]:
    """The noise arguments of a batch, for the C++ extension."""
    return len(ids), numel, with_stride(key, key), step, ids.contiguous(), torch.get_num_threads()


def philox_cpp(key: Tensor, ids: Tensor, step: Tensor, numel: int) -> Tensor:
    out = _extension.empty((len(ids), numel), torch.int64)
    _extension.launch("philox", out, batch_cpp(key, ids, step, numel))
    return out


def philox_normal_cpp(key: Tensor, ids: Tensor, step: Tensor, numel: int, *, dtype: torch.dtype) -> Tensor:
    out = _extension.empty((len(ids), numel), dtype)
    _extension.launch(_extension.named("philox_normal", dtype), out, batch_cpp(key, ids, step, numel))
    return out


def with_stride(key: Tensor, given: Any) -> Any:
    """A key as the extensions take it: `given` alone where all images share it, else with what leads to the next image's."""
    return (given, key.stride(0)) if key.dim() else given


class BatchCuda:
    """The noise arguments of a batch, for the CUDA extension; kept alive until the kernel is queued."""

    def __init__(self, key: Tensor, ids: Tensor, step: Tensor, channels: int, pixels: int) -> None:
        self._alive = key, step, ids = key, step, ids.contiguous()
        self.arguments = (len(ids), channels, pixels, with_stride(key, key.data_ptr()), step.data_ptr(), ids.data_ptr())


def philox_cuda(key: Tensor, ids: Tensor, step: Tensor, numel: int) -> Tensor:
    out = _cuda.empty((len(ids), numel), torch.int64, ids.device)
    batch = BatchCuda(key, ids, step, 1, numel)
    if out.numel():
        _cuda.launch("philox", ids.device, out.data_ptr(), batch.arguments)
    return out


def philox_normal_cuda(key: Tensor, ids: Tensor, step: Tensor, numel: int, *, dtype: torch.dtype) -> Tensor:
    out = _cuda.empty((len(ids), numel), dtype, ids.device)
    batch = BatchCuda(key, ids, step, 1, numel)
    if out.numel():
        _cuda.launch("philox_normal", ids.device, _cuda.images(out), batch.arguments)
    return out


def _declines_cuda(key: Tensor, ids: Tensor, step: Tensor, numel: int, *, dtype: torch.dtype | None = None) -> str | None:
    return _cuda.TOO_LARGE if numel >= _cuda.MOST_ELEMENTS else None


PHILOX = define(
    "philox(Tensor key, Tensor ids, Tensor step, SymInt numel) -> Tensor",
    reference.philox,
    check=check,
    torch=IN_PYTORCH,
    cpp=_extension.cpp(philox_cpp),
    cuda=_cuda.cuda(philox_cuda, _declines_cuda),
    triton=triton(kernel("philox", "philox")),
)

PHILOX_NORMAL = define(
    "philox_normal(Tensor key, Tensor ids, Tensor step, SymInt numel, *, ScalarType dtype) -> Tensor",
    reference.philox_normal,
    check=check,
    torch=IN_PYTORCH,
    cpp=_extension.cpp(philox_normal_cpp),
    cuda=_cuda.cuda(philox_normal_cuda, _declines_cuda),
    triton=triton(kernel("philox", "philox_normal")),
)
