"""Where a U-Net attends: at the resolutions asked for, on the way up after every block or after a level's last one only."""

import math

import pytest
import torch

from purify_engine.config import UNetConfig
from purify_engine.models import UNet
from purify_engine.models.blocks import AttentionBlock, Stage

SMALL = {"image_size": 8, "in_channels": 1, "base_channels": 8, "channel_mult": (1, 2), "norm_groups": 4, "num_heads": 2}


def attends(layers) -> list[bool]:
    return [isinstance(layer.attention, AttentionBlock) for layer in layers if isinstance(layer, Stage)]


@pytest.mark.parametrize(
    ("decoder_attention", "decoder"),
    [("every_block", [True, True, True, False, False, False]), ("last_block", [False, False, True, False, False, False])],
)
def test_attention_stands_where_the_configuration_says(decoder_attention, decoder):
    unet = UNet(UNetConfig(**SMALL, num_res_blocks=2, attention_resolutions=(4,), decoder_attention=decoder_attention))
    assert attends(unet.encoder) == [False, False, True, True]
    assert attends(unet.middle) == [True, False]
    assert attends(unet.decoder) == decoder


def test_the_middle_attends_unless_it_is_told_not_to():
    unet = UNet(UNetConfig(**SMALL, num_res_blocks=1, attention_resolutions=(4,), middle_attention=False))
    assert attends(unet.middle) == [False, False] and attends(unet.encoder) == [False, True]


@pytest.mark.parametrize(("skip_rescale", "gain"), [(False, 1.0), (True, math.sqrt(0.5))])
def test_what_attention_adds_is_rescaled_to_unit_variance_where_asked_for(skip_rescale, gain):
    block = AttentionBlock(8, UNetConfig(**SMALL, skip_rescale=skip_rescale)).double()
    x, added = torch.randn(2, 8, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), 0.25
    assert (block(x) - gain * x).abs().max() < 1e-12, "a fresh block adds nothing"
    torch.nn.init.constant_(block.out.bias, added)
    assert (block(x) - gain * (x + added)).abs().max() < 1e-12
