import math

import pytest
import torch

from purify_engine.config import ScheduleConfig
from purify_engine.reference.schedules import cosine_betas, linear_betas, make_schedule


@pytest.mark.parametrize(
    ("t_star", "alpha_bar", "sigma", "push"),
    [
        (36, 0.9840, 0.1266, 0.016),
        (70, 0.9464, 0.2316, 0.055),
        (100, 0.8970, 0.3209, 0.109),
        (150, 0.7883, 0.4601, 0.238),
    ],
)
def test_linear_schedule_has_the_published_marginals(t_star, alpha_bar, sigma, push):
    schedule = make_schedule(ScheduleConfig())
    got = schedule.alphas_cumprod[t_star - 1].item()
    # Half a unit of the last printed digit.
    assert abs(got - alpha_bar) < 5.1e-5
    assert abs(math.sqrt(1 - got) - sigma) < 5.1e-5
    assert abs(schedule.betas[:t_star].sum().item() - push) < 6e-4


def test_linear_betas_are_the_vp_sde_on_its_grid():
    betas = linear_betas()
    t = torch.linspace(0, 1, 1000, dtype=torch.float64)
    assert (betas - (0.1 + 19.9 * t) / 1000).abs().max() < 1e-15


def test_cosine_betas_integrate_back_to_the_squared_cosine():
    betas = cosine_betas(1000)
    u = (torch.arange(1, 900, dtype=torch.float64) / 1000 + 0.008) / 1.008 * math.pi / 2
    start = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert (torch.cumprod(1 - betas, 0)[:899] - torch.cos(u) ** 2 / start).abs().max() < 1e-12
    assert betas.max() <= 0.999


def test_refinement_keeps_the_noise_and_tells_the_network_the_old_time_where_the_grids_meet():
    coarse = make_schedule(ScheduleConfig(num_timesteps=100))
    fine = coarse.refined(8)
    assert torch.equal(fine.times[7::8], coarse.times)
    assert abs(fine.betas.sum() - coarse.betas.sum()) < 1e-12
    # (1 - beta / 8) ** 8 differs from 1 - beta in second order.
    assert (fine.alphas_cumprod[7::8] - coarse.alphas_cumprod).abs().max() < coarse.betas.max() * coarse.betas.sum()


@pytest.mark.parametrize("bad", [{"kind": "quadratic"}, {"num_timesteps": 0}, {"beta_start": 0.0}, {"beta_start": 0.5}])
def test_an_impossible_schedule_is_refused_by_name(bad):
    (argument,) = bad
    with pytest.raises(ValueError, match=argument):
        ScheduleConfig(**bad)


def test_the_named_schedule_is_made_with_the_numbers_it_was_given():
    linear = make_schedule(ScheduleConfig(num_timesteps=5, beta_start=0.1, beta_end=0.3))
    torch.testing.assert_close(linear.betas, torch.tensor([0.1, 0.15, 0.2, 0.25, 0.3], dtype=torch.float64))
    cosine = make_schedule(ScheduleConfig(kind="cosine", num_timesteps=50))
    assert torch.equal(cosine.betas, cosine_betas(50)) and not torch.allclose(cosine.betas, linear_betas(50))
    for schedule, count in ((linear, 5), (cosine, 50)):
        assert schedule.num_timesteps == count
        assert schedule.times.tolist() == list(range(count))


def test_the_signal_is_what_each_step_leaves_of_the_one_before():
    schedule = make_schedule(ScheduleConfig(num_timesteps=4, beta_start=0.1, beta_end=0.4))
    expected = torch.tensor([0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7, 0.9 * 0.8 * 0.7 * 0.6], dtype=torch.float64)
    torch.testing.assert_close(schedule.alphas_cumprod, expected)


def test_the_last_cosine_step_is_held_to_the_largest_beta():
    assert cosine_betas(1000)[-1] == 0.999  # alpha_bar ends at 0, so beta would be 1
    assert cosine_betas(1000, max_beta=0.5).max() == 0.5


def test_a_refined_schedule_has_every_step_as_often_as_asked():
    coarse = make_schedule(ScheduleConfig(num_timesteps=3, beta_start=0.1, beta_end=0.3))
    fine = coarse.refined(2)
    torch.testing.assert_close(fine.betas, torch.tensor([0.05, 0.05, 0.1, 0.1, 0.15, 0.15], dtype=torch.float64))
    assert fine.times.tolist() == [-0.5, 0.0, 0.5, 1.0, 1.5, 2.0]
    assert torch.equal(coarse.refined(1).betas, coarse.betas)
    with pytest.raises(ValueError, match="factor must be at least 1, got 0"):
        coarse.refined(0)


def test_roots_of_a_scaled_linear_schedule_rise_evenly_between_those_it_was_given():
    betas = make_schedule(ScheduleConfig(kind="scaled_linear", num_timesteps=5, beta_start=0.01, beta_end=0.25)).betas
    torch.testing.assert_close(betas.sqrt(), torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64))


def test_a_sigmoid_schedule_rises_point_symmetrically_and_comes_close_to_the_betas_it_was_given():
    betas = make_schedule(ScheduleConfig(kind="sigmoid", num_timesteps=7, beta_start=0.1, beta_end=0.3)).betas
    assert (betas.diff() > 0).all() and (betas + betas.flip(0) - 0.4).abs().max() < 1e-15
    # Of the way from one to the other: 1 / (1 + e^6) at the ends, 1 / (1 + e^2) beside the middle.
    shares = (betas - 0.1) / 0.2
    assert abs(shares[0] - 0.0024726231566347743) < 1e-12 and abs(shares[2] - 0.11920292202211755) < 1e-12
