"""A guide of straight pieces is told of once, where its gradient is taken: attacks by it alone would overrate the defence."""

import copy
import dataclasses
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from purify_engine.config import AttackConfig, ClassifierConfig, GuidanceConfig, PurifierConfig, UNetConfig
from purify_engine.engine.guide import AdversarialGuide, NoGuide, PixelGuide
from purify_engine.engine.masking import MaskedGradientWarning, masking_is_known, warn_of_masking
from purify_engine.evaluation.attacks import attack
from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.self_test import gradient_self_test
from purify_engine.models import Classifier, Denoiser, UNet
from purify_engine.models.own import OwnGuide
from purify_engine.purifier import GuidedPurifier

UNET = UNetConfig(image_size=8, in_channels=1, base_channels=8, channel_mult=(1,), num_res_blocks=1, norm_groups=4)
RELU = ClassifierConfig(architecture="wide_resnet", depth=10, width=1, in_channels=1, mean=(0.3,), std=(0.4,))
SILU = dataclasses.replace(RELU, activation="silu")
X = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def purifier(guide=RELU, kind="adversarial", **options):
    config = PurifierConfig(t_star=100, num_steps=1, guidance=GuidanceConfig(kind=kind, scale=1.0), **options)
    return GuidedPurifier(Denoiser(UNet(UNET)), Classifier(guide), config, execution="loop")


@pytest.fixture
def told():
    """The warnings of masking so far, every one of them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: [str(each.message) for each in caught if each.category is MaskedGradientWarning]


def test_the_exact_gradient_through_a_relu_is_told_of_once_for_a_guide_and_its_siblings(told):
    model = purifier()
    model(X)
    assert told() == []
    for _ in range(2):
        model(X.clone().requires_grad_())
        model.configured(gradient="straight_through")(X.clone().requires_grad_())
    (says,) = told()
    assert says.startswith("the guide has ReLU, whose second derivative is zero, so gradient='exact' may be masked")
    assert "'silu'" in says and "'bpda'" in says and "purify-engine evaluate" in says
    purifier()(X.clone().requires_grad_())
    assert len(told()) == 2


@pytest.mark.parametrize("mode", ["bpda", "surrogate", "blind", "detached_guidance"])
def test_modes_that_do_not_claim_the_exact_gradient_say_nothing(mode, told):
    purifier(gradient=mode)(X.clone().requires_grad_())
    assert told() == []


def test_smooth_guides_and_other_guidance_say_nothing(told):
    for model in (purifier(SILU), purifier(kind="pixel"), purifier(kind="none")):
        model(X.clone().requires_grad_())
    for guide in (PixelGuide(), NoGuide()):
        warn_of_masking(guide, "exact", X)
    assert told() == []


def own(function):
    """A guide of someone's own: a layer, `function`, and a layer after it."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last, self.function, self.calls = nn.Linear(64, 4), nn.Linear(4, 3), function, 0

        def forward(self, images):
            self.calls += 1
            return self.last(self.function(self.first(images.flatten(1))))

    return AdversarialGuide(OwnGuide(Network()), GuidanceConfig(scale=1.0))


STRAIGHT = {
    "relu": F.relu, "relu in place": F.relu_, "relu6": F.relu6, "leaky_relu": F.leaky_relu, "rrelu": F.rrelu,
    "prelu": lambda x: F.prelu(x, torch.full((1,), 0.2)), "hardtanh": F.hardtanh, "hardsigmoid": F.hardsigmoid,
    "threshold": lambda x: F.threshold(x, 0.0, 0.0), "hardshrink": F.hardshrink, "softshrink": F.softshrink,
    **{f"nn.{kind.__name__}": kind() for kind in (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Hardtanh)},
}  # fmt: skip
CURVED = {"silu": F.silu, "gelu": F.gelu, "elu": F.elu, "softplus": F.softplus, "tanh": torch.tanh, "nn.SiLU": nn.SiLU()}


@pytest.mark.parametrize("function", STRAIGHT.values(), ids=STRAIGHT)
def test_straight_pieces_of_other_networks_are_found_as_modules_and_as_functions(function, told):
    warn_of_masking(own(function), "exact", X)
    assert len(told()) == 1


@pytest.mark.parametrize("function", CURVED.values(), ids=CURVED)
def test_smooth_networks_of_others_say_nothing_and_are_run_once_to_find_out(function, told):
    guide = own(function)
    for _ in range(3):
        warn_of_masking(guide, "straight_through", X)
    assert told() == [] and guide.network.module.calls == 1


def test_evaluation_says_nothing_itself_and_leaves_the_warning_to_others(told):
    """It attacks in other ways, too, and marks what is masked."""
    model, labels = purifier(), torch.tensor([0, 1])
    gradient_self_test(model, X, num_directions=1)
    defence = Defence("ours", copy.deepcopy(model.guide), model, model.guide)
    attack(defence, X, labels, AttackConfig(name="exact", num_steps=1, num_eot=1))
    with masking_is_known():
        model(X.clone().requires_grad_())
    assert told() == []
    model(X.clone().requires_grad_())
    assert len(told()) == 1
