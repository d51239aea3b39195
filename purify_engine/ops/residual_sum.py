"""purify::residual_sum: bias and residual behind a convolution, in one pass (docs/math.md E19)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from purify_engine.ops import _check, _gradient, switches
from purify_engine.ops._registry import IN_PYTORCH, Op, call, define, forced
from purify_engine.ops._triton import kernel, triton
from purify_engine.reference import sums as reference
from purify_engine.types import Images

_NO_CPP = "on CPUs bias and residual are added by the convolution's own kernel"
_NO_CUDA = "CUDA C++ has the ops without which the loop cannot run; a sum is Triton's or PyTorch's"


def residual_sum(x: Images, bias: Tensor | None = None, residual: Images | None = None, gain: float = 1.0) -> Images:
    """gain (residual + (x + bias)), stored as x is, each operation rounded to x's dtype.

    x [B, C, H, W], `bias` [C], `residual` of x's shape. Equal, to the bit, to PyTorch's operations one after the other.
    Differentiable in every tensor, any number of times.
    """
    return call(RESIDUAL_SUM, x, bias, residual, gain)


def check(x: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, gain: float = 1.0) -> None:
    """x [B, C, H, W], bias [C], residual of x's shape."""
    _check.images("x", x)
    _check.like("bias", bias, x, x.shape[1:2])
    _check.like("residual", residual, x, x.shape)


def _residual_sum_triton(x: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, gain: float = 1.0) -> Tensor:
    fused = kernel("residual_sum", "residual_sum")
    if forced() == "triton":
        return fused(x, bias, residual, gain)
    key = x.shape, x.stride(), x.dtype, x.device, bias is None, residual is None, gain
    given = x, bias, residual, gain
    return switches.proven("fused_sum", key, lambda: fused(*given), lambda: reference.residual_sum(*given))


def _declines_triton(x: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, gain: float = 1.0) -> str | None:
    if forced() != "triton" and not switches.runs("fused_sum", x):
        return "it is switched off, or not for this device and precision"
    return "float64 is PyTorch's" if x.element_size() > 4 else None


def _differentiate(op: Op) -> None:
    """It is linear: the gradient, times the gain, is every summand's."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.dtypes = [None if each is None else each.dtype for each in (*inputs, None, None)[:3]]
        ctx.gain = inputs[3] if len(inputs) > 3 else 1.0

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad if ctx.gain == 1 else ctx.gain * grad
        wanted = _gradient.wanted(ctx, 4)
        to_x, to_residual = (grad.to(ctx.dtypes[place]) if wanted[place] else None for place in (0, 2))
        of_bias = grad.sum((0, 2, 3)).to(ctx.dtypes[1]) if wanted[1] else None
        return (to_x, of_bias, to_residual, None)[: len(ctx.needs_input_grad)]

    _gradient.register(op, backward, setup_context)


RESIDUAL_SUM = define(
    "residual_sum(Tensor x, Tensor? bias=None, Tensor? residual=None, float gain=1.0) -> Tensor",
    reference.residual_sum,
    check=check,
    gradient=_differentiate,
    torch=IN_PYTORCH,
    cpp=_NO_CPP,
    cuda=_NO_CUDA,
    triton=triton(_residual_sum_triton, _declines_triton),
)
