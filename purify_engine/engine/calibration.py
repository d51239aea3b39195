"""Measuring a purification before it is trusted: how strongly its guide pulls, and what one step's gradient keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from purify_engine.engine.guide import Guide
from purify_engine.engine.loop import Denoiser, reverse_loop
from purify_engine.engine.plan import ReversePlan
from purify_engine.reference.guidance import pull_ratio
from purify_engine.types import Images, NoiseKey, Step


class _PullMeter:
    """A guide that never pulls and notes how strongly another one would at s = 1: r of every image at every step (E13)."""

    def __init__(self, guide: Guide) -> None:
        self.guide = guide
        self.reads_eps = guide.reads_eps
        self.ratios: list[Tensor] = []

    def target(self, x: Images) -> tuple[Tensor, ...]:
        return self.guide.target(x)

    def grad(
        self, x_t: Images, eps: Images | None, target: tuple[Tensor, ...], plan: ReversePlan, step: Step, noise: NoiseKey
    ) -> Images | None:
        grad = self.guide.grad(x_t, eps, target, plan, step, noise)
        if grad is not None:
            self.ratios.append(pull_ratio(grad, plan.marginal(step), 1.0))
        return None


@torch.no_grad()
def guidance_scale_for(
    x: Images, plan: ReversePlan, model: Denoiser, guide: Guide, noise: NoiseKey, ratio: float, quantile: float
) -> float:
    """s = ratio / quantile of r at s = 1, over the images and steps of unguided walks from `x` in [-1, 1]."""
    meter = _PullMeter(guide)
    reverse_loop(x, plan, model, meter, noise)
    return ratio / float(torch.cat(meter.ratios).double().quantile(quantile))


def step_memory(x: Images, plan: ReversePlan, model: Denoiser, guide: Guide, noise: NoiseKey) -> int:
    """Bytes that autograd keeps for one recorded step, each storage counted once."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    target = guide.target(x)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        x_t = x.detach().to(plan.net_dtype or x.dtype, copy=True).requires_grad_()  # as the networks read it
        eps = model(x_t, plan, plan.steps[0])
        guide.grad(x_t, eps, target, plan, plan.steps[0], noise)
    return sum(kept.values())
