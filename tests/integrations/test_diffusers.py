"""diffusers both ways: their objects in a purifier, our U-Net in their pipelines, our plans as their schedulers."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch

from purify_engine import ops
from purify_engine.config import GuidanceConfig, PurifierConfig, ScheduleConfig, UNetConfig
from purify_engine.engine.guide import NoGuide
from purify_engine.engine.loop import Loop
from purify_engine.engine.plan import write_plan
from purify_engine.engine.process import ReverseProcess
from purify_engine.models.denoiser import Denoiser
from purify_engine.models.own import OwnDenoiser
from purify_engine.models.unet import UNet
from purify_engine.purifier import GuidedPurifier
from purify_engine.reference.schedules import make_schedule
from purify_engine.types import NoiseKey
from tests.test_purifier import images, purifier

pytest.importorskip("diffusers")

from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel  # noqa: E402

from purify_engine.integrations.diffusers import PlanScheduler, UNet2D  # noqa: E402

SMALL = {
    "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16), "layers_per_block": 1,
    "norm_num_groups": 4, "attention_head_dim": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
SCHEDULE = make_schedule(ScheduleConfig(num_timesteps=40, beta_start=1e-3, beta_end=0.1))


def theirs(**changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DModel(**{**SMALL, **changes}).eval()


def double(count=2, seed=1):
    return images(count, seed=seed, dtype=torch.float64)


# Theirs in ours


def test_a_pipeline_in_memory_becomes_a_purifier_of_our_own_network():
    pipeline = DDPMPipeline(theirs(), DDPMScheduler(clip_sample=False))
    guide, how = purifier().guide, GuidanceConfig(scale=0.1)
    found = GuidedPurifier.from_diffusers(pipeline, None, guide, num_steps=100, t_star=30, noise="fixed", guidance=how)
    assert isinstance(found.denoiser, Denoiser) and found.guide is guide and found.plan().times.tolist() == [20.0, 10.0, 0.0]
    assert found.config.clip_x0 == "never" and found.config.noise == "fixed"
    assert found(images(2)).shape == (2, 1, 8, 8)


def test_a_network_that_ours_cannot_be_is_asked_as_it_is_and_purifies_as_its_conversion_would(caplog):
    """The same weights by both ways: `act_fn="swish"` is ours, under a name of diffusers' that is not read."""
    unet, scheduler = theirs(), DDPMScheduler(prediction_type="v_prediction")
    ours = GuidedPurifier.from_diffusers(unet, scheduler, num_steps=100, t_star=30, noise="fixed").to(torch.float64)
    strange = copy.deepcopy(unet)
    strange.register_to_config(unknown_key=1)
    asked = GuidedPurifier.from_diffusers(strange, scheduler, num_steps=100, t_star=30, noise="fixed").to(torch.float64)
    assert isinstance(asked.denoiser, OwnDenoiser) and "unknown_key" in caplog.text
    assert asked.config == ours.config and asked.denoiser.config.num_halvings == ours.denoiser.config.num_halvings
    x = double(1).requires_grad_()
    assert (asked(x) - ours(x)).abs().max() < 1e-6  # their time embedding is float32
    one, other = (torch.autograd.grad(model(x).square().sum(), x)[0] for model in (asked, ours))
    assert (one - other).abs().max() < 1e-5 * one.abs().max()


def test_a_network_of_theirs_gives_the_same_images_and_gradients_in_a_replay():
    unet = theirs(act_fn="gelu")
    loop, graph = (
        GuidedPurifier(OwnDenoiser(unet, image_size=8, in_channels=1, num_halvings=1), None,
                       PurifierConfig(t_star=30, num_steps=2, noise="fixed"), execution=execution)
        for execution in ("loop", "graph")
    )  # fmt: skip
    for seed in range(2):
        x = images(1, seed=seed).requires_grad_()
        assert torch.equal(graph(x), loop(x))
        assert torch.equal(*(torch.autograd.grad(model(x).sum(), x)[0] for model in (graph, loop)))


@pytest.mark.parametrize(
    ("unet", "scheduler", "match"),
    [
        (lambda: theirs(num_class_embeds=4), DDPMScheduler, "^num_class_embeds must be None: a purifier knows no class"),
        (lambda: theirs(time_embedding_type="fourier"), DDPMScheduler, "^time_embedding_type must be positional or learned"),
        (lambda: theirs(out_channels=3), DDPMScheduler, "^out_channels must be 1 or 2, got 3"),
        (lambda: theirs(sample_size=(8, 16)), DDPMScheduler, "^sample_size must be one number"),
        (lambda: theirs(act_fn="gelu"), lambda: None, "^scheduler must be the one that the network was trained with"),
        (lambda: torch.nn.Conv2d(1, 1, 1), DDPMScheduler, "^unet must be diffusers' UNet2DModel, .*got 'Conv2d'"),
        (theirs, lambda: DDPMScheduler(thresholding=True), "^thresholding must be False"),
        (theirs, lambda: DDPMScheduler, "^scheduler must be an instance in place of its class, got"),
    ],
    ids=["classes", "sigma", "channels", "no square", "no scheduler", "no UNet2DModel", "another scheduler", "a class"],
)
def test_what_no_purifier_can_be_made_of_is_refused_in_one_line(unet, scheduler, match):
    with pytest.raises(ValueError, match=match) as error:
        GuidedPurifier.from_diffusers(unet(), scheduler())
    assert "\n" not in str(error.value)


