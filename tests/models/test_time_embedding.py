"""What a network is told about the time: known waves, and each family's units as the network itself applies them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from purify_engine.config import UNetConfig
from purify_engine.models import published
from purify_engine.models.time_embedding import TimeEmbedding, sinusoid
from tests.models.networks import FAMILIES, lively, noisy_images, small_unet

PLAIN = UNetConfig(base_channels=8)


def test_waves_have_frequencies_from_one_down_to_a_ten_thousandth():
    """Four sines, then four cosines: frequencies 1, 10000**(-1/3), 10000**(-2/3), 1/10000."""
    waves = sinusoid(torch.tensor([2.0], dtype=torch.float64), PLAIN)
    angles = [2 * 10 ** (-4 * k / 3) for k in range(4)]
    expected = [*map(math.sin, angles), *map(math.cos, angles)]
    torch.testing.assert_close(waves, torch.tensor([expected], dtype=torch.float64))


def test_without_its_endpoint_the_last_frequency_is_one_short_and_cosines_may_come_first():
    waves = sinusoid(torch.tensor([2.0], dtype=torch.float64), replace(PLAIN, sinusoid_endpoint=False, sinusoid="cos_first"))
    angles = [2.0, 0.2, 0.02, 0.002]
    expected = [*map(math.cos, angles), *map(math.sin, angles)]
    torch.testing.assert_close(waves, torch.tensor([expected], dtype=torch.float64))


def same_weights(config, like):
    embedding = TimeEmbedding([6, 4], config).double()
    embedding.load_state_dict(like.state_dict())
    return embedding


# What the published networks read where they are told an index: of DDPM's steps themselves; of score_sde's 0.999 to 999; of
# improved-diffusion's 4000 steps 0 to 1000.
TOLD = [
    (published.DDPM_CIFAR10, 999, 999),
    (published.DDPMPP_CIFAR10, 0, 0.999),
    (published.DDPMPP_CIFAR10, 999, 999),
    (published.IMPROVED_CIFAR10, 3999, 999.75),
    (published.ADM_IMAGENET256, 7, 7),
]


@pytest.mark.parametrize(("family", "index", "told"), TOLD)
def test_the_network_is_told_the_time_in_its_familys_units(family, index, told):
    """The embedding of an index is that of what the family calls it, by an embedding that knows no units."""
    config = replace(family, base_channels=8, norm_groups=4, num_heads=1, num_head_channels=None)
    embedding = lively(TimeEmbedding([6, 4], config))
    plain = same_weights(replace(config, time_offset=0.0, time_scale=1.0), embedding)
    for found, expected in zip(embedding(torch.tensor([index])), plain(torch.tensor([told])), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_network_with_an_offset_and_a_scale_is_one_at_the_time_it_is_told(family):
    unet = small_unet(family)
    config = replace(unet.config, time_offset=2.0, time_scale=0.5)
    moved = type(unet)(config).double().eval()
    moved.load_state_dict(unet.state_dict())
    plain = type(unet)(replace(config, time_offset=0.0, time_scale=1.0)).double().eval()
    plain.load_state_dict(unet.state_dict())
    torch.testing.assert_close(moved(noisy_images(), torch.tensor([8.0])), plain(noisy_images(), torch.tensor([5.0])))


def test_each_block_has_a_projection_of_its_own_width_and_a_batch_its_own_times():
    embedding = lively(TimeEmbedding([6, 4], PLAIN))
    both = embedding(torch.tensor([3.0, 40.0]))
    assert [tuple(part.shape) for part in both] == [(2, 6), (2, 4)]
    for place, time in enumerate((3, 40)):
        for part, alone in zip(both, embedding(torch.tensor(time)), strict=True):
            torch.testing.assert_close(part[place : place + 1], alone)
