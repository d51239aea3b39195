"""Our networks, schedules and steps against diffusers' own. One file, since importing diffusers takes seconds."""

from __future__ import annotations

import types

import pytest
import torch

from bench.opponents.diffusers_purifier import diffusers_unet
from purify_engine import ops
from purify_engine.config import PurifierConfig, UNetConfig
from purify_engine.engine.guide import NoGuide
from purify_engine.engine.loop import Loop
from purify_engine.engine.plan import make_plan
from purify_engine.engine.process import ReverseProcess
from purify_engine.models import UNet
from purify_engine.models.checkpoints.diffusers import DIFFUSERS
from purify_engine.models.checkpoints.diffusers_folder import from_diffusers, load_diffusers_folder
from purify_engine.models.checkpoints.diffusers_unet import unet_config
from purify_engine.models.checkpoints.layout import shapes_of, translate, written
from purify_engine.models.time_embedding import sinusoid
from purify_engine.reference.schedules import make_schedule
from purify_engine.types import NoiseKey

diffusers = pytest.importorskip("diffusers")

SMALL = {
    "sample_size": 8, "block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 16,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
NETWORKS = {
    "as the tutorial": {},
    "as google's": {
        "attention_head_dim": None, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6,
    },
    "learned variance, no attention": {
        "out_channels": 6, "add_attention": False, "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2,
    },
    "residual resampling, scale and shift, attention above": {
        "down_block_types": ("AttnDownBlock2D", "ResnetDownsampleBlock2D"), "downsample_type": "resnet",
        "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D"), "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8,
    },
    "two layers, grey": {"layers_per_block": 2, "in_channels": 1, "out_channels": 1, "block_out_channels": (32, 32)},
}  # fmt: skip
TIMES = (0, 7, 500, 999)


class Sinusoid(torch.nn.Module):
    """Ours in place of diffusers' own, which is float32 whatever the network is."""

    def __init__(self, config):
        super().__init__()
        self.config = config

    def forward(self, t):
        return sinusoid(t.double(), self.config)


def network(**changed):
    """A small UNet2DModel with random weights, all of them of a size that matters."""
    torch.manual_seed(0)
    theirs = diffusers.UNet2DModel(**{**SMALL, **changed}).eval().requires_grad_(False)
    for parameter in theirs.parameters():
        parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.5)
    return theirs


def converted(theirs):
    config = unet_config(theirs.config)
    with torch.device("meta"):
        wanted = shapes_of(UNet(config).state_dict())
    ours = UNet(config).eval().requires_grad_(False).to(theirs.dtype)
    ours.load_state_dict(translate(DIFFUSERS, config, theirs.state_dict(), wanted, "diffusers"))
    return ours


def furthest(ours, theirs, dtype):
    """The largest difference of two networks' outputs, in units of their largest output."""
    x = torch.randn(2, theirs.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(1), dtype=dtype)
    wanted = torch.stack([theirs(x, t).sample for t in TIMES])
    got = torch.stack([ours(x, torch.tensor([t])) for t in TIMES])
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_computes_what_diffusers_does(name):
    theirs = network(**NETWORKS[name])
    assert furthest(converted(theirs), theirs, torch.float32) < 2e-5
    theirs.double()
    ours = converted(theirs)
    theirs.time_proj = Sinusoid(ours.config)
    assert furthest(ours, theirs, torch.float64) < 1e-12


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_written_under_diffusers_names(name):
    theirs = network(**NETWORKS[name])
    ours, wanted = converted(theirs), theirs.state_dict()
    back = written(DIFFUSERS, ours.config, ours.state_dict())
    assert back.keys() == wanted.keys()
    assert all(torch.equal(back[key], value) for key, value in wanted.items())


