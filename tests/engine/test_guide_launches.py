"""What a guide launches in a step, counted on the meta device: our kernels, cuDNN's and PyTorch's, whatever they compute."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from bench.subjects.step_launches import META, PLAN, Launches
from purify_engine.config import ClassifierConfig, GuidanceConfig
from purify_engine.engine.guide import AdversarialGuide
from purify_engine.models.classifiers import Classifier
from purify_engine.ops import switches
from purify_engine.types import NoiseKey

RESNET_18 = ClassifierConfig(architecture="resnet", depth=18, width=64)
WRN_28_10 = ClassifierConfig(architecture="wide_resnet", depth=28, width=10)


def launches(config, **switched):
    """By short names, of one pull on 64 images in bfloat16."""
    with torch.device("meta"):
        network = Classifier(config).eval().to(torch.bfloat16, memory_format=torch.channels_last).requires_grad_(False)
        x = torch.empty(64, 3, 32, 32, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
        noise = NoiseKey(torch.empty((), dtype=torch.int64), torch.empty(64, dtype=torch.int64))
    guide, plan = AdversarialGuide(network, GuidanceConfig(scale=1.0)), PLAN.to(META)
    with switches.switched(**switched), torch.no_grad():
        with Launches().counting():  # what is packed once is packed here
            target = guide.target(x)
            guide.grad(x, None, target, plan, plan.steps[0], noise)
        seen = Launches()
        with seen.counting():
            guide.grad(x, None, target, plan, plan.steps[0], noise)
    found = Counter()
    for kernel, count in seen.launched.items():
        found[short(kernel)] += count
    return found


def short(kernel):
    """cuDNN's convolutions with a ReLU have one name, all others another."""
    if "convolution" in kernel:
        return "cudnn" if "cudnn" in kernel else "convolution"
    return kernel.removeprefix("aten::").lstrip("_").removesuffix("_kernel")


def test_resnet_18_launches_its_convolutions_their_masks_and_little_more():
    """17 convolutions with a ReLU and 3 shortcuts; as many gradients, 17 masks, 8 of which add up; 11 at the ends."""
    found = launches(RESNET_18, padded_channels=False)
    assert found["cudnn"] == found["threshold_backward"] + found["masked_sum"] == 17
    assert found["convolution"] == 3 + 20
    assert found["masked_sum"] == 8 and not found["add"] and not found["add of whole tensors"]
    assert found.total() <= 17 + 17 + 23 + 11


def test_wrn_28_10_launches_its_convolutions_and_one_pass_between_them():
    found = launches(WRN_28_10, padded_channels=False)
    assert found["cudnn"] == found["threshold_backward"] == 12
    assert found["affine_relu"] == found["affine_relu_backward"] == 13
    assert found["convolution"] + found["mm"] == 16 + 28 and found["mm"] == 2  # a shortcut of stride 1 is a product
    assert found["relu"] == found["addcmul"] - 1 == 0
    assert not found["add"]
    # where a block changes its width: the gradients of its convolution and of its shortcut
    assert found["add of whole tensors"] == 3
    assert found.total() <= 2 * 12 + 2 * 13 + 44 + 3 + 12


def test_resnet_50_of_imagenet_launches_its_convolutions_their_masks_and_a_pool():
    """49 convolutions with a ReLU, 4 shortcuts, 53 gradients; the pool has one reader, the first block's shortcut another."""
    found = launches(ClassifierConfig(architecture="imagenet_resnet", depth=50, num_classes=1000))
    assert found["cudnn"] == found["threshold_backward"] + found["masked_sum"] == 49 and found["masked_sum"] == 15
    assert found["convolution"] + found["mm"] == 4 + 53
    assert found["max_pool2d_with_indices"] == found["max_pool2d_with_indices_backward"] == found["add of whole tensors"] == 1
    assert found.total() <= 49 + 49 + 57 + 3 + 11


@pytest.mark.parametrize("config", [RESNET_18, WRN_28_10], ids=["resnet-18", "wrn-28-10"])
def test_channels_of_zeros_are_written_for_the_image_and_left_out_of_its_gradient(config):
    padded, plain = launches(config), launches(config, padded_channels=False)
    assert padded - plain == {"fill_": 1, "constant_pad_nd": 1, "clone": 1} and not plain - padded


@pytest.mark.parametrize("name", ["conv_relu", "affine_relu", "guide_ends"])
def test_each_switch_saves_launches(name):
    assert launches(WRN_28_10).total() < launches(WRN_28_10, **{name: False}).total() - 10
