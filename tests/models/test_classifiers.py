"""Classifiers: published names, sizes and, with real weights, accuracy; small variants that learn and differentiate."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from purify_engine.config import ClassifierConfig
from purify_engine.models import Classifier, load_safetensors
from tests.models.networks import transposed

SIZES = {
    "ResNet-18": (ClassifierConfig(), 11_173_962),
    "ResNet-20": (ClassifierConfig(architecture="cifar_resnet", depth=20, width=16), 269_722),
    "ResNet-56": (ClassifierConfig(architecture="cifar_resnet", depth=56, width=16), 853_018),
    "WRN-28-10": (ClassifierConfig(architecture="wide_resnet", depth=28, width=10), 36_479_194),
    "WRN-70-16": (ClassifierConfig(architecture="wide_resnet", depth=70, width=16), 266_796_506),
    "PreActResNet-18": (ClassifierConfig(architecture="preact_resnet"), 11_172_170),
    "ResNet-50": (ClassifierConfig(architecture="imagenet_resnet", depth=50, num_classes=1000), 25_557_032),
}
DIGITS = {"in_channels": 1, "mean": (0.3,), "std": (0.4,), "activation": "silu"}
SMALL = {
    "resnet": ClassifierConfig(architecture="resnet", depth=10, width=4, **DIGITS),
    "cifar_resnet": ClassifierConfig(architecture="cifar_resnet", depth=8, width=4, **DIGITS),
    "wide_resnet": ClassifierConfig(architecture="wide_resnet", depth=10, width=1, **DIGITS),
    "preact_resnet": ClassifierConfig(architecture="preact_resnet", depth=10, width=4, **DIGITS),
    "imagenet_resnet": ClassifierConfig(architecture="imagenet_resnet", depth=14, width=4, **DIGITS),
}
NAMES = {
    "resnet": {"conv1.weight", "bn1.running_var", "layer2.0.shortcut.0.weight", "layer2.0.shortcut.1.bias", "linear.bias"},
    "cifar_resnet": {"conv1.weight", "bn1.running_var", "layer2.0.conv1.weight", "layer3.0.bn2.bias", "linear.bias"},
    "wide_resnet": {
        "conv1.weight",
        "bn1.running_var",
        "block1.layer.0.bn1.bias",
        "block3.layer.0.convShortcut.weight",
        "fc.bias",
    },
    "preact_resnet": {"conv1.weight", "layer1.0.bn1.bias", "layer2.0.convShortcut.weight", "bn1.running_var", "linear.bias"},
    "imagenet_resnet": {"conv1.weight", "bn1.running_var", "layer1.0.shortcut.0.weight", "layer4.0.conv3.weight", "linear.bias"},
}

architectures = pytest.mark.parametrize("architecture", SMALL)


def small(architecture):
    torch.manual_seed(0)
    return Classifier(SMALL[architecture]).double().eval()


def images(count=2):
    return torch.rand(count, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("config", "parameters"), SIZES.values(), ids=SIZES.keys())
def test_size_is_the_published_one(config, parameters):
    with torch.device("meta"):
        classifier = Classifier(config).eval()
        assert classifier(torch.empty(2, 3, 32, 32)).shape == (2, config.num_classes)
    assert sum(parameter.numel() for parameter in classifier.parameters()) == parameters


@architectures
def test_weights_carry_the_published_names_and_no_normalisation(architecture):
    state = small(architecture).state_dict()
    assert set(state) >= NAMES[architecture]
    assert not {"mean", "std"} & set(state)


@architectures
def test_logits_are_the_head_of_the_features(architecture):
    classifier = small(architecture)
    features, logits = classifier.features_and_logits(images())
    head = list(classifier.children())[-1]
    assert features.dim() == 2 and torch.equal(head(features), logits)
    assert torch.equal(classifier(images()), logits)


@architectures
def test_rows_and_columns_are_treated_alike_at_any_height_and_width(architecture):
    """A network of filters turned about their diagonal sees the transposed image as the network sees the image."""
    classifier = small(architecture)
    x = torch.rand(2, 1, 9, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    seen = classifier(x)
    assert (transposed(classifier)(x.mT) - seen).abs().max() < 1e-12
    assert (classifier(x.mT) - seen).abs().max() > 1e-6


@architectures
def test_normalises_inside(architecture):
    """Feeding a normalised image to a network that does not normalise gives the same logits."""
    classifier, plain = small(architecture), small(architecture)
    plain.mean.zero_()
    plain.std.fill_(1)
    assert (classifier(images()) - plain((images() - 0.3) / 0.4)).abs().max() < 1e-6  # the buffers were float32 once


@architectures
def test_gradient_is_right_to_second_order(architecture):
    classifier = small(architecture).requires_grad_(False)
    direction = images(2)[1:] - 0.5
    distance = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def along(distance):
        return classifier(images(1) + distance * direction)

    assert torch.autograd.gradcheck(along, distance)
    assert torch.autograd.gradgradcheck(along, distance)


@architectures
def test_relu_and_silu_are_where_they_are_asked_for(architecture):
    kinds = {type(module) for module in small(architecture).modules()}
    assert torch.nn.SiLU in kinds and torch.nn.ReLU not in kinds


@architectures
def test_learns(architecture):
    """Thirty steps on eight images drive the loss down: every parameter is reached."""
    classifier, batch, labels = small(architecture).train(), images(8), torch.arange(8)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(classifier(batch), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in classifier.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10


@pytest.mark.parametrize("size", [(18, 16), (16, 22)], ids=str)
def test_zeros_on_one_side_ask_for_sizes_that_can_be_halved(size):
    """A shortcut of one pixel keeps the last odd row, the convolution beside it does not."""
    config = ClassifierConfig(architecture="wide_resnet", depth=10, width=1, downsample_padding="asymmetric")
    with pytest.raises(ValueError, match="images must be of multiples of 4 pixels a side"):
        Classifier(config)(torch.zeros(1, 3, *size))
    narrow = ClassifierConfig(architecture="preact_resnet", depth=10, width=4, downsample_padding="asymmetric")
    with pytest.raises(ValueError, match="images must be of multiples of 8 pixels a side"):
        Classifier(narrow)(torch.zeros(1, 3, 12, 16))
    assert Classifier(replace(narrow, shortcut_kernel=3)).eval()(torch.zeros(1, 3, *size)).shape == (1, 10)


@pytest.mark.parametrize(
    ("wrong", "argument"),
    [
        ({"architecture": "vit"}, "architecture"),
        ({"architecture": "cifar_resnet", "depth": 18}, "depth"),
        ({"architecture": "wide_resnet", "depth": 30}, "depth"),
        ({"depth": 51}, "depth"),
        ({"architecture": "imagenet_resnet", "depth": 20}, "depth"),
        ({"bottleneck_factor": 2}, "bottleneck_factor"),
        ({"activation": "gelu"}, "activation"),
        ({"in_channels": 1}, "mean"),
        ({"num_classes": 1}, "num_classes"),
    ],
    ids=str,
)
def test_impossible_configurations_are_refused_by_name(wrong, argument):
    with pytest.raises(ValueError, match=f"^{argument} must be"):
        ClassifierConfig(**wrong)


def test_published_weights_reach_their_accuracy():
    """ResNet-20 of Y. Idelbayev: 91.7 % on CIFAR-10. Needs the folder PURIFY_ENGINE_DATA; see CONTRIBUTING."""
    data = Path(os.environ.get("PURIFY_ENGINE_DATA", "nowhere"))
    weights, test_set = data / "classifiers/resnet20.safetensors", data / "cifar10/test-first-5000.npz"
    if not (weights.is_file() and test_set.is_file()):
        pytest.skip("PURIFY_ENGINE_DATA names no folder with classifiers/resnet20.safetensors and cifar10/test-first-5000.npz")
    statistics = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    config = ClassifierConfig(architecture="cifar_resnet", depth=20, width=16, **statistics)
    classifier = load_safetensors(Classifier(config), weights).eval()
    with np.load(test_set) as arrays:
        pixels, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    with torch.no_grad():
        predicted = torch.cat([classifier(batch.permute(0, 3, 1, 2) / 255).argmax(1) for batch in pixels.split(500)])
    # 91.7 % on all 10,000 images; on the first half the standard error is 0.4 points.
    assert (predicted == labels).float().mean().item() == pytest.approx(0.917, abs=0.008)
