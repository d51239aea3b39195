"""purify::q_sample and purify::guided_step: the forward process in one shot, one guided reverse step (docs/math.md E4, E7)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from purify_engine.config import require
from purify_engine.ops import _check, _cuda, _extension, _gradient, noise
from purify_engine.ops._layout import is_channels_last
from purify_engine.ops._registry import IN_PYTORCH, Op, call, define
from purify_engine.ops._triton import kernel, triton
from purify_engine.reference import process as reference
from purify_engine.types import Ids, Images, Key, Marginal, Rows, Step


def q_sample(
    x_start: Images, marginal: Marginal, step: Step, key: Key, ids: Ids, *, net_dtype: torch.dtype | None = None
) -> tuple[Images, Images]:
    """`x_start` noised to `marginal`: (x_t, x_net), where x_net is the channels_last copy in `net_dtype`, or x_t itself.

    `marginal` is float64 [2], (sqrt(alpha_bar), sqrt(1 - alpha_bar)); `step` is the counter word of the noise (docs/math.md E4).
    Differentiable in x_start.
    """
    x_t, x_net = call(Q_SAMPLE, x_start, marginal, step, key, ids, net_dtype=net_dtype)
    return x_t, x_t if net_dtype is None else x_net


def guided_step(
    x_t: Images,
    eps: Images,
    grad: Images | None,
    rows: Rows,
    step: Step,
    key: Key,
    ids: Ids,
    *,
    net_dtype: torch.dtype | None = None,
) -> tuple[Images, Images]:
    """Row `step` of the plan: (x_next, x_net), where x_net is the channels_last copy in `net_dtype`, or x_next itself.

    `rows` is float64 [N, 4], a row being (a, b, d, c) (docs/math.md E7); x_t is float32 or float64, eps and grad any float. A
    grad of None guides nowhere and costs nothing. Differentiable in x_t, eps and grad, any number of times.
    """
    x_next, x_net = call(GUIDED_STEP, x_t, eps, grad, rows, step, key, ids, net_dtype=net_dtype)
    return x_next, x_next if net_dtype is None else x_net


def _check_q_sample(
    x_start: Tensor, marginal: Tensor, step: Tensor, key: Tensor, ids: Tensor, *, net_dtype: torch.dtype | None = None
) -> None:
    if marginal.dtype != torch.float64 or marginal.shape != (2,):
        _check.refuse("marginal", "float64 [2]", marginal)
    _check.same_device("marginal", marginal, x_start)
    _check_images("x_start", x_start, net_dtype)
    noise.check_for(x_start, step, key, ids)


def _check_guided_step(
    x_t: Tensor, eps: Tensor, grad: Tensor | None, rows: Tensor, *which_noise: Tensor, net_dtype: torch.dtype | None = None
) -> None:
    if rows.dtype != torch.float64 or rows.dim() != 2 or rows.shape[1] != 4:
        _check.refuse("rows", "float64 [N, 4]", rows)
    _check.same_device("rows", rows, x_t)
    _check_images("x_t", x_t, net_dtype)
    _check.like("eps", eps, x_t, x_t.shape)
    _check.like("grad", grad, x_t, x_t.shape)
    noise.check_for(x_t, *which_noise)


def _check_images(name: str, x: Tensor, net_dtype: torch.dtype | None) -> None:
    if x.dtype not in noise.EXACT or x.dim() != 4:
        _check.refuse(name, "float32 or float64 images [B, C, H, W]", x)
    require(net_dtype is None or net_dtype.is_floating_point, "net_dtype", "a floating point dtype or None", net_dtype)


def q_sample_cpp(
    x_start: Tensor, marginal: Tensor, step: Tensor, key: Tensor, ids: Tensor, *, net_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    x_start, marginal = x_start.contiguous(), marginal.contiguous()
    x_t = _extension.empty(x_start.shape, x_start.dtype)
    batch = noise.batch_cpp(key, ids, step, x_start.shape[1:].numel())
    _extension.launch(_extension.named("q_sample", x_t.dtype), x_t, x_start, marginal, batch)
    return x_t, _network_copy(x_t, net_dtype)


def guided_step_cpp(
    x_t: Tensor,
    eps: Tensor,
    grad: Tensor | None,
    rows: Tensor,
    step: Tensor,
    key: Tensor,
    ids: Tensor,
    *,
    net_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    x_t, eps, rows = x_t.contiguous(), _extension.dense(eps, x_t.dtype), rows.contiguous()
    grad = None if grad is None else _extension.dense(grad, x_t.dtype)
    x_next = _extension.empty(x_t.shape, x_t.dtype)
    batch = noise.batch_cpp(key, ids, step, x_t.shape[1:].numel())
    _extension.launch(_extension.named("guided_step", x_t.dtype), x_next, x_t, eps, grad, rows, len(rows), batch)
    return x_next, _network_copy(x_next, net_dtype)


def _network_copy(x: Tensor, net_dtype: torch.dtype | None) -> Tensor:
    """The copy that the networks read: channels_last, in their dtype, sharing no memory with `x`."""
    return x.new_empty(0) if net_dtype is None else x.to(net_dtype, memory_format=torch.channels_last, copy=True)


def q_sample_cuda(
    x_start: Tensor, marginal: Tensor, step: Tensor, key: Tensor, ids: Tensor, *, net_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    x_start, marginal = x_start.contiguous(), marginal.contiguous()
    x_t, x_net = _outputs_cuda(x_start, net_dtype)
    batch = noise.BatchCuda(key, ids, step, x_t.shape[1], x_t.shape[2:].numel())
    if x_t.numel():
        images = (_cuda.images(tensor) for tensor in (x_t, x_net, x_start))
        _cuda.launch("q_sample", x_t.device, *images, marginal.data_ptr(), batch.arguments)
    return x_t, x_net


def guided_step_cuda(
    x_t: Tensor,
    eps: Tensor,
    grad: Tensor | None,
    rows: Tensor,
    step: Tensor,
    key: Tensor,
    ids: Tensor,
    *,
    net_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The specification, but that a step beyond the plan makes NaN: the host never learns the step."""
    x_t, rows, dtype = x_t.contiguous(), rows.contiguous(), _common_dtype(x_t, eps, grad)
    eps, grad = _dense(eps.to(dtype)), None if grad is None else _dense(grad.to(dtype))
    x_next, x_net = _outputs_cuda(x_t, net_dtype)
    batch = noise.BatchCuda(key, ids, step, x_t.shape[1], x_t.shape[2:].numel())
    if x_t.numel():
        images = (_cuda.images(tensor) for tensor in (x_next, x_net, x_t, eps, grad))
        _cuda.launch("guided_step", x_t.device, *images, rows.data_ptr(), len(rows), batch.arguments)
    return x_next, x_net


