"""Every way that PyTorch offers to change, move, copy or replace a weight: the next images are by the new ones, or one line says why not.

One purifier by the loop and a sibling by recordings stand on the same networks for most of the table, warm from the way before.
"""

from __future__ import annotations

import copy
import io
import pickle
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune, vector_to_parameters

from purify_engine.config import ClassifierConfig, GuidanceConfig, PurifierConfig, UNetConfig
from purify_engine.models.classifiers import Classifier
from purify_engine.models.denoiser import Denoiser
from purify_engine.models.unet import UNet
from purify_engine.purifier import GuidedPurifier
from tests.test_purifier import images

UNET = UNetConfig(
    image_size=8, in_channels=1, base_channels=8, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(8,), norm_groups=4
)
GUIDE = ClassifierConfig(
    architecture="cifar_resnet", depth=8, width=4, in_channels=1, num_classes=10, mean=(0.3,), std=(0.4,), activation="relu"
)
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def small():
    """A purifier of few layers by the loop, its noise fixed; equal networks every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet, guide = UNet(UNET), Classifier(GUIDE)
        for parameter in unet.parameters():  # no layer at its zero initialisation
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    guidance = GuidanceConfig(kind="adversarial", scale=1.0)
    config = PurifierConfig(t_star=100, num_steps=1, guidance=guidance, noise="fixed")
    return GuidedPurifier(Denoiser(unet), guide, config, execution="loop")


class Pair(nn.Module):
    """Two siblings on the same networks, by the loop and by recordings, both warm."""

    def __init__(self):
        super().__init__()
        self.loop = small()
        self.graph = self.loop.configured()
        self.graph.execution = "graph"
        for purifier in (self.loop, self.graph, self.graph):
            purified(purifier)

    def assert_are(self, expected):
        """Both give these images at once, and are warm thereafter."""
        # To rounding: a weight that an optimizer moves is not its aim to the bit.
        for purifier in (self.graph, self.loop, self.graph):
            assert (purified(purifier) - expected).abs().max() < 2e-6


def purified(purifier):
    return purifier(images(2))


def state_of(purifier):
    return {name: tensor.clone() for name, tensor in purifier.state_dict().items()}


@pytest.fixture(scope="module")
def pair():
    return Pair()


@pytest.fixture(scope="module")
def states():
    """Two states of the weights, and what fresh purifiers make of them; the first is the next to take."""
    one, other = small(), small()
    with torch.no_grad():
        for tensor in other.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1.25)
    found = [(state_of(purifier), purified(purifier)) for purifier in (other, one)]
    assert (found[0][1] - found[1][1]).abs().max() > 1e-3
    return found


# Ways to give networks other values


def by_copying(purifier, state):
    with torch.no_grad():
        for name, tensor in purifier.state_dict().items():
            tensor.copy_(state[name])


def by_data_copy(purifier, state):
    for name, tensor in named(purifier):
        tensor.data.copy_(state[name])


def by_data(purifier, state):
    for name, tensor in named(purifier):
        tensor.data = state[name].clone()


def by_numpy(purifier, state):
    for name, tensor in named(purifier):
        tensor.detach().numpy()[...] = state[name].numpy()


def by_a_vector(purifier, state):
    by_data_copy(purifier, {**state, **dict(purifier.named_parameters())})  # the statistics of norms are buffers
    vector = torch.cat([state[name].flatten() for name, _ in purifier.named_parameters()])
    vector_to_parameters(vector, purifier.parameters())


def by_an_optimizer(purifier, state):
    by_data_copy(purifier, {**state, **dict(purifier.named_parameters())})  # the statistics of norms are buffers
    optimizer = torch.optim.SGD(purifier.parameters(), lr=1.0)
    for name, parameter in purifier.named_parameters():
        parameter.requires_grad_(True).grad = parameter.detach() - state[name]
    optimizer.step()
    purifier.requires_grad_(False).zero_grad()


def by_loading(purifier, state):
    purifier.load_state_dict(state)


def by_assigning(purifier, state):
    purifier.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)


def by_loading_a_part(purifier, state):
    for name in ("denoiser", "guide"):
        part = {key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(name)}
        getattr(purifier, name).load_state_dict(part)


def by_loading_in_float64(purifier, state):
    purifier.double()
    purifier.load_state_dict(state)
    purifier.float()


def by_setting_parameters(purifier, state):
    for name, _ in list(purifier.named_parameters()):
        module, _, own = name.rpartition(".")
        setattr(purifier.get_submodule(module), own, nn.Parameter(state[name].clone(), requires_grad=False))
    by_data_copy(purifier, state)  # the statistics of norms are buffers


def by_shared_memory(purifier, state):
    purifier.share_memory()
    by_data_copy(purifier, state)


def named(purifier):
    return purifier.state_dict(keep_vars=True).items()


WAYS = [way for name, way in globals().items() if name.startswith("by_")]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_new_values_are_seen_by_the_loop_and_by_recordings(way, pair, states):
    state, expected = states[0]
    way(pair.loop, state)
    pair.assert_are(expected)
    states.reverse()


# Ways to have layers compute something else: here the same as with 1.25 times their weights and biases

LAYERS = ("denoiser.unet.conv_in", "denoiser.unet.encoder.0.attention.qkv", "denoiser.unet.time_embedding.projections.0")
LAYERS += ("guide.conv1", "guide.layer2.0.conv1", "guide.linear")


class Scaled(nn.Module):
    def forward(self, weight):
        return 1.25 * weight


class Adapter(nn.Module):
    """What adapters do: a layer that holds the one in whose place it stands, and passes its weight off as its own."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, x, *given, **named):
        return 1.25 * self.base_layer(x, *given, **named)


