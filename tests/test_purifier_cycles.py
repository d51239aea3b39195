"""Cycles of different depth: each walks a plan of its own, and all that is measured of a purifier counts every one of them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from purify_engine.reference.philox import derive_seed
from tests.test_purifier import images
from tests.test_purifier_state import EXECUTIONS, apart, assert_close, made

GRADUAL = {"t_star": 30, "num_steps": 2, "cycles": 3, "cycle_t_stars": (10, 10, 30)}


def one_after_another(x, execution, **changes):
    """The three cycles as three purifiers, each of its own depth and of the seed derived at 2**33 + its number."""
    for cycle, t_star in enumerate((10, 10, 30)):
        seed = int(derive_seed(torch.tensor(0), 2**33 + cycle)) if cycle else 0
        x = made(execution, t_star=t_star, num_steps=2, seed=seed, **changes).double()(x)
    return x


@EXECUTIONS
def test_gradual_noise_is_purifiers_of_these_depths_one_after_another(execution):
    gradual, x = made(execution, **GRADUAL).double(), (0.4 + 0.2 * images()).double()
    assert_close(gradual(x), expected := one_after_another(x, execution), 1e-12)
    assert expected.min() > 0.01 and expected.max() < 0.99  # so that nothing is cut off between the three
    even = made(execution, t_star=30, num_steps=2, cycles=3).double()
    assert apart(even(x), gradual(x))


def test_the_gradient_goes_back_through_every_depth():
    gradual, x = made("loop", **GRADUAL).double(), (0.4 + 0.2 * images(2)).double().requires_grad_()
    (grad,) = torch.autograd.grad(gradual(x).square().sum(), x)
    (by_hand,) = torch.autograd.grad(one_after_another(x, "loop").square().sum(), x)
    assert_close(grad, by_hand, 1e-10)
    surrogate = {"gradient": "surrogate", "surrogate_steps": 1}
    (grad,) = torch.autograd.grad(made("loop", **GRADUAL, **surrogate).double()(x).square().sum(), x)
    (by_hand,) = torch.autograd.grad(one_after_another(x, "loop", **surrogate).square().sum(), x)
    assert_close(grad, by_hand, 1e-10)


def test_steps_and_memory_are_those_of_all_cycles():
    model = made(t_star=30, cycles=3, cycle_t_stars=(10, 12, 30), num_steps=None)
    assert model.num_steps == 10 + 12 + 30
    assert model.memory_report()["trajectory_per_image"] == 52 * 64 * 4
    assert made(cycles=2).memory_report()["trajectory_per_image"] == 2 * made().memory_report()["trajectory_per_image"]


def test_plans_are_shared_by_cycles_of_one_depth():
    model = made(**GRADUAL)
    assert model.plan(cycle=0) is model.plan(cycle=1) and model.plan(cycle=0) is not model.plan(cycle=2)
    assert [model.plan(cycle=cycle).times.tolist() for cycle in range(3)] == [[9, 4], [9, 4], [29, 14]]


def test_calibration_looks_at_each_depth_once():
    """The median over both depths lies between those of each."""
    x = images()
    gradual = made(**GRADUAL).calibrate(x, ratio=0.2)
    alone = [made(t_star=t_star, num_steps=2).calibrate(x, ratio=0.2) for t_star in (10, 30)]
    assert min(alone) < gradual < max(alone)
    even = made(t_star=30, num_steps=2, cycles=2).calibrate(x, ratio=0.2)
    assert even == pytest.approx(alone[1], rel=1e-6)


def test_a_scale_that_grows_with_the_noise_is_calibrated_as_it_pulls():
    """One step: its pull is s sigma / sqrt(alpha_bar), so s is larger by the inverse."""
    x, one = images(), made(t_star=30, num_steps=1)
    growing = one.configured(guidance=dataclasses.replace(one.config.guidance, growth="noise"))
    signal, sigma = one.plan().start.tolist()
    assert growing.calibrate(x, ratio=0.2) == pytest.approx(one.calibrate(x, ratio=0.2) * signal / sigma, rel=1e-5)
    scale = one.config.guidance.scale * signal / sigma
    stronger = growing.configured(guidance=dataclasses.replace(growing.config.guidance, scale=scale))
    assert_close(stronger(x, draw=0), one(x, draw=0), 1e-5)