def _declines_cuda(x: Tensor, *others: Any, net_dtype: torch.dtype | None = None) -> str | None:
    if x.shape[1:].numel() >= _cuda.MOST_ELEMENTS:
        return _cuda.TOO_LARGE
    return None if net_dtype is None or net_dtype in _cuda.CODES else _cuda.OTHER_FLOATS


def _outputs_cuda(x: Tensor, net_dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """Where a kernel leaves images like `x`, and the channels_last copy of them that the networks read."""
    x_next = _cuda.empty(x.shape, x.dtype, x.device)
    return x_next, x.new_empty(0) if net_dtype is None else _cuda.empty(x.shape, net_dtype, x.device, torch.channels_last)


def _common_dtype(x_t: Tensor, eps: Tensor, grad: Tensor | None) -> torch.dtype:
    """What the kernel reads eps and grad in: as they come where they are of one dtype and no wider than x_t, else that of x_t."""
    as_they_come = x_t.dtype == torch.float32 and eps.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return eps.dtype if as_they_come and (grad is None or grad.dtype == eps.dtype) else x_t.dtype


def _dense(x: Tensor) -> Tensor:
    return x if is_channels_last(x) else x.contiguous()


def _differentiate_q_sample(op: Op) -> None:
    """q_sample is linear in x_start: its gradient draws no noise."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
        x_start, marginal, *_ = inputs
        ctx.save_for_backward(marginal)
        ctx.has_network_copy = keyword_only_inputs["net_dtype"] is not None

    def backward(ctx: Any, grad_x_t: Tensor, grad_x_net: Tensor) -> tuple[Tensor | None, ...]:
        (marginal,) = ctx.saved_tensors
        grad = _joined(ctx, grad_x_t, grad_x_net)
        return marginal[0].to(grad.dtype) * grad, None, None, None, None

    _gradient.register(op, backward, setup_context)


def _differentiate_guided_step(op: Op) -> None:
    """guided_step is linear in x_t, eps and grad: its gradient is a, b and d times what arrives, and draws no noise."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
        _, eps, grad, rows, step, *_ = inputs
        ctx.save_for_backward(rows, step)
        ctx.dtypes = (eps.dtype, None if grad is None else grad.dtype)
        ctx.has_network_copy = keyword_only_inputs["net_dtype"] is not None

    def backward(ctx: Any, grad_x_next: Tensor, grad_x_net: Tensor) -> tuple[Tensor | None, ...]:
        rows, step = ctx.saved_tensors
        adjoint = _joined(ctx, grad_x_next, grad_x_net)
        a, b, d, _ = rows.index_select(0, step).squeeze(0).to(adjoint.dtype)
        x_t_wanted, eps_wanted, grad_wanted, *_ = ctx.needs_input_grad
        eps_dtype, grad_dtype = ctx.dtypes
        return (
            a * adjoint if x_t_wanted else None,
            (b * adjoint).to(eps_dtype) if eps_wanted else None,
            (d * adjoint).to(grad_dtype) if grad_wanted else None,
            *(None,) * 4,
        )

    _gradient.register(op, backward, setup_context)


def _joined(ctx: Any, grad_x: Tensor, grad_x_net: Tensor) -> Tensor:
    """What arrives through the result and through the copy of it that the networks read."""
    return grad_x + grad_x_net.to(grad_x.dtype) if ctx.has_network_copy else grad_x


Q_SAMPLE = define(
    "q_sample(Tensor x_start, Tensor marginal, Tensor step, Tensor key, Tensor ids, *, ScalarType? net_dtype=None)"
    " -> (Tensor, Tensor)",
    reference.q_sample,
    check=_check_q_sample,
    gradient=_differentiate_q_sample,
    torch=IN_PYTORCH,
    cpp=_extension.cpp(q_sample_cpp),
    cuda=_cuda.cuda(q_sample_cuda, _declines_cuda),
    triton=triton(kernel("q_sample", "q_sample")),
)

GUIDED_STEP = define(
    "guided_step(Tensor x_t, Tensor eps, Tensor? grad, Tensor rows, Tensor step, Tensor key, Tensor ids, *,"
    " ScalarType? net_dtype=None) -> (Tensor, Tensor)",
    reference.guided_step,
    check=_check_guided_step,
    gradient=_differentiate_guided_step,
    torch=IN_PYTORCH,
    cpp=_extension.cpp(guided_step_cpp),
    cuda=_cuda.cuda(guided_step_cuda, _declines_cuda),
    triton=triton(kernel("guided_step", "guided_step")),
)
