"""The rules by which ops are differentiated. Seed, ids, step and the rows of the plan never are.

Each rule composes with double backward, checkpointing and full-graph compilation, because its backward pass is again made of
differentiable operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from purify_engine.ops import _bypass, autocast
from purify_engine.ops._registry import Op

Grads = tuple[Tensor | None, ...]


def by_reference(op: Op) -> None:
    """The generic rule: the gradient of an op is the gradient of its reference, recomputed from the inputs."""
    rule = Recomputed(op.reference)
    register(op, rule.backward, rule.setup_context)


def by_op(backward_op: Op) -> Callable[[Op], None]:
    """The gradient is an op of its own, (grad_out, *inputs) -> the tensors' gradients, so that it has kernels too."""
    launch = dispatched(backward_op)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        tensors = [value for value in inputs if value is None or isinstance(value, Tensor)]
        ctx.others = inputs[len(tensors) :]  # the schema puts the tensors first
        ctx.save_for_backward(*tensors)

    def backward(ctx: Any, grad_out: Tensor) -> Grads:
        grads = launch(grad_out, *ctx.saved_tensors, *ctx.others)
        wanted = ctx.needs_input_grad
        return *(grad if want else None for grad, want in zip(grads, wanted, strict=False)), *(None for _ in ctx.others)

    return lambda op: register(op, backward, setup_context)


class Rule(torch.autograd.Function):
    """A rule that is given all arguments. PyTorch's own `apply` binds defaults, by a signature that it reads off every time."""

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if _bypass.is_transformed():
            return super().apply(*args)
        return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]


class Recomputed:
    """A rule that saves an op's inputs, and differentiates `function`, which has the op's own arguments, at them."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))
        ctx.others = [None if isinstance(value, Tensor) else (value,) for value in inputs]

    def inputs_of(self, ctx: Any) -> list[Any]:
        saved = iter(ctx.saved_tensors)
        return [next(saved) if other is None else other[0] for other in ctx.others]

    def backward(self, ctx: Any, *grads: Tensor) -> Grads:
        inputs = self.inputs_of(ctx)
        return _vector_jacobian(self.function, inputs, wanted(ctx, len(inputs)), grads)


def wanted(ctx: Any, count: int) -> tuple[bool, ...]:
    """Which of an op's inputs want a gradient. The dispatcher drops trailing arguments that equal their defaults."""
    return (*ctx.needs_input_grad, *(False,) * (count - len(ctx.needs_input_grad)))


def register(op: Op, backward: Callable[..., Grads], setup_context: Callable[..., None]) -> None:
    """Tell PyTorch's autograd how to differentiate `op`."""
    torch.library.register_autograd(f"purify::{op.name}", backward, setup_context=setup_context)


def dispatched(op: Op) -> Any:
    """`op` as autograd sees it: a backward pass is made of such calls, and may so be differentiated again."""
    return getattr(torch.ops.purify, op.name)


def _vector_jacobian(function: Callable[..., Any], inputs: list[Any], want: tuple[bool, ...], grads: tuple[Tensor, ...]) -> Grads:
    """The gradient of <function(inputs), grads> to the wanted inputs, differentiable if grad mode is on."""
    create_graph = torch.is_grad_enabled()
    # An alias cuts what lies behind an input off from the inner derivative, and not from the outer one.
    arguments = [_alias(value, create_graph) if wants else value for value, wants in zip(inputs, want, strict=True)]
    aliases = [argument for argument, wants in zip(arguments, want, strict=True) if wants]
    with torch.enable_grad(), autocast.off(grads[0].device.type):
        outputs = function(*arguments)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        reached = [(output, grad) for output, grad in zip(outputs, grads, strict=True) if output.requires_grad]
        along, weights = zip(*reached, strict=True)
        gradients = iter(torch.autograd.grad(along, aliases, weights, create_graph=create_graph, allow_unused=True))
    return tuple(next(gradients) if wants else None for wants in want)


def _alias(tensor: Tensor, differentiable: bool) -> Tensor:
    return tensor.view_as(tensor) if differentiable else tensor.detach().requires_grad_()
