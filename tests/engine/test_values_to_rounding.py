"""Values to rounding where other tests of the loop ask for equal bits."""

from __future__ import annotations

import pytest
import torch

from purify_engine.engine.gradients import differentiable_loop
from purify_engine.engine.guide import NoGuide
from purify_engine.engine.loop import reverse_loop
from purify_engine.engine.plan import write_plan
from tests.engine.test_gradients import GUIDES, NOISE, SAMPLERS, SCHEDULE, images, run, smooth_denoiser, strong_plan


@pytest.mark.parametrize("name", GUIDES)
def test_the_differentiable_loops_value_is_the_loops(name):
    plan = strong_plan(GUIDES[name])
    with torch.no_grad():
        value = run(reverse_loop, plan, GUIDES[name])(images())
    for x in (images(), images().requires_grad_()):
        found = run(differentiable_loop, plan, GUIDES[name])(x)
        assert (found - value).abs().max() <= 1e-12 * value.abs().max()


@pytest.mark.parametrize(("sampler", "eta"), SAMPLERS, ids=str)
@pytest.mark.parametrize("name", [name for name in GUIDES if name != "none"])
def test_a_guide_of_no_strength_is_no_guide(name, sampler, eta):
    plan = write_plan(SCHEDULE, 150, 3, sampler, eta=eta)
    unguided = reverse_loop(images(), plan, smooth_denoiser, NoGuide(), NOISE)
    found = reverse_loop(images(), plan, smooth_denoiser, GUIDES[name], NOISE)
    assert (found - unguided).abs().max() <= 1e-12 * unguided.abs().max()
    guided = reverse_loop(images(), strong_plan(GUIDES[name], num_steps=3), smooth_denoiser, GUIDES[name], NOISE)
    assert (guided - unguided).abs().max() > 1e-2


def test_networks_of_another_dtype_read_a_copy_and_the_walk_stays_in_its_own():
    """Float64 images through a float32 network: only its prediction is rounded, so the walk is float64's to float32's digits."""
    plan = write_plan(SCHEDULE, 150, 5)
    dtypes = []

    def watched(x_net, plan, step):
        dtypes.append(x_net.dtype)
        return smooth_denoiser(x_net, plan, step)

    mixed = reverse_loop(images(), plan.to("cpu", torch.float32), watched, NoGuide(), NOISE)
    exact = reverse_loop(images(), plan, smooth_denoiser, NoGuide(), NOISE)
    assert set(dtypes) == {torch.float32} and mixed.dtype == torch.float64
    assert 0 < (mixed - exact).abs().max() < 1e-5
    x = images().requires_grad_()
    differentiated = differentiable_loop(x, plan.to("cpu", torch.float32), watched, NoGuide(), NOISE)
    assert (differentiated - mixed).abs().max() < 1e-12
    weights = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    (found,) = torch.autograd.grad((weights * differentiated).sum(), x)
    (expected,) = torch.autograd.grad((weights * differentiable_loop(x, plan, smooth_denoiser, NoGuide(), NOISE)).sum(), x)
    assert (found - expected).norm() < 1e-5 * expected.norm()
