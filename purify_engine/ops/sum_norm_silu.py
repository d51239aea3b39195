"""purify::sum_norm_silu and its gradient: what is still to be added to a convolution's result, then a norm (docs/math.md E17)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from purify_engine.ops import _check, _gradient
from purify_engine.ops._arguments import Norm, Summands
from purify_engine.ops._layout import in_layout_of
from purify_engine.ops._registry import Launcher, Op, call, define, parts_of_torch
from purify_engine.ops._skip import joined
from purify_engine.ops._triton import kernel, triton
from purify_engine.ops.group_norm_silu import GROUP_NORM_SILU_BACKWARD, group_norm_silu, group_norm_silu_backward
from purify_engine.reference import sums as reference
from purify_engine.types import Images

_PARTS_ARE_AS_FAST = "networks on CPUs have the sum from their convolution, and its parts have kernels"
_NO_CUDA = "CUDA C++ has the ops without which the loop cannot run; this one is Triton's, or its parts"
_DEFAULTS: tuple[Any, ...] = (1.0, True, True)  # gain, silu, write_sum


def sum_norm_silu(
    x: Images,
    residual: Images | None,
    bias: Tensor | None,
    temb: Tensor | None,
    skip: Images | None,
    weight: Tensor,
    norm_bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    num_groups: int,
    norm_eps: float,
    gain: float = 1.0,
    silu: bool = True,
    write_sum: bool = True,
) -> tuple[Images, Images]:
    """(sum, y): sum = gain (residual + x + bias + temb), the channels of `skip` behind it; y its `group_norm_silu`.

    x and `residual` [B, K, H, W], `bias` [K], `temb` [B or 1, K], `skip` [B, C', H, W]; the norm is of K + C' channels, and its
    groups may straddle both. Both results are stored as x is; y is of the sum rounded to x's dtype. Without `write_sum` the sum
    is an empty tensor. Differentiable in every tensor, any number of times.
    """
    norm = weight, norm_bias, scale, shift, num_groups, norm_eps
    return call(SUM_NORM_SILU, x, residual, bias, temb, skip, *norm, gain, silu, write_sum)


def _bundle(
    x: Tensor, residual: Tensor | None, bias: Tensor | None, temb: Tensor | None, skip: Tensor | None, *others: Any
) -> tuple[Tensor, Summands, Norm, bool, bool]:
    """(x, summands, norm, silu, write_sum)."""
    gain, silu, write_sum = (*others[6:], *_DEFAULTS[len(others) - 6 :])
    return x, Summands(residual, bias, temb, skip, gain), Norm(*others[:6]), silu, write_sum


def check(x: Tensor, summands: Summands, norm: Norm, silu: bool, write_sum: bool) -> None:
    """x [B, K, H, W], residual of its shape, bias [K], temb [B or 1, K], skip [B, C', H, W], the norm of K + C' channels."""
    _check.images("x", x)
    residual, bias, temb, skip, _ = summands
    batch, channels, height, width = x.shape
    _check.like("residual", residual, x, x.shape)
    _check.like("bias", bias, x, (channels,))
    _check.like("temb", temb, x, (channels,) if temb is None else (1 if temb.shape[:1] == (1,) else batch, channels))
    if skip is not None:
        others = skip.shape[1] if skip.dim() > 1 else 0
        _check.like("skip", skip, x, (batch, others, height, width))
        channels += others
    _check.norm(x, batch, channels, norm, ("weight", "norm_bias"))


def _of_parts(x: Tensor, summands: Summands, norm: Norm, silu: bool, write_sum: bool) -> tuple[Tensor, Tensor]:
    """PyTorch's sums, and the norm's own kernel."""
    residual, bias, temb, skip, gain = summands
    total = in_layout_of(x, reference.summed(x, bias, temb, residual, gain))
    if write_sum:
        total, skip = joined(total, None if skip is None else skip.to(x.dtype)), None
    with parts_of_torch():
        y = group_norm_silu(total, *norm, silu=silu, skip=skip)
    return (reference.apart_from(x, in_layout_of(x, total)) if write_sum else x.new_empty(0)), in_layout_of(x, y)


def _of_flat_parts(*flat: Any) -> tuple[Tensor, Tensor]:
    return _of_parts(*_bundle(*flat))


def _sum_norm_silu_triton(x: Tensor, summands: Summands, norm: Norm, silu: bool, write_sum: bool) -> tuple[Tensor, Tensor]:
    residual, bias, temb, skip, gain = summands
    launch = kernel("sum_norm_silu", "sum_norm_silu")
    total, y = launch(x, residual, bias, temb, gain, skip, norm, silu, write_sum)
    return (torch.empty(0, dtype=x.dtype, device=x.device) if total is None else total), y


def sum_norm_silu_backward(
    grad_y: Images,
    total: Images,
    weight: Tensor,
    norm_bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    grad_sum: Images | None,
    num_groups: int,
    norm_eps: float,
    silu: bool = True,
) -> Images:
    """The gradient of `sum_norm_silu` to its sum `total`: through the norm, plus `grad_sum`, what reaches the sum itself.

    All images are [B, C, H, W]. The result is stored as `total` is. Differentiable in every tensor, any number of times.
    """
    norm = weight, norm_bias, scale, shift
    return call(SUM_NORM_SILU_BACKWARD, grad_y, total, *norm, grad_sum, num_groups, norm_eps, silu)


def _bundle_backward(grad_y: Tensor, total: Tensor, *others: Any) -> tuple[Tensor, Tensor, Norm, Tensor | None, bool]:
    """(grad_y, total, norm, grad_sum, silu)."""
    weight, norm_bias, scale, shift, grad_sum, num_groups, norm_eps = others[:7]
    silu = others[7] if len(others) > 7 else True
    return grad_y, total, Norm(weight, norm_bias, scale, shift, num_groups, norm_eps), grad_sum, silu


def _check_backward(grad_y: Tensor, total: Tensor, norm: Norm, grad_sum: Tensor | None, silu: bool) -> None:
    _check.images("total", total)
    _check.like("grad_y", grad_y, total, total.shape)
    _check.like("grad_sum", grad_sum, total, total.shape)
    _check.norm(total, total.shape[0], total.shape[1], norm, ("weight", "norm_bias"))


def _backward_of_parts(grad_y: Tensor, total: Tensor, norm: Norm, grad_sum: Tensor | None, silu: bool) -> Tensor:
    """The norm's own kernels, and PyTorch's sum."""
    with parts_of_torch():
        grad, *_ = group_norm_silu_backward(grad_y, total, *norm, silu=silu)
    return grad if grad_sum is None else in_layout_of(total, grad + grad_sum.to(grad.dtype))


def _differentiate(op: Op) -> None:
    """Of the sum that was written, the norm's own gradient, an op; without it that of the parts, recomputed from the inputs."""
    to_all, generic = _gradient.dispatched(GROUP_NORM_SILU_BACKWARD), _gradient.Recomputed(_of_flat_parts)
    to_sum = _gradient.dispatched(SUM_NORM_SILU_BACKWARD)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, summands, norm, silu, ctx.is_kept = _bundle(*inputs)
        if not ctx.is_kept:
            return generic.setup_context(ctx, inputs, output)
        ctx.set_materialize_grads(False)  # a sum that nothing else reads costs no zeros
        ctx.dtypes, ctx.settings = (x.dtype, _dtype(summands.residual)), (norm.num_groups, norm.norm_eps, silu)
        ctx.gain, ctx.own, ctx.count = summands.gain, x.shape[1], len(inputs)
        return ctx.save_for_backward(output[0], *norm.tensors, summands.bias, summands.temb)

    def backward(ctx: Any, grad_sum: Tensor | None, grad_y: Tensor | None) -> tuple[Tensor | None, ...]:
        if not ctx.is_kept:
            assert grad_sum is not None and grad_y is not None
            return generic.backward(ctx, grad_sum, grad_y)
        total, *norm, bias, temb = ctx.saved_tensors
        wanted = _gradient.wanted(ctx, ctx.count)
        of_parameters: tuple[Tensor | None, ...] = (None,) * 4
        if grad_y is not None and any(wanted[5:9]):
            through, *of_parameters = to_all(grad_y, total, *norm, *ctx.settings)
            grad_sum = through if grad_sum is None else grad_sum + through
        elif grad_y is not None:
            grad_sum = to_sum(grad_y, total, *norm, grad_sum, *ctx.settings)
        if grad_sum is None:
            return (None,) * len(ctx.needs_input_grad)
        own, skip = (grad_sum, None) if ctx.own == total.shape[1] else (grad_sum[:, : ctx.own], grad_sum[:, ctx.own :])
        own = own if ctx.gain == 1 else ctx.gain * own
        of_bias = own.sum((0, 2, 3)).to(bias.dtype) if wanted[2] else None
        of_temb = own.sum((2, 3)).sum_to_size(temb.shape).to(temb.dtype) if wanted[3] else None
        to_x, to_residual = (own.to(dtype) if want else None for dtype, want in zip(ctx.dtypes, wanted[:2], strict=True))
        found = to_x, to_residual, of_bias, of_temb, skip, *of_parameters
        given = (grad if want else None for grad, want in zip(found, wanted, strict=False))
        return (*given, *(None,) * (len(wanted) - len(found)))[: len(ctx.needs_input_grad)]

    _gradient.register(op, backward, setup_context)


def _dtype(tensor: Tensor | None) -> torch.dtype | None:
    return None if tensor is None else tensor.dtype


SUM_NORM_SILU_BACKWARD = define(
    "sum_norm_silu_backward(Tensor grad_y, Tensor total, Tensor weight, Tensor norm_bias, Tensor? scale, Tensor? shift,"
    " Tensor? grad_sum, int num_groups, float norm_eps, bool silu=True) -> Tensor",
    reference.sum_norm_silu_backward,
    bundle=_bundle_backward,
    check=_check_backward,
    gradient=_gradient.by_reference,
    torch=Launcher(_backward_of_parts),
    cpp=_PARTS_ARE_AS_FAST,
    cuda=_NO_CUDA,
    triton=triton(kernel("group_norm_silu", "sum_norm_silu_backward")),
)

SUM_NORM_SILU = define(
    "sum_norm_silu(Tensor x, Tensor? residual, Tensor? bias, Tensor? temb, Tensor? skip, Tensor weight, Tensor norm_bias,"
    " Tensor? scale, Tensor? shift, int num_groups, float norm_eps, float gain=1.0, bool silu=True, bool write_sum=True)"
    " -> (Tensor, Tensor)",
    reference.sum_norm_silu,
    bundle=_bundle,
    check=check,
    gradient=_differentiate,
    torch=Launcher(_of_parts),
    cpp=_PARTS_ARE_AS_FAST,
    cuda=_NO_CUDA,
    triton=triton(_sum_norm_silu_triton),
)
