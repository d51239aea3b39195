"""The semantics of record: noise to t*, then walk back under guidance (docs/math.md E9). Everything faster must equal this."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from purify_engine import ops
from purify_engine.engine.guide import Guide
from purify_engine.engine.plan import ReversePlan
from purify_engine.types import Images, NoiseKey, Step

OnStepEnd = Callable[[int, float, Images], None]


class Denoiser(Protocol):
    """Predicts the noise in `x_net` at one step of a plan; same shape out."""

    def __call__(self, x_net: Images, plan: ReversePlan, step: Step) -> Images: ...


def reverse_loop(
    x: Images, plan: ReversePlan, model: Denoiser, guide: Guide, noise: NoiseKey, on_step_end: OnStepEnd | None = None
) -> Images:
    """Diffuse `x` in [-1, 1] to t*, then walk back to 0 under guidance.

    `on_step_end(step, t, x_t)` sees each intermediate image.
    """
    target = guide.target(x)
    x_t, x_net = ops.q_sample(x, plan.start, plan.forward_step, *noise, net_dtype=plan.net_dtype)
    for index, step in enumerate(plan.steps):
        eps = model(x_net, plan, step)
        grad = guide.grad(x_net, eps, target, plan, step, noise)
        x_t, x_net = ops.guided_step(x_t, eps, grad, plan.rows, step, *noise, net_dtype=plan.net_dtype)
        if on_step_end is not None:
            on_step_end(index, float(plan.times[index]), x_t)
    return x_t
