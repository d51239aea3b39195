import dataclasses
import sys

import pytest
import torch

from purify_engine import ops
from purify_engine.config import ScheduleConfig
from purify_engine.engine.guide import NoGuide, PixelGuide
from purify_engine.engine.loop import Loop
from purify_engine.engine.plan import write_plan
from purify_engine.engine.process import ReverseProcess
from purify_engine.ops import switches
from purify_engine.reference.schedules import NoiseSchedule, make_schedule
from purify_engine.testing.oracles import GaussianWorld
from purify_engine.types import NoiseKey

SCHEDULE = make_schedule(ScheduleConfig())
WORLD = GaussianWorld(mean=0.2, var=0.25)
GUIDED = GaussianWorld(mean=0.2, var=0.25, pull=1.5, towards=-0.4)
PLANS = [
    write_plan(SCHEDULE, 70, num_steps, sampler, eta=eta, form=form, guidance_scale=0.7)
    for num_steps in (70, 7)
    for sampler, eta, form in [
        ("ddpm", 0, "score"),
        ("ddpm", 0, "mean"),
        ("ddpm_large", 0, "score"),
        ("ddpm_large", 0, "mean"),
        ("ddim", 0, "score"),
        ("ddim", 0.5, "score"),
        ("ddim", 0.5, "mean"),
        ("ddim", 1, "score"),
        ("vp_sde", 0, "score"),
    ]
]


def reverse_loop(x, plan, model, guide, noise, on_step_end=None):
    return Loop().run(ReverseProcess(plan, model, guide, noise), x, on_step_end)


def noise_key(num_images, seed=3):
    return NoiseKey(torch.tensor(seed), torch.arange(num_images))


def draws(plan, noise, numel):
    """The normals that the loop will use: [1 + N, B, numel], the forward process first."""
    return torch.stack(
        [
            ops.philox_normal(noise.key, noise.ids, step, numel, dtype=torch.float64)
            for step in (plan.forward_step, *plan.steps)
        ]
    )


@pytest.mark.parametrize("plan", PLANS, ids=repr)
@pytest.mark.parametrize("world", [WORLD, GUIDED], ids=["unguided", "guided"])
def test_purifies_exactly_in_a_gaussian_world(plan, world):
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 1, 2, 2)
    noise = noise_key(3)
    z = draws(plan, noise, 4).view(-1, 3, 1, 2, 2)
    signal, sigma = plan.start
    expected = signal * x + sigma * z[0]
    for k, shift, c, z_n in zip(*world.gains(plan), plan.rows[:, 3], z[1:], strict=True):
        expected = k * expected + shift + c * z_n
    out = reverse_loop(x, plan, world.denoiser, world, noise)
    assert (out - expected).abs().max() < 1e-10


@pytest.mark.parametrize("plan", PLANS, ids=repr)
@pytest.mark.parametrize("world", [WORLD, GUIDED], ids=["unguided", "guided"])
def test_mean_and_spread_follow_the_recursion(plan, world):
    # The output is affine in the draws: solve for the weight of each exactly. No sampling, no luck.
    noise, x = noise_key(64), torch.full((64, 1, 2, 2), 0.35, dtype=torch.float64)
    out = reverse_loop(x, plan, world.denoiser, world, noise).flatten()
    z = draws(plan, noise, 4).flatten(1).T
    weights = torch.linalg.lstsq(torch.cat([torch.ones_like(z[:, :1]), z], dim=1), out.unsqueeze(1)).solution.flatten()
    mean, variance = world.purified(0.35, plan)
    assert abs(weights[0] - mean) < 1e-10
    assert abs(weights[1:].square().sum() - variance) < 1e-10


@pytest.mark.parametrize("sampler", ["ddpm", "ddpm_large", "ddim"])
@pytest.mark.parametrize("num_steps", [70, 14, 7, 1])
def test_ancestral_sampling_keeps_exactly_the_mean_it_should(sampler, num_steps):
    plan = write_plan(SCHEDULE, 70, num_steps, sampler, eta=1.0)
    rho = WORLD.correlation(plan)
    mean, variance = WORLD.purified(0.35, plan)
    assert abs(mean - (WORLD.mean + rho * (0.35 - WORLD.mean))) < 1e-10
    if sampler != "ddpm_large" and num_steps < 70:
        assert variance < WORLD.var * (1 - rho**2)


