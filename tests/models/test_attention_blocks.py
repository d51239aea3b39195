"""Where a U-Net attends: at the resolutions asked for, on the way up after every block or after a level's last one only."""

import pytest

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
