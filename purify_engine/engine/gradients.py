"""The gradient of a whole purification: exact at the memory of one step, and the ways attackers approximate it.

Exact (docs/math.md E15) keeps the visited images, recomputes one step at a time, and carries the adjoint back through the
networks, the guidance's own second derivatives, and the guide's target. Nothing is closed over: the input and the target are
explicit inputs, and a network parameter that wants a gradient is refused, since it would silently get none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from purify_engine.config import GradientMode
from purify_engine.engine.plan import ReversePlan
from purify_engine.engine.process import Executor, ReverseProcess
from purify_engine.ops import autocast
from purify_engine.types import Images


def purify(executor: Executor, process: ReverseProcess, x: Images, *, mode: GradientMode, surrogate: ReversePlan) -> Images:
    """`executor.run(process, x)`, with the gradient that `mode` names.

    exact: of the whole purification itself. straight_through: the same, with a guide whose hard pseudo-label has the soft one's
    gradient. detached_guidance: the guide's pull taken for a constant, for diagnosis. surrogate: of the shorter `surrogate` plan.
    bpda: the identity's (Athalye et al. 2018). blind: the value, too, is `x`: the attacker does not know of the purifier.
    """
    if mode == "blind":
        return x
    refuse_parameter_gradients(process.model, process.guide)
    if mode in ("bpda", "surrogate"):
        with torch.no_grad():
            value = executor.run(process, x)
        path = x if mode == "bpda" else differentiable_run(executor, process._replace(plan=surrogate), x)
        return _with_gradient_of(path, value)
    return differentiable_run(executor, process._replace(follow_guide=mode != "detached_guidance"), x)


def differentiable_run(executor: Executor, process: ReverseProcess, x: Images) -> Images:
    """`executor.run(process, x)` with its exact gradient in `x`, at the network memory of one step.

    A process that does not follow its guide leaves out what reaches the output through the guide, its target included.
    """
    target = process.guide.target(x)
    if not process.follow_guide:
        target = tuple(part.detach() for part in target)
    x_t, _ = process.start(x)
    return _ReverseWalk.apply(x_t, executor, process, *target)


def refuse_parameter_gradients(*parts: object) -> None:
    """A purifier's gradient is with respect to its input alone; a parameter that expects one is told so."""
    waiting = [name for part in parts for name, p in _named_parameters(part) if p.requires_grad]
    if waiting:
        raise ValueError(
            "network parameters must be frozen to differentiate a purifier (its gradient is in the images alone), got "
            f"{len(waiting)} that require one, first {waiting[0]!r}; call purifier.requires_grad_(False), or run under "
            "torch.no_grad()"
        )


def _named_parameters(part: object) -> Iterable[tuple[str, nn.Parameter]]:
    return part.named_parameters() if isinstance(part, nn.Module) else ()


def _with_gradient_of(path: Tensor, value: Tensor) -> Tensor:
    return path + (value - path).detach()


class _ReverseWalk(torch.autograd.Function):
    """x_t at t* and the guide's target, to x_0. Keeps the N visited images; recomputes the networks step by step."""

    @staticmethod
    def forward(ctx: Any, x_t: Images, executor: Executor, process: ReverseProcess, *target: Tensor) -> Images:
        x, visited = executor.walk(process, x_t, target)
        ctx.save_for_backward(*target, *visited)
        ctx.executor, ctx.process = executor, process
        ctx.autocast = autocast.as_here(x.device.type)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, adjoint: Images) -> tuple[Tensor | None, ...]:
        process: ReverseProcess = ctx.process
        num_targets = len(ctx.saved_tensors) - len(process.plan)
        target, visited = ctx.saved_tensors[:num_targets], ctx.saved_tensors[num_targets:]
        with ctx.autocast():  # or other networks than those of the way there would be differentiated
            adjoint, totals = ctx.executor.adjoint(process, adjoint, list(visited), target)
        return adjoint, None, None, *totals
