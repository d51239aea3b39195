"""One step of a reverse walk and of its gradient: what the loop's captured graphs and its exact gradient are made of."""

from __future__ import annotations

from typing import NamedTuple

import torch

from purify_engine.engine.guide import Guide, Target
from purify_engine.engine.loop import Denoiser
from purify_engine.engine.plan import ReversePlan
from purify_engine.types import Images, NoiseKey, Step


class Walk(NamedTuple):
    """What a reverse walk is made of."""

    plan: ReversePlan
    model: Denoiser
    guide: Guide
    noise: NoiseKey
    guide_path: bool = True  # whether the gradient follows the guide's pull

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
