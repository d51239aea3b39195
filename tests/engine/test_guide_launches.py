"""What a guide launches in a step, counted on the meta device: our kernels, cuDNN's and PyTorch's, whatever they compute."""

from __future__ import annotations

import sys
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from purify_engine.config import ClassifierConfig, GuidanceConfig, ScheduleConfig
from purify_engine.engine.guide import AdversarialGuide
from purify_engine.engine.plan import write_plan
from purify_engine.models.classifiers import Classifier
from purify_engine.ops import switches
from purify_engine.reference.schedules import make_schedule
from purify_engine.types import NoiseKey

PLAN = write_plan(make_schedule(ScheduleConfig()), 150, 5, guidance_scale=1.0)
RESNET_18 = ClassifierConfig(architecture="resnet", depth=18, width=64)
WRN_28_10 = ClassifierConfig(architecture="wide_resnet", depth=28, width=10)
LAUNCH_NOTHING = {"detach", "view", "slice", "t", "transpose", "expand", "unsqueeze", "unbind", "promote_types"}
LAUNCH_NOTHING |= {"empty", "empty_like", "new_empty"}


class Launches(TorchDispatchMode):
    """Counts operations by name, ours being a kernel each; apart, biases of convolutions, for which cuDNN makes another pass."""

    def __init__(self):
        super().__init__()
        self.counted, self.hidden = Counter(), False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name not in LAUNCH_NOTHING and not self.hidden:
            self.counted[name] += 1
            self.counted["bias"] += name == "convolution" and args[2] is not None
        return function(*args, **(kwargs or {}))

    def cudnn(self, x, weight, bias, residual, stride, padding):
        """Stands for cuDNN's convolution with its ReLU, of which the meta device knows nothing."""
        self.counted["cudnn"] += 1
        self.hidden = True
        y = F.conv2d(x, weight, bias, stride, padding).contiguous(memory_format=torch.channels_last)
        self.hidden = False
        return y


    def masked_sum(self, one, other, y):
        self.counted["masked_sum"] += 1
        return torch.empty_like(y)


def launches(config, monkeypatch, **switched):
    """By name, of one pull on 64 images in bfloat16."""
    seen = Launches()
    module = sys.modules["purify_engine.ops.conv_relu"]
    monkeypatch.setattr(module, "cudnn", seen.cudnn)
    monkeypatch.setattr(module, "_has_cudnn", lambda x: True)
    monkeypatch.setattr(module, "masked_sum", seen.masked_sum)
    monkeypatch.setattr(module, "_has_triton", lambda x: True)
    with torch.device("meta"):
        network = Classifier(config).eval().to(torch.bfloat16).requires_grad_(False)
        x = torch.empty(64, 3, 32, 32, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
        noise = NoiseKey(torch.empty((), dtype=torch.int64), torch.empty(64, dtype=torch.int64))
    guide, plan = AdversarialGuide(network, GuidanceConfig(scale=1.0)), PLAN.to("meta")
    with switches.anywhere(), switches.switched(**switched), torch.no_grad():
        target = guide.target(x)
        guide.grad(x, None, target, plan, plan.steps[0], noise)  # what is packed once is packed here
        seen.counted.clear()
        with seen:
            guide.grad(x, None, target, plan, plan.steps[0], noise)
    return +seen.counted


def test_resnet_18_launches_its_convolutions_their_masks_and_little_more(monkeypatch):
    """17 convolutions with a ReLU and 3 shortcuts; as many gradients, 17 masks, 8 of which add up; 11 at the ends."""
    found = launches(RESNET_18, monkeypatch, padded_channels=False)
    assert found["cudnn"] == found["threshold_backward"] + found["masked_sum"] == 17
    assert found["convolution"] + found["convolution_backward"] == 3 + 20
    assert found["masked_sum"] == 8 and not found["add"]
    assert found.total() <= 17 + 17 + 23 + 11


def test_wrn_28_10_launches_its_convolutions_and_one_pass_between_them(monkeypatch):
    found = launches(WRN_28_10, monkeypatch, padded_channels=False)
    assert found["cudnn"] == found["threshold_backward"] == 12
    assert found["affine_relu"] == found["affine_relu_backward"] == 13
    assert found["convolution"] + found["convolution_backward"] == 16 + 28
    assert found["relu"] == found["addcmul"] - 1 == 0
    assert found["add"] == 3  # where a block changes its width: the gradients of its convolution and of its shortcut
    assert found.total() <= 2 * 12 + 2 * 13 + 44 + 3 + 12


@pytest.mark.parametrize("config", [RESNET_18, WRN_28_10], ids=["resnet-18", "wrn-28-10"])
def test_channels_of_zeros_are_written_for_the_image_and_left_out_of_its_gradient(config, monkeypatch):
    padded, plain = launches(config, monkeypatch), launches(config, monkeypatch, padded_channels=False)
    for found in (padded, plain):
        found["convolutions"] = found.pop("convolution") + found.pop("convolution_backward")
    assert padded - plain == {"constant_pad_nd": 1, "clone": 1} and not plain - padded


@pytest.mark.parametrize("name", ["conv_relu", "affine_relu", "guide_ends"])
def test_each_switch_saves_launches(name, monkeypatch):
    assert launches(WRN_28_10, monkeypatch).total() < launches(WRN_28_10, monkeypatch, **{name: False}).total() - 10
