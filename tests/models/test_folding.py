"""A folded classifier is the same function, has no batch norm left, and never outlives the weights it was made from."""

from __future__ import annotations

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from purify_engine.config import ClassifierConfig
from purify_engine.models.classifiers import Classifier
from purify_engine.models.folding import ChannelAffine
from purify_engine.ops import _extension, switches
from purify_engine.ops.conv3x3 import winograd
from purify_engine.ops.conv3x3.tiling import Tiling

CONFIGS = {
    "resnet": ClassifierConfig(architecture="resnet", depth=10, width=4, in_channels=1, mean=(0.3,), std=(0.4,)),
    "cifar_resnet": ClassifierConfig(architecture="cifar_resnet", depth=8, width=4, in_channels=1, mean=(0.3,), std=(0.4,)),
    "wide_resnet": ClassifierConfig(architecture="wide_resnet", depth=16, width=1, in_channels=1, mean=(0.3,), std=(0.4,)),
    "bottlenecks": ClassifierConfig(architecture="resnet", depth=14, width=4, in_channels=1, mean=(0.3,), std=(0.4,)),
    "imagenet_resnet": ClassifierConfig(
        architecture="imagenet_resnet", depth=14, width=4, bottleneck_factor=2, in_channels=1, mean=(0.3,), std=(0.4,)
    ),
    "preact_resnet": ClassifierConfig(
        architecture="preact_resnet", depth=18, width=4, in_channels=1, mean=(0.3,), std=(0.4,), final_norm=False
    ),
    "deepmind": ClassifierConfig(
        architecture="preact_resnet", depth=18, width=4, in_channels=1, mean=(0.3,), std=(0.4,), downsample_padding="asymmetric",
        shortcut_reads="input", shortcut_kernel=3,
    ),
    "preact_bottlenecks": ClassifierConfig(
        architecture="preact_resnet", depth=14, width=4, in_channels=1, mean=(0.3,), std=(0.4,)
    ),
}  # fmt: skip
# A nonlinearity stands before the norms of these.
PRE_ACTIVATION = ("wide_resnet", "preact_resnet", "deepmind", "preact_bottlenecks")
IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def classifier(name: str) -> Classifier:
    """Frozen, in float64, with statistics and affine parameters of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Classifier(CONFIGS[name]).double()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                    tensor.uniform_(0.5, 1.5)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("name", CONFIGS)
def test_is_the_same_function_without_batch_norms(name):
    network = classifier(name)
    twin = network.frozen()
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in twin.modules())
    assert torch.allclose(twin(IMAGES), network(IMAGES), rtol=1e-12, atol=1e-12)
    # only where a nonlinearity stands before the norm is it left, as an affine map of every channel
    assert any(isinstance(module, ChannelAffine) for module in twin.modules()) == (name in PRE_ACTIVATION)


@pytest.mark.skipif(_extension.extension is None, reason="the extension is not built")
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "preact_bottlenecks"])  # whose ReLUs are PyTorch's
def test_its_kernels_compute_it_and_its_gradient_in_float32(name, monkeypatch):
    monkeypatch.setattr(winograd, "tiling", lambda *problem: Tiling(4, 24, True))
    launched, launch = [], _extension.launch
    noted = lambda kernel, *given: (launched.append((kernel, given)), launch(kernel, *given))[1]  # noqa: E731
    monkeypatch.setattr(_extension, "launch", noted)
    network, found = classifier(name), []
    for exact in (True, False):
        twin = network if exact else network.float().frozen()
        x = IMAGES.to(next(twin.parameters()).dtype).requires_grad_()
        logits = twin(x)
        found.append((logits, torch.autograd.grad(logits.log_softmax(1)[:, 0].sum(), x)[0]))
    for truth, got in zip(*found, strict=True):
        assert (got - truth).norm() <= 1e-5 * truth.norm()
    relus = [given[2] for kernel, given in launched if kernel == "conv3x3_winograd"]
    assert any(before for *_, before in relus) and any(gate is not None for gate, *_ in relus)
    lines = [slope for _, slope, _, before in relus if before and slope is not None]
    assert bool(lines) == (name in PRE_ACTIVATION)  # of the blocks that keep their width


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.bfloat16) for name in CONFIGS), ("imagenet_resnet", torch.float16)], ids=str
)
def test_runs_in_16_bits_and_in_channels_last(name, dtype):
    """Logits stay within 1 in 8 of float64's, where one rounding of bfloat16 is 1 in 512 and a network has some forty."""
    network = classifier(name)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(module.weight.numel())
    truth, images = network(IMAGES), IMAGES.to(dtype).contiguous(memory_format=torch.channels_last)
    low = network.to(dtype)
    for twin in (low, low.frozen()):
        x = images.clone().requires_grad_()
        logits = twin(x)
        (gradient,) = torch.autograd.grad(logits.float().log_softmax(1)[:, 0].sum(), x)
        assert logits.dtype == gradient.dtype == dtype and gradient.isfinite().all() and gradient.any()
        assert (logits.double() - truth).norm() <= truth.norm() / 8


