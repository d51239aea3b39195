import math

import pytest
import torch

from purify_engine.config import GuidanceConfig, PurifierConfig, ScheduleConfig
from purify_engine.engine.plan import make_plan, write_plan
from purify_engine.engine.timesteps import visited
from purify_engine.reference.schedules import make_schedule

SCHEDULE = make_schedule(ScheduleConfig())


def rows(*args, **kwargs):
    return write_plan(SCHEDULE, *args, **kwargs).rows


@pytest.mark.parametrize("form", ["score", "mean"])
@pytest.mark.parametrize("num_steps", [70, 7])
def test_ddim_with_eta_one_is_ddpm(num_steps, form):
    ddim = rows(70, num_steps, "ddim", eta=1.0, form=form, guidance_scale=0.7)
    assert (ddim - rows(70, num_steps, "ddpm", form=form, guidance_scale=0.7)).abs().max() < 1e-12


@pytest.mark.parametrize("t_star", [1, 36, 70, 150])
def test_ddpm_rows_are_the_textbook_posterior(t_star):
    a, b, d, c = rows(t_star, guidance_scale=1.0).flip(0).unbind(1)
    betas, alpha_bar = SCHEDULE.betas[:t_star], SCHEDULE.alphas_cumprod[:t_star]
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    assert (a - 1 / (1 - betas).sqrt()).abs().max() < 1e-12
    assert (b + betas / ((1 - betas) * (1 - alpha_bar)).sqrt()).abs().max() < 1e-10
    assert (d - betas / (1 - betas).sqrt()).abs().max() < 1e-12
    assert (c - (betas * (1 - before) / (1 - alpha_bar)).sqrt()).abs().max() < 1e-12


def test_fixed_large_differs_from_fixed_small_in_its_noise_alone_and_draws_none_at_the_end():
    small, large = rows(70), rows(70, sampler="ddpm_large")
    assert torch.equal(small[:, :3], large[:, :3])
    assert (large[:-1, 3] - SCHEDULE.betas[1:70].flip(0).sqrt()).abs().max() < 1e-12
    assert large[-1, 3] == small[-1, 3] == 0


@pytest.mark.parametrize("sampler", ["ddpm", "ddpm_large", "ddim"])
@pytest.mark.parametrize("num_steps", [70, 5, 1])
def test_the_last_step_is_the_tweedie_estimate(sampler, num_steps):
    plan = write_plan(SCHEDULE, 70, num_steps, sampler, guidance_scale=1.0)
    signal, sigma = plan.marginals[-1]
    expected = torch.stack([1 / signal, -sigma / signal, sigma**2 / signal, torch.zeros((), dtype=torch.float64)])
    assert (plan.rows[-1] - expected).abs().max() < 1e-12


def test_mean_form_at_the_last_step_vanishes_for_small_variance_and_not_for_large():
    assert rows(70, form="mean", guidance_scale=1.0)[-1, 2] == 0
    assert abs(rows(70, sampler="ddpm_large", form="mean", guidance_scale=1.0)[-1, 2] - SCHEDULE.betas[0]) < 1e-15


@pytest.mark.parametrize("num_steps", [70, 10])
def test_mean_form_over_score_form_is_the_documented_ratio(num_steps):
    score, mean = (rows(70, num_steps, form=form, guidance_scale=1.0)[:, 2] for form in ("score", "mean"))
    stops = visited(70, num_steps)
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), SCHEDULE.alphas_cumprod])
    here, there = alpha_bar[stops[:-1]], alpha_bar[stops[1:]]
    assert (mean / score - (here / there).sqrt() * (1 - there) / (1 - here)).abs().max() < 1e-10


def test_mean_form_equals_score_form_for_euler_maruyama():
    score, mean = (rows(70, 14, "vp_sde", form=form, guidance_scale=2.0) for form in ("score", "mean"))
    assert torch.equal(score, mean)


@pytest.mark.parametrize(
    ("num_steps", "sampler", "eta", "push"), [(70, "ddpm", 0, 0.0551), (10, "ddpm", 0, 0.0551), (70, "ddim", 0, 0.03)]
)
def test_total_push_differs_by_sampler_as_documented(num_steps, sampler, eta, push):
    total = rows(70, num_steps, sampler, eta=eta, guidance_scale=1.0)[:, 2].sum().item()
    # .0551 holds at any stride to a few per cent; eta = 0 is known as "about .03" only.
    assert total == pytest.approx(push, rel=0.05 if sampler == "ddpm" else 0.1)


