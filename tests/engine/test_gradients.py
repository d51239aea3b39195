"""The exact gradient against the stored graph of the plain loop, and against finite differences: float64 throughout."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch

from purify_engine.config import ClassifierConfig, GuidanceConfig, ScheduleConfig
from purify_engine.engine import gradients
from purify_engine.engine.calibration import guidance_scale_for
from purify_engine.engine.gradients import differentiable_run, purify
from purify_engine.engine.guide import AdversarialGuide, NoGuide, PixelGuide
from purify_engine.engine.loop import Loop
from purify_engine.engine.plan import write_plan
from purify_engine.engine.process import ReverseProcess
from purify_engine.models.classifiers import Classifier
from purify_engine.reference.schedules import make_schedule
from purify_engine.testing.oracles import smooth_denoiser
from purify_engine.types import NoiseKey

SCHEDULE = make_schedule(ScheduleConfig())
NOISE = NoiseKey(torch.tensor(11), torch.arange(2))
SAMPLERS = [("ddpm", 0.0), ("ddpm_large", 0.0), ("ddim", 0.0), ("ddim", 0.5), ("vp_sde", 0.0)]


def network(activation="silu", seed=0):
    """A small guide with normalisation statistics of its own, so that nothing in it is trivial."""
    config = ClassifierConfig(
        architecture="wide_resnet", depth=10, width=1, in_channels=1, activation=activation, mean=(0.3,), std=(0.4,)
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Classifier(config).double()
        model.train()(torch.rand(64, 1, 8, 8, dtype=torch.float64))
    return model.eval().requires_grad_(False)


def adversarial(activation="silu", straight_through=False, **options):
    return AdversarialGuide(
        network(activation), GuidanceConfig(scale=1.0, **options), straight_through=straight_through
    )


GUIDES = {
    "none": NoGuide(),
    "pixel": PixelGuide(),
    "label and latent": adversarial(),
    "latent": adversarial(pseudo_label="none"),
    "soft label": adversarial(pseudo_label="soft", latent_weight=0.0),
    "straight-through label": adversarial(straight_through=True, latent_weight=0.0),
    "Tweedie estimate": adversarial(look_at="x0"),
    "normalised": adversarial(normalised=True),
    "normalised Tweedie, soft": adversarial(normalised=True, look_at="x0", pseudo_label="soft"),
}


def images(seed=5):
    return torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def process(plan, guide, follow_guide=True):
    return ReverseProcess(plan, smooth_denoiser, guide, NOISE, follow_guide)


def strong_plan(guide, sampler="ddpm", eta=0.0, num_steps=5, ratio=0.5):
    """A plan whose guidance is `ratio` times unit noise prediction: strong enough to matter, too weak for chaos."""
    probe = write_plan(SCHEDULE, 150, num_steps, sampler, eta=eta, guidance_scale=1.0)
    if isinstance(guide, NoGuide):
        return probe
    scale = guidance_scale_for([process(probe, guide)], images(), ratio, 0.5)
    return write_plan(SCHEDULE, 150, num_steps, sampler, eta=eta, guidance_scale=scale)


def loss(x):
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(9), dtype=x.dtype)
    return (weights * x + 0.1 * x**3).sum()


def gradient(function, x):
    x = x.detach().requires_grad_()
    (grad,) = torch.autograd.grad(loss(function(x)), x)
    return grad


def reverse_loop(plan, guide):
    """The plain loop, whose graph autograd stores."""
    return lambda x: Loop().run(process(plan, guide), x)


def differentiable_loop(plan, guide, follow_guide=True):
    """The loop with its gradient recomputed step by step."""
    return lambda x: differentiable_run(Loop(), process(plan, guide, follow_guide), x)


@pytest.mark.parametrize(("sampler", "eta"), SAMPLERS, ids=str)
@pytest.mark.parametrize("name", GUIDES)
def test_exact_gradient_equals_the_stored_graph(name, sampler, eta):
    guide = GUIDES[name]
    plan = strong_plan(guide, sampler, eta)
    recomputed = gradient(differentiable_loop(plan, guide), images())
    stored = gradient(reverse_loop(plan, guide), images())
    assert (recomputed - stored).norm() <= 1e-12 * stored.norm()


@pytest.mark.parametrize(("sampler", "eta"), SAMPLERS, ids=str)
@pytest.mark.parametrize("name", [name for name in GUIDES if name != "straight-through label"])
def test_exact_gradient_equals_central_differences(name, sampler, eta):
    guide = GUIDES[name]
    plan = strong_plan(guide, sampler, eta, num_steps=3)
    function, x, h = reverse_loop(plan, guide), images(), 1e-5
    grad = gradient(differentiable_loop(plan, guide), x)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        v = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        v /= v.norm()
        with torch.no_grad():
            difference = (loss(function(x + h * v)) - loss(function(x - h * v))) / (2 * h)
        along = (grad * v).sum()
        assert abs(difference - along) <= 1e-6 * max(abs(along), 1e-3 * grad.norm())


class Constant:
    """A guide whose pull and target are constants."""

    def __init__(self, guide):
        self.guide, self.reads_eps = guide, guide.reads_eps

    def target(self, x):
        return tuple(part.detach() for part in self.guide.target(x))

    def grad(self, *args):
        return self.guide.grad(*args).detach()


def second_derivative(function, x):
    """A Hessian-vector product of a loss that is linear in the result, at the gradient's own graph."""
    x, generator = x.detach().requires_grad_(), torch.Generator().manual_seed(3)
    weights, along = (torch.randn(x.shape, generator=generator, dtype=x.dtype) for _ in range(2))
    (grad,) = torch.autograd.grad((weights * function(x)).sum(), x, create_graph=True)
    return torch.autograd.grad((grad * along).sum(), x)[0]