# Ours in theirs: the network


@pytest.mark.parametrize("timestep", [7, torch.tensor(7), torch.tensor([7, 7])], ids=["int", "scalar", "one an image"])
def test_our_network_in_their_shape_is_our_network_to_the_bit(timestep):
    unet, x = purifier().denoiser.unet, images(2)
    shaped = UNet2D(unet)
    expected = unet(x, torch.as_tensor(timestep).reshape(-1))
    assert torch.equal(shaped(x, timestep).sample, expected)
    assert torch.equal(shaped(x, timestep, return_dict=False)[0], expected)
    assert (shaped.config.sample_size, shaped.config.in_channels, shaped.config["out_channels"]) == (8, 1, 1)
    assert (shaped.dtype, shaped.device) == (torch.float32, torch.device("cpu"))


@pytest.mark.parametrize(
    ("pipeline", "scheduler"), [(DDPMPipeline, DDPMScheduler), (DDIMPipeline, DDIMScheduler)], ids=["ddpm", "ddim"]
)
def test_their_pipelines_sample_with_our_network_as_with_their_own(pipeline, scheduler):
    their_unet = theirs()
    ours = GuidedPurifier.from_diffusers(their_unet, DDPMScheduler()).denoiser.unet
    made = []
    for unet in (UNet2D(ours), their_unet):
        pipe = pipeline(unet, scheduler())
        pipe.set_progress_bar_config(disable=True)
        made.append(pipe(2, torch.Generator().manual_seed(0), num_inference_steps=3, output_type="np").images)
    assert made[0].shape == (2, 8, 8, 1) and made[0].std() > 0.01
    assert abs(made[0] - made[1]).max() < 1e-4


def test_a_network_that_is_told_another_time_is_refused():
    with pytest.raises(ValueError, match="^prediction must be one of eps, x0, v for diffusers, got 'edm'$"):
        UNet2D(UNet(UNetConfig(image_size=8, base_channels=8, channel_mult=(1,), prediction="edm")))


def test_a_denoiser_is_no_network_for_a_pipeline():
    with pytest.raises(TypeError, match=r"^unet must be a UNet of ours, as purifier\.denoiser\.unet, got Denoiser$"):
        UNet2D(purifier().denoiser)


# Ours in theirs: the plan


def img2img(unet, scheduler, x, **options):
    """An image-to-image loop as it is written for diffusers."""
    scheduler.set_timesteps(len(scheduler))
    x = scheduler.init_noise_sigma * scheduler.add_noise(2 * x - 1, scheduler.forward_noise(x), scheduler.timesteps[:1])
    for t in scheduler.timesteps:
        x = scheduler.step(unet(scheduler.scale_model_input(x, t), t).sample, t, x, **options).prev_sample
    return (x / 2 + 0.5).clamp(0, 1)


PLANS = {
    "ddpm": {}, "all steps": {"t_star": 4, "num_steps": None}, "clipped": {"clip_x0": "consistent"},
    "ddim": {"sampler": "ddim", "eta": 0.5, "clip_x0": "x0_only"}, "sde": {"sampler": "vp_sde"},
}  # fmt: skip


@pytest.mark.parametrize("plan", PLANS)
def test_a_loop_written_for_diffusers_over_our_plan_is_our_purification(plan):
    model, x, ids = purifier(kind="none", noise="fixed").to(torch.float64), double(), torch.tensor([3, 9])
    model = model.configured(**PLANS[plan])
    found = img2img(UNet2D(model.denoiser.unet), PlanScheduler(model.plan(x.dtype), noise=NoiseKey(model.seed, ids)), x)
    assert (found - model(x, ids=ids)).abs().max() < 1e-12


