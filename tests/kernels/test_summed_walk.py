"""A whole U-Net in 16 bits by the kernels that a GPU runs: the walk in which norms add up what they read."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from purify_engine import ops
from purify_engine.ops import OPS, _registry, switches
from tests.kernels.triton_runner import DEVICE
from tests.models.networks import FAMILIES, noisy_images, small_unet


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_as_good_as_the_walk_of_layers(family, monkeypatch):
    monkeypatch.setattr(_registry, "INTERPRETED", True)
    x, t = noisy_images(), torch.tensor([7.0])
    unet = small_unet(family).half().to(DEVICE, memory_format=torch.channels_last)
    half = x.half().to(DEVICE, memory_format=torch.channels_last)
    ran: list[str] = []
    for name in ("sum_norm_silu", "residual_sum"):
        launcher = OPS[name].engines["triton"]

        def noted(*given, name=name, launcher=launcher):
            ran.append(name)
            return launcher.run(*given)

        monkeypatch.setitem(OPS[name].engines, "triton", ops.Launcher(noted, launcher.declines))
    with torch.no_grad():
        truth = small_unet(family)(x, t)
        with switches.switched(sum_in_norm=False):
            by_layers = unet(half, t.to(DEVICE)).cpu()
        assert not ran
        with switches.anywhere(), mock.patch.dict(_registry.ORDER, cpu=("triton", "torch", "reference")):
            by_sums = unet(half, t.to(DEVICE)).cpu()
    assert ran.count("sum_norm_silu") > 10
    assert (by_sums - truth).norm() <= 2 * (by_layers - truth).norm()
