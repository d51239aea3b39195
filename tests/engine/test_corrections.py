"""Learned variance and clipped estimates of the clean image (docs/math.md E25, E26): the walk, its gradient, its recordings."""

from __future__ import annotations

import itertools

import pytest
import torch

from purify_engine import GuidedPurifier, PurifierConfig, ops
from purify_engine.config import GuidanceConfig
from purify_engine.engine.cpu_capture import CpuCapture
from purify_engine.engine.gradients import differentiable_run
from purify_engine.engine.guide import NoGuide
from purify_engine.engine.loop import Loop
from purify_engine.engine.plan import write_plan
from purify_engine.engine.process import ReverseProcess
from purify_engine.engine.replay import Replay
from purify_engine.engine.timesteps import visited
from purify_engine.models import Denoiser
from purify_engine.testing.oracles import smooth_denoiser
from tests.engine.test_gradients import GUIDES, NOISE, SCHEDULE, gradient, images, loss
from tests.engine.test_replay import FakeCapture
from tests.models.networks import noisy_images, small_unet

T_STAR, SCALE = 150, 0.4
# (sampler, eta, clip_x0): all that a step may do beside its row.
CORRECTED = [
    ("ddpm_learned", 0.0, "never"),
    ("ddpm_learned", 0.0, "consistent"),
    ("ddpm", 0.0, "consistent"),
    ("ddim", 0.5, "consistent"),
    ("ddim", 0.5, "x0_only"),
    ("vp_sde", 0.0, "consistent"),
]
COMBINATIONS = [
    (sampler, eta, clip_x0, form, guide)
    for (sampler, eta, clip_x0), form, guide in itertools.product(
        CORRECTED, ("score", "mean"), ("none", "pixel", "Tweedie estimate", "normalised")
    )
    if sampler in ("ddpm_learned", "ddim") or form == "score"
]


def network(x_net, plan, step):
    """A smooth prediction of the noise, and of a variance that differs from pixel to pixel and leaves [-1, 1]."""
    eps, v = smooth_denoiser(x_net, plan, step), 1.3 * torch.sin(2 * x_net + x_net.roll(1, dims=-1))
    return (eps, v) if plan.learns_variance else eps


def corrected(sampler, eta, clip_x0, form="score", num_steps=5, scale=SCALE):
    return write_plan(SCHEDULE, T_STAR, num_steps, sampler, eta=eta, form=form, guidance_scale=scale, clip_x0=clip_x0)


def process(plan, guide, model=network, follow_guide=True):
    return ReverseProcess(plan, model, guide, NOISE, follow_guide)


class Quadratic:
    """A guide whose gradient is written down: it pulls to .3."""

    reads_eps = False

    def target(self, x):
        return ()

    def grad(self, x_t, eps, target, plan, step, noise):
        return 0.3 - x_t