def test_fixed_small_variance_falls_short_by_the_published_amount():
    plan = write_plan(SCHEDULE, 70, 7)
    _, variance = WORLD.purified(0.35, plan)
    limit = WORLD.var * (1 - WORLD.correlation(plan) ** 2)
    # Printed to three and four places.
    assert variance.sqrt().item() == pytest.approx(0.258, abs=5e-4)
    assert limit.sqrt().item() == pytest.approx(0.2896, abs=5e-5)


def refinement_errors(sampler, limit):
    """Distance from the limit in mean and in variance as the step halves three times, the schedule held fixed and fine."""
    # Far finer than the finest walk, so that only the walk's own step is seen: the same linear beta(t) on a grid of 2,048,000.
    fine = make_schedule(ScheduleConfig(num_timesteps=1000 * 2048, beta_start=1e-4 / 2048, beta_end=2e-2 / 2048))
    plans = [write_plan(fine, 70 * 2048, num_steps, sampler) for num_steps in (70, 140, 280, 560)]
    return [
        torch.stack([(got - want).abs() for got, want in zip(WORLD.purified(0.9, plan), limit(plan), strict=True)])
        for plan in plans
    ]


def sde_limit(plan):
    rho = WORLD.correlation(plan)
    return WORLD.mean + rho * (0.9 - WORLD.mean), WORLD.var * (1 - rho**2)


def ode_limit(plan):
    rho = WORLD.correlation(plan)
    return WORLD.mean + rho.sqrt() * (0.9 - WORLD.mean), WORLD.var * (1 - rho)


@pytest.mark.parametrize(("sampler", "limit"), [("vp_sde", sde_limit), ("ddim", ode_limit)])
def test_the_error_halves_with_the_step(sampler, limit):
    errors = refinement_errors(sampler, limit)
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert ((coarse / fine - 2).abs() < 0.2).all(), (coarse, fine)


def test_euler_maruyama_converges_to_the_reverse_sde_and_not_to_ddpm():
    # At seven steps DDPM hits the mean of the reverse process; Euler-Maruyama is still on its way.
    em, ddpm = (write_plan(SCHEDULE, 70, 7, sampler) for sampler in ("vp_sde", "ddpm"))
    assert abs(WORLD.purified(0.9, ddpm)[0] - sde_limit(ddpm)[0]) < 1e-12
    assert abs(WORLD.purified(0.9, em)[0] - sde_limit(em)[0]) > 1e-3


@pytest.mark.parametrize("sampler", ["ddpm", "ddpm_large", "ddim", "vp_sde"])
def test_zero_guidance_is_bit_for_bit_the_unguided_loop(sampler):
    x, noise = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1, noise_key(2)
    plan = write_plan(SCHEDULE, 70, 7, sampler)
    unguided = reverse_loop(x, plan, WORLD.denoiser, NoGuide(), noise)
    pulled_by_nothing = reverse_loop(x, plan, WORLD.denoiser, GUIDED, noise)
    assert torch.equal(unguided, pulled_by_nothing)


def test_the_callback_sees_every_step_in_order():
    plan, seen = write_plan(SCHEDULE, 70, 7), []
    x = torch.zeros(1, 1, 2, 2)
    out = reverse_loop(
        x, plan, WORLD.denoiser, NoGuide(), noise_key(1), lambda step, t, x_t: seen.append((step, t, x_t))
    )
    assert [(step, t) for step, t, _ in seen] == list(enumerate(plan.times.tolist()))
    assert torch.equal(seen[-1][2], out)


def test_a_plan_says_what_it_is():
    plan = dataclasses.replace(write_plan(SCHEDULE, 70, 7, guidance_scale=1.0), sampler="ddpm")
    assert repr(plan) == "ReversePlan(ddpm, 7 steps from t = 69, guided)"
    assert isinstance(SCHEDULE, NoiseSchedule)


def test_the_pixel_guides_seed_is_derived_once_a_call(monkeypatch):
    module, derived = sys.modules["purify_engine.engine.guide"], []
    derive = module.derive_seed
    monkeypatch.setattr(module, "derive_seed", lambda *given: (derived.append(given), derive(*given))[1])
    process = ReverseProcess(PLANS[9], lambda x_net, plan, step: 0 * x_net, PixelGuide(), noise_key(2))
    x = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    x_0 = Loop().run(process, x)
    assert len(derived) == 1
    walked, visited = Loop().walk(process, process.start(x)[0], (x,))
    assert len(derived) == 2 and torch.equal(walked, x_0)
    Loop().adjoint(process, x, visited, (x,))
    assert len(derived) == 3
    with switches.switched(pixel_key=False):
        assert torch.equal(Loop().run(process, x), x_0)
    assert len(derived) == 3 + len(process.plan)
