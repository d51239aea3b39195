"""Convolutions that PyTorch computes: strided ones, 1x1 ones, those of other sizes. No ops of ours, but ways to call PyTorch.

A 1x1 convolution of channels_last images is a matrix product, on CPUs and, in 16 bits, on GPUs: cuBLASLt adds the bias in the
product's epilogue, where PyTorch adds that of a convolution in a pass of its own.

On CPUs a frozen convolution runs by weights that were laid out for oneDNN beforehand, as compilers have them. PyTorch lays out
the weights afresh in each call, which for a single small image takes longer than the convolution. They are packed on first use
for the image sizes at hand, and again when the weight or the sizes change. The same convolution, by the same library, of
channels_last images, which is what its results are then.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input

from purify_engine.ops import _bypass, autocast, switches
from purify_engine.ops._extension import are_launches_observed
from purify_engine.ops._packed import PackedWeights, is_frozen
from purify_engine.ops._registry import is_recorded, order
from purify_engine.ops._skip import are_read_apart, joined
from purify_engine.types import Images

_MKLDNN: Any = torch.ops.mkldnn
_packed_weights = PackedWeights()


def conv2d(
    x: Images, weight: Tensor, bias: Tensor | None = None, stride: tuple[int, ...] = (1, 1), padding: tuple[int, ...] = (0, 0)
) -> Images:
    """A convolution of any size and stride: PyTorch's, on CPUs by weights laid out beforehand where they are frozen.

    [B, C, H, W] and [K, C, R, S] -> [B, K, H', W']. Differentiable in every tensor, any number of times.
    """
    if weight.shape[2:] == (1, 1) and (stride, padding) == ((1, 1), (0, 0)):
        return conv1x1(x, weight, bias)
    if torch.compiler.is_compiling() or not _may_be_packed(x, weight, bias):
        return F.conv2d(x, weight, bias, stride, padding)
    if torch.is_grad_enabled() and x.requires_grad:
        return _Convolution.apply(x, weight, bias, stride, padding)
    return _convolved(x, weight, bias, stride, padding)


def conv1x1(x: Images, weight: Tensor, bias: Tensor | None = None, skip: Images | None = None) -> Images:
    """A 1x1 convolution, [B, C, H, W] and [K, C, 1, 1] -> [B, K, H, W]; of channels_last images a product where that is fast.

    (On a CPU PyTorch's own convolution of a single small image takes a slow path; in 16 bits on a GPU it adds the bias in a pass
    of its own.) The channels of a `skip` [B, C', H, W] follow those of x, and the weight is [K, C + C', 1, 1]. Differentiable in
    every tensor, any number of times.
    """
    if skip is not None and (_are_multiplied_apart(x, skip, weight, bias) or "torch" in order("cpu") and are_read_apart(x, skip)):
        return _conv1x1_of_two(x, skip, weight, bias)
    x = joined(x, skip)
    if not (x.device.type == "cpu" or _is_linear(x)) or not x.is_contiguous(memory_format=torch.channels_last):
        return F.conv2d(x, weight, bias)
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


def _conv1x1_of_two(x: Images, skip: Images, weight: Tensor, bias: Tensor | None) -> Images:
    """A matrix product each, the second added to the first by itself: no more launches than `torch.cat` and one product."""
    own, others = weight.flatten(1).split((x.shape[1], skip.shape[1]), dim=1)
    y = F.linear(x.permute(0, 2, 3, 1), own, bias)
    y.view(-1, len(weight)).addmm_(skip.permute(0, 2, 3, 1).reshape(-1, skip.shape[1]), others.t())
    return y.permute(0, 3, 1, 2)


def _is_linear(x: Images) -> bool:
    """Whether a 1x1 convolution of `x` is called as a matrix product: in 16 bits on a GPU."""
    return switches.runs("linear_1x1", x)


def _are_multiplied_apart(x: Images, skip: Images, *constants: Tensor | None) -> bool:
    """Whether x and its skip need not be written into one tensor, which autograd and autocast would have to see."""
    if not _is_linear(x) or is_recorded((x, skip, *constants)) or autocast.is_on(x.device.type) or x.dtype != skip.dtype:
        return False
    alike = x.dim() == skip.dim() == 4 and x.shape[0] == skip.shape[0] and x.shape[2:] == skip.shape[2:]
    return alike and all(image.is_contiguous(memory_format=torch.channels_last) for image in (x, skip))


def _may_be_packed(x: Images, weight: Tensor, bias: Tensor | None) -> bool:
    constants = [weight] if bias is None else [weight, bias]
    plain = all(_is_float32_on_cpu(tensor) for tensor in (x, *constants))
    # in this order: a transform refuses to say how its tensors are stored
    return plain and _is_unseen() and "torch" in order("cpu") and is_frozen(constants) and x.numel() > 0 and _fits(x)


def _is_float32_on_cpu(tensor: Tensor) -> bool:
    return _bypass.is_plain(tensor) and tensor.dtype == torch.float32 and tensor.device.type == "cpu"


def _is_unseen() -> bool:
    """Whether nothing would miss the convolution that was asked for. A recording of the CPU's notes what runs in its place."""
    return not _bypass.is_forbidden() and (are_launches_observed() or not _bypass.is_observed())


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
    if not _may_be_packed(grad, weight, None):
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
    return _packed_weights.of(weight, kind, lambda: getattr(_MKLDNN, f"_reorder_{kind}_weight")(weight.detach(), *sizes), sizes)


def _convolved(x: Images, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...]) -> Images:
    packed = _packed(weight, "convolution", padding, stride, (1, 1), 1, list(x.shape))
    return _MKLDNN._convolution_pointwise(x, packed, bias, padding, stride, (1, 1), 1, "none", [], "")


def _transposed(grad: Images, weight: Tensor, shape: torch.Size, stride: tuple[int, ...], padding: tuple[int, ...]) -> Images:
    reached = ((out - 1) * step - 2 * pad for out, step, pad in zip(grad.shape[2:], stride, padding, strict=True))
    beyond = [size - there - taps for size, there, taps in zip(shape[2:], reached, weight.shape[2:], strict=True)]
    packed = _packed(weight, "convolution_transpose", padding, beyond, stride, (1, 1), 1, list(grad.shape))
    return _MKLDNN._convolution_transpose_pointwise(grad, packed, None, padding, beyond, stride, (1, 1), 1, "none", [], "")
