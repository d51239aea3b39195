"""purify::affine_relu and its gradient: what stands between two blocks of a residual classifier (docs/math.md E19)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from purify_engine.ops import _check, _gradient, switches
from purify_engine.ops._registry import IN_PYTORCH, Op, call, define, forced
from purify_engine.ops._triton import kernel, triton
from purify_engine.reference import layers as reference
from purify_engine.types import Images

_NO_CPP = "on CPUs the ReLU and the sum belong to the convolution's own kernel"
_NO_CUDA = "CUDA C++ has the ops without which the loop cannot run; this pass is Triton's or PyTorch's"


def affine_relu(x: Images, slope: Tensor, offset: Tensor, residual: Images | None = None) -> tuple[Images, Images]:
    """(sum, relu(slope sum + offset)) with sum = residual + x; without a residual, the sum is x and the first an empty tensor.

    x [B, C, H, W], `slope` and `offset` [C], `residual` of x's shape. Differentiable in every tensor, any number of times.
    """
    return call(AFFINE_RELU, x, slope, offset, residual)


def affine_relu_backward(grad_y: Images, y: Images, slope: Tensor, grad_sum: Images | None = None) -> Images:
    """The gradient of `affine_relu` to x, and to its residual: grad_sum + slope [y > 0] grad_y, y being its second result.

    Differentiable in every tensor, any number of times.
    """
    return call(AFFINE_RELU_BACKWARD, grad_y, y, slope, grad_sum)


def _check_forward(x: Tensor, slope: Tensor, offset: Tensor, residual: Tensor | None = None) -> None:
    _check.images("x", x)
    _check.like("slope", slope, x, x.shape[1:2])
    _check.like("offset", offset, x, x.shape[1:2])
    _check.like("residual", residual, x, x.shape)


def _check_backward(grad_y: Tensor, y: Tensor, slope: Tensor, grad_sum: Tensor | None = None) -> None:
    _check.images("y", y)
    _check.like("grad_y", grad_y, y, y.shape)
    _check.like("slope", slope, y, y.shape[1:2])
    _check.like("grad_sum", grad_sum, y, y.shape)


def _declines_triton(x: Tensor, *others: Any) -> str | None:
    if forced() != "triton" and not switches.runs("affine_relu", x):
        return "it is switched off, or not for this device and precision"
    return "float64 is PyTorch's" if x.element_size() > 4 else None


def _differentiate(op: Op) -> None:
    """With a constant line, by the op of its gradient; to a slope or offset that wants one, the reference's."""
    launch, generic = _gradient.dispatched(AFFINE_RELU_BACKWARD), _gradient.Recomputed(op.reference)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, slope, offset, residual = (*inputs, None)[:4]
        ctx.set_materialize_grads(False)  # a sum that is not read further would be a pass of zeros
        ctx.is_constant_line = not (slope.requires_grad or offset.requires_grad)
        ctx.residual_dtype = None if residual is None else residual.dtype
        if ctx.is_constant_line:
            ctx.save_for_backward(output[1], slope)
        else:
            generic.setup_context(ctx, inputs, output)

    def backward(ctx: Any, grad_sum: Tensor | None, grad_y: Tensor | None) -> tuple[Tensor | None, ...]:
        count, dtype = len(ctx.needs_input_grad), ctx.residual_dtype
        grad_sum = None if dtype is None else grad_sum  # of an empty tensor
        if not ctx.is_constant_line:
            x = generic.inputs_of(ctx)[0]
            given = (torch.zeros_like(x) if part is None else part for part in (grad_sum, grad_y))
            return generic.backward(ctx, *given)[:count]
        y, slope = ctx.saved_tensors
        grad = grad_sum if grad_y is None else launch(grad_y, y, slope, grad_sum)
        to_x, _, _, to_residual = _gradient.wanted(ctx, 4)
        of_residual = None if grad is None or dtype is None or not to_residual else grad.to(dtype)
        return (grad if to_x else None, None, None, of_residual)[:count]

    _gradient.register(op, backward, setup_context)


def _differentiate_backward(op: Op) -> None:
    """Linear in grad_y and grad_sum, constant in y; to a slope that wants one, the reference's."""
    launch, generic = _gradient.dispatched(op), _gradient.Recomputed(op.reference)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        count = len(ctx.needs_input_grad)
        grad_y, y, slope, grad_sum = generic.inputs_of(ctx)
        to_grad_y, _, to_slope, to_grad_sum = _gradient.wanted(ctx, 4)
        if to_slope:
            return generic.backward(ctx, grad)[:count]
        of_grad_y = launch(grad.to(grad_y.dtype), y, slope) if to_grad_y else None
        return (of_grad_y, None, None, grad.to(grad_sum.dtype) if to_grad_sum else None)[:count]

    _gradient.register(op, backward, generic.setup_context)


AFFINE_RELU_BACKWARD = define(
    "affine_relu_backward(Tensor grad_y, Tensor y, Tensor slope, Tensor? grad_sum=None) -> Tensor",
    reference.affine_relu_backward,
    check=_check_backward,
    gradient=_differentiate_backward,
    torch=IN_PYTORCH,
    cpp=_NO_CPP,
    cuda=_NO_CUDA,
    triton=triton(kernel("affine_relu", "affine_relu_backward"), _declines_triton),
)

AFFINE_RELU = define(
    "affine_relu(Tensor x, Tensor slope, Tensor offset, Tensor? residual=None) -> (Tensor, Tensor)",
    reference.affine_relu,
    check=_check_forward,
    gradient=_differentiate,
    torch=IN_PYTORCH,
    cpp=_NO_CPP,
    cuda=_NO_CUDA,
    triton=triton(kernel("affine_relu", "affine_relu"), _declines_triton),
)
