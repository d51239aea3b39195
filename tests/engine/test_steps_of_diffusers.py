"""One step of ours against one of diffusers' schedulers, in float64: clipped estimates, learned and fixed variance."""

from __future__ import annotations

import pytest
import torch

from purify_engine import ops
from purify_engine.config import ScheduleConfig
from purify_engine.engine.guide import NoGuide
from purify_engine.engine.plan import write_plan
from purify_engine.engine.process import ReverseProcess
from purify_engine.reference.schedules import make_schedule
from purify_engine.types import NoiseKey

pytest.importorskip("diffusers")

from diffusers import DDIMScheduler, DDPMScheduler  # noqa: E402
from diffusers.schedulers import scheduling_ddim, scheduling_ddpm  # noqa: E402

T = 40
SCHEDULE = make_schedule(ScheduleConfig(num_timesteps=T, beta_start=1e-3, beta_end=0.1))
NOISE = NoiseKey(torch.tensor(5), torch.arange(2))
OURS = {"fixed_small": "ddpm", "fixed_large": "ddpm_large", "learned_range": "ddpm_learned"}


def normal(seed):
    return 1.5 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def theirs(kind, num_steps, **options):
    """A scheduler with our tables: its own are float32."""
    scheduler = kind(num_train_timesteps=T, timestep_spacing="trailing", **options)
    scheduler.betas, scheduler.alphas, scheduler.alphas_cumprod = SCHEDULE.betas, 1 - SCHEDULE.betas, SCHEDULE.alphas_cumprod
    scheduler.one = scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    scheduler.set_timesteps(num_steps)
    return scheduler


def compared(monkeypatch, scheduler, plan, num_steps, **options):
    """Steps of both from the same images, predictions and noise: the largest difference, and the share that was clipped."""
    assert scheduler.timesteps.tolist() == plan.times.tolist()
    eps, v, largest, clipped = normal(1), normal(2).tanh(), 0.0, []
    ours, predicted = ((eps, v), torch.cat([eps, v], dim=1)) if plan.learns_variance else (eps, eps)
    of = ReverseProcess(plan, lambda x_net, plan, step: ours, NoGuide(), NOISE)
    for step, t in list(zip(plan.steps, scheduler.timesteps.tolist(), strict=True))[:num_steps]:
        x_t = normal(3 + t)
        z = ops.philox_normal(*NOISE, step, x_t[0].numel(), dtype=x_t.dtype).view_as(x_t)
        for module in (scheduling_ddpm, scheduling_ddim):
            monkeypatch.setattr(module, "randn_tensor", lambda shape, z=z, **given: z)
        expected = scheduler.step(predicted, t, x_t, **options).prev_sample
        found, _ = of.step(x_t, x_t, (), step)
        largest = max(largest, float((found - expected).abs().max() / expected.abs().max()))
        signal, sigma = plan.marginal(step)
        clipped.append((((x_t - sigma * eps) / signal).abs() > 1).double().mean())
    return largest, float(torch.stack(clipped).mean())


@pytest.mark.parametrize("num_steps", [T, 8])
@pytest.mark.parametrize("clip", [True, False], ids=["clipped", "unclipped"])
@pytest.mark.parametrize("variance", OURS)
def test_ddpm(monkeypatch, variance, clip, num_steps):
    scheduler = theirs(DDPMScheduler, num_steps, variance_type=variance, clip_sample=clip)
    plan = write_plan(SCHEDULE, T, num_steps, OURS[variance], clip_x0="consistent" if clip else "never")
    # On a last step from another index than 0 it draws noise, and ours never does.
    largest, clipped = compared(monkeypatch, scheduler, plan, num_steps if num_steps == T else num_steps - 1)
    assert largest < 1e-12 and 0.1 < clipped < 0.9


@pytest.mark.parametrize("num_steps", [T, 8])
@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("clip_x0", ["consistent", "x0_only"])
def test_ddim(monkeypatch, clip_x0, eta, num_steps):
    """As it comes it keeps the prediction beside a clipped estimate; `use_clipped_model_output` recomputes it."""
    scheduler = theirs(DDIMScheduler, num_steps, clip_sample=True)
    plan = write_plan(SCHEDULE, T, num_steps, "ddim", eta=eta, clip_x0=clip_x0)
    largest, _ = compared(monkeypatch, scheduler, plan, num_steps, eta=eta, use_clipped_model_output=clip_x0 == "consistent")
    assert largest < 1e-12
