"""diffusers' layout by its own names and shapes: what its folders say, what weights alone tell, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from purify_engine.config import PurifierConfig, UNetConfig
from purify_engine.conversion import convert
from purify_engine.models import UNet, published
from purify_engine.models.checkpoints import layout as layouts
from purify_engine.models.checkpoints.diffusers import DIFFUSERS, DIFFUSERS_OLD, UNTOLD
from purify_engine.models.checkpoints.diffusers_folder import load_diffusers_folder
from purify_engine.models.checkpoints.diffusers_scheduler import read_scheduler
from purify_engine.models.checkpoints.diffusers_unet import unet_config
from purify_engine.models.checkpoints.registry import UNETS, recognised
from purify_engine.purifier import GuidedPurifier
from purify_engine.testing.published import diffusers as theirs


def translated(layout, config, tensors):
    with torch.device("meta"):
        wanted = layouts.shapes_of(UNet(config).state_dict())
    return layouts.translate(layout, config, tensors, wanted, "unet")


@pytest.mark.parametrize("old_names", [False, True])
def test_a_folder_is_read_and_written_back_to_the_bit(tmp_path, old_names):
    found = load_diffusers_folder(theirs.save(tmp_path / "a", theirs.SMALL, theirs.SCHEDULER, old_names=old_names))
    UNet(found.config).load_state_dict(found.weights)
    back = layouts.written(DIFFUSERS_OLD if old_names else DIFFUSERS, found.config, found.weights)
    wanted = theirs.state_dict(theirs.SMALL, old_names=old_names)
    assert back.keys() == wanted.keys() and all(torch.equal(back[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("form", [{"pipeline": True}, {"pickled": True}, {"old_names": True}])
def test_every_form_of_a_folder_is_the_same_network(tmp_path, form):
    plain = load_diffusers_folder(theirs.save(tmp_path / "plain", theirs.SMALL, theirs.SCHEDULER))
    other = load_diffusers_folder(theirs.save(tmp_path / "other", theirs.SMALL, theirs.SCHEDULER, **form))
    assert plain.config == other.config and plain.schedule == other.schedule and plain.sampling == other.sampling
    assert all(torch.equal(weight, other.weights[name]) for name, weight in plain.weights.items())


def test_a_folder_without_a_scheduler_says_nothing_of_sampling(tmp_path):
    found = load_diffusers_folder(theirs.save(tmp_path / "a", theirs.SMALL))
    assert found.schedule is None and found.sampling == {}


def test_that_no_scheduler_tells_what_is_predicted_is_said(tmp_path):
    for name, scheduler in (("alone", None), ("with", theirs.SCHEDULER)):
        (network,) = convert(theirs.save(tmp_path / name, theirs.SMALL, scheduler), tmp_path / f"{name} out").networks.values()
        assert any("the noise is predicted" in one for one in network.says) == (scheduler is None)


def test_a_converted_folder_purifies_as_its_scheduler_samples(tmp_path):
    made = convert(theirs.save(tmp_path / "a", theirs.SMALL, theirs.SCHEDULER, pipeline=True), tmp_path / "b")
    assert made.networks["unet"].layout == "diffusers"
    purifier = GuidedPurifier.from_pretrained(tmp_path / "b")
    assert purifier.config == PurifierConfig(sampler="ddpm_large", clip_x0="consistent")
    assert purifier.denoiser.unet.config == unet_config(theirs.SMALL)


FULL_SIZE = {"cifar10": (theirs.CIFAR10, 328, 35_746_307), "celebahq-256": (theirs.CELEBAHQ256, 450, 113_673_219)}


@pytest.mark.parametrize(("said", "tensors", "parameters"), FULL_SIZE.values(), ids=FULL_SIZE.keys())
def test_googles_networks_have_their_published_sizes_and_leave_no_tensor_over(said, tensors, parameters):
    weights = theirs.state_dict(said, device="meta")
    assert len(weights) == tensors and sum(weight.numel() for weight in weights.values()) == parameters
    config = unet_config(said)
    ours = translated(DIFFUSERS, config, weights)
    assert sum(weight.numel() for weight in ours.values()) == parameters
    assert layouts.shapes_of(layouts.written(DIFFUSERS, config, ours)) == layouts.shapes_of(weights)


def test_google_cifar10_is_the_network_of_the_paper():
    assert replace(unet_config(theirs.CIFAR10), dropout=0.1) == published.DDPM_CIFAR10


@pytest.mark.parametrize("old_names", [False, True])
def test_weights_alone_are_recognised_where_google_published_such(old_names):
    shapes = layouts.shapes_of(theirs.state_dict(theirs.CIFAR10, old_names=old_names, device="meta"))
    found = recognised(shapes, UNETS, "a.bin")
    assert found.layout is (DIFFUSERS_OLD if old_names else DIFFUSERS)
    assert found.config == published.DDPM_CIFAR10 and "google/ddpm-cifar10-32" in found.says[0]


@pytest.mark.parametrize("said", [theirs.SMALL, theirs.TUTORIAL], ids=["small", "tutorial"])
def test_weights_alone_need_what_they_do_not_tell(said):
    shapes, config = layouts.shapes_of(theirs.state_dict(said)), unet_config(said)
    given = {name: getattr(config, name) for name in UNTOLD}
    assert recognised(shapes, UNETS, "a.bin", given=given).config == replace(config, dropout=0.1)
    for name in UNTOLD:
        with pytest.raises(ValueError, match=rf"^a.bin: this diffusers network must come .* or with {name}, which"):
            recognised(shapes, UNETS, "a.bin", given={key: value for key, value in given.items() if key != name})


# (key, what config.json says, what the one line says)
REFUSED = [
    ("_class_name", "UNet2DConditionModel", "_class_name must be UNet2DModel, got 'UNet2DConditionModel'"),
    ("act_fn", "mish", "act_fn must be 'silu' or 'swish', got 'mish'"),
    ("center_input_sample", True, "center_input_sample must be False, got True"),
    ("time_embedding_type", "fourier", "time_embedding_type must be 'positional', got 'fourier'"),
    ("mid_block_type", None, "mid_block_type must be 'UNetMidBlock2D', got None"),
    ("mid_block_scale_factor", 2**0.5, r"mid_block_scale_factor must be 1, got 1.41"),
    ("class_embed_type", "timestep", "class_embed_type must be None, got 'timestep'"),
    ("num_class_embeds", 10, "num_class_embeds must be None, got 10"),
    ("out_channels", 4, "out_channels must be 3 or 6, got 4"),
    ("freq_shift", 2, "freq_shift must be 0 or 1, got 2"),
    ("downsample_padding", 2, "downsample_padding must be 0 or 1, got 2"),
    ("time_embedding_dim", 64, "time_embedding_dim must be None or 128, got 64"),
    ("attention_head_dim", 24, r"attention_head_dim must be None or a divisor of the channels \[64, 64\], got 24"),
    ("attn_norm_num_groups", 4, "attn_norm_num_groups must be None or 8, got 4"),
    ("resnet_time_scale_shift", "spatial", "resnet_time_scale_shift must be 'default' or 'scale_shift', got 'spatial'"),
    ("resnet_time_scale_shift", "scale_shift", "attn_norm_num_groups must be 8, got None"),
    ("sample_size", None, "sample_size must be one number of pixels .*, got None"),
    ("sample_size", [8, 16], r"sample_size must be one number of pixels .*, got \[8, 16\]"),
    ("block_out_channels", [32, 48], r"block_out_channels must be multiples of 32, got \[32, 48\]"),
    ("block_out_channels", [32, "64"], r"block_out_channels must be positive integers, got \[32, '64'\]"),
    ("down_block_types", ["SkipDownBlock2D", "DownBlock2D"], "down_block_types must be of DownBlock2D, .* 'SkipDownBlock2D'$"),
    ("down_block_types", ["DownBlock2D"], "down_block_types must be 2 names, as many as block_out_channels, got"),
    ("up_block_types", ["UpBlock2D", "UpBlock2D"], "up_block_types must be such as attend where down_block_types do, got"),
    ("down_block_types", ["ResnetDownsampleBlock2D", "AttnDownBlock2D"], "down_block_types must be such as all resample by"),
    ("downsample_type", "fir", "downsample_type must be 'conv' or 'resnet', got 'fir'"),
    ("norm_num_groups", 5, r"norm_num_groups must be a divisor of the channels \[32, 64\], got 5"),
    ("block_out_channels", 32, "block_out_channels must be a list, got 32"),
    ("layers_per_block", "2", "layers_per_block must be an integer, got '2'"),
    ("norm_num_groups", 0, r"norm_num_groups must be a divisor of the channels \[32, 64\], got 0"),
    ("add_attention", 1, "add_attention must be true or false, got 1"),
    ("up_block_types", [1, None], "up_block_types must be of UpBlock2D, .* got 1"),
    ("sample_size", [[8], [9]], r"sample_size must be one number of pixels .*, got \[\[8\], \[9\]\]"),
    ("conv_in_kernel", 3, r"config.json must be that of a UNet2DModel, without further keys, got \['conv_in_kernel'\]"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "line"), REFUSED, ids=[f"{key}={value}" for key, value, _ in REFUSED])
def test_what_our_network_cannot_do_is_refused_by_key_and_value(key, value, line):
    with pytest.raises(ValueError, match=f"^{line}") as refusal:
        unet_config({**theirs.SMALL, key: value})
    assert "\n" not in str(refusal.value)


def test_a_training_average_may_lie_in_its_config():
    extra = {"decay": 0.9999, "power": 0.75, "optimization_step": 20, "_name_or_path": "x", "sample_size": [8, 8]}
    assert unet_config({**theirs.SMALL, **extra}) == unet_config(theirs.SMALL)


def test_a_network_for_any_size_is_given_one():
    assert unet_config({**theirs.SMALL, "sample_size": None}, image_size=16) == replace(
        unet_config(theirs.SMALL), image_size=16, attention_resolutions=(8,)
    )


SCHEDULERS_REFUSED = [
    ("_class_name", "PNDMScheduler", "_class_name must be DDPMScheduler or DDIMScheduler, got 'PNDMScheduler'"),
    ("beta_schedule", "laplace", "beta_schedule must be one of linear, scaled_linear, squaredcos_cap_v2, sigmoid, got 'laplace'"),
    ("trained_betas", [0.1, 0.2], r"trained_betas must be None, got \[0.1, 0.2\]"),
    ("variance_type", "learned", "variance_type must be one of fixed_small, .*, got 'learned'"),
    ("variance_type", "fixed_large_log", "variance_type must be one of fixed_small, .*, got 'fixed_large_log'"),
    ("prediction_type", "flow", "prediction_type must be one of epsilon, sample, v_prediction, got 'flow'"),
    ("thresholding", True, "thresholding must be False, got True"),
    ("rescale_betas_zero_snr", True, "rescale_betas_zero_snr must be False, got True"),
    ("clip_sample_range", 2.0, "clip_sample_range must be 1, where clip_sample is True, got 2.0"),
    ("beta_schedule", ["linear"], "beta_schedule must be a name, got \\['linear'\\]"),
    ("beta_start", "1e-4", "beta_start must be a number, got '1e-4'"),
    ("num_train_timesteps", None, "num_train_timesteps must be an integer, got None"),
    ("timestep_spacing", "karras", "timestep_spacing must be one of leading, linspace, trailing, got 'karras'"),
]


@pytest.mark.parametrize(("key", "value", "line"), SCHEDULERS_REFUSED, ids=lambda value: str(value)[:20])
def test_how_we_cannot_sample_is_refused_by_key_and_value(key, value, line):
    with pytest.raises(ValueError, match=f"^{line}$"):
        read_scheduler({**theirs.SCHEDULER, key: value})


def test_learned_variance_must_end_at_timestep_0():
    said = {**theirs.SCHEDULER, "variance_type": "learned_range", "timestep_spacing": "trailing"}
    with pytest.raises(ValueError, match=r"^timestep_spacing must be one that ends at timestep 0, .*, got 'trailing'$"):
        read_scheduler(said).sampling(10)


def test_a_purifier_starts_inside_the_list_of_timesteps():
    said = {**theirs.SCHEDULER, "_class_name": "DDIMScheduler"}
    found = read_scheduler(said).sampling(20, t_star=130)
    assert (found["t_star"], found["timesteps"], found["landings"]) == (101, (100, 50, 0), (50, 0, -1))
    with pytest.raises(ValueError, match=r"^t_star must be above 0, the last timestep of 20, got 0$"):
        read_scheduler(said).sampling(20, t_star=0)


def test_every_timestep_leaves_t_star_open():
    assert "timesteps" not in read_scheduler(theirs.SCHEDULER).sampling()
    assert read_scheduler(theirs.SCHEDULER).sampling(1000, t_star=70)["t_star"] == 70


def said_in(folder, said):
    (folder / "config.json").write_text(json.dumps(said))


NO_CONFIG = ".* this diffusers network must come with its config.json"
DAMAGED = {
    "no config.json": (lambda folder: (folder / "config.json").unlink(), NO_CONFIG),
    "no network's config.json": (lambda folder: said_in(folder, []), NO_CONFIG),
    "a latent model": (lambda folder: (folder / "vqvae").mkdir(), "a diffusers folder must be of a model of images, .*'vqvae'$"),
    "another width": (
        lambda folder: said_in(folder, {**theirs.SMALL, "block_out_channels": [64, 64]}),
        r".*: 'conv_in.weight' must make conv_in.weight of shape \(64, 3, 3, 3\), got \(32, 3, 3, 3\)$",
    ),
}


@pytest.mark.parametrize(("damage", "line"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_folder_that_is_wrong_is_refused_in_one_line(tmp_path, damage, line):
    folder = theirs.save(tmp_path / "a", theirs.SMALL)
    damage(folder)
    with pytest.raises(ValueError, match=f"^{line}") as refusal:
        load_diffusers_folder(folder)
    assert "\n" not in str(refusal.value)


def test_networks_that_are_told_more_than_the_time_are_refused():
    shapes = layouts.shapes_of(theirs.state_dict(theirs.CIFAR10, device="meta"))
    with pytest.raises(ValueError, match=r"must be unconditional, got one conditional on a class \(class_embedding.weight\)$"):
        recognised({**shapes, "class_embedding.weight": (10, 512)}, UNETS, "a.bin")


def test_the_readers_configuration_is_ours():
    assert unet_config(theirs.TUTORIAL) == UNetConfig(
        image_size=8, base_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,), num_head_channels=8,
        downsample_padding="symmetric", sinusoid="cos_first", sinusoid_endpoint=False, norm_groups=8, norm_min_channels=None,
        norm_eps=1e-5,
    )  # fmt: skip
