"""The gradients of the ops. Seed, ids, step and the rows of the plan are never differentiable.

Each rule composes with double backward, checkpointing and full-graph compilation, because its backward pass is again made of
differentiable operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from purify_engine.ops import autocast
from purify_engine.ops.registry import Launcher, Op
from purify_engine.reference import layers


def differentiate_by_reference(op: Op) -> None:
    """The generic rule: the gradient of an op is the gradient of its reference, recomputed from the inputs."""
    reference = op.engines["reference"]
    assert callable(reference)
    differentiate_by(op, reference)


def differentiate_by(op: Op, reference: Launcher) -> None:
    """The gradient of an op is that of `reference`, a differentiable function with the op's own arguments."""
    rule = _Recomputed(reference)
    torch.library.register_autograd(f"purify::{op.name}", rule.backward, setup_context=rule.setup_context)


class _Recomputed:
    """A rule that saves an op's inputs, and differentiates `reference` at them."""

    def __init__(self, reference: Launcher) -> None:
        self.reference = reference

    def setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))
        ctx.others = [None if isinstance(value, Tensor) else (value,) for value in inputs]

    def inputs_of(self, ctx: Any) -> list[Any]:
        saved = iter(ctx.saved_tensors)
        return [next(saved) if other is None else other[0] for other in ctx.others]

    def backward(self, ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs = self.inputs_of(ctx)
        return _vector_jacobian(self.reference, inputs, _wanted(ctx, len(inputs)), grads)


def _wanted(ctx: Any, count: int) -> tuple[bool, ...]:
    """Which of an op's inputs want a gradient. The dispatcher drops trailing arguments that equal their defaults."""
    return (*ctx.needs_input_grad, *(False,) * (count - len(ctx.needs_input_grad)))


def _vector_jacobian(
    reference: Launcher, inputs: list[Any], wanted: tuple[bool, ...], grads: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """The gradient of <reference(inputs), grads> to the wanted inputs, differentiable if grad mode is on."""
    create_graph = torch.is_grad_enabled()
    # An alias cuts what lies behind an input off from the inner derivative, and not from the outer one.
    arguments = [_alias(value, create_graph) if want else value for value, want in zip(inputs, wanted, strict=True)]
    aliases = [argument for argument, want in zip(arguments, wanted, strict=True) if want]
    with torch.enable_grad(), autocast.off(grads[0].device.type):
        outputs = reference(*arguments)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        reached = [(output, grad) for output, grad in zip(outputs, grads, strict=True) if output.requires_grad]
        along, weights = zip(*reached, strict=True)
        found = iter(torch.autograd.grad(along, aliases, weights, create_graph=create_graph, allow_unused=True))
    return tuple(next(found) if want else None for want in wanted)


def _alias(tensor: Tensor, differentiable: bool) -> Tensor:
    return tensor.view_as(tensor) if differentiable else tensor.detach().requires_grad_()


def differentiate_q_sample(op: Op) -> None:
    """q_sample is linear in x_start: its gradient draws no noise."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
        x_start, marginal, *_ = inputs
        ctx.save_for_backward(marginal)
        ctx.has_network_copy = keyword_only_inputs["net_dtype"] is not None

    def backward(ctx: Any, grad_x_t: Tensor, grad_x_net: Tensor) -> tuple[Tensor | None, ...]:
        (marginal,) = ctx.saved_tensors
        grad = _joined(ctx, grad_x_t, grad_x_net)
        return marginal[0].to(grad.dtype) * grad, None, None, None, None

    torch.library.register_autograd(f"purify::{op.name}", backward, setup_context=setup_context)


def differentiate_conv3x3(op: Op, backward_op: Op, composed: Launcher) -> None:
    """A convolution by frozen filters, unnormed: linear, and its gradient to x an op of its own. Else that of `composed`."""
    launch, generic = getattr(torch.ops.purify, backward_op.name), _Recomputed(composed)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        generic.setup_context(ctx, inputs, output)
        x, weight, bias, norm_weight = inputs[:4]
        ctx.linear = norm_weight is None and not weight.requires_grad

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.linear:
            return generic.backward(ctx, grad)
        inputs = generic.inputs_of(ctx)
        x, weight, bias, *_, temb, residual, _, _, gain, upsample = inputs
        wanted = _wanted(ctx, len(inputs))
        grad = grad if gain == 1 else gain * grad
        to_x = launch(grad.to(x.dtype), weight, upsample) if wanted[0] else None
        to_bias = grad.sum((0, 2, 3)).to(bias.dtype) if wanted[2] else None
        to_temb = grad.sum((2, 3)).sum_to_size(temb.shape).to(temb.dtype) if wanted[7] else None
        to_residual = grad.to(residual.dtype) if wanted[8] else None
        return (to_x, None, to_bias, *(None,) * 4, to_temb, to_residual, *(None,) * 4)[: len(ctx.needs_input_grad)]

    torch.library.register_autograd(f"purify::{op.name}", backward, setup_context=setup_context)


def differentiate_conv3x3_backward(op: Op, forward_op: Op) -> None:
    """Linear in grad_out, its gradient being the convolution again; to filters that want one, the reference's."""
    reference = op.engines["reference"]
    assert callable(reference)
    launch, generic = getattr(torch.ops.purify, forward_op.name), _Recomputed(reference)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.needs_input_grad[1]:
            return generic.backward(ctx, grad)
        _, weight, upsample = generic.inputs_of(ctx)
        return launch(grad, weight, upsample=upsample), *(None,) * (len(ctx.needs_input_grad) - 1)

    torch.library.register_autograd(f"purify::{op.name}", backward, setup_context=generic.setup_context)


def differentiate_relu_conv3x3(op: Op, backward_op: Op) -> None:
    """Its gradient to x is an op of its own; to filters or lines that want one, the reference's."""
    reference = op.engines["reference"]
    assert callable(reference)
    launch, generic = getattr(torch.ops.purify, backward_op.name), _Recomputed(reference)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = generic.inputs_of(ctx)
        x, weight, bias, slope, offset, residual = inputs
        to_x, to_weight, to_bias, to_slope, to_offset, to_residual = _wanted(ctx, len(inputs))
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

    torch.library.register_autograd(f"purify::{op.name}", backward, setup_context=generic.setup_context)


def differentiate_relu_conv3x3_backward(op: Op, conv3x3_op: Op) -> None:
    """Linear in grad_out, constant in x and offset but where a line crosses zero; to filters and slopes the reference's."""
    reference = op.engines["reference"]
    assert callable(reference)
    launch, generic = getattr(torch.ops.purify, conv3x3_op.name), _Recomputed(reference)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = generic.inputs_of(ctx)
        grad_out, x, weight, slope, offset = inputs
        wanted = _wanted(ctx, len(inputs))
        grads: list[Tensor | None] = [None] * len(inputs)
        if wanted[2] or wanted[3]:  # the filters, the slope
            grads = list(generic.backward(ctx, grad))
        elif wanted[0]:
            grads[0] = launch(layers.behind_relu(grad, x, slope, offset).to(grad_out.dtype), weight)
        for place, value in enumerate(inputs):
            if wanted[place] and grads[place] is None:
                grads[place] = torch.zeros_like(value)
        return tuple(grads[: len(ctx.needs_input_grad)])

    torch.library.register_autograd(f"purify::{op.name}", backward, setup_context=generic.setup_context)


def differentiate_guided_step(op: Op) -> None:
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

    torch.library.register_autograd(f"purify::{op.name}", backward, setup_context=setup_context)


def _joined(ctx: Any, grad_x: Tensor, grad_x_net: Tensor) -> Tensor:
    """What arrives through the result and through the copy of it that the networks read."""
    return grad_x + grad_x_net.to(grad_x.dtype) if ctx.has_network_copy else grad_x


def differentiate_by_op(op: Op, backward_op: Op) -> None:
    """The gradient is an op of its own, (grad_out, *inputs) -> the tensors' gradients, so that it has kernels too."""
    launch = getattr(torch.ops.purify, backward_op.name)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        tensors = [value for value in inputs if value is None or isinstance(value, Tensor)]
        ctx.others = inputs[len(tensors) :]  # the schema puts the tensors first
        ctx.save_for_backward(*tensors)

    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        grads = launch(grad_out, *ctx.saved_tensors, *ctx.others)
        wanted = ctx.needs_input_grad
        return *(grad if want else None for grad, want in zip(grads, wanted, strict=False)), *(None for _ in ctx.others)

    torch.library.register_autograd(f"purify::{op.name}", backward, setup_context=setup_context)
