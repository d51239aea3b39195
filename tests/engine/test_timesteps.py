"""Which timesteps a plan visits and where it lands, given as lists; and shorter plans of the same lists."""

import pytest
import torch

from purify_engine.config import PurifierConfig, ScheduleConfig
from purify_engine.engine.plan import make_plan, write_plan
from purify_engine.engine.timesteps import walk
from purify_engine.reference.schedules import make_schedule

SCHEDULE = make_schedule(ScheduleConfig())
STOPS, LANDINGS = (69, 60, 44, 20, 9, 0), (61, 45, 21, 10, 1, -1)


def steps(*args, **options):
    return tuple(tuple(index.tolist()) for index in walk(*args, **options))


def test_a_walk_goes_where_it_is_told():
    assert steps(70, timesteps=STOPS) == (STOPS, (60, 44, 20, 9, 0, -1))
    assert steps(70, timesteps=STOPS, landings=LANDINGS) == (STOPS, LANDINGS)
    assert steps(4) == ((3, 2, 1, 0), (2, 1, 0, -1))
    assert steps(70, 2) == ((69, 34), (34, -1))


def test_a_shorter_walk_is_made_of_neighbouring_steps_of_the_whole_one():
    assert steps(70, 3, STOPS) == ((69, 44, 9), (44, 9, -1))
    assert steps(70, 3, STOPS, LANDINGS) == ((69, 44, 9), (45, 10, -1))
    assert steps(70, 6, STOPS, LANDINGS) == (STOPS, LANDINGS)
    assert steps(70, 1, STOPS, LANDINGS) == ((69,), (-1,))
    for count in range(1, 7):
        here, there = steps(70, count, STOPS, LANDINGS)
        assert set(here) <= set(STOPS) and here[0] == 69 and there[-1] == -1 and len(here) == len(there) == count


def test_given_timesteps_that_are_evenly_spread_make_the_evenly_spread_plan():
    even, given = write_plan(SCHEDULE, 70, 7, guidance_scale=0.5), write_plan(
        SCHEDULE, 70, timesteps=range(69, 0, -10), guidance_scale=0.5
    )
    for name in ("rows", "times", "marginals"):
        assert torch.equal(getattr(even, name), getattr(given, name))


def test_a_respaced_process_has_betas_of_the_kept_alpha_bars():
    """Nichol & Dhariwal 2021, section 4: beta = 1 - alpha_bar_t / alpha_bar_s, Ho et al.'s posterior, the old timestep told."""
    plan = write_plan(SCHEDULE, 70, timesteps=STOPS)
    before, alpha_bar, expected = 1.0, SCHEDULE.alphas_cumprod, []
    for t in reversed(STOPS):
        beta, now = 1 - float(alpha_bar[t]) / before, float(alpha_bar[t])
        posterior = beta * (1 - before) / (1 - now)
        expected.append([(1 - beta) ** -0.5, -beta / ((1 - beta) * (1 - now)) ** 0.5, 0.0, posterior**0.5])
        before = now
    assert (plan.rows - torch.tensor(expected[::-1], dtype=torch.float64)).abs().max() < 1e-12
    assert plan.times.tolist() == list(STOPS)


def test_the_plan_of_a_configuration_takes_its_timesteps_and_a_shorter_one_some_of_them():
    config = PurifierConfig(t_star=70, timesteps=STOPS, landings=LANDINGS, sampler="ddim")
    whole, shorter = make_plan(config), make_plan(config, 3)
    assert whole.times.tolist() == list(STOPS) and shorter.times.tolist() == [69, 44, 9]
    assert len(make_plan(config, 40)) == 6
    # DDIM lands on sqrt(alpha_bar_j) x0: a of a step is the ratio of the two signals.
    signal = SCHEDULE.alphas_cumprod.sqrt()
    assert (whole.rows[0, 0] - signal[61] / signal[69]).abs() < 1e-14
    assert (shorter.rows[:2, 0] - signal[[45, 10]] / signal[[69, 44]]).abs().max() < 1e-14


def test_each_cycle_has_a_plan_of_its_own_depth():
    config = PurifierConfig(t_star=9, cycles=3, cycle_t_stars=(4, 4, 9), num_steps=2)
    assert [make_plan(config, cycle=cycle).times.tolist() for cycle in range(3)] == [[3, 1], [3, 1], [8, 3]]
    assert [len(make_plan(config, 7, cycle)) for cycle in range(3)] == [4, 4, 7]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_steps": 7}, "num_steps must be in [1, 6], as many as timesteps, got 7"),
        ({"num_steps": 0}, "num_steps must be in [1, 6], as many as timesteps, got 0"),
        ({"landings": (0,)}, "landings must be 6 numbers, one a timestep, got (0,)"),
        ({"landings": (69, 0, 0, 0, 0, -1)}, "landings must be in [-1, timestep) for each timestep, got (69, 0, 0, 0, 0, -1)"),
        ({"t_star": 71}, f"timesteps must be integers falling strictly from t_star - 1 = 70, got {STOPS}"),
    ],
)
def test_an_impossible_walk_is_refused_by_name(given, said):
    with pytest.raises(ValueError) as wrong:
        write_plan(SCHEDULE, **{"t_star": 70, "timesteps": STOPS, **given})
    assert str(wrong.value) == said
