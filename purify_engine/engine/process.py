"""What a reverse process is made of, and one step of it and of its gradient. The loop and the replay run these."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

import torch

from purify_engine import ops
from purify_engine.engine.guide import Guide, Target
from purify_engine.engine.plan import ReversePlan
from purify_engine.reference.process import learned_log_variance, update, with_eps_clipped, with_x0_clipped
from purify_engine.types import GuideNoise, Images, NoiseKey, Step

OnStepEnd = Callable[[int, float, Images], None]
One = TypeVar("One")
Other = TypeVar("Other")


class NoisePredictor(Protocol):
    """Predicts the noise in `x_net` at one step of a plan: eps, of the same shape.

    (eps, v) where `plan.learns_variance`: v, of the same shape, says where the step's variance lies (docs/math.md E26). One that
    has a true `reads_x_t` is given x_t itself in place of x_net.
    """

    def __call__(self, x_net: Images, plan: ReversePlan, step: Step) -> Images | tuple[Images, Images]: ...


class StepTerms(NamedTuple):
    """What a row (a, b, d, c) multiplies in one step: x_j = a x_t + b eps + d grad + c noise (docs/math.md E7)."""

    x_t: Images
    eps: Images
    grad: Images | None  # None: no pull
    noise: Images | None = None  # None: the normals of (key, id, step), drawn as the step is taken


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
        plan, (x_t, eps, grad, drawn) = self.plan, self.terms(x_t, x_net, target, step, both)
        if drawn is None:
            return ops.guided_step(x_t, eps, grad, plan.rows, step, *self.noise, net_dtype=plan.net_dtype)
        x_next = update(x_t, eps.to(x_t.dtype), grad, drawn, plan.rows.index_select(0, step).squeeze(0))
        return x_next, self.for_networks(x_next)

    def terms(self, x_t: Images, x_net: Images, target: Target, step: Step, both: RunsBoth = in_turn) -> StepTerms:
        """What the step's row multiplies; `both` runs the two networks where the guide does not read eps."""
        plan, guide = self.plan, self.guide
        noise = self.noise if self.guide_noise is None else self.guide_noise
        if guide.reads_eps:
            made = self.predicted(x_t, x_net, step)
            grad = guide.grad(x_net, made[1], target, plan, step, noise)
        else:
            made, grad = both(
                lambda: self.predicted(x_t, x_net, step), lambda: guide.grad(x_net, None, target, plan, step, noise)
            )
        (x_t, eps, log_variance), drawn = made, None
        if log_variance is not None:
            drawn = ops.philox_normal(*self.noise, step, x_t.shape[1:].numel(), dtype=x_t.dtype).view(x_t.shape)
            drawn = (log_variance / 2).exp() * drawn
            if grad is not None and plan.form == "mean":
                grad = log_variance.exp() * grad
        if grad is not None and not self.follow_guide:
            grad = grad.detach()
        return StepTerms(x_t, eps, grad, drawn)

    def predicted(self, x_t: Images, x_net: Images, step: Step) -> tuple[Images, Images, Images | None]:
        """(x_t, eps) as the step takes them, and the logarithm of its variance where that is learned (E25, E26)."""
        plan, log_variance = self.plan, None
        predicted = self.model(x_t if getattr(self.model, "reads_x_t", False) else x_net, plan, step)
        eps, v = predicted if isinstance(predicted, tuple) else (predicted, None)
        if plan.log_variances is not None:
            if v is None:
                raise ValueError("the model must predict (eps, v) where the plan's variance is learned, got eps alone")
            log_variance = learned_log_variance(v.to(x_t.dtype), plan.log_variances.index_select(0, step).squeeze(0))
        if plan.clip_x0 == "never":
            return x_t, eps, log_variance
        clip = with_eps_clipped if plan.clip_x0 == "consistent" else with_x0_clipped
        return *clip(x_t, eps.to(x_t.dtype), plan.marginal(step)), log_variance

    def step_adjoint(self, adjoint: Images, x_t: Images, target: Target, step: Step) -> tuple[Images, Target]:
        """One step of E15: psi = <adjoint, b eps + d g>; a adjoint + d psi / d x_t, and d psi / d target.

        Where the row's x_t or its noise depend on the networks (E25, E26), psi has <adjoint, a x_t> or <adjoint, c noise>, too.
        """
        a, b, d, c = self.plan.rows.index_select(0, step).squeeze(0).to(x_t.dtype)
        with torch.enable_grad():
            inputs = tuple(part.detach().requires_grad_() for part in (x_t, *target))
            seen, *guided_by = (part.view_as(part) for part in inputs)  # FlopCounterMode hooks what modules are given: no leaves
            terms = self.terms(seen, self.for_networks(seen), tuple(guided_by), step)
            followed = [(b, terms.eps)]
            if terms.grad is not None and terms.grad.requires_grad:
                followed.append((d, terms.grad))
            if terms.noise is not None and terms.noise.requires_grad:
                followed.append((c, terms.noise))
            is_replaced = terms.x_t is not seen
            if is_replaced:
                followed.append((a, terms.x_t))
            outputs, weights = [part for _, part in followed], [(by * adjoint).to(part.dtype) for by, part in followed]
            through_x, *pulls = torch.autograd.grad(outputs, inputs, weights, allow_unused=True, materialize_grads=True)
        return through_x if is_replaced else a * adjoint + through_x, tuple(pulls)

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
