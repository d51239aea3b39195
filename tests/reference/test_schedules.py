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
