"""purify::relu_conv3x3 and its gradient: a 3x3 convolution as a residual classifier has it (docs/math.md E19).

The ReLU before it, the channel-wise affine map before that (a folded batch norm), and the residual sum after it. On CPUs one
kernel (winograd.py), elsewhere its parts.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from purify_engine.ops import _check, _extension, _gradient, _layout
from purify_engine.ops._arguments import Affine, Around
from purify_engine.ops._registry import IN_PYTORCH, Launcher, Op, call, define, is_recorded, parts_of_torch
from purify_engine.ops.conv3x3 import CONV3X3, check_backward, conv3x3, flops, winograd
from purify_engine.ops.conv3x3 import check as check_convolution
from purify_engine.reference import layers as reference
from purify_engine.types import Images

_PARTS = "its parts run apart: PyTorch's operations, and `conv3x3`"


def relu_conv3x3(
    x: Images,
    weight: Tensor,
    bias: Tensor | None = None,
    slope: Tensor | None = None,
    offset: Tensor | None = None,
    residual: Images | None = None,
) -> Images:
    """residual + conv(relu(slope x + offset)) + bias: a 3x3 convolution as a residual classifier has it (docs/math.md E19).

    x [B, C, H, W], `weight` [K, C, 3, 3], `bias` [K], `residual` of the result's shape; `slope` and `offset` [C], or neither.
    One kernel on CPUs, elsewhere its parts. Differentiable in every tensor, any number of times.
    """
    tensors = (x, weight, bias, slope, offset, residual)
    if is_recorded(tensors):
        engine, launch = RELU_CONV3X3.resolve(*tensors)
        if engine in ("torch", "reference"):  # PyTorch differentiates its own operations, with nothing computed twice
            return launch()
    return call(RELU_CONV3X3, *tensors)


def relu_conv3x3_backward(
    grad_out: Images,
    x: Images,
    weight: Tensor,
    slope: Tensor | None = None,
    offset: Tensor | None = None,
) -> Images:
    """The gradient of `relu_conv3x3` to its x: grad_out [B, K, H, W], the rest as there -> [B, C, H, W] (docs/math.md E19).

    Differentiable in every tensor, any number of times.
    """
    return call(RELU_CONV3X3_BACKWARD, grad_out, x, weight, slope, offset)


def _bundle(x: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, Tensor, Affine, Around]:
    bias, slope, offset, residual = others + (None,) * (4 - len(others))
    return x, weight, Affine(slope, offset), Around(bias, residual=residual)


def _bundle_backward(grad_out: Tensor, x: Tensor, weight: Tensor, *affine: Any) -> tuple[Tensor, Tensor, Tensor, Affine]:
    return grad_out, x, weight, Affine(*affine)


def _check_relu(x: Tensor, weight: Tensor, affine: Affine, around: Around) -> None:
    check_convolution(x, weight, None, around)
    _check.affine(x, affine)


def _check_relu_backward(grad_out: Tensor, x: Tensor, weight: Tensor, affine: Affine) -> None:
    check_backward(grad_out, weight)
    batch, _, height, width = grad_out.shape
    _check.like("x", x, grad_out, (batch, weight.shape[1], height, width))
    _check.affine(x, affine)


def _relu_conv3x3_torch(x: Tensor, weight: Tensor, affine: Affine, around: Around) -> Tensor:
    # under autocast slope and offset are more precise than the image
    wide = x if affine.slope is None else x.to(torch.promote_types(x.dtype, affine.slope.dtype))
    with parts_of_torch():
        return conv3x3(F.relu(_mapped(wide, affine)), weight, around.bias, residual=around.residual).to(x.dtype)


def _relu_conv3x3_cpp(x: Tensor, weight: Tensor, affine: Affine, around: Around) -> Tensor:
    y = winograd.convolved(x, weight, around, relu=winograd.Relu(None, affine, before=True))
    return y.contiguous(memory_format=_layout.of_convolution(x, weight, around.residual))


def _relu_conv3x3_backward_cpp(grad_out: Tensor, x: Tensor, weight: Tensor, affine: Affine) -> Tensor:
    return _layout.in_layout_of(x, winograd.convolved(grad_out, weight, flip=True, relu=winograd.Relu(x, affine)))


def _mapped(x: Images, affine: Affine) -> Images:
    slope, offset = affine
    if slope is None or offset is None:
        return x
    return torch.addcmul(_per_channel(offset, x), x, _per_channel(slope, x))


def _per_channel(values: Tensor, x: Images) -> Tensor:
    return values.to(x.dtype)[:, None, None]


def _differentiate(op: Op) -> None:
    """Its gradient to x is an op of its own; to filters, slopes or offsets that want one, the reference's."""
    launch, generic = _gradient.dispatched(RELU_CONV3X3_BACKWARD), _gradient.Recomputed(op.reference)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = generic.inputs_of(ctx)
        x, weight, bias, slope, offset, residual = inputs
        to_x, to_weight, to_bias, to_slope, to_offset, to_residual = _gradient.wanted(ctx, len(inputs))
        if to_weight or to_slope or to_offset:
            return generic.backward(ctx, grad)[: len(ctx.needs_input_grad)]
        grads = (
            launch(grad.to(x.dtype), x, weight, slope, offset) if to_x else None,
            None,
            grad.sum((0, 2, 3)).to(bias.dtype) if to_bias else None,
            None,
            None,
            grad.to(residual.dtype) if to_residual else None,
        )
        return grads[: len(ctx.needs_input_grad)]

    _gradient.register(op, backward, generic.setup_context)


