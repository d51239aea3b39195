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

from purify_engine import ops
from purify_engine.config import GradientMode
from purify_engine.engine.graph import GraphRunner
from purify_engine.engine.guide import Guide
from purify_engine.engine.loop import Denoiser, reverse_loop
from purify_engine.engine.plan import ReversePlan
from purify_engine.engine.walk import Walk
from purify_engine.types import Images, NoiseKey


def purify(
    x: Images,
    plan: ReversePlan,
    model: Denoiser,
    guide: Guide,
    noise: NoiseKey,
    *,
    mode: GradientMode,
    surrogate: ReversePlan,
    graphs: GraphRunner | None = None,
) -> Images:
    """`reverse_loop(x, ...)`, with the gradient that `mode` names.

    exact: of the loop itself. straight_through: the same, with a guide whose hard pseudo-label has the soft one's gradient.
    detached_guidance: the guide's pull taken for a constant, for diagnosis. surrogate: of the shorter `surrogate` plan.
    bpda: the identity's (Athalye et al. 2018). blind: the value, too, is `x`: the attacker does not know of the purifier.
    `graphs` replays steps and their gradients where it is given; the arithmetic is the same.
    """
    if mode == "blind":
        return x
    refuse_parameter_gradients(model, guide)
    if mode in ("bpda", "surrogate"):
        with torch.no_grad():
            value = graphs.run(x, plan, noise) if graphs else reverse_loop(x, plan, model, guide, noise)
        path = x if mode == "bpda" else differentiable_loop(x, surrogate, model, guide, noise, graphs=graphs)
        return _with_gradient_of(path, value)
    guide_path = mode != "detached_guidance"
    return differentiable_loop(x, plan, model, guide, noise, guide_path=guide_path, graphs=graphs)


def differentiable_loop(
    x: Images,
    plan: ReversePlan,
    model: Denoiser,
    guide: Guide,
    noise: NoiseKey,
    *,
    guide_path: bool = True,
    graphs: GraphRunner | None = None,
) -> Images:
    """`reverse_loop` with its exact gradient in `x`, at the network memory of one step.

    `guide_path=False` leaves out what reaches the output through the guide, its target included.
    """
    target = guide.target(x)
    if not guide_path:
        target = tuple(part.detach() for part in target)
    x_t, _ = ops.q_sample(x, plan.start, plan.forward_step, *noise)
    return _ReverseWalk.apply(x_t, Walk(plan, model, guide, noise, guide_path), graphs, *target)


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
    def forward(ctx: Any, x_t: Images, walk: Walk, graphs: GraphRunner | None, *target: Tensor) -> Images:
        if graphs is not None:
            x, visited = graphs.walk(x_t, target, walk.plan, walk.noise, walk.guide_path)
        else:
            x, visited = x_t, []
            for step in walk.plan.steps:
                visited.append(x)
                eps, grad = walk.predict(x, target, step)
                x, _ = ops.guided_step(x, eps, grad, walk.plan.rows, step, *walk.noise)
        ctx.save_for_backward(*target, *visited)
        ctx.walk, ctx.graphs = walk, graphs
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, adjoint: Images) -> tuple[Tensor | None, ...]:
        walk: Walk = ctx.walk
        num_targets = len(ctx.saved_tensors) - len(walk.plan)
        target, visited = ctx.saved_tensors[:num_targets], ctx.saved_tensors[num_targets:]
        if ctx.graphs is not None:
            with torch.autocast(adjoint.device.type, enabled=False):  # as it was on the way there, or there would be no graphs
                adjoint, totals = ctx.graphs.adjoint(adjoint, list(visited), target, walk.plan, walk.noise, walk.guide_path)
            return adjoint, None, None, *totals
        totals = tuple(torch.zeros_like(part) for part in target)
        for step, x_t in zip(reversed(walk.plan.steps), reversed(visited), strict=True):
            adjoint, pulls = walk.step_adjoint(adjoint, x_t, target, step)
            totals = tuple(total + pull for total, pull in zip(totals, pulls, strict=True))
        return adjoint, None, None, *totals