def test_guidance_scale_may_be_given_per_step():
    scales = [float(k) for k in range(7)]
    assert torch.equal(
        rows(70, 7, guidance_scale=scales)[:, 2], rows(70, 7, guidance_scale=1.0)[:, 2] * torch.tensor(scales).double()
    )


def test_stops_are_evenly_spread_from_t_star_to_zero():
    assert visited(150, 5).tolist() == [150, 120, 90, 60, 30, 0]
    for t_star in (1, 7, 70):
        for num_steps in range(1, t_star + 1):
            assert (visited(t_star, num_steps).diff() < 0).all()


def test_the_network_is_told_the_index_and_the_plan_starts_at_t_star():
    plan = make_plan(PurifierConfig(t_star=150, num_steps=5))
    assert plan.times.tolist() == [149, 119, 89, 59, 29]
    assert plan.start[0].item() == pytest.approx(math.sqrt(SCHEDULE.alphas_cumprod[149]), abs=1e-15)
    assert [int(step) for step in plan.steps] == [0, 1, 2, 3, 4]
    assert not plan.guided


@pytest.mark.parametrize(
    ("bad", "argument"),
    [
        ({"t_star": 0}, "t_star"),
        ({"t_star": 1001}, "t_star"),
        ({"t_star": 70, "num_steps": 71}, "num_steps"),
        ({"t_star": 70, "num_steps": 0}, "num_steps"),
        ({"t_star": 70, "sampler": "heun"}, "sampler"),
        ({"t_star": 70, "sampler": "ddim", "form": "mean"}, "form"),
        ({"t_star": 70, "guidance_scale": [1.0, 2.0]}, "guidance_scale"),
    ],
)
def test_an_impossible_plan_is_refused_by_name(bad, argument):
    with pytest.raises(ValueError, match=argument):
        write_plan(SCHEDULE, **bad)


def test_the_plan_of_a_configuration_takes_every_one_of_its_settings():
    guidance = GuidanceConfig(scale=0.7, form="mean")
    schedule = ScheduleConfig(kind="cosine", num_timesteps=200)
    config = PurifierConfig(t_star=60, num_steps=6, sampler="ddim", eta=0.5, guidance=guidance, schedule=schedule)
    expected = write_plan(make_schedule(schedule), 60, 6, "ddim", eta=0.5, form="mean", guidance_scale=0.7)
    found = make_plan(config)
    assert found.guided and found.sampler == "ddim"
    for name in ("rows", "times", "marginals"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))


def test_a_plan_of_other_length_has_at_most_one_step_an_index():
    config = PurifierConfig(t_star=4, num_steps=2)
    assert [len(make_plan(config, steps)) for steps in (None, 1, 3, 9)] == [2, 1, 3, 4]
    assert len(make_plan(PurifierConfig(t_star=4))) == 4


def test_a_guidance_of_no_kind_guides_nowhere():
    plan = make_plan(PurifierConfig(t_star=10, num_steps=2, guidance=GuidanceConfig(kind="none", scale=3.0)))
    assert not plan.guided and not plan.rows[:, 2].any()
    assert make_plan(PurifierConfig(t_star=10, num_steps=2, guidance=GuidanceConfig(scale=3.0))).guided


def test_a_plan_for_networks_of_another_dtype_keeps_its_tables():
    plan = write_plan(SCHEDULE, 70, 7, guidance_scale=1.0)
    moved = plan.to("cpu", torch.bfloat16)
    assert moved.net_dtype == torch.bfloat16 and plan.net_dtype is None and moved.to("cpu").net_dtype is None
    for name in ("rows", "times", "marginals"):
        assert getattr(moved, name).dtype == torch.float64
    assert torch.equal(plan.marginal(torch.tensor(3)), plan.marginals[3])
    assert int(plan.forward_step) == 2**32 - 1


def test_stops_that_fall_between_timesteps_are_rounded_to_the_nearest():
    assert visited(7, 3).tolist() == [7, 5, 2, 0]  # 7, 4 2/3, 2 1/3, 0
    assert visited(10, 7).tolist() == [10, 9, 7, 6, 4, 3, 1, 0]  # 10, 8 4/7, 7 1/7, 5 5/7, 4 2/7, 2 6/7, 1 3/7, 0