def parametrized(layer):
    for name in [name for name, parameter in layer.named_parameters(recurse=False)]:
        parametrize.register_parametrization(layer, name, Scaled())
    return layer


def replaced(layer):
    other = copy.deepcopy(layer)
    for parameter in other.parameters():
        parameter.mul_(1.25)
    return other


def weight_normed(layer):
    layer = nn.utils.weight_norm(replaced(layer)).requires_grad_(False)
    layer.weight_g.mul_(0.8)  # whose effect a hook computes, and no attribute holds yet
    layer.weight_g.mul_(1.25)
    return layer


def weight_normed_by_parametrization(layer):
    return nn.utils.parametrizations.weight_norm(replaced(layer)).requires_grad_(False)


def pruned(layer):
    """Of nothing but a mask: half of it is 1.25, and so is the other half."""
    for name in [name for name, _ in layer.named_parameters(recurse=False)]:
        prune.custom_from_mask(layer, name, torch.full_like(getattr(layer, name), 1.25))
    return layer


def hooked(layer):
    layer.register_forward_hook(lambda layer, inputs, output: 1.25 * output)
    return layer


def compiled(layer):
    return torch.compile(replaced(layer), backend="eager")


@pytest.fixture(scope="module")
def scaled():
    """What a purifier gives whose layers have 1.25 times their weights."""
    purifier = small()
    for name in LAYERS:
        for parameter in purifier.get_submodule(name).parameters():
            parameter.mul_(1.25)
    assert (purified(purifier) - purified(small())).abs().max() > 1e-3
    return purified(purifier)


@pytest.mark.parametrize(
    "way", [parametrized, replaced, Adapter, weight_normed, weight_normed_by_parametrization, pruned, hooked, compiled]
)
def test_layers_that_compute_something_else_are_called_by_the_loop_and_by_recordings(way, scaled):
    pair = Pair()
    pair.graph.execution = "auto"  # a hook's step is not replayed, since it may do anything
    for name in LAYERS:
        pair.loop.set_submodule(name, way(pair.loop.get_submodule(name)))
    pair.assert_are(scaled)
    assert (pair.graph.execution_reason is None) == (way is not hooked)