def _differentiate_backward(op: Op) -> None:
    """Linear in grad_out, constant in x and offset but where the ReLU has its corner; to filters and slopes the reference's."""
    launch, generic = _gradient.dispatched(CONV3X3), _gradient.Recomputed(op.reference)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = generic.inputs_of(ctx)
        grad_out, x, weight, slope, offset = inputs
        wanted = _gradient.wanted(ctx, len(inputs))
        grads: list[Tensor | None] = [None] * len(inputs)
        if wanted[2] or wanted[3]:  # the filters, the slope
            grads = list(generic.backward(ctx, grad))
        elif wanted[0]:
            grads[0] = launch(_behind_relu(grad, x, Affine(slope, offset)).to(grad_out.dtype), weight)
        for place, value in enumerate(inputs):
            if wanted[place] and grads[place] is None:
                grads[place] = torch.zeros_like(value)
        return tuple(grads[: len(ctx.needs_input_grad)])

    _gradient.register(op, backward, generic.setup_context)


def _behind_relu(grad: Images, x: Images, affine: Affine) -> Images:
    """The gradient of relu(slope x + offset) to x, where it is `grad` to the ReLU's result."""
    grad = torch.where(_mapped(x, affine) <= 0, 0, grad)
    return grad if affine.slope is None else grad * _per_channel(affine.slope, grad)


def _flops_backward(grad_out: list[int], x: list[int], weight: list[int], *others: Any, out_shape: Any = None, **_: Any) -> int:
    """As many as the convolution."""
    return 2 * 9 * weight[1] * math.prod(grad_out)


RELU_CONV3X3_BACKWARD = define(
    "relu_conv3x3_backward(Tensor grad_out, Tensor x, Tensor weight, Tensor? slope=None, Tensor? offset=None) -> Tensor",
    reference.relu_conv3x3_backward,
    bundle=_bundle_backward,
    check=_check_relu_backward,
    gradient=_differentiate_backward,
    flops=_flops_backward,
    torch=IN_PYTORCH,
    cpp=_extension.cpp(
        _relu_conv3x3_backward_cpp,
        lambda grad_out, x, weight, affine: winograd.declines(grad_out, weight, winograd.ALONE, flip=True),
        judge="whole",
    ),
    cuda=_PARTS,
    triton=_PARTS,
)

RELU_CONV3X3 = define(
    "relu_conv3x3(Tensor x, Tensor weight, Tensor? bias=None, Tensor? slope=None, Tensor? offset=None, Tensor? residual=None)"
    " -> Tensor",
    reference.relu_conv3x3,
    bundle=_bundle,
    check=_check_relu,
    gradient=_differentiate,
    flops=flops,
    torch=Launcher(_relu_conv3x3_torch, judge="whole"),
    cpp=_extension.cpp(_relu_conv3x3_cpp, lambda x, weight, affine, around: winograd.declines(x, weight, around), judge="whole"),
    cuda=_PARTS,
    triton=_PARTS,
)
