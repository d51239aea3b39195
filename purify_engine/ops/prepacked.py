"""Convolutions on CPUs that PyTorch leaves to oneDNN, by weights that were laid out for it beforehand, as compilers have them.

PyTorch lays out the weights afresh in each call, which for a single small image takes longer than the convolution. They are
packed on first use for the image sizes at hand, and again when the weight or the sizes change. The same convolution, by the same
library, of channels_last images, which is what its results are then.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input

from purify_engine.ops import cpp
from purify_engine.ops.stamp import Packings, is_frozen
from purify_engine.types import Images

_MKLDNN: Any = torch.ops.mkldnn
_packings = Packings()


def conv2d(x: Images, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...]) -> Images:
    """`F.conv2d`, by packed weights where they may be kept; differentiable any number of times."""
    if torch.compiler.is_compiling() or not _serves(x, weight, bias):
        return F.conv2d(x, weight, bias, stride, padding)
    if torch.is_grad_enabled() and x.requires_grad:
        return _Convolution.apply(x, weight, bias, stride, padding)
    return _convolved(x, weight, bias, stride, padding)


def _serves(x: Images, weight: Tensor, bias: Tensor | None) -> bool:
    constants = [weight] if bias is None else [weight, bias]
    return cpp.takes(x, *constants) and is_frozen(constants) and x.numel() > 0 and _fits(x)


def _fits(x: Images) -> bool:
    if x.is_inference() or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    wanted = torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled()
    return wanted and all(hasattr(_MKLDNN, f"_reorder_{kind}_weight") for kind in ("convolution", "convolution_transpose"))


class _Convolution(torch.autograd.Function):
    """Linear in x; the weight and the bias are constants."""

    @staticmethod
    def forward(
        ctx: Any, x: Images, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...]
    ) -> Images:
        ctx.save_for_backward(weight)
        ctx.how, ctx.shape = (stride, padding), x.shape
        return _convolved(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return _to_input(grad, weight, ctx.shape, *ctx.how), None, None, None, None


def _to_input(grad: Images, weight: Tensor, shape: torch.Size, stride: tuple[int, ...], padding: tuple[int, ...]) -> Images:
    """The gradient of a convolution to its input [B, C, H, W]."""
    if not _serves(grad, weight, None):
        return conv2d_input(shape, weight, grad, stride, padding)
    if torch.is_grad_enabled() and grad.requires_grad:
        return _Gradient.apply(grad, weight, shape, stride, padding)
    return _transposed(grad, weight, shape, stride, padding)


class _Gradient(torch.autograd.Function):
    """Linear in what arrives, its own gradient being the convolution."""

    @staticmethod
    def forward(
        ctx: Any, grad: Images, weight: Tensor, shape: torch.Size, stride: tuple[int, ...], padding: tuple[int, ...]
    ) -> Images:
        ctx.save_for_backward(weight)
        ctx.how = stride, padding
        return _transposed(grad, weight, shape, stride, padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return conv2d(grad, weight, None, *ctx.how), None, None, None, None


def _packed(weight: Tensor, kind: str, *sizes: Any) -> Tensor:
    """`weight` laid out by oneDNN's function for a kind of convolution; `sizes` are that function's, the image's at their end."""
    return _packings.of(weight, kind, lambda: getattr(_MKLDNN, f"_reorder_{kind}_weight")(weight.detach(), *sizes), sizes)


def _convolved(x: Images, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...]) -> Images:
    packed = _packed(weight, "convolution", padding, stride, (1, 1), 1, list(x.shape))
    return _MKLDNN._convolution_pointwise(x, packed, bias, padding, stride, (1, 1), 1, "none", [], "")


def _transposed(grad: Images, weight: Tensor, shape: torch.Size, stride: tuple[int, ...], padding: tuple[int, ...]) -> Images:
    reached = ((out - 1) * step - 2 * pad for out, step, pad in zip(grad.shape[2:], stride, padding, strict=True))
    beyond = [size - there - taps for size, there, taps in zip(shape[2:], reached, weight.shape[2:], strict=True)]
    packed = _packed(weight, "convolution_transpose", padding, beyond, stride, (1, 1), 1, list(grad.shape))
    return _MKLDNN._convolution_transpose_pointwise(grad, packed, None, padding, beyond, stride, (1, 1), 1, "none", [], "")
