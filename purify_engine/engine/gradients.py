"""The gradient of a whole purification: exact at the memory of one step, and the ways attackers approximate it.

Exact (docs/math.md E15) keeps the visited images, recomputes one step at a time, and carries the adjoint back through the
networks, the guidance's own second derivatives, and the guide's target. Nothing is closed over: the input and the target are
explicit inputs, and a network parameter that wants a gradient is refused, since it would silently get none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from purify_engine import ops
from purify_engine.config import GradientMode
from purify_engine.engine.guide import Guide, Target
from purify_engine.engine.loop import Denoiser, reverse_loop
from purify_engine.engine.plan import ReversePlan
from purify_engine.types import Images, NoiseKey, Step


def purify(
    x: Images,
    plan: ReversePlan,
    model: Denoiser,
    guide: Guide,
    noise: NoiseKey,
    *,
    mode: GradientMode,
    surrogate: ReversePlan,
) -> Images:
    """`reverse_loop(x, ...)`, with the gradient that `mode` names.

    exact: of the loop itself. straight_through: the same, with a guide whose hard pseudo-label has the soft one's gradient.
    detached_guidance: the guide's pull taken for a constant, for diagnosis. surrogate: of the shorter `surrogate` plan.
    bpda: the identity's (Athalye et al. 2018). blind: the value, too, is `x`: the attacker does not know of the purifier.
    """
    if mode == "blind":
        return x
    refuse_parameter_gradients(model, guide)
    if mode == "bpda":
        return _with_gradient_of(x, reverse_loop(x.detach(), plan, model, guide, noise))
    if mode == "surrogate":
        value = reverse_loop(x.detach(), plan, model, guide, noise)
        return _with_gradient_of(differentiable_loop(x, surrogate, model, guide, noise), value)
    return differentiable_loop(x, plan, model, guide, noise, guide_path=mode != "detached_guidance")


def differentiable_loop(
    x: Images, plan: ReversePlan, model: Denoiser, guide: Guide, noise: NoiseKey, *, guide_path: bool = True
) -> Images:
    """`reverse_loop` with its exact gradient in `x`, at the network memory of one step.

    `guide_path=False` leaves out what reaches the output through the guide, its target included.
    """
    target = guide.target(x)
    if not guide_path:
        target = tuple(part.detach() for part in target)
    x_t, _ = ops.q_sample(x, plan.start, plan.forward_step, *noise)
    return _ReverseWalk.apply(x_t, _Walk(plan, model, guide, noise, guide_path), *target)


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


class _Walk(NamedTuple):
    """What a reverse walk is made of."""

    plan: ReversePlan
    model: Denoiser
    guide: Guide
    noise: NoiseKey
    guide_path: bool  # whether the gradient follows the guide's pull

    def predict(self, x_t: Images, target: Target, step: Step) -> tuple[Images, Images | None]:
        """(eps, grad G) of one step, as `reverse_loop` computes them."""
        dtype = self.plan.net_dtype
        x_net = x_t if dtype is None else x_t.to(dtype, memory_format=torch.channels_last)
        eps = self.model(x_net, self.plan, step)
        return eps, self.guide.grad(x_net, eps, target, self.plan, step, self.noise)

    def step_adjoint(self, adjoint: Images, x_t: Images, target: Target, step: Step) -> tuple[Images, Target]:
        """One step of E15: psi = <adjoint, b eps + d g>; a adjoint + d psi / d x_t, and d psi / d target."""
        a, b, d, _ = self.plan.rows.index_select(0, step).squeeze(0).to(x_t.dtype)
        with torch.enable_grad():
            inputs = tuple(part.detach().requires_grad_() for part in (x_t, *target))
            eps, grad = self.predict(inputs[0], inputs[1:], step)
            outputs, weights = [eps], [(b * adjoint).to(eps.dtype)]
            if grad is not None and grad.requires_grad and self.guide_path:
                outputs, weights = [eps, grad], [*weights, (d * adjoint).to(grad.dtype)]
            through_x, *pulls = torch.autograd.grad(outputs, inputs, weights, allow_unused=True, materialize_grads=True)
        return a * adjoint + through_x, tuple(pulls)


class _ReverseWalk(torch.autograd.Function):
    """x_t at t* and the guide's target, to x_0. Keeps the N visited images; recomputes the networks step by step."""

    @staticmethod
    def forward(ctx: Any, x_t: Images, walk: _Walk, *target: Tensor) -> Images:
        visited = []
        for step in walk.plan.steps:
            visited.append(x_t)
            eps, grad = walk.predict(x_t, target, step)
            x_t, _ = ops.guided_step(x_t, eps, grad, walk.plan.rows, step, *walk.noise)
        ctx.save_for_backward(*target, *visited)
        ctx.walk = walk
        return x_t

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, adjoint: Images) -> tuple[Tensor | None, ...]:
        walk: _Walk = ctx.walk
        num_targets = len(ctx.saved_tensors) - len(walk.plan)
        target, visited = ctx.saved_tensors[:num_targets], ctx.saved_tensors[num_targets:]
        target_grads: Target = tuple(torch.zeros_like(part) for part in target)
        for step, x_t in zip(reversed(walk.plan.steps), reversed(visited), strict=True):
            adjoint, pulls = walk.step_adjoint(adjoint, x_t, target, step)
            target_grads = tuple(total + pull for total, pull in zip(target_grads, pulls, strict=True))
        return adjoint, None, *target_grads
