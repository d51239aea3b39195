import pytest
import torch

from purify_engine.benchmark.networks import GUIDES, NETWORKS, TOY_GUIDE, TOY_NETWORKS, named_networks, random_purifier
from purify_engine.config import GuidanceConfig, PurifierConfig


@pytest.mark.parametrize("network", TOY_NETWORKS.values(), ids=TOY_NETWORKS.keys())
def test_a_random_network_computes_something_of_order_one(network):
    purifier = random_purifier(network, TOY_GUIDE, PurifierConfig(t_star=100, num_steps=3))
    eps = purifier.denoiser.unet(torch.randn(2, 3, 8, 8), torch.tensor([50.0]))
    assert 0.05 < eps.std() < 20
    purified = purifier(torch.rand(2, 3, 8, 8))
    assert ((purified > 0) & (purified < 1)).float().mean() > 0.02  # not all cut off at the ends of the range


def test_guidance_matters_and_does_not_rule():
    purifier = random_purifier(TOY_NETWORKS["toy-ddpm"], TOY_GUIDE, PurifierConfig(t_star=100, num_steps=3))
    images, ids = torch.rand(4, 3, 8, 8), torch.arange(4)
    guided, unguided = purifier(images, ids=ids), purifier.configured(guidance=GuidanceConfig(kind="none"))(images, ids=ids)
    assert 0.001 < (guided - unguided).norm() / unguided.norm() < 0.5


def test_the_same_seed_makes_the_same_weights():
    one, again, other = (random_purifier(TOY_NETWORKS["toy-ddpm"], TOY_GUIDE, seed=seed) for seed in (1, 1, 2))
    assert one.config == again.config != other.config
    assert all(a.equal(b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not all(a.equal(b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_names_name_a_network_and_its_guide():
    assert named_networks("ddpm-cifar10") == (NETWORKS["ddpm-cifar10"], GUIDES["resnet18"])
    assert named_networks("ddpm-cifar10+wrn-28-10") == (NETWORKS["ddpm-cifar10"], GUIDES["wrn-28-10"])
    assert named_networks("digits") is None
    with pytest.raises(ValueError, match="purifier must be guided by one of resnet18, wrn-28-10, got 'ddpm-cifar10\\+hope'"):
        named_networks("ddpm-cifar10+hope")
