"""Our networks, schedules and steps against diffusers' own. One file, since importing diffusers takes seconds."""

from __future__ import annotations

import pytest
import torch

from bench.opponents.diffusers_purifier import diffusers_unet
from purify_engine.config import UNetConfig
from purify_engine.models import UNet
from purify_engine.models.checkpoints.diffusers import DIFFUSERS
from purify_engine.models.checkpoints.diffusers_unet import unet_config
from purify_engine.models.checkpoints.layout import shapes_of, translate, written
from purify_engine.models.time_embedding import sinusoid

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
        parameter.normal_(std=0.15)
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