CURVED = ["pixel", "label and latent", "straight-through label", "normalised Tweedie, soft"]


@pytest.mark.parametrize("follow_guide", [True, False], ids=["followed", "detached"])
@pytest.mark.parametrize("name", CURVED)
def test_second_derivative_equals_the_stored_graphs(name, follow_guide):
    guide = GUIDES[name]
    plan = strong_plan(guide, num_steps=2)
    recomputed = second_derivative(differentiable_loop(plan, guide, follow_guide), images())
    stored = second_derivative(reverse_loop(plan, guide if follow_guide else Constant(guide)), images())
    assert (recomputed - stored).norm() <= 1e-11 * stored.norm()


def test_second_derivative_of_a_surrogate_is_that_of_the_shorter_plan():
    guide = GUIDES["label and latent"]
    found = second_derivative(lambda x: purified("surrogate", x, strong_plan(guide), guide), images())
    expected = second_derivative(reverse_loop(write_plan(SCHEDULE, 150, 2), guide), images())
    assert (found - expected).norm() <= 1e-11 * expected.norm()


@pytest.mark.parametrize("name", ["label and latent", "Tweedie estimate", "pixel"])
def test_value_is_the_loops_bit_for_bit(name):
    plan = strong_plan(GUIDES[name])
    with torch.no_grad():  # where nothing is recorded the plain loop runs the very same kernels
        value = reverse_loop(plan, GUIDES[name])(images())
    assert torch.equal(differentiable_loop(plan, GUIDES[name])(images().requires_grad_()), value)


@pytest.mark.parametrize("name", [name for name in GUIDES if name != "none"])
def test_a_detached_guide_is_caught_where_the_guide_matters(name):
    guide = GUIDES[name]
    plan = strong_plan(
        guide, ratio=2.0 if name == "pixel" else 0.5
    )  # pixels pull evenly, and half of it cancels with the target's
    exact = gradient(differentiable_loop(plan, guide), images())
    detached = gradient(differentiable_loop(plan, guide, follow_guide=False), images())
    share = (exact - detached).norm() / exact.norm()
    assert share > 0.05
    v = (exact - detached) / (exact - detached).norm()
    function, h = reverse_loop(plan, guide), 1e-5
    difference = (loss(function(images() + h * v)) - loss(function(images() - h * v))) / (2 * h)
    if name != "straight-through label":  # its gradient is not its value's
        assert abs(difference - (exact * v).sum()) < 1e-3 * abs(difference - (detached * v).sum())


