"""The semantics of record: noise to t*, then walk back under guidance (docs/math.md E9). Everything faster must equal this."""

from __future__ import annotations

import torch

from purify_engine.engine.guide import Target
from purify_engine.engine.process import OnStepEnd, ReverseProcess
from purify_engine.types import Images


class Loop:
    """Runs a reverse process step by step; holds nothing."""

    def run(self, process: ReverseProcess, x: Images, on_step_end: OnStepEnd | None = None) -> Images:
        """Diffuse `x` [B, C, H, W] in [-1, 1] to t*, then walk back to 0 under guidance.

        `on_step_end(step, t, x_t)` sees each intermediate image. Autograd records the whole loop where it records at all.
        """
        process, target = process.derived(), process.guide.target(x)
        x_t, x_net = process.start(x)
        times = [] if on_step_end is None else process.plan.times.tolist()  # read back once: a GPU is waited for
        for index, step in enumerate(process.plan.steps):
            x_t, x_net = process.step(x_t, x_net, target, step)
            if on_step_end is not None:
                on_step_end(index, times[index], x_t)
        return x_t

    def walk(self, process: ReverseProcess, x_t: Images, target: Target) -> tuple[Images, list[Images]]:
        """From x_t at t* to x_0, and the images visited on the way, x_t first; all [B, C, H, W]."""
        process, x_net, visited = process.derived(), process.for_networks(x_t), list[Images]()
        for step in process.plan.steps:
            visited.append(x_t)
            x_t, x_net = process.step(x_t, x_net, target, step)
        return x_t, visited

    def adjoint(
        self, process: ReverseProcess, adjoint: Images, visited: list[Images], target: Target
    ) -> tuple[Images, Target]:
        """The gradient at x_0 carried back over a whole walk (docs/math.md E15): to x_t at t*, and to the target."""
        process, totals = process.derived(), tuple(torch.zeros_like(part) for part in target)
        for step, x_t in zip(reversed(process.plan.steps), reversed(visited), strict=True):
            adjoint, pulls = process.step_adjoint(adjoint, x_t, target, step)
            totals = tuple(total + pull for total, pull in zip(totals, pulls, strict=True))
        return adjoint, totals
