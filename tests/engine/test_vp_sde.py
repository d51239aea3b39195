"""vp_sde is DiffPure's reverse SDE: against an Euler-Maruyama of its published formulas, written out here step by step."""

import math

import pytest
import torch

from purify_engine import ops
from purify_engine.config import GuidanceConfig, PurifierConfig, ScheduleConfig
from purify_engine.engine.guide import NoGuide
from purify_engine.engine.loop import Loop
from purify_engine.engine.plan import write_plan
from purify_engine.engine.process import ReverseProcess
from purify_engine.engine.suitability import require_suitable
from purify_engine.engine.timesteps import diffpure_labels
from purify_engine.models.published import ADM_IMAGENET256, DDPMPP_DEEP_CIFAR10
from purify_engine.reference.schedules import make_schedule
from purify_engine.types import NoiseKey

SCHEDULE = make_schedule(ScheduleConfig())
NOISE = NoiseKey(torch.tensor(3), torch.arange(2))
X = torch.linspace(-1, 1, 8, dtype=torch.float64).view(2, 1, 2, 2)


def network(x, t):
    """A nonlinear noise prediction of x and continuous t."""
    return torch.tanh(x - 0.4 * x.flip(-1)) * (0.3 + t) + 0.1 * torch.cos(7 * t + x)


def normal(step):
    return ops.philox_normal(*NOISE, step, 4, dtype=torch.float64).view_as(X)


def euler_maruyama(t_star, stride=1, num_timesteps=1000, beta_0=0.1, beta_1=20.0):
    """Noised on the discrete table, then dx = -(f - g^2 score) dt + g dw from t_star / T to 1e-5, as DiffPure integrates it."""
    alpha_bar = math.prod(1 - (beta_0 + (beta_1 - beta_0) * k / (num_timesteps - 1)) / num_timesteps for k in range(t_star))
    x = math.sqrt(alpha_bar) * X + math.sqrt(1 - alpha_bar) * normal(torch.tensor(2**32 - 1))
    for step, remaining in enumerate(range(t_star, 0, -stride)):
        t = remaining / num_timesteps
        dt = t - max((remaining - stride) / num_timesteps, 1e-5)
        beta = beta_0 + t * (beta_1 - beta_0)
        sigma = math.sqrt(1 - math.exp(-0.5 * (beta_1 - beta_0) * t**2 - beta_0 * t))
        score = -network(x, torch.tensor(t, dtype=torch.float64)) / sigma
        drift = -0.5 * beta * x - beta * score
        x = x - drift * dt + math.sqrt(beta) * math.sqrt(dt) * normal(torch.tensor(step))
    return x


def purified(plan, num_timesteps=1000):
    """The same by the plan; the network gets t from the index that it is told."""
    model = lambda x_net, plan, step: network(x_net, (plan.times[step] + 1) / num_timesteps)  # noqa: E731
    return Loop().run(ReverseProcess(plan, model, NoGuide(), NOISE), X)


@pytest.mark.parametrize(("t_star", "stride"), [(100, 1), (150, 1), (150, 5), (1, 1)])
def test_a_walk_is_the_euler_maruyama_of_the_published_formulas(t_star, stride):
    found = purified(write_plan(SCHEDULE, t_star, t_star // stride, "vp_sde"))
    assert (found - euler_maruyama(t_star, stride)).abs().max() < 1e-12


def test_another_linear_schedule_is_the_sde_of_its_own_rates():
    schedule = make_schedule(ScheduleConfig(num_timesteps=200, beta_start=1e-3, beta_end=4e-2))
    found = purified(write_plan(schedule, 60, 60, "vp_sde"), 200)
    assert (found - euler_maruyama(60, 1, 200, 0.2, 8.0)).abs().max() < 1e-12


def test_first_and_last_row_are_those_of_t_15_hundredths_and_of_a_thousandth():
    """At t = .15: beta 3.085, sigma^2 1 - exp(-.238875). At t = .001: beta .1199, sigma^2 1 - exp(-.00010995), h .00099."""
    plan = write_plan(SCHEDULE, 150, 150, "vp_sde", guidance_scale=2.0)
    for row, drift, sigma in (
        (plan.rows[0], 3.085e-3, math.sqrt(-math.expm1(-0.238875))),
        (plan.rows[-1], 0.1199 * 0.00099, math.sqrt(-math.expm1(-0.00010995))),
    ):
        expected = torch.tensor([1 + drift / 2, -drift / sigma, 2 * drift, math.sqrt(drift)], dtype=torch.float64)
        assert (row / expected - 1).abs().max() < 1e-12


@pytest.mark.parametrize("t_star", [100, 125, 500])
def test_diffpures_labels_are_the_indices_plus_one_where_its_sums_do_not_fall_short(t_star):
    assert diffpure_labels(t_star).tolist() == list(range(1, t_star + 1))


def test_diffpures_labels_are_one_lower_where_its_float32_sums_are_cut_off():
    told = write_plan(SCHEDULE, 150, sampler="vp_sde", time_labels="diffpure").times.tolist()
    assert told == [149, 148, *range(148, 0, -1)]
    assert write_plan(SCHEDULE, 75, sampler="vp_sde", time_labels="diffpure").times.tolist() == [74, *range(74, 0, -1)]
    assert write_plan(SCHEDULE, 150, sampler="vp_sde").times.tolist() == list(range(149, -1, -1))


def test_a_strided_plan_tells_the_labels_of_the_whole_one_where_it_stops():
    plan = write_plan(SCHEDULE, 150, 5, "vp_sde", time_labels="diffpure")
    assert plan.times.tolist() == [149, 120, 90, 60, 30]


def test_labels_that_a_network_shifts_itself_are_not_shifted_again():
    """score_sde's network adds 1 to the index: under DiffPure's SDE its labels are right as they are."""
    told = PurifierConfig(sampler="vp_sde", time_labels="diffpure", guidance=GuidanceConfig(kind="none"))
    require_suitable(told, ADM_IMAGENET256, None)
    with pytest.raises(ValueError, match="^time_labels must be index for a network whose time_offset is 1, not 0, got"):
        require_suitable(told, DDPMPP_DEEP_CIFAR10, None)


def test_a_schedule_without_an_sde_is_refused_by_name():
    with pytest.raises(ValueError, match="^sampler must be other than 'vp_sde' for a schedule without an SDE"):
        write_plan(make_schedule(ScheduleConfig(kind="cosine")), 70, sampler="vp_sde")


def test_a_last_step_that_would_end_above_where_it_starts_is_refused():
    fine = make_schedule(ScheduleConfig(num_timesteps=100_000, beta_start=1e-6, beta_end=2e-4))
    with pytest.raises(ValueError, match="^num_steps must be so few that the last step is longer than 1e-05"):
        write_plan(fine, 10, sampler="vp_sde")
    assert len(write_plan(fine, 10, 5, "vp_sde")) == 5


def test_a_refined_schedule_is_the_same_process():
    fine, t = SCHEDULE.refined(8), torch.tensor([1e-3, 0.07, 1.0], dtype=torch.float64)
    assert (fine.sde.beta(t) - SCHEDULE.sde.beta(t)).abs().max() < 1e-13
    assert (fine.sde.sigma(t) - SCHEDULE.sde.sigma(t)).abs().max() < 1e-15
    assert (fine.sde.time(torch.tensor(8 * 70 - 1)) - 0.07).abs() < 1e-16
