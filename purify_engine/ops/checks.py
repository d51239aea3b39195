"""What the ops accept. Kernels work on bare pointers, so nothing gets past here that would make one read beyond a tensor.

The sentences are built for a refusal only: an op is called for every layer of every step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from purify_engine.config import require

_EXACT = (torch.float32, torch.float64)


def noise(key: Tensor, ids: Tensor, step: Tensor, numel: int, *, dtype: torch.dtype = torch.float32) -> None:
    """philox and philox_normal: int64 key and step without dimensions, int64 ids [B]."""
    for name, tensor, dims in (("key", key, 0), ("step", step, 0), ("ids", ids, 1)):
        if tensor.dtype != torch.int64 or tensor.dim() != dims:
            _refuse(name, f"int64 with {dims} dimensions", tensor)
        _beside(name, tensor, ids)
    require(numel >= 0, "numel", "at least 0", numel)
    require(dtype in _EXACT, "dtype", "torch.float32 or torch.float64", dtype)


def q_sample(
    x_start: Tensor, marginal: Tensor, step: Tensor, key: Tensor, ids: Tensor, *, net_dtype: torch.dtype | None = None
) -> None:
    """q_sample: float images, a float64 marginal [2], noise arguments for their batch."""
    if marginal.dtype != torch.float64 or marginal.shape != (2,):
        _refuse("marginal", "float64 [2]", marginal)
    _beside("marginal", marginal, x_start)
    _images("x_start", x_start, net_dtype)
    _noise_for(x_start, step, key, ids)


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
) -> None:
    """guided_step: eps and grad of the shape of x_t, float64 rows [N, 4], noise arguments for their batch."""
    if rows.dtype != torch.float64 or rows.dim() != 2 or rows.shape[1] != 4:
        _refuse("rows", "float64 [N, 4]", rows)
    _beside("rows", rows, x_t)
    _images("x_t", x_t, net_dtype)
    _like("eps", eps, x_t, x_t.shape)
    _like("grad", grad, x_t, x_t.shape)
    _noise_for(x_t, step, key, ids)


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    num_groups: int,
    norm_eps: float,
    silu: bool = True,
) -> None:
    """group_norm_silu: x [B, C, H, W], weight and bias [C], scale and shift [B, C], C a multiple of num_groups."""
    if not x.is_floating_point() or x.dim() != 4:
        _refuse("x", "float images [B, C, H, W]", x)
    batch, channels = x.shape[:2]
    _norm(x, channels, weight, bias, num_groups)
    _like("scale", scale, x, (batch, channels))
    _like("shift", shift, x, (batch, channels))


def side_by_side(x: Tensor, beside: Tensor, weight: Tensor, bias: Tensor, num_groups: int) -> None:
    """group_norm_silu of two images: x [B, C, H, W], beside [B, C', H, W], weight and bias [C + C']."""
    batch, own, *pixels = x.shape
    _like("beside", beside, x, (batch, beside.shape[1], *pixels))
    _norm(x, own + beside.shape[1], weight, bias, num_groups)


def group_norm_silu_backward(grad_out: Tensor, x: Tensor, *rest: object) -> None:
    """group_norm_silu_backward: what group_norm_silu accepts, and a gradient of the shape of x."""
    group_norm_silu(x, *rest)  # type: ignore[arg-type]
    _like("grad_out", grad_out, x, x.shape)


def attention(q: Tensor, k: Tensor, v: Tensor) -> None:
    """attention: [B, heads, tokens, head_dim], all of one dtype; k and v of one shape."""
    if not q.is_floating_point() or q.dim() != 4:
        _refuse("q", "float [B, heads, tokens, head_dim]", q)
    if k.dtype != q.dtype or k.dim() != 4 or k.shape[:2] != q.shape[:2] or k.shape[3] != q.shape[3]:
        _refuse("k", f"like q, {_kind(q)}, but for its tokens", k)
    if v.dtype != k.dtype or v.shape != k.shape:
        _refuse("v", f"like k, {_kind(k)}", v)
    _beside("k", k, q)
    _beside("v", v, q)


def attention_backward(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> None:
    """attention_backward: what attention accepts, and a gradient of the shape of q."""
    attention(q, k, v)
    _like("grad_out", grad_out, q, q.shape)


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    temb: Tensor | None = None,
    residual: Tensor | None = None,
    num_groups: int = 1,
    norm_eps: float = 1e-5,
    gain: float = 1.0,
    upsample: bool = False,
) -> None:
    """conv3x3: x [B, C, H, W], weight [K, C, 3, 3], the rest to match; norm_weight and norm_bias together."""
    if not x.is_floating_point() or x.dim() != 4:
        _refuse("x", "float images [B, C, H, W]", x)
    if weight.dim() != 4 or weight.shape[1:] != (x.shape[1], 3, 3):
        _refuse("weight", f"float [K, {x.shape[1]}, 3, 3]", weight)
    _like("weight", weight, x, weight.shape)
    if norm_weight is not None or norm_bias is not None:
        require(norm_weight is not None and norm_bias is not None, "norm_bias", "given with norm_weight", norm_bias)
        group_norm_silu(x, norm_weight, norm_bias, scale, shift, num_groups, norm_eps)  # type: ignore[arg-type]
    batch, _, height, width = x.shape
    channels, zoom = weight.shape[0], 2 if upsample else 1
    _like("bias", bias, x, (channels,))
    _like("temb", temb, x, (channels,) if temb is None else (1 if temb.shape[0] == 1 else batch, channels))
    _like("residual", residual, x, (batch, channels, zoom * height, zoom * width))


def conv3x3_backward(grad_out: Tensor, weight: Tensor, upsample: bool = False) -> None:
    """conv3x3_backward: grad_out [B, K, H, W], weight [K, C, 3, 3]; with upsample, H and W even."""
    if not grad_out.is_floating_point() or grad_out.dim() != 4:
        _refuse("grad_out", "float images [B, K, H, W]", grad_out)
    if weight.dim() != 4 or weight.shape[0] != grad_out.shape[1] or weight.shape[2:] != (3, 3):
        _refuse("weight", f"float [{grad_out.shape[1]}, C, 3, 3]", weight)
    _like("weight", weight, grad_out, weight.shape)
    if upsample and (grad_out.shape[2] % 2 or grad_out.shape[3] % 2):
        _refuse("grad_out", "of even height and width, being the gradient of an upsampled image", grad_out)


def relu_conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    slope: Tensor | None = None,
    offset: Tensor | None = None,
    residual: Tensor | None = None,
) -> None:
    """relu_conv3x3: what conv3x3 accepts, and a line for every channel of x; slope and offset together."""
    conv3x3(x, weight, bias, residual=residual)
    _line(x, slope, offset)


def relu_conv3x3_backward(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    slope: Tensor | None = None,
    offset: Tensor | None = None,
) -> None:
    """relu_conv3x3_backward: what conv3x3_backward accepts, and the x, slope and offset of relu_conv3x3."""
    conv3x3_backward(grad_out, weight)
    batch, _, height, width = grad_out.shape
    _like("x", x, grad_out, (batch, weight.shape[1], height, width))
    _line(x, slope, offset)


def to_images(x: Tensor, dtype: torch.dtype) -> None:
    """to_images: float x, to a float dtype or uint8."""
    if not x.is_floating_point():
        _refuse("x", "float images", x)
    require(dtype.is_floating_point or dtype == torch.uint8, "dtype", "a floating point dtype or torch.uint8", dtype)


def _norm(x: Tensor, channels: int, weight: Tensor, bias: Tensor, num_groups: int) -> None:
    if num_groups < 1 or channels % num_groups:
        require(False, "num_groups", f"a divisor of the {channels} channels", num_groups)
    _like("weight", weight, x, (channels,))
    _like("bias", bias, x, (channels,))


def _line(x: Tensor, slope: Tensor | None, offset: Tensor | None) -> None:
    if (slope is None) != (offset is None):
        require(False, "offset", "given with slope", None if offset is None else _kind(offset))
    _like("slope", slope, x, x.shape[1:2])
    _like("offset", offset, x, x.shape[1:2])


def _images(name: str, x: Tensor, net_dtype: torch.dtype | None) -> None:
    if x.dtype not in _EXACT or x.dim() != 4:
        _refuse(name, "float32 or float64 images [B, C, H, W]", x)
    require(net_dtype is None or net_dtype.is_floating_point, "net_dtype", "a floating point dtype or None", net_dtype)


def _noise_for(x: Tensor, step: Tensor, key: Tensor, ids: Tensor) -> None:
    noise(key, ids, step, 0)
    if ids.shape != x.shape[:1]:
        _refuse("ids", f"int64 [{x.shape[0]}], one for each image", ids)
    _beside("ids", ids, x)


def _like(name: str, tensor: Tensor | None, x: Tensor, shape: Sequence[int]) -> None:
    """A float tensor of this shape beside `x`, or none at all."""
    if tensor is None:
        return
    if not tensor.is_floating_point() or tensor.shape != shape:
        _refuse(name, f"float {list(shape)}", tensor)
    _beside(name, tensor, x)


def _beside(name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.device != x.device:
        require(False, name, f"on {x.device}, like the images", str(tensor.device))


def _refuse(name: str, allowed: str, tensor: Tensor) -> None:
    require(False, name, allowed, _kind(tensor))


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