@pytest.mark.parametrize("prediction", ["v"])
def test_what_the_network_puts_out_may_be_the_clean_image_or_v(prediction):
    model, x, ids = purifier(kind="none").to(torch.float64), double(), torch.tensor([3, 9])
    unet = model.denoiser.unet
    adapted = OwnDenoiser(unet, image_size=8, in_channels=1, predicts=prediction)
    scheduler = PlanScheduler(model.plan(x.dtype), prediction=prediction, noise=NoiseKey(model.seed, ids))
    expected = GuidedPurifier(adapted, None, model.config)(x, ids=ids)
    assert (img2img(UNet2D(unet), scheduler, x) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_on_their_plan_and_generator_steps_are_those_of_their_own_scheduler(variance):
    samplers = {"fixed_small": "ddpm", "fixed_large": "ddpm_large", "learned_range": "ddpm_learned"}
    their = DDPMScheduler(num_train_timesteps=40, variance_type=variance, clip_sample=True)
    their.betas, their.alphas, their.alphas_cumprod = SCHEDULE.betas, 1 - SCHEDULE.betas, SCHEDULE.alphas_cumprod
    their.one = torch.ones((), dtype=torch.float64)
    ours = PlanScheduler(write_plan(SCHEDULE, 40, 40, samplers[variance], clip_x0="consistent"))
    assert ours.timesteps.tolist() == their.timesteps.tolist()
    channels = 2 if variance == "learned_range" else 1
    walked = []
    for scheduler in (ours, their):
        generator, x = torch.Generator().manual_seed(5), 2 * double() - 1
        for t in scheduler.timesteps:
            predicted = torch.cat([x.sin(), x.cos()][:channels], dim=1)
            x = scheduler.step(predicted, t, x, generator=generator).prev_sample
        walked.append(x)
    assert (walked[0] - walked[1]).abs().max() < 1e-12 and walked[0].std() > 0.01
    noised = [scheduler.add_noise(double(), double(seed=2), torch.tensor([3, 17])) for scheduler in (ours, their)]
    assert (noised[0] - noised[1]).abs().max() < 1e-12


def test_noise_is_fed_by_hand_or_drawn_by_key_and_that_is_the_same():
    x, key = 2 * double() - 1, NoiseKey(torch.tensor(5), torch.arange(2))
    plan = write_plan(SCHEDULE, 40, 5, "ddpm")
    by_key, by_hand = PlanScheduler(plan, noise=key), PlanScheduler(plan)
    for step, t in zip(plan.steps, by_key.timesteps, strict=True):
        z = ops.philox_normal(*key, step, 64, dtype=x.dtype).view_as(x)
        expected = by_key.step(x.sin(), t, x).prev_sample
        assert (by_hand.step(x.sin(), t, x, variance_noise=z).prev_sample - expected).abs().max() < 1e-12
        (x,) = by_key.step(x.sin(), int(t), x, return_dict=False)


def test_our_plan_in_their_pipeline_is_our_walk_from_pure_noise():
    model = purifier(kind="none")
    plan, key = write_plan(make_schedule(ScheduleConfig()), 1000, 3), NoiseKey(torch.tensor(0), torch.arange(2))
    pipe = DDPMPipeline(UNet2D(model.denoiser.unet), PlanScheduler(plan, noise=key))
    pipe.set_progress_bar_config(disable=True)
    found = pipe(2, torch.Generator().manual_seed(0), num_inference_steps=3, output_type="pt").images
    x_t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    walked, _ = Loop().walk(ReverseProcess(plan, model.denoiser, NoGuide(), key), x_t, ())
    expected = (walked / 2 + 0.5).clamp(0, 1)
    assert abs(torch.as_tensor(found) - expected).max() < 1e-5 and expected.std() > 0.01


def test_what_a_scheduler_cannot_say_is_refused_in_one_line():
    guided, plain = purifier(scale=0.1).plan(), purifier(kind="none").plan()
    cases = [
        (lambda: PlanScheduler(guided), "^plan must be one without guidance"),
        (lambda: PlanScheduler(plain, prediction="edm"), "^prediction must be one of eps, x0, v, got 'edm'"),
        (lambda: PlanScheduler(plain).set_timesteps(50), "^num_inference_steps must be None or 3, the plan's own"),
        (lambda: PlanScheduler(plain).step(images(), 5, images()), r"^timestep must be one of the plan's 3, \[99, 66, 32\]"),
        (lambda: PlanScheduler(plain).forward_noise(images()), "^noise must be given to the scheduler"),
    ]
    for call, match in cases:
        with pytest.raises(ValueError, match=match) as error:
            call()
        assert "\n" not in str(error.value)


def test_the_examples_of_the_documentation_run():
    page = (Path(__file__).parents[2] / "docs" / "own_networks.md").read_text()
    ours = purifier(kind="none")
    given = {"GuidedPurifier": GuidedPurifier, "GuidanceConfig": GuidanceConfig, "torch": torch, "ours": ours}
    given |= {"unet2d": theirs(), "images": images(2)}
    for code in re.findall(r"```python\n(.*?)```", page.split("## diffusers")[1], re.DOTALL):
        exec(code, given)
    assert given["samples"].shape == (2, 8, 8, 1) and given["purified"].shape == (2, 1, 8, 8)
