"""What is measured before a purification is trusted: the guide's pull in a known world, and the bytes that a step keeps."""

from __future__ import annotations

import pytest
import torch

from purify_engine.config import ScheduleConfig
from purify_engine.engine.calibration import guidance_scale_for, step_memory
from purify_engine.engine.guide import NoGuide
from purify_engine.engine.loop import Loop
from purify_engine.engine.plan import write_plan
from purify_engine.engine.process import ReverseProcess
from purify_engine.reference.schedules import make_schedule
from purify_engine.testing.oracles import GaussianWorld
from purify_engine.types import NoiseKey

PLAN = write_plan(make_schedule(ScheduleConfig()), 70, 4, guidance_scale=0.7)
WORLD = GaussianWorld(pull=1.5, towards=-0.4)
NOISE = NoiseKey(torch.tensor(3), torch.arange(3))
X = torch.linspace(-1, 1, 3 * 5, dtype=torch.float64).view(3, 1, 1, 5)


def process(model, guide):
    return ReverseProcess(PLAN, model, guide, NOISE)


@pytest.mark.parametrize("quantile", [0.25, 0.5, 0.9])
def test_the_scale_is_the_ratio_over_the_quantile_of_an_unguided_walks_pull(quantile):
    ratios = []

    def watched(x_net, plan, step):
        pull = 1.5 * (x_net + 0.4).flatten(1)
        ratios.append(pull.norm(dim=1) * plan.marginals[int(step), 1] / 5**0.5)
        return WORLD.denoiser(x_net, plan, step)

    Loop().run(process(watched, NoGuide()), X)
    expected = 0.2 / float(torch.cat(ratios).quantile(quantile))
    assert guidance_scale_for([process(WORLD.denoiser, WORLD)], X, 0.2, quantile) == pytest.approx(expected, rel=1e-9)


def test_nothing_is_recorded_while_the_pull_is_measured():
    recorded = []

    def watched(x_net, plan, step):
        recorded.append(torch.is_grad_enabled() or x_net.requires_grad)
        return WORLD.denoiser(x_net, plan, step)

    guidance_scale_for([process(watched, WORLD)], X.clone().requires_grad_(), 0.2, 0.5)
    assert recorded == [False] * 4


def kept_by(model, x):
    return step_memory(process(model, NoGuide()), x)


def test_a_steps_memory_is_the_bytes_of_what_autograd_keeps_each_storage_once():
    """exp keeps its result, a product both factors, a sine its argument; views of one storage are that storage, once."""
    x = torch.rand(2, 3, 4, 5)  # 480 bytes
    assert kept_by(lambda x, plan, step: x.exp(), x) == 480
    assert kept_by(lambda x, plan, step: x.exp().exp(), x) == 2 * 480
    assert kept_by(lambda x, plan, step: x[:, :1].sin() + x[:, 1:2].sin() + x.flatten().cos().view_as(x)[:, 2:], x) == 480
    assert kept_by(lambda x, plan, step: x.view(2, 60).exp()[:1] * x.view(2, 60)[1:], x) == 2 * 480
    assert kept_by(lambda x, plan, step: 2 * x + 1, x) == 0
    assert kept_by(lambda x, plan, step: x.exp(), x.double()) == 960


def test_a_steps_memory_is_measured_under_no_grad_as_well_and_leaves_the_images_alone():
    x = torch.rand(2, 3, 4, 5)
    with torch.no_grad():
        assert kept_by(lambda x, plan, step: x.exp(), x) == 480
    assert not x.requires_grad and x.grad is None


def test_the_guide_is_part_of_a_step():
    class Cubic(NoGuide):
        def grad(self, x_t, eps, target, plan, step, noise):
            return x_t.exp()

    x = torch.rand(2, 3, 4, 5)
    assert step_memory(process(lambda x, plan, step: x.exp(), Cubic()), x) == 2 * 480