def test_float32_replay_equals_the_stored_graph():
    guide = AdversarialGuide(network().float(), GuidanceConfig(scale=1.0))
    plan = dataclasses.replace(strong_plan(GUIDES["label and latent"]))
    recomputed = gradient(differentiable_loop(plan, guide), images().float())
    stored = gradient(reverse_loop(plan, guide), images().float())
    assert (recomputed - stored).norm() <= 1e-5 * stored.norm()


def test_a_relu_guide_keeps_its_gauss_newton_part():
    guide = adversarial("relu")
    plan = strong_plan(guide)
    recomputed = gradient(differentiable_loop(plan, guide), images())
    stored = gradient(reverse_loop(plan, guide), images())
    detached = gradient(differentiable_loop(plan, guide, follow_guide=False), images())
    assert (recomputed - stored).norm() <= 1e-12 * stored.norm()
    assert (recomputed - detached).norm() > 0.05 * recomputed.norm()


def of_matrix_products():
    """A process whose model autocast rounds."""
    weight = torch.linspace(-1, 1, 64).sin().view(8, 8)
    return process(strong_plan(GUIDES["none"]), GUIDES["none"])._replace(model=lambda x, plan, step: (x @ weight).float().tanh())


@pytest.mark.parametrize("there", [True, False], ids=["autocast there", "float32 there"])
@pytest.mark.parametrize("back", [True, False], ids=["autocast back", "float32 back"])
def test_the_gradient_is_that_of_the_forward_pass_whatever_autocast_says_on_the_way_back(there, back):
    world = of_matrix_products()

    def gradient_under(back):
        x = images().float().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=there):
            out = differentiable_run(Loop(), world, x)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=back):
            return torch.autograd.grad(loss(out), x)[0]

    assert torch.equal(gradient_under(back), gradient_under(there))


