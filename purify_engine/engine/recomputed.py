"""A function that is differentiated by running it again: nothing of it is recorded beforehand, at any order of derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from purify_engine import ops
from purify_engine.engine.uncompiled import uncompiled

Function = Callable[..., "Tensor | tuple[Tensor, ...]"]


def recomputed(function: Function, *inputs: Tensor) -> Any:
    """`function(*inputs)`, of tensors to one tensor or several, which autograd does not record.

    A derivative runs `function` once more, under autograd, and is itself such a function: so all orders exist, and inside the
    transforms of `torch.func` everything runs on the plain tensors beneath. A batch of gradients (`is_grads_batched`, `jacrev`)
    is computed one by one.
    """
    if any(map(_is_one_of_a_batch, inputs)):
        return _of_batched_gradients(function, inputs)
    if not torch.is_grad_enabled() and not ops.is_transformed():  # nothing is to be differentiated: a tenth of a millisecond
        return function(*inputs)
    return _Recomputed.apply(function, *inputs)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(function: Function, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        results = function(*inputs)
        if isinstance(results, Tensor):
            return _apart(results, inputs)
        return tuple(_apart(result, inputs) for result in results)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.function, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @uncompiled("a derivative runs its function again")  # or one that differentiates would compile what runs here
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[1:]
        pulled = iter(recomputed(partial(pulled_back, ctx.function, wanted), *grads, *ctx.saved_tensors))
        return None, *(next(pulled) if wants else None for wants in wanted)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], function: Function, *inputs: Tensor) -> tuple[Any, Any]:
        results = _one_by_one(function, inputs, in_dims[1:], info.batch_size)
        return results, 0 if isinstance(results, Tensor) else (0,) * len(results)


def _apart(result: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """What PyTorch may save beside its inputs: another tensor than these."""
    return result.view_as(result) if any(result is value for value in inputs) else result


def _one_by_one(function: Function, inputs: Sequence[Tensor], dims: Sequence[int | None], count: int) -> Any:
    """The results of `count` calls, stacked; an input has the dimension over which it is mapped, or None."""
    given = list(zip(inputs, dims, strict=True))
    results = [
        recomputed(function, *(x if dim is None else x.select(dim, place) for x, dim in given)) for place in range(count)
    ]
    return torch.stack(results) if isinstance(results[0], Tensor) else tuple(map(torch.stack, zip(*results, strict=True)))


def _is_one_of_a_batch(x: Tensor) -> bool:
    """Whether `x` stands for a batch in `torch.autograd.grad(is_grads_batched=True)`, which is no transform of torch.func."""
    asked = getattr(torch._C._functorch, "is_legacy_batchedtensor", None)
    return asked is not None and asked(x)


def _of_batched_gradients(function: Function, inputs: Sequence[Tensor]) -> Any:
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    dims = [0 if _is_one_of_a_batch(x) else None for x in inputs]
    whole = [x if dim is None else torch._remove_batch_dim(x, level, 1, 0) for x, dim in zip(inputs, dims, strict=True)]
    count = next(len(x) for x, dim in zip(whole, dims, strict=True) if dim is not None)
    results = _one_by_one(function, whole, dims, count)
    add = partial(torch._add_batch_dim, batch_dim=0, level=level)
    return add(results) if isinstance(results, Tensor) else tuple(map(add, results))


def pulled_back(function: Function, wanted: tuple[bool, ...], *values: Tensor) -> tuple[Tensor, ...]:
    """The gradient of <function(inputs), grads> to those of the inputs that are `wanted`; `values` are grads, then inputs.

    Differentiable once more exactly where autograd records.
    """
    grads, inputs = values[: len(values) - len(wanted)], values[len(values) - len(wanted) :]
    recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        given = [_alias(value, recorded) if wants else value for value, wants in zip(inputs, wanted, strict=True)]
        outputs = function(*given)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        reached = [(output, grad) for output, grad in zip(outputs, grads, strict=True) if output.requires_grad]
        towards = [value for value, wants in zip(given, wanted, strict=True) if wants]
        if not reached:
            return tuple(map(torch.zeros_like, towards))
        of, weights = zip(*reached, strict=True)
        return torch.autograd.grad(of, towards, weights, create_graph=recorded, materialize_grads=True)


def _alias(value: Tensor, recorded: bool) -> Tensor:
    """Cut off from what lies behind it, but for the outer derivative where there is one."""
    return value.view_as(value) if recorded and value.requires_grad else value.detach().requires_grad_()
