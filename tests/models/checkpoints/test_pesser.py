"""DDPM checkpoints of pytorch_diffusion: recognised, read whole, and the network is theirs."""

import pytest
import torch

from purify_engine.models.checkpoints.layout import shapes_of
from purify_engine.models.checkpoints.pesser import PESSER
from purify_engine.models.checkpoints.registry import recognised
from purify_engine.models.published import DDPM_CELEBAHQ256, DDPM_CIFAR10
from purify_engine.testing.published import pesser as theirs
from tests.models.checkpoints import plain_networks
from tests.models.checkpoints.translations import (
    comes_back,
    every_broken_shape_is_one_line,
    largest_difference,
    on_meta,
    our_unet,
)

GIVEN = {"image_size": 8}
X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def tensors():
    return theirs.state_dict(**theirs.SMALL)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=str)
def test_the_network_is_theirs(tensors, dtype, most):
    unet = our_unet(PESSER, tensors, GIVEN, dtype)
    double = {name: tensor.double() for name, tensor in tensors.items()}
    for t in (0.0, 7.0, 99.0, 999.0):
        wanted = plain_networks.pesser(double, X, torch.full((2,), t, dtype=torch.float64), **theirs.SMALL)
        assert largest_difference(unet(X.to(dtype), torch.tensor([t])), wanted) < most


def test_a_broken_file_is_refused_in_one_line(tensors):
    assert every_broken_shape_is_one_line(PESSER, tensors, GIVEN)


def test_what_was_read_is_written_back_to_the_bit(tensors):
    assert comes_back(PESSER, our_unet(PESSER, tensors, GIVEN, torch.float32), tensors)


@pytest.mark.parametrize(
    ("network", "config", "parameters"),
    [(theirs.CIFAR10, DDPM_CIFAR10, 35_746_307), (theirs.CELEBAHQ256, DDPM_CELEBAHQ256, 113_673_219)],
    ids=["CIFAR-10", "CelebA-HQ"],
)
def test_the_published_networks_are_recognised_and_read_whole(network, config, parameters):
    assert on_meta(PESSER, theirs.state_dict(device="meta", **network)) == (config, parameters, set())


def test_a_published_network_may_be_told_another_size():
    tensors = theirs.state_dict(device="meta", **{**theirs.CIFAR10, "attn_resolutions": (32,), "resolution": 64})
    read = recognised(shapes_of(tensors), [PESSER], "a test", given={"image_size": 64})
    assert (read.config.image_size, read.config.attention_resolutions, read.says) == (64, (32,), ())


def test_a_network_of_no_published_size_wants_one(tensors):
    with pytest.raises(ValueError, match="image_size must be given"):
        our_unet(PESSER, tensors)
    with pytest.raises(ValueError, match="must have the layout pesser"):
        our_unet(PESSER, {"conv_in.weight": torch.zeros(1)})
