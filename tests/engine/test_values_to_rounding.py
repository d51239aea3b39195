"""Values to rounding where other tests of the loop ask for equal bits."""

from __future__ import annotations

import pytest
import torch

from purify_engine.engine.gradients import differentiable_run
from purify_engine.engine.guide import NoGuide
from purify_engine.engine.loop import Loop
from purify_engine.engine.plan import write_plan
from purify_engine.engine.process import ReverseProcess
from purify_engine.testing.oracles import smooth_denoiser
from tests.engine.test_gradients import (
    GUIDES,
    NOISE,
    SAMPLERS,
    SCHEDULE,
    differentiable_loop,
    images,
    reverse_loop,
    strong_plan,
)


@pytest.mark.parametrize("name", GUIDES)
def test_the_differentiable_loops_value_is_the_loops(name):
    plan = strong_plan(GUIDES[name])
    with torch.no_grad():
        value = reverse_loop(plan, GUIDES[name])(images())
    for x in (images(), images().requires_grad_()):
        found = differentiable_loop(plan, GUIDES[name])(x)
        assert (found - value).abs().max() <= 1e-12 * value.abs().max()


@pytest.mark.parametrize(("sampler", "eta"), SAMPLERS, ids=str)
@pytest.mark.parametrize("name", [name for name in GUIDES if name != "none"])
def test_a_guide_of_no_strength_is_no_guide(name, sampler, eta):
    plan = write_plan(SCHEDULE, 150, 3, sampler, eta=eta)
    unguided = reverse_loop(plan, NoGuide())(images())
    found = reverse_loop(plan, GUIDES[name])(images())
    assert (found - unguided).abs().max() <= 1e-12 * unguided.abs().max()
    guided = reverse_loop(strong_plan(GUIDES[name], sampler, eta, num_steps=3), GUIDES[name])(images())
    assert (guided - unguided).abs().max() > 1e-2


def test_networks_of_another_dtype_read_a_copy_and_the_walk_stays_in_its_own():
    """Float64 images through a float32 network: only its prediction is rounded, so the walk is float64's to float32's digits."""
    plan, dtypes = write_plan(SCHEDULE, 150, 5), []

    def watched(x_net, plan, step):
        dtypes.append(x_net.dtype)
        return smooth_denoiser(x_net, plan, step)

    mixed = ReverseProcess(plan.to("cpu", torch.float32), watched, NoGuide(), NOISE)
    value, exact = Loop().run(mixed, images()), reverse_loop(plan, NoGuide())(images())
    assert set(dtypes) == {torch.float32} and value.dtype == torch.float64
    assert 0 < (value - exact).abs().max() < 1e-5
    grads = []
    for one in (mixed, mixed._replace(plan=plan, model=smooth_denoiser)):
        x = images().requires_grad_()
        out = differentiable_run(Loop(), one, x)
        grads.append(torch.autograd.grad((torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x) * out).sum(), x)[0])
        assert (out - (value if one is mixed else exact)).abs().max() < 1e-12
    assert (grads[0] - grads[1]).norm() < 1e-5 * grads[1].norm()
