"""purify::attention and its gradient (docs/math.md E18).

Stored [B, tokens, heads, head_dim] in every engine, so that what follows reads channels_last images without a copy.
"""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from purify_engine.ops import _check, _gradient, switches
from purify_engine.ops._registry import IN_PYTORCH, Launcher, call, define, forced
from purify_engine.ops._triton import kernel, triton
from purify_engine.reference import layers as reference

_TWO_PRODUCTS = "its matrix products are oneDNN's already, and the softmax between them is 1 % of a U-Net on a CPU"
_OURS = f"{IN_PYTORCH}, and its attention as a whole is switched off"
_NO_CUDA = "CUDA C++ has the ops without which the loop cannot run; attention's kernels are Triton's"


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v over [B, heads, tokens, head_dim]. Differentiable, any number of times."""
    return call(ATTENTION, q, k, v)


def attention_backward(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of `attention`: (grad_q, grad_k, grad_v)."""
    return call(ATTENTION_BACKWARD, grad_out, q, k, v)


def _check_attention(q: Tensor, k: Tensor, v: Tensor) -> None:
    """[B, heads, tokens, head_dim], all of one dtype; k and v of one shape."""
    if not q.is_floating_point() or q.dim() != 4:
        _check.refuse("q", "float [B, heads, tokens, head_dim]", q)
    if k.dtype != q.dtype or k.dim() != 4 or k.shape[:2] != q.shape[:2] or k.shape[3] != q.shape[3]:
        _check.refuse("k", f"like q, {_check.kind(q)}, but for its tokens", k)
    if v.dtype != k.dtype or v.shape != k.shape:
        _check.refuse("v", f"like k, {_check.kind(k)}", v)
    _check.same_device("k", k, q)
    _check.same_device("v", v, q)


def _check_attention_backward(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> None:
    _check_attention(q, k, v)
    _check.like("grad_out", grad_out, q, q.shape)


def _flops(q: list[int], k: list[int], v: list[int], *, out_shape: Any = None, **_: Any) -> int:
    """Two matrix products: scores, and their average of the values."""
    return 2 * 2 * math.prod(q) * k[2]


def _flops_backward(grad_out: list[int], q: list[int], k: list[int], v: list[int], *, out_shape: Any = None, **_: Any) -> int:
    """Five: the scores again, the gradient of the weights, and one for each of q, k, v."""
    return 5 * 2 * math.prod(q) * k[2]


def _library(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's own kernel, which reads and writes as it likes: no copy where that is [B, tokens, heads, head_dim]."""
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous().transpose(1, 2)


def _declines_library(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    return None if switches.runs("library_attention", q) and k.shape[2] and q.numel() else _OURS


def _declines_triton(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    if forced() != "triton" and _declines_library(q, k, v) is None:
        return "PyTorch's attention is switched on"
    return kernel("attention", "declines")(q, k)


ATTENTION_BACKWARD = define(
    "attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v) -> (Tensor, Tensor, Tensor)",
    reference.attention_backward,
    check=_check_attention_backward,
    gradient=_gradient.by_reference,
    flops=_flops_backward,
    torch=IN_PYTORCH,
    cpp=_TWO_PRODUCTS,
    cuda=_NO_CUDA,
    triton=triton(kernel("attention", "attention_backward"), lambda grad, q, k, v: kernel("attention", "declines")(q, k)),
)

ATTENTION = define(
    "attention(Tensor q, Tensor k, Tensor v) -> Tensor",
    reference.attention,
    check=_check_attention,
    gradient=_gradient.by_op(ATTENTION_BACKWARD),
    flops=_flops,
    torch=Launcher(_library, _declines_library),
    cpp=_TWO_PRODUCTS,
    cuda=_NO_CUDA,
    triton=triton(kernel("attention", "attention"), _declines_triton),
)