def published_walk(x, num_steps, form, clip):
    """The walk in the papers' own terms, float64: a respaced process, its estimate of x_0, its posterior's mean and variance.

    Ho et al. 2020, equation 7; Nichol & Dhariwal 2021, equations 10 to 15 and section 4; Dhariwal & Nichol 2021, algorithms 1
    (mean) and 2 (score); the first posterior variance is that of the second index, since its logarithm is needed.
    """
    kept = SCHEDULE.alphas_cumprod[visited(T_STAR, num_steps)[:-1].flip(0) - 1]
    before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
    betas = 1 - kept / before
    posterior = betas * (1 - before) / (1 - kept)
    posterior[0] = posterior[1]
    plan = corrected("ddpm_learned", 0.0, "never", num_steps=num_steps)  # tells `network` the time, and names the noise
    for index in reversed(range(num_steps)):
        step, alpha_bar = plan.steps[num_steps - 1 - index], kept[index]
        eps, v = network(x, plan, step)
        grad = SCALE * (0.3 - x)
        x_start = (x - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
        x_start = x_start.clamp(-1, 1) if clip else x_start
        if form == "score":
            eps = (x - alpha_bar.sqrt() * x_start) / (1 - alpha_bar).sqrt() - (1 - alpha_bar).sqrt() * grad
            x_start = (x - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
        of_start = before[index].sqrt() * betas[index] / (1 - alpha_bar)
        of_x = (1 - betas[index]).sqrt() * (1 - before[index]) / (1 - alpha_bar)
        variance = betas[index] ** ((v + 1) / 2) * posterior[index] ** ((1 - v) / 2)
        mean = of_start * x_start + of_x * x + (variance * grad if form == "mean" else 0)
        z = ops.philox_normal(*NOISE, step, x[0].numel(), dtype=x.dtype).view_as(x)
        x = mean + (variance.sqrt() * z if index else 0)
    return x


@pytest.mark.parametrize("num_steps", [2, 7, T_STAR])
@pytest.mark.parametrize("clip", [False, True], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("form", ["score", "mean"])
def test_a_learned_variance_is_the_published_walk(form, clip, num_steps):
    plan = corrected("ddpm_learned", 0.0, "consistent" if clip else "never", form, num_steps)
    x_t = torch.randn(images().shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = published_walk(x_t, num_steps, form, clip)
    found, _ = Loop().walk(process(plan, Quadratic()), x_t, ())
    # The last steps divide a rounding by sigma, which is .01.
    assert (found - expected).abs().max() < 1e-11


def test_the_variance_of_a_plan_of_one_step_is_the_intervals():
    bounds = corrected("ddpm_learned", 0.0, "never", num_steps=1).log_variances
    assert (bounds - (1 - SCHEDULE.alphas_cumprod[T_STAR - 1]).log()).abs().max() < 1e-12


@pytest.mark.parametrize("clip_x0", ["consistent", "x0_only"])
def test_a_clipped_step_lands_on_its_clipped_estimate(clip_x0):
    """DDIM without noise: x_j = sqrt(alpha_bar_j) x_0 + sqrt(1 - alpha_bar_j) eps, eps being recomputed or not."""
    plan, x_t = corrected("ddim", 0.0, clip_x0), 1.5 * images()
    step, after = plan.steps[1], plan.steps[2]
    (signal, sigma), (signal_after, sigma_after) = plan.marginal(step), plan.marginal(after)
    eps = network(x_t, plan, step)
    raw = (x_t - sigma * eps) / signal
    x_start = raw.clamp(-1, 1)
    assert 0.1 < (raw != x_start).double().mean() < 0.9
    direction = (x_t - signal * x_start) / sigma if clip_x0 == "consistent" else eps
    x_next, _ = process(plan, NoGuide()).step(x_t, x_t, (), step)
    assert (x_next - signal_after * x_start - sigma_after * direction).abs().max() < 1e-13


def test_a_guide_is_told_the_prediction_that_the_step_takes():
    told = []

    class Listening(Quadratic):
        reads_eps = True

        def grad(self, x_t, eps, target, plan, step, noise):
            told.append(eps)

    plan, x_t = corrected("ddpm", 0.0, "consistent"), 1.5 * images()
    terms = process(plan, Listening()).terms(x_t, x_t, (), plan.steps[0])
    signal, sigma = plan.start
    assert told[0] is terms.eps and ((x_t - sigma * terms.eps) / signal).abs().max() < 1 + 1e-12
    assert (terms.eps - network(x_t, plan, plan.steps[0])).abs().max() > 0.1


@pytest.mark.parametrize(("sampler", "eta", "clip_x0", "form", "name"), COMBINATIONS, ids=str)
def test_the_exact_gradient_equals_the_stored_graph(sampler, eta, clip_x0, form, name):
    of = process(corrected(sampler, eta, clip_x0, form, num_steps=3), GUIDES[name])
    recomputed = gradient(lambda x: differentiable_run(Loop(), of, x), images())
    stored = gradient(lambda x: Loop().run(of, x), images())
    assert (recomputed - stored).norm() <= 1e-12 * stored.norm()


def clipped_pixels(of, x):
    """Which estimates are clipped on the way: the same for two inputs where no kink lies between them."""
    seen = []

    def watching(x_net, plan, step):
        predicted = network(x_net, plan, step)
        signal, sigma = plan.marginal(step)
        eps = predicted[0] if plan.learns_variance else predicted
        seen.append(((x_net - sigma * eps) / signal).abs() > 1)
        return predicted

    return loss(Loop().run(of._replace(model=watching), x)), torch.stack(seen)


@pytest.mark.parametrize(("sampler", "eta", "clip_x0"), CORRECTED, ids=str)
def test_the_exact_gradient_equals_central_differences_between_kinks(sampler, eta, clip_x0):
    form = "mean" if sampler in ("ddpm_learned", "ddim") else "score"
    of = process(corrected(sampler, eta, clip_x0, form, num_steps=3), GUIDES["Tweedie estimate"])
    grad, h, compared = gradient(lambda x: differentiable_run(Loop(), of, x), images()), 1e-5, 0
    generator = torch.Generator().manual_seed(1)
    for _ in range(6):
        v = torch.randn(grad.shape, generator=generator, dtype=grad.dtype)
        v /= v.norm()
        with torch.no_grad():
            (above, one), (below, other) = (clipped_pixels(of, images() + side * h * v) for side in (1, -1))
        if clip_x0 == "never" or torch.equal(one, other):
            along, compared = (grad * v).sum(), compared + 1
            assert abs((above - below) / (2 * h) - along) <= 1e-6 * max(abs(along), 1e-3 * grad.norm())
    assert compared > 3 and 0.05 < one.double().mean() < 0.95


@pytest.mark.parametrize("form", ["score", "mean"])
def test_the_gradient_through_the_variance_matters(form):
    """Or the tests above would see nothing."""

    def constant(x_net, plan, step):
        eps, v = network(x_net, plan, step)
        return eps, v.detach()

    of = process(corrected("ddpm_learned", 0.0, "never", form, num_steps=3), GUIDES["label and latent"])
    exact, without = (
        gradient(lambda x, of=of: differentiable_run(Loop(), of, x), images()) for of in (of, of._replace(model=constant))
    )
    assert (exact - without).norm() > 0.05 * exact.norm()


@pytest.mark.parametrize(("recorder", "name"), [(FakeCapture, "pixel"), (CpuCapture, "pixel"), (CpuCapture, "Tweedie estimate")])
def test_one_replay_takes_plans_of_all_corrections_and_equals_the_loop_to_the_bit(name, recorder):
    replay, x = Replay(recorder()), images()
    forms = [("ddpm", 0.0, "never"), *CORRECTED[1::3], ("ddpm_learned", 0.0, "consistent", "mean")]
    for plan in [corrected(*one, num_steps=3) for one in (*forms, forms[0])]:
        of = process(plan, GUIDES[name])
        with torch.no_grad():
            assert torch.equal(replay.run(of, x), Loop().run(of, x))
        grads = [gradient(lambda x, on=on, of=of: differentiable_run(on, of, x), x) for on in (Loop(), replay)]
        assert torch.equal(*grads)
    assert replay._capture(x.device).refused is None


@pytest.mark.parametrize(("sampler", "eta", "clip_x0"), CORRECTED, ids=str)
def test_the_correction_is_computed_on_the_image_and_not_on_the_networks_copy_of_it(sampler, eta, clip_x0):
    """In bfloat16 the copy is off by .004; from one and the same prediction the step is as exact as float32."""
    plan, x_t = corrected(sampler, eta, clip_x0, "score", num_steps=3), 1.5 * images()
    predicted = network(x_t.bfloat16(), plan, plan.steps[1])

    def taken(dtype, net_dtype):
        of = process(plan.to("cpu", net_dtype), NoGuide(), lambda x_net, plan, step: predicted)
        image = x_t.float().to(dtype)
        return of.step(image, of.for_networks(image), (), plan.steps[1])

    (found, x_net), (exact, _) = taken(torch.float32, torch.bfloat16), taken(torch.float64, None)
    assert found.dtype == torch.float32 and x_net.dtype == torch.bfloat16 and torch.equal(x_net, found.bfloat16())
    assert (found - exact).abs().max() < 1e-5


def test_a_model_without_a_variance_is_refused_where_the_plan_learns_it():
    of = process(corrected("ddpm_learned", 0.0, "never"), NoGuide(), smooth_denoiser)
    with pytest.raises(ValueError, match=r"model must predict \(eps, v\) where the plan's variance is learned, got eps alone"):
        Loop().run(of, images())


@pytest.mark.parametrize("clip_x0", ["never", "consistent"])
def test_a_purifier_takes_its_networks_variance(clip_x0):
    denoiser, x = Denoiser(small_unet("adm")), noisy_images().sigmoid()
    guidance = GuidanceConfig(kind="pixel", scale=2.0, form="mean")
    config = PurifierConfig(t_star=60, num_steps=3, sampler="ddpm_learned", clip_x0=clip_x0, guidance=guidance)
    looped, replayed = (GuidedPurifier(denoiser, None, config, execution=how) for how in ("loop", "graph"))
    ids = torch.arange(2)
    for _ in range(3):
        assert torch.equal(replayed(x, ids=ids), looped(x, ids=ids))
    small = looped.configured(sampler="ddpm")(x, ids=ids)
    assert (looped(x, ids=ids) - small).abs().max() > 1e-3


def test_no_variance_is_drawn_where_the_noise_is_silent():
    """The last row's c is 0: what the last step draws is without effect, its variance only scales the mean form's pull."""
    score, mean = (corrected("ddpm_learned", 0.0, "never", form) for form in ("score", "mean"))
    assert score.rows[:, 3].tolist() == mean.rows[:, 3].tolist() == [1, 1, 1, 1, 0]
    assert (mean.rows[:, 2] == SCALE).all()
    assert torch.equal(score.rows[:, :3], corrected("ddpm", 0.0, "never").rows[:, :3])
