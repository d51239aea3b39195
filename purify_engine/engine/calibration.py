"""Measuring a purification before it is trusted: how strongly its guide pulls, and what one step's gradient keeps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from purify_engine.config import Growth, require
from purify_engine.engine.bridges import Bridge
from purify_engine.engine.guide import Guide, Target
from purify_engine.engine.loop import Loop
from purify_engine.engine.plan import ReversePlan
from purify_engine.engine.process import ReverseProcess
from purify_engine.reference.guidance import pull_ratio
from purify_engine.types import Images, NoiseKey, Step


class _MeasuringGuide:
    """A guide that never pulls and notes how strongly another one would at s = 1: r of every image at every step (E13)."""

    def __init__(self, guide: Guide, growth: Growth) -> None:
        self.guide = guide
        self.growth = growth
        self.reads_eps = guide.reads_eps
        self.ratios: list[Tensor] = []

    def target(self, x: Images) -> Target:
        return self.guide.target(x)

    def grad(
        self, x_t: Images, eps: Images | None, target: Target, plan: ReversePlan, step: Step, noise: NoiseKey
    ) -> Images | None:
        grad = self.guide.grad(x_t, eps, target, plan, step, noise)
        if grad is not None:
            signal, sigma = plan.marginal(step)
            scale = 1.0 if self.growth == "constant" else float(sigma / signal)
            self.ratios.append(pull_ratio(grad, plan.marginal(step), scale))
        return None


@torch.no_grad()
def guidance_scale_for(
    processes: Sequence[ReverseProcess],
    x: Images,
    ratio: float,
    quantile: float,
    bridge: Bridge | None = None,
    growth: Growth = "constant",
) -> float:
    """s = ratio / quantile of r at s = 1, over the images and steps of unguided walks from `x` in [-1, 1], one a process.

    bridge: what the network is given of `x`, part by part; None: `x` itself. growth: of the scale, as in `GuidanceConfig`.
    """
    require(len(x) > 0, "images", "at least one image", list(x.shape))
    ratios = list[Tensor]()
    for process in processes:
        guide = _MeasuringGuide(process.guide, growth)
        for part, noise in [(x, process.noise)] if bridge is None else bridge.parts(x, process.noise):
            Loop().run(process._replace(guide=guide, noise=noise), part)
        ratios += guide.ratios
    require(bool(ratios), "guidance.kind", "'adversarial' or 'pixel': without a guide there is no pull to measure", "none")
    return ratio / float(torch.cat(ratios).double().quantile(quantile))


def step_memory(process: ReverseProcess, x: Images) -> int:
    """Bytes that autograd keeps for one recorded step, each storage counted once."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    target = process.guide.target(x)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        x_t = x.detach().clone().requires_grad_()
        process.terms(x_t, process.for_networks(x_t), target, process.plan.steps[0])
    return sum(kept.values())
