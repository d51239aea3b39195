"""What a reverse process is made of, and one step of it and of its gradient. The loop and the replay run these."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

import torch

from purify_engine import ops
from purify_engine.engine.guide import Guide, Target
from purify_engine.engine.plan import ReversePlan
from purify_engine.types import GuideNoise, Images, NoiseKey, Step

OnStepEnd = Callable[[int, float, Images], None]
One = TypeVar("One")
Other = TypeVar("Other")


class NoisePredictor(Protocol):
    """Predicts the noise in `x_net` at one step of a plan; same shape out."""

    def __call__(self, x_net: Images, plan: ReversePlan, step: Step) -> Images: ...


class RunsBoth(Protocol):
    """Runs two independent pieces of work and gives both results; how is its own affair."""

    def __call__(self, one: Callable[[], One], other: Callable[[], Other]) -> tuple[One, Other]: ...


def in_turn(one: Callable[[], One], other: Callable[[], Other]) -> tuple[One, Other]:
    """(one(), other())."""
    return one(), other()


class ReverseProcess(NamedTuple):
    """The plan, the model that predicts the noise, the guide, and the seed and ids of the noise that is drawn.

    x_t [B, C, H, W] is float32 or float64; `x_net` is the same in the networks' dtype, and x_t itself where that is the same.
    """

    plan: ReversePlan
    model: NoisePredictor
    guide: Guide
    noise: NoiseKey
    follow_guide: bool = True  # whether the gradient follows the guide's pull
    guide_noise: GuideNoise | None = None  # what `derived` prepared; a guide derives its own in every step where this is None

    def derived(self) -> ReverseProcess:
        """The same process; what its guide derives from the seed is derived here, once a call, and not in every step."""
        derive = getattr(self.guide, "derive", None)
        return self if derive is None else self._replace(guide_noise=derive(self.noise))

    def start(self, x: Images) -> tuple[Images, Images]:
        """`x` in [-1, 1] noised to t*: (x_t, x_net)."""
        plan = self.plan
        return ops.q_sample(x, plan.start, plan.forward_step, *self.noise, net_dtype=plan.net_dtype)

    def step(
        self, x_t: Images, x_net: Images, target: Target, step: Step, both: RunsBoth = in_turn
    ) -> tuple[Images, Images]:
        """One guided reverse step (docs/math.md E7): the next (x_t, x_net)."""
        eps, grad = self.predict(x_net, target, step, both)
        return ops.guided_step(x_t, eps, grad, self.plan.rows, step, *self.noise, net_dtype=self.plan.net_dtype)

    def predict(self, x_net: Images, target: Target, step: Step, both: RunsBoth = in_turn) -> tuple[Images, Images | None]:
        """(eps, grad G) at one step; `both` runs the two networks where the guide does not read eps."""
        plan, model, guide = self[:3]
        noise = self.noise if self.guide_noise is None else self.guide_noise
        if guide.reads_eps:
            eps = model(x_net, plan, step)
            return eps, guide.grad(x_net, eps, target, plan, step, noise)
        return both(lambda: model(x_net, plan, step), lambda: guide.grad(x_net, None, target, plan, step, noise))

    def step_adjoint(self, adjoint: Images, x_t: Images, target: Target, step: Step) -> tuple[Images, Target]:
        """One step of E15: psi = <adjoint, b eps + d g>; a adjoint + d psi / d x_t, and d psi / d target."""
        a, b, d, _ = self.plan.rows.index_select(0, step).squeeze(0).to(x_t.dtype)
        with torch.enable_grad():
            inputs = tuple(part.detach().requires_grad_() for part in (x_t, *target))
            eps, grad = self.predict(self.for_networks(inputs[0]), inputs[1:], step)
            outputs, weights = [eps], [(b * adjoint).to(eps.dtype)]
            if grad is not None and grad.requires_grad and self.follow_guide:
                outputs, weights = [eps, grad], [*weights, (d * adjoint).to(grad.dtype)]
            through_x, *pulls = torch.autograd.grad(outputs, inputs, weights, allow_unused=True, materialize_grads=True)
        return a * adjoint + through_x, tuple(pulls)

    def for_networks(self, x_t: Images) -> Images:
        """`x_t` as the networks read it: x_net."""
        dtype = self.plan.net_dtype
        return x_t if dtype is None else x_t.to(dtype, memory_format=torch.channels_last)


class Executor(Protocol):
    """Runs a reverse process: the loop (loop.py), or captured graphs of its steps (replay.py)."""

    def run(self, process: ReverseProcess, x: Images, on_step_end: OnStepEnd | None = None) -> Images:
        """Diffuse `x` in [-1, 1] to t*, then walk back to 0 under guidance; `on_step_end(step, t, x_t)` sees every image."""
        ...

    def walk(self, process: ReverseProcess, x_t: Images, target: Target) -> tuple[Images, list[Images]]:
        """From x_t at t* to x_0, and the images visited on the way, x_t first; all [B, C, H, W]."""
        ...

    def adjoint(
        self, process: ReverseProcess, adjoint: Images, visited: list[Images], target: Target
    ) -> tuple[Images, Target]:
        """The gradient at x_0 carried back over a whole walk (docs/math.md E15): to x_t at t*, and to the target."""
        ...
