"""Convolutions on CPUs that PyTorch leaves to oneDNN, by weights that were laid out for it beforehand, as compilers have them.

PyTorch lays out the weights afresh in each call, which for a single small image takes longer than the convolution. They are
packed on first use for the image sizes at hand, and again when the weight or the sizes change. The same convolution, by the same
library, of channels_last images, which is what its results are then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input
from torch.utils.weak import WeakTensorKeyDictionary

from purify_engine.ops import cpp
from purify_engine.ops.registry import forced, is_observed
from purify_engine.ops.stamp import Stamp, is_frozen
from purify_engine.types import Images

_MKLDNN: Any = torch.ops.mkldnn
_PLAIN = (Tensor, torch.nn.Parameter)


def conv2d(x: Images, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...]) -> Images:
    """`F.conv2d`, by packed weights where they may be kept; differentiable any number of times."""
    if torch.compiler.is_compiling() or not _serves(x, weight, bias):
        return F.conv2d(x, weight, bias, stride, padding)
    if torch.is_grad_enabled() and x.requires_grad:
        return _Convolution.apply(x, weight, bias, stride, padding)
    return _convolved(x, weight, bias, stride, padding)


def _serves(x: Images, weight: Tensor, bias: Tensor | None) -> bool:
    tensors = [x, weight] if bias is None else [x, weight, bias]
    if any(type(tensor) not in _PLAIN or tensor.dtype != torch.float32 or tensor.device.type != "cpu" for tensor in tensors):
        return False
    usual = forced() in (None, "cpp", "fused") and (not is_observed() or cpp.is_heard())
    return usual and is_frozen(tensors[1:]) and x.numel() > 0 and _fits(x)


def _fits(x: Images) -> bool:
    if x.is_inference() or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    wanted = torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled()
    return wanted and hasattr(_MKLDNN, "_reorder_convolution_weight")


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
        return conv2d_input(ctx.shape, weight, grad, *ctx.how), None, None, None, None


@dataclass
class _Packing:
    """The weight of one convolution as oneDNN wants it for images of one shape."""

    made_of: Stamp
    sizes: tuple[object, ...]
    weight: Tensor


# weight -> the packing used last; dropped with the weight.
_packings: Any = WeakTensorKeyDictionary()


def _convolved(x: Images, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...]) -> Images:
    sizes, packing = (x.shape, stride, padding), _packings.get(weight)
    if packing is None or packing.sizes != sizes or not packing.made_of.still_of([weight]):
        laid_out = _MKLDNN._reorder_convolution_weight(weight.detach(), padding, stride, (1, 1), 1, list(x.shape))
        packing = _packings[weight] = _Packing(Stamp([weight]), sizes, laid_out)
    return _MKLDNN._convolution_pointwise(x, packing.weight, bias, padding, stride, (1, 1), 1, "none", [], "")
