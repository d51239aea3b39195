"""Published classifiers: their tensors by their own names become ours, and compute what their papers say."""

from __future__ import annotations

from functools import cache, partial

import pytest
import torch
import torch.nn.functional as F

from purify_engine.models import Classifier
from purify_engine.models.checkpoints.classifier import read_classifier
from purify_engine.models.checkpoints.layout import written
from purify_engine.models.checkpoints.registry import CLASSIFIERS
from purify_engine.testing.published import preact_resnet, robustbench, torchvision, trades
from tests.models.checkpoints import plain_classifiers as plain

HALF = {"normalisation": "half"}
ONE, ACTIVATED, INPUT = (1, 1, 1, 1), {"shortcut_reads": "activated"}, {"shortcut_reads": "input"}
NARROW = {"planes": 4, "num_classes": 3}
# weights under their published names; the same network in plain PyTorch; its activation; what the weights do not tell
CASES = {
    "wrn": (partial(trades.wide_resnet, 10, 2, 3), plain.trades_wide, F.relu, {}),
    "wrn sub_block1": (partial(trades.wide_resnet, 10, 1, 3, sub_block1=True), plain.trades_wide, F.relu, {}),
    "wrn silu": (partial(trades.wide_resnet, 16, 1, 3), plain.trades_wide, F.silu, {"activation": "silu"}),
    "resnet": (partial(trades.resnet, ONE, **NARROW), plain.small_resnet, F.relu, {}),
    "resnet bottlenecks": (partial(trades.resnet, ONE, bottleneck=True, **NARROW), plain.small_resnet, F.relu, {}),
    "resnet option A": (partial(trades.resnet, (2, 2, 2), option_a=True, **NARROW), plain.small_resnet, F.relu, {}),
    "deepmind wrn": (partial(robustbench.dm_wide_resnet, 10, 2, 3), plain.deepmind_wide, F.silu, {}),
    "deepmind wrn relu": (partial(robustbench.dm_wide_resnet, 16, 1, 3), plain.deepmind_wide, F.relu, {"activation": "relu"}),
    "deepmind preact": (partial(robustbench.dm_preact_resnet, ONE, **NARROW), plain.deepmind_preact, F.silu, {}),
    "deepmind preact relu": (
        partial(robustbench.dm_preact_resnet, (2, 2, 2, 2), **NARROW), plain.deepmind_preact, F.relu, {"activation": "relu"}
    ),
    "preact": (partial(preact_resnet.state_dict, ONE, **NARROW), plain.preact, F.relu, ACTIVATED),
    "preact input": (
        partial(preact_resnet.state_dict, (2, 2, 2, 2), **NARROW), partial(plain.preact, reads_input=True), F.relu, INPUT
    ),
    "preact norm": (partial(preact_resnet.state_dict, ONE, bn_before_fc=True, **NARROW), plain.preact, F.relu, {}),
    "preact bottlenecks": (
        partial(preact_resnet.state_dict, ONE, bottleneck=True, bn_before_fc=True, **NARROW), plain.preact, F.relu, {}
    ),
    "torchvision": (partial(torchvision.state_dict, (2, 2, 2, 2), **NARROW), plain.torchvision, F.relu, {}),
    "torchvision bottlenecks": (partial(torchvision.state_dict, ONE, bottleneck=True, **NARROW), plain.torchvision, F.relu, {}),
    "torchvision wide silu": (
        partial(torchvision.state_dict, ONE, bottleneck=True, width_per_group=8, **NARROW),
        plain.torchvision, F.silu, {"activation": "silu"},
    ),
}  # fmt: skip
cases = pytest.mark.parametrize("name", CASES)


@cache
def weights(name):
    return {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in CASES[name][0]().items()}


def read(name, held=None):
    return read_classifier(held or weights(name), "weights", "weights.pt", given={**HALF, **CASES[name][3]})