def test_the_benchmarks_opponent_computes_what_we_do():
    small = {"image_size": 8, "base_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (4,)}
    torch.manual_seed(0)
    ours = UNet(UNetConfig(**small, norm_min_channels=None)).requires_grad_(False)
    for parameter in ours.parameters():
        parameter.normal_(std=0.15)
    assert furthest(ours, diffusers_unet(ours), torch.float32) < 2e-5


DDPM, DDIM = "DDPMScheduler", "DDIMScheduler"
LEARNED = {"out_channels": 6, "add_attention": False}
NOISE = NoiseKey(torch.tensor(5), torch.arange(2))
SAMPLERS = {
    # the scheduler, its settings, the network's, the number of steps, eta
    "ddpm, every timestep": (DDPM, {"num_train_timesteps": 12}, {}, 12, None),
    "ddpm, leading": (DDPM, {"clip_sample": False}, {}, 10, None),
    "ddpm, leading and offset": (DDPM, {"steps_offset": 1, "variance_type": "fixed_small_log"}, {}, 10, None),
    "ddpm, linspace, sigmoid": (DDPM, {"timestep_spacing": "linspace", "beta_schedule": "sigmoid"}, {}, 7, None),
    "ddpm, trailing": (DDPM, {"timestep_spacing": "trailing"}, {}, 7, None),
    "ddpm, fixed large": (DDPM, {"variance_type": "fixed_large"}, {}, 10, None),
    "ddpm, fixed large, trailing": (DDPM, {"variance_type": "fixed_large", "timestep_spacing": "trailing"}, {}, 10, None),
    "ddpm, learned": (DDPM, {"variance_type": "learned_range"}, LEARNED, 10, None),
    "ddpm, learned, linspace": (DDPM, {"variance_type": "learned_range", "timestep_spacing": "linspace"}, LEARNED, 10, None),
    "ddpm, cosine": (DDPM, {"beta_schedule": "squaredcos_cap_v2"}, {}, 10, None),
    "ddpm, predicts the clean image": (DDPM, {"prediction_type": "sample"}, {}, 10, None),
    "ddim, predicts v": (DDIM, {"prediction_type": "v_prediction"}, {}, 10, 0.5),
    "ddim, predicts the clean image": (DDIM, {"prediction_type": "sample"}, {}, 10, 0.5),
    "ddim, leading": (DDIM, {}, {}, 10, 0.0),
    "ddim, leading, a stride that leaves a rest": (DDIM, {}, {}, 7, 1.0),
    "ddim, linspace": (DDIM, {"timestep_spacing": "linspace"}, {}, 7, 0.5),
    "ddim, trailing, unclipped": (DDIM, {"timestep_spacing": "trailing", "clip_sample": False}, {}, 7, 1.0),
    "ddim, lands on timestep 0": (DDIM, {"set_alpha_to_one": False, "steps_offset": 1}, {}, 10, 0.0),
    "ddim, stays at timestep 0": (DDIM, {"set_alpha_to_one": False, "clip_sample": False}, {}, 10, 1.0),
    "ddim, every timestep": (DDIM, {"beta_schedule": "scaled_linear", "num_train_timesteps": 12}, {}, 12, 1.0),
}


@pytest.fixture(scope="module")
def networks():
    """diffusers' in float64, of one level, with and without a learned variance; made once."""
    one_level = {"block_out_channels": (32,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    made = {}
    for learned, changed in ((False, {"add_attention": False}), (True, LEARNED)):
        made[learned] = network(**one_level, **changed).double()
        made[learned].time_proj = Sinusoid(unet_config(made[learned].config))
    return made


def in_float64(scheduler, schedule):
    """A scheduler with our tables in place of its own, which are the same in float32."""
    assert torch.allclose(scheduler.betas.double(), schedule.betas, rtol=1e-5, atol=1e-9)
    scheduler.alphas_cumprod = schedule.alphas_cumprod
    scheduler.one = torch.ones((), dtype=torch.float64)
    if hasattr(scheduler, "final_alpha_cumprod"):
        scheduler.final_alpha_cumprod = scheduler.one if scheduler.config.set_alpha_to_one else scheduler.alphas_cumprod[0]
    return scheduler


def drawn(step, x_t):
    return ops.philox_normal(*NOISE, step, x_t[0].numel(), dtype=x_t.dtype).view_as(x_t)


@pytest.fixture
def their_step(monkeypatch):
    """One step of diffusers' network and scheduler, with noise that is given."""

    def step(scheduler, theirs, x_t, t, noise, eta):
        for module in (diffusers.schedulers.scheduling_ddpm, diffusers.schedulers.scheduling_ddim):
            monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: noise)
        return scheduler.step(theirs(x_t, t).sample, t, x_t, **({} if eta is None else {"eta": eta})).prev_sample

    return step


@pytest.mark.parametrize("name", SAMPLERS)
def test_steps_and_the_whole_loop_are_those_of_diffusers(name, networks, their_step):
    kind, settings, changed, num_steps, eta = SAMPLERS[name]
    theirs = networks["out_channels" in changed]
    scheduler = getattr(diffusers, kind)(**{"num_train_timesteps": 60, "beta_end": 0.2, **settings})
    found = from_diffusers(theirs, scheduler, num_steps=num_steps)
    config = PurifierConfig(**{"t_star": num_steps, "eta": eta or 0.0, **found.sampling})
    process = ReverseProcess(make_plan(config), found.denoiser().requires_grad_(False), NoGuide(), NOISE)
    in_float64(scheduler, make_schedule(found.schedule)).set_timesteps(num_steps)

    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2 - 1
    their_x = scheduler.add_noise(x, drawn(process.plan.forward_step, x), scheduler.timesteps[:1])
    for index, t in enumerate(scheduler.timesteps.tolist()):
        step = process.plan.steps[index] if index < len(process.plan) else None  # a step that stays where it is has no row
        noise = torch.zeros_like(x) if step is None else drawn(step, x)
        before, their_x = their_x, their_step(scheduler, theirs, their_x, t, noise, eta)
        after = before if step is None else process.step(before, before, (), step)[0]
        # Where no noise is due in a last step, from above timestep 0, theirs draws some of standard deviation 1e-10.
        near = 1e-9 if t > 0 and index == len(process.plan) - 1 else 1e-12
        assert (after - their_x).abs().max() < near * their_x.abs().max()
    assert (Loop().run(process, x) - their_x).abs().max() < near * their_x.abs().max()


@pytest.mark.parametrize("pipeline", [False, True])
def test_what_save_pretrained_writes_is_read(tmp_path, pipeline):
    theirs = network()
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing", steps_offset=1, prediction_type="v_prediction")
    theirs.save_pretrained(tmp_path / "unet" if pipeline else tmp_path)
    scheduler.save_pretrained(tmp_path / "scheduler" if pipeline else tmp_path)
    in_memory, found = from_diffusers(theirs, scheduler, num_steps=7), load_diffusers_folder(tmp_path, num_steps=7)
    assert found.config == in_memory.config and found.schedule == in_memory.schedule and found.sampling == in_memory.sampling
    assert found.weights.keys() == in_memory.weights.keys()
    assert all(torch.equal(weight, in_memory.weights[name]) for name, weight in found.weights.items())


def test_a_pipeline_in_memory_is_its_network_and_scheduler():
    pipeline = types.SimpleNamespace(unet=network(), scheduler=diffusers.DDPMScheduler())
    assert from_diffusers(pipeline).sampling == from_diffusers(pipeline.unet, pipeline.scheduler).sampling != {}
    assert from_diffusers(pipeline.unet).schedule is None


def test_a_learned_variance_goes_with_predicted_noise_alone():
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction", variance_type="learned_range")
    with pytest.raises(ValueError, match=r"^prediction_type must be epsilon, .*, got 'v_prediction'$"):
        from_diffusers(network(**LEARNED), scheduler)
