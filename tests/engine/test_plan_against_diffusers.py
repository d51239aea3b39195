"""Plans over given timesteps against the loops of diffusers' own schedulers, in float64, on the same noise."""

import pytest
import torch
from diffusers.schedulers import scheduling_ddim, scheduling_ddpm

from purify_engine import ops
from purify_engine.config import ScheduleConfig, ddim_landings, spaced_timesteps
from purify_engine.engine.guide import NoGuide
from purify_engine.engine.loop import Loop
from purify_engine.engine.plan import write_plan
from purify_engine.engine.process import ReverseProcess
from purify_engine.reference.schedules import make_schedule
from purify_engine.types import NoiseKey

SCHEDULE = make_schedule(ScheduleConfig())
NOISE = NoiseKey(torch.tensor(5), torch.arange(2))
X = torch.linspace(-1, 1, 8, dtype=torch.float64).view(2, 1, 2, 2)


def network(x, t):
    t = t.double()
    return torch.tanh(x - 0.4 * x.flip(-1)) * (0.3 + t / 1000) + 0.1 * torch.cos(0.007 * t + x)


def in_double(scheduler):
    """The scheduler on the table that its own formula gives in float64."""
    betas = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, dim=0)
    scheduler.one = torch.ones((), dtype=torch.float64)
    if hasattr(scheduler, "final_alpha_cumprod"):
        scheduler.final_alpha_cumprod = scheduler.one if scheduler.config.set_alpha_to_one else scheduler.alphas_cumprod[0]
    return scheduler


def theirs(module, scheduler, num_steps, below, monkeypatch, **options):
    """Their loop from x noised to its first timestep below `below`; each draw is that of our step."""
    scheduler.set_timesteps(num_steps)
    timesteps = [t for t in scheduler.timesteps if t < below]
    drawn = iter(range(len(timesteps)))
    draw = lambda *shape, **how: normal(torch.tensor(next(drawn)))  # noqa: E731
    monkeypatch.setattr(module, "randn_tensor", draw)
    x = start(scheduler.alphas_cumprod[timesteps[0]])
    for t in timesteps:
        x = scheduler.step(network(x, t), t, x, **options).prev_sample
    return x, tuple(map(int, timesteps))


def start(alpha_bar):
    return alpha_bar.sqrt() * X + (1 - alpha_bar).sqrt() * normal(torch.tensor(2**32 - 1))


def normal(step):
    return ops.philox_normal(*NOISE, step, 4, dtype=torch.float64).view_as(X)


def ours(timesteps, sampler, **options):
    plan = write_plan(SCHEDULE, timesteps[0] + 1, sampler=sampler, timesteps=timesteps, **options)
    model = lambda x_net, plan, step: network(x_net, plan.times[step])  # noqa: E731
    return Loop().run(ReverseProcess(plan, model, NoGuide(), NOISE), X)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_ddpm_walks_as_theirs_for_every_spacing(spacing, variance, monkeypatch):
    scheduler = in_double(
        scheduling_ddpm.DDPMScheduler(clip_sample=False, timestep_spacing=spacing, variance_type=variance, beta_end=0.02)
    )
    expected, timesteps = theirs(scheduling_ddpm, scheduler, 50, 200, monkeypatch)
    assert timesteps == tuple(t for t in spaced_timesteps(50, spacing) if t < 200)
    is_large = variance == "fixed_large"
    found = ours(timesteps, "ddpm_large" if is_large else "ddpm", last_noise=is_large)
    # Their small variance is 1e-20 where it should be 0: noise of 1e-10 on a last step from above timestep 0.
    assert (found - expected).abs().max() < (1e-9 if spacing == "trailing" and not is_large else 1e-11)


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize(
    ("spacing", "offset", "to_one"), [("leading", 0, True), ("leading", 1, False), ("linspace", 0, True), ("trailing", 0, True)]
)
def test_ddim_lands_as_theirs_for_every_spacing(spacing, offset, to_one, eta, monkeypatch):
    scheduler = in_double(
        scheduling_ddim.DDIMScheduler(
            clip_sample=False, timestep_spacing=spacing, steps_offset=offset, set_alpha_to_one=to_one, beta_end=0.02
        )
    )
    expected, timesteps = theirs(scheduling_ddim, scheduler, 50, 200, monkeypatch, eta=eta)
    assert timesteps == tuple(t for t in spaced_timesteps(50, spacing, steps_offset=offset) if t < 200)
    landings = ddim_landings(timesteps, 50, set_alpha_to_one=to_one)
    found = ours(timesteps, "ddim", landings=landings, eta=eta)
    assert (found - expected).abs().max() < 1e-11


def test_without_noise_on_the_last_step_a_large_variance_is_not_theirs():
    """So that the comparison above would notice."""
    timesteps = tuple(range(199, 0, -20))
    with_noise, without = (ours(timesteps, "ddpm_large", last_noise=given) for given in (True, False))
    assert (with_noise - without).abs().max() > 1e-2
    to_zero = (*timesteps, 0)
    assert torch.equal(ours(to_zero, "ddpm_large", last_noise=True), ours(to_zero, "ddpm_large"))