@cache
def network(name):
    found = read(name)
    made = Classifier(found.config).double()
    left = made.load_state_dict(found.weights, strict=False)
    assert not left.unexpected_keys and all(key.endswith("num_batches_tracked") for key in left.missing_keys)
    return made.eval().requires_grad_(False)


@cases
@pytest.mark.parametrize("folded", [False, True], ids=["as it is", "folded"])
def test_computes_what_its_paper_says(name, folded):
    _, forward, act, _ = CASES[name]
    images = torch.rand(2, 3, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = forward(weights(name), 2 * images - 1, act)
    found = network(name).frozen() if folded else network(name)
    torch.testing.assert_close(found(images), expected, rtol=1e-12, atol=1e-12 * expected.abs().max().item())


@cases
def test_comes_back_under_its_published_names(name):
    found = read(name)
    layout = next(layout for layout in CLASSIFIERS if layout.name == found.layout)
    back = written(layout, found.config, found.weights)
    kept = {key for key in weights(name) if not key.startswith("sub_block1") and not key.endswith("num_batches_tracked")}
    assert set(back) == kept and all(torch.equal(back[key], weights(name)[key]) for key in kept)


@cases
def test_every_tensor_is_asked_for_and_its_shape_is_checked(name):
    """One after another: without it, and with one row more."""
    needed = {key: tensor for key, tensor in weights(name).items() if tensor.dim() and not key.startswith("sub_block1")}
    for key in sorted(needed)[:: max(1, len(needed) // 4)]:
        for other in ({}, {key: torch.cat([needed[key], needed[key][:1]])}):
            changed = {**{name: tensor for name, tensor in needed.items() if name != key}, **other}
            with pytest.raises(ValueError, match=r"^weights\.pt") as error:
                read(name, changed)
            assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("name", ["wrn", "deepmind wrn", "preact", "torchvision"])
def test_a_tensor_without_a_place_is_refused_by_name(name):
    with pytest.raises(ValueError, match=r"^weights\.pt holds 'prelu\.weight', for which"):
        read(name, {**weights(name), "prelu.weight": torch.ones(1)})


SIZES = {
    "WRN-28-10": (trades.wide_resnet(28, 10, device="meta"), 36_479_194),
    "WRN-70-16": (robustbench.dm_wide_resnet(70, 16, device="meta"), 266_796_506),
    "ResNet-18 for CIFAR": (trades.resnet((2, 2, 2, 2), device="meta"), 11_173_962),
    "ResNet-50 for CIFAR": (trades.resnet((3, 4, 6, 3), bottleneck=True, device="meta"), 23_520_842),
    "PreActResNet-18": (preact_resnet.state_dict((2, 2, 2, 2), device="meta"), 11_171_146),
    "PreActResNet-18 with a norm": (preact_resnet.state_dict((2, 2, 2, 2), bn_before_fc=True, device="meta"), 11_172_170),
    "DMPreActResNet-18": (robustbench.dm_preact_resnet((2, 2, 2, 2), device="meta"), 12_548_426),
    "resnet18": (torchvision.state_dict((2, 2, 2, 2), device="meta"), 11_689_512),
    "resnet50": (torchvision.state_dict((3, 4, 6, 3), bottleneck=True, device="meta"), 25_557_032),
    "resnet152": (torchvision.state_dict((3, 8, 36, 3), bottleneck=True, device="meta"), 60_192_808),
    "wide_resnet50_2": (
        torchvision.state_dict((3, 4, 6, 3), bottleneck=True, width_per_group=128, device="meta"), 68_883_240
    ),
}  # fmt: skip


@pytest.mark.parametrize(("held", "parameters"), SIZES.values(), ids=SIZES)
def test_the_published_sizes_are_read_with_no_name_left_over(held, parameters):
    given = {**HALF, **ACTIVATED} if "layer2.0.shortcut.0.weight" in held and "bn1.weight" not in held else HALF
    found = read_classifier(held, "weights", "weights.pt", given=given)
    learnt = [tensor for key, tensor in found.weights.items() if "running" not in key]
    assert sum(tensor.numel() for tensor in learnt) == parameters
