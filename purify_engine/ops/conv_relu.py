"""A convolution with the ReLU behind it, and the sum between them: how residual classifiers have it. No op of ours.

In 16 bits on GPUs cuDNN adds bias and residual and applies the ReLU before it writes the result; elsewhere the parts run.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from purify_engine.ops import switches
from purify_engine.ops._gradient import Rule
from purify_engine.ops._packed import is_constant
from purify_engine.ops._registry import Launcher, order
from purify_engine.ops._triton import kernel
from purify_engine.ops.affine_relu import AFFINE_RELU
from purify_engine.ops.conv2d import conv2d
from purify_engine.ops.conv3x3 import conv3x3, padded, turned
from purify_engine.types import Images

_ATEN: Any = torch.ops.aten
_refused: set[tuple[object, ...]] = set()  # convolutions for which cuDNN has no such kernel

Sizes = tuple[int, ...]
PLAIN: tuple[Sizes, Sizes] = (1, 1), (1, 1)  # stride and padding of what `conv3x3` computes


def conv_relu(
    x: Images,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Images | None = None,
    *,
    stride: Sizes = (1, 1),
    padding: Sizes = (1, 1),
) -> Images:
    """relu(residual + conv(x) + bias): x [B, C, H, W], `weight` [K, C, R, S], `bias` [K], `residual` of the result's shape.

    Differentiable in every tensor, any number of times.
    """
    if conv_relu_is_fused(x, weight, bias, residual):
        return _applied(x, weight, bias, residual, stride, padding, readers=1)[0]
    if weight.shape[2:] == (3, 3) and (stride, padding) == PLAIN:
        return F.relu(conv3x3(x, weight, bias, residual=residual))
    y = conv2d(x, weight, bias, stride, padding)
    return F.relu(y if residual is None else residual + y)


def conv_relu_twice(
    x: Images,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Images | None = None,
    *,
    stride: Sizes = (1, 1),
    padding: Sizes = (1, 1),
) -> tuple[Images, Images]:
    """The result of `conv_relu` for two readers: where it is fused, their gradients are added up in the pass of the mask."""
    if conv_relu_is_fused(x, weight, bias, residual) and switches.runs("masked_sum", x):
        one, other = _applied(x, weight, bias, residual, stride, padding, readers=2)
        return one, other
    y = conv_relu(x, weight, bias, residual, stride=stride, padding=padding)
    return y, y


def _applied(
    x: Images, weight: Tensor, bias: Tensor | None, residual: Images | None, stride: Sizes, padding: Sizes, readers: int
) -> tuple[Images, ...]:
    mirrored = turned.filters(weight) if (stride, padding) == PLAIN and turned.runs(x, weight) else None
    return _ConvRelu.apply(x, weight, bias, residual, mirrored, stride, padding, readers)


def conv_relu_is_fused(x: Images, weight: Tensor, bias: Tensor | None = None, residual: Images | None = None) -> bool:
    """Whether `conv_relu` of these is one pass: in 16 bits on a GPU, all in one precision, by filters that are frozen."""
    if not switches.runs("conv_relu", x):
        return False
    one_dtype = all(part is None or part.dtype == x.dtype for part in (weight, bias, residual))
    return one_dtype and is_constant(weight) and "torch" in order(x.device.type)


class _ConvRelu(Rule):
    """What is kept is the result: where it is 0, nothing passes. The filters are constants."""

    @staticmethod
    def forward(
        x: Images,
        weight: Tensor,
        bias: Tensor | None,
        residual: Images | None,
        mirrored: Tensor | None,
        stride: Sizes,
        padding: Sizes,
        readers: int,
    ) -> tuple[Images, ...]:
        y = _launched(x, weight, bias, residual, stride, padding)
        return y, *(y.view_as(y) for _ in range(1, readers))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Images, ...]) -> None:
        x, weight, _, _, mirrored, stride, padding, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[0], weight, mirrored)
        ctx.size, ctx.how, ctx.pads = x.shape[2:], (stride, padding), padded.runs(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Images | None) -> tuple[Tensor | None, ...]:
        y, weight, mirrored = ctx.saved_tensors
        given = [grad for grad in grads if grad is not None]
        if not given:
            return (None,) * len(ctx.needs_input_grad)
        # detached: autograd would carry zeros back through the mask, the whole network over
        y = y.detach()
        grad = _MaskedSum.apply(*given, y) if len(given) == 2 else _ATEN.threshold_backward(given[0], y, 0)
        wanted, to_x = ctx.needs_input_grad, None
        if wanted[0] and mirrored is None:
            to_x = _to_input(grad, weight, ctx.size, *ctx.how)
        elif wanted[0]:
            to_x = turned.convolved(grad, mirrored, weight, pads=ctx.pads)
        return to_x, None, grad.sum((0, 2, 3)) if wanted[2] else None, grad if wanted[3] else None, *(None,) * 4


masked_sum = kernel("affine_relu", "masked_sum")


def _has_triton(x: Images) -> bool:
    return x.is_cuda and x.element_size() <= 4 and isinstance(AFFINE_RELU.engines["triton"], Launcher)


class _MaskedSum(Rule):
    """The sum of two gradients where y > 0: linear in both, constant in y."""

    @staticmethod
    def forward(one: Images, other: Images, y: Images) -> Images:
        def parts() -> Images:
            return _ATEN.threshold_backward(one + other, y, 0)

        if not _has_triton(y):
            return parts()
        key = y.shape, y.stride(), y.dtype, y.device
        return switches.proven("masked_sum", key, lambda: masked_sum(one, other, y), parts)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Images) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, grad: Images) -> tuple[Tensor | None, ...]:
        grad = _ATEN.threshold_backward(grad, *ctx.saved_tensors, 0)
        return grad, grad, None


def _to_input(grad: Images, weight: Tensor, size: torch.Size, stride: Sizes, padding: Sizes) -> Images:
    """The gradient of a convolution to its input of this height and width."""
    reached = ((out - 1) * step - 2 * pad for out, step, pad in zip(grad.shape[2:], stride, padding, strict=True))
    beyond = [side - there - taps for side, there, taps in zip(size, reached, weight.shape[2:], strict=True)]
    return F.conv_transpose2d(grad, weight, None, stride, padding, beyond)


def _launched(
    x: Images, weight: Tensor, bias: Tensor | None, residual: Images | None, stride: Sizes, padding: Sizes
) -> Images:
    """By cuDNN's kernel where it has one for this convolution."""
    if (stride, padding) == PLAIN and padded.runs(x, weight):
        x, weight = padded.widened(x, weight)
    key = x.device, x.dtype, x.shape, weight.shape, stride, padding, residual is None
    if _has_cudnn(x) and key not in _refused:
        try:
            return cudnn(x, weight, bias, residual, stride, padding)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            _refused.add(key)
            warnings.warn(f"cuDNN has no convolution with a ReLU for {list(x.shape)}, so two passes run: {error}", stacklevel=2)
    y = F.conv2d(x, weight, bias, stride, padding)
    return F.relu(y if residual is None else residual + y)


def _has_cudnn(x: Images) -> bool:
    return x.is_cuda and x.numel() > 0 and torch.backends.cudnn.enabled and torch.backends.cudnn.is_available()


def cudnn(x: Images, weight: Tensor, bias: Tensor | None, residual: Images | None, stride: Sizes, padding: Sizes) -> Images:
    """cuDNN's convolution with its bias, residual and ReLU in one pass."""
    if residual is None:
        return _ATEN.cudnn_convolution_relu(x, weight, bias, stride, padding, (1, 1), 1)
    return _ATEN.cudnn_convolution_add_relu(x, weight, residual, 1.0, bias, stride, padding, (1, 1), 1)