@pytest.mark.parametrize("name", CONFIGS)
def test_has_the_same_first_and_second_gradients(name):
    def second(network):
        x = IMAGES.clone().requires_grad_()
        features, logits = network.features_and_logits(x)
        (first,) = torch.autograd.grad(logits.log_softmax(1)[:, 0].sum() - features.square().sum(), x, create_graph=True)
        return first.detach(), torch.autograd.grad(first.square().sum(), x)[0]

    network = classifier(name)
    for plain, folded in zip(second(network), second(network.frozen()), strict=True):
        assert torch.allclose(folded, plain, rtol=1e-10, atol=1e-10 * plain.abs().max().item())


def test_is_made_once_and_again_when_a_weight_changes():
    network = classifier("cifar_resnet")
    twin = network.frozen()
    assert network.frozen() is twin
    others = classifier("cifar_resnet").state_dict()
    for change in (lambda: network.bn1.running_mean.add_(1), lambda: network.load_state_dict(others)):
        change()
        assert network.frozen() is not twin
        twin = network.frozen()
        assert torch.allclose(twin(IMAGES), network(IMAGES), rtol=1e-12, atol=1e-12)


def test_serves_only_what_is_frozen_and_evaluated():
    network = classifier("resnet")
    network.linear.bias.requires_grad_()
    assert network.frozen() is network
    network.requires_grad_(False).train()
    assert network.frozen() is network


def test_stays_out_of_state_dict_copies_and_pickles():
    network = classifier("resnet")
    names = set(network.state_dict())
    network.frozen()
    assert set(network.state_dict()) == names
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        other.bn1.bias.add_(1)
        assert torch.allclose(other.frozen()(IMAGES), other(IMAGES), rtol=1e-12, atol=1e-12)
        assert not torch.allclose(other(IMAGES), network(IMAGES))


WITHOUT = [(), ("conv_relu",), ("turned_filters",), ("affine_relu",)]
WAYS = [(name, off) for name in CONFIGS for off in (WITHOUT if name in ("resnet", "cifar_resnet", "wide_resnet") else [()])]


@pytest.mark.parametrize(("name", "off"), [*WAYS, ("deepmind", ("affine_relu",)), ("imagenet_resnet", ("conv_relu",))], ids=str)
def test_the_ways_of_gpus_are_the_same_function_to_the_second_order(name, off):
    network, found = classifier(name), []
    for fused in (False, True):
        with switches.anywhere() if fused else nullcontext(), switches.switched(**dict.fromkeys(off, False)):
            x = IMAGES.clone().requires_grad_()
            features, logits = (network.frozen() if fused else network).features_and_logits(x)
            objective = logits.log_softmax(1)[:, 0].sum() - features.square().sum()
            (first,) = torch.autograd.grad(objective, x, create_graph=True)
            found.append((features, logits, first, torch.autograd.grad(first.square().sum(), x)[0]))
    for truth, got in zip(*found, strict=True):
        torch.testing.assert_close(got, truth, rtol=1e-10, atol=1e-10 * truth.abs().max().item())