def test_autocast_changes_the_gradient_that_is_kept():
    """Or the test above would see nothing."""
    world, x = of_matrix_products(), images().float()
    exact = gradient(lambda x: differentiable_run(Loop(), world, x), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = gradient(lambda x: differentiable_run(Loop(), world, x), x)
    assert (exact - rounded).norm() > 1e-4 * exact.norm()


def purified(mode, x, plan, guide):
    surrogate = write_plan(SCHEDULE, 150, 2)
    return purify(Loop(), process(plan, guide), x, mode=mode, surrogate=surrogate)


@pytest.mark.parametrize("mode", ["exact", "straight_through", "surrogate", "bpda", "detached_guidance"])
def test_every_mode_but_blind_has_the_purifiers_value(mode):
    guide = GUIDES["label and latent"]
    plan = strong_plan(guide)
    value = reverse_loop(plan, guide)(images())
    # Adding and subtracting the stand-in rounds once.
    assert (purified(mode, images().requires_grad_(), plan, guide) - value).abs().max() < 1e-14 * 10


def test_the_modes_have_the_gradients_they_promise():
    guide = GUIDES["label and latent"]
    plan = strong_plan(guide)
    grads = {
        mode: gradient(lambda x, mode=mode: purified(mode, x, plan, guide), images())
        for mode in ("bpda", "blind", "surrogate")
    }
    value = reverse_loop(plan, guide)(images())
    at_value = gradient(lambda x: x, value)
    assert (grads["bpda"] - at_value).abs().max() < 1e-12
    assert torch.equal(grads["blind"], gradient(lambda x: x, images()))
    assert torch.equal(purified("blind", images(), plan, guide), images())
    short = write_plan(SCHEDULE, 150, 2)
    x = images().requires_grad_()
    (expected,) = torch.autograd.grad(reverse_loop(short, guide)(x), x, at_value)
    assert (grads["surrogate"] - expected).norm() < 1e-12 * expected.norm()


def test_a_network_parameter_that_wants_a_gradient_is_refused():
    guide = adversarial()
    guide.network.fc.weight.requires_grad_()
    with pytest.raises(ValueError, match=r"parameters must be frozen.*network\.fc\.weight"):
        purified("exact", images().requires_grad_(), strong_plan(GUIDES["none"]), guide)


def test_a_gradient_by_weights_that_changed_since_the_call_is_refused():
    guide, x = adversarial(), images().requires_grad_()
    value = loss(differentiable_loop(strong_plan(guide), guide)(x))
    guide.network.fc.weight.mul_(1.1)
    with pytest.raises(RuntimeError, match="weights of a purifier must stay as they are between a call and its derivatives"):
        torch.autograd.grad(value, x)


PEAK = r"""
import re, sys, torch
from purify_engine.config import ScheduleConfig
from purify_engine.engine.gradients import differentiable_run
from purify_engine.engine.guide import NoGuide
from purify_engine.engine.loop import Loop
from purify_engine.engine.plan import write_plan
from purify_engine.engine.process import ReverseProcess
from purify_engine.reference.schedules import make_schedule
from purify_engine.types import NoiseKey
torch.set_num_threads(1)
wide = [torch.nn.Conv2d(3, 192, 1), *[torch.nn.SiLU() for _ in range(12)], torch.nn.Conv2d(192, 3, 1)]
hidden = torch.nn.Sequential(*wide).requires_grad_(False)
plan = write_plan(make_schedule(ScheduleConfig()), 100, int(sys.argv[1]))
x = torch.rand(2, 3, 64, 64).requires_grad_()
peak = lambda: int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1])
before = peak()
noise = NoiseKey(torch.tensor(0), torch.arange(2))
process = ReverseProcess(plan, lambda x_net, plan, step: hidden(x_net), NoGuide(), noise)
differentiable_run(Loop(), process, x).sum().backward()
print(peak() - before)
"""


def test_peak_memory_does_not_grow_with_the_steps():
    # Large blocks straight from the kernel and back, so that the peak is what was in use and not how glibc's heap was cut up.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", PEAK]
    few, many = (int(subprocess.check_output([*command, str(steps)], env=environment)) for steps in (5, 40))
    # In KiB beyond the imports; the visited images of 40 steps are 3.8 MiB of it.
    assert few > 60_000
    assert many <= 1.3 * few


FOUR = NoiseKey(torch.tensor([11, 12, 13, 14]), torch.arange(4))


@pytest.mark.parametrize("noise", [FOUR, NoiseKey(FOUR.key[0], FOUR.ids)], ids=["a key an image", "one key"])
@pytest.mark.parametrize("guide", ["none", "pixel", "label and latent"])
def test_images_that_nothing_depends_on_take_no_part_in_the_way_back(guide, noise):
    seen = []

    def model(x_net, plan, step):
        seen.append(len(x_net))
        return smooth_denoiser(x_net, plan, step)

    walked = ReverseProcess(strong_plan(GUIDES[guide]), model, GUIDES[guide], noise)

    def gradient(weights):
        x = torch.cat([images(), images(6)]).requires_grad_()
        seen.clear()
        weighted = torch.tensor(weights)[:, None, None, None] * differentiable_run(Loop(), walked, x)
        return torch.autograd.grad(weighted.sum(), x)[0]

    all_of_them = gradient([1.0, 2.0, 3.0, 4.0])
    assert set(seen) == {4}
    some = gradient([0.0, 2.0, 0.0, 4.0])
    assert seen == [4] * 5 + [2] * 5  # there, and back
    torch.testing.assert_close(some[1::2], all_of_them[1::2], rtol=1e-12, atol=1e-14)
    assert not some[::2].any() and not gradient([0.0] * 4).any() and seen == [4] * 5
    assert bool(gradient([0.0, float("nan"), 0.0, 0.0])[1].isnan().all())
    gradient([0.0, 2.0, 3.0, 4.0])
    assert seen == [4] * 5 + [3] * 5
    seven_of_eight = torch.ones(8, 1, 2, 2)
    seven_of_eight[3] = 0
    assert gradients._reached(seven_of_eight) is None  # it would save less than a quarter
