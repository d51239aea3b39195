"""The walk in which norms add up what they read: the same function as the walk of layers, for every family."""

from __future__ import annotations

import pytest
import torch

from purify_engine.models import summed
from purify_engine.ops import switches
from tests.models.networks import FAMILIES, noisy_images, small_unet

families = pytest.mark.parametrize("family", FAMILIES)


def both(family, x, t):
    """(by layers, by norms that add) in float64."""
    unet = small_unet(family)
    with torch.no_grad():
        expected = unet(x, t)
        with switches.anywhere():
            assert summed.is_taken(x, unet)
            return expected, unet(x, t)


@families
@pytest.mark.parametrize("batch", [1, 3])
def test_it_is_the_same_function(family, batch):
    for t in (torch.tensor([7.0]), torch.linspace(3, 900, batch)):
        expected, got = both(family, noisy_images(batch), t)
        assert got.shape == expected.shape and got.dtype == torch.float64
        assert (got - expected).abs().max() < 1e-12


@families
def test_it_is_taken_where_nothing_is_recorded_and_nobody_looks_on(family):
    unet, x = small_unet(family), noisy_images()
    with torch.no_grad():
        assert not summed.is_taken(x, unet), "float64, and a CPU"
    with switches.anywhere():
        assert not summed.is_taken(x, unet), "autograd may record"
        with torch.no_grad():
            assert summed.is_taken(x, unet)
            assert not summed.is_taken(x, unet.train())
            unet.eval()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert not summed.is_taken(x, unet)
            with switches.switched(sum_in_norm=False):
                assert not summed.is_taken(x, unet)
