"""The published networks: the same size, and the same work, as the originals."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from purify_engine.models import UNet
from purify_engine.models import published as p

# GFLOP of one image, measured on the authors' code with this counter: convolutions and matrix products, 2 FLOP a multiply-add.
PUBLISHED = {
    "DDPM": (p.DDPM_CIFAR10, 35_746_307, 12.443713536),
    "DDPM at 256": (p.DDPM_CELEBAHQ256, 113_673_219, 497.027514368),
    "DDPM++": (p.DDPMPP_CIFAR10, 61_804_419, 21.69307136),
    "DDPM++ deep": (p.DDPMPP_DEEP_CIFAR10, 106_632_579, 37.093507072),
    # Without what tells it of augmentations; and its eight means and repetitions of 2x2 pixels are convolutions there.
    "EDM": (p.EDM_CIFAR10, 55_733_891 - 9 * 128, 42.383048704 - 0.00262144),
    "ADM": (p.ADM_IMAGENET256, 552_814_086, 2239.665537024),
    "improved-diffusion": (p.IMPROVED_CIFAR10, 52_546_438, 16.773414912),
}


@pytest.mark.parametrize(("config", "parameters", "gflop"), PUBLISHED.values(), ids=PUBLISHED.keys())
def test_size_and_work_are_those_of_the_original(config, parameters, gflop):
    with torch.device("meta"):
        unet = UNet(config).eval()
        x = torch.empty(1, config.in_channels, config.image_size, config.image_size)
        t = torch.zeros(1)
    assert sum(parameter.numel() for parameter in unet.parameters()) == parameters
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        eps = unet(x, t)
    assert counter.get_total_flops() == round(gflop * 1e9)
    assert eps.shape == (1, 6 if config.learned_variance else 3, *x.shape[2:])


def test_time_is_told_in_each_familys_units():
    """DDPM counts from 0; score_sde labels the first timestep 0.999 and the last 999; improved-diffusion tells 4000 as 1000."""

    def label(config, t):
        return (t + config.time_offset) * config.time_scale

    assert label(p.DDPM_CIFAR10, 999) == 999
    assert label(p.DDPMPP_CIFAR10, 0) == pytest.approx(0.999) and label(p.DDPMPP_CIFAR10, 999) == pytest.approx(999)
    assert label(p.IMPROVED_CIFAR10, 3999) == 999.75
