"""The opponents' U-Net is ours in other words: the same function of the same parameters, and no op of ours in it."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from purify_engine.benchmark.networks import TOY_NETWORKS, with_random_weights
from purify_engine.benchmark.plain_unet import PlainUNet
from purify_engine.models import UNet
from tests.models.networks import FAMILIES

CONFIGS = {**FAMILIES, **TOY_NETWORKS}


class OpsOfOurs(TorchDispatchMode):
    """Counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "purify":
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_it_is_the_same_function(config):
    unet = with_random_weights(UNet(config).double().eval()).requires_grad_(False)
    x = torch.randn(3, config.in_channels, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    t = torch.full((3,), 17.0)
    ours = unet(x, t)[:, : config.in_channels]
    assert ours.std() > 0.01  # a network that predicts nothing would hide every mistake
    assert (PlainUNet(unet)(x, t) - ours).norm() < 1e-13 * ours.norm()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_it_shares_the_parameters_and_runs_no_op_of_ours(config):
    unet = UNet(config).requires_grad_(False)
    plain = PlainUNet(unet)
    assert {id(parameter) for parameter in plain.parameters()} == {id(parameter) for parameter in unet.parameters()}
    x, t = torch.zeros(1, config.in_channels, 8, 8), torch.zeros(1)
    with OpsOfOurs() as in_plain:
        plain(x, t)
    with OpsOfOurs() as in_ours:
        unet(x, t)
    assert not in_plain.seen and in_ours.seen
