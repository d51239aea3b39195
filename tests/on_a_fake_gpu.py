"""A purification on a GPU, without one: no tensor is born on the host inside it, no number comes back, no two devices meet.

Every option is here once; the combinations of one with another that users meet less often are marked slow.
"""

from __future__ import annotations

from dataclasses import replace
from typing import get_args
from unittest import mock

import pytest
import torch

from purify_engine import ClassifierConfig, GuidanceConfig, GuidedPurifier, PurifierConfig
from purify_engine.config.purification import GradientMode, Sampler
from purify_engine.engine.plan import make_plan
from purify_engine.kernels import _launch
from purify_engine.models import Classifier, Denoiser, OwnDenoiser, OwnGuide, UNet
from purify_engine.models.published import ADM_IMAGENET256, DDPM_CIFAR10, DDPMPP_CIFAR10, EDM_CIFAR10
from purify_engine.noise import noise_of
from purify_engine.ops import switches
from tests.fake_gpu import GPU, Host, fake_gpu, moved, plan_there

pytest.importorskip("triton")


def slow(*cases):
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


SMALL = {"image_size": 16, "base_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (8,)}
FAMILIES = {
    "DDPM": replace(DDPM_CIFAR10, **SMALL),
    "DDPM++": replace(DDPMPP_CIFAR10, **SMALL),
    "ADM": replace(ADM_IMAGENET256, **SMALL, num_head_channels=32),
    "EDM": replace(EDM_CIFAR10, **SMALL),
}
NETWORKS = {
    "ResNet": ClassifierConfig(architecture="cifar_resnet", depth=8, width=16),
    "WRN": ClassifierConfig(architecture="wide_resnet", depth=10, width=1),
}
OTHER_NETWORKS = {
    "ImageNet": ClassifierConfig(architecture="imagenet_resnet", depth=14, width=16),
    "DeepMind": ClassifierConfig(
        architecture="preact_resnet", depth=10, width=16, downsample_padding="asymmetric", shortcut_reads="input",
        shortcut_kernel=3,
    ),
}  # fmt: skip
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
HALF, BRAIN, FLOAT, DOUBLE = FLOATS
MIXED = [(BRAIN, FLOAT), (FLOAT, BRAIN), *slow((BRAIN, HALF), (HALF, BRAIN), (DOUBLE, FLOAT), (FLOAT, DOUBLE))]
OF_IMAGES = [(dtype, images) for dtype in FLOATS for images in FLOATS if images in (dtype, FLOAT)]  # (networks, images)
OTHERS = [(dtype, images) for dtype in FLOATS for images in FLOATS if images not in (dtype, FLOAT)]
GUIDANCE = {
    "none": {"kind": "none"},
    "pixel": {"kind": "pixel"},
    "xt": {},
    "x0, normalised": {"look_at": "x0", "normalised": True},
    "soft": {"pseudo_label": "soft"},
}


def purified(
    config, family="DDPM", network="ResNet", dtype=torch.bfloat16, of_guide=None, images=torch.float32, with_gradient=False,
    size=(16, 16), adapted=False,
):  # fmt: skip
    """What a whole call on a GPU does on the host, after a first one, which packs weights and fills tables; its launches."""
    launches = []
    with torch.device("meta"):
        model, guide = Denoiser(UNet(FAMILIES[family])), Classifier((NETWORKS | OTHER_NETWORKS)[network])
        if adapted:
            model, guide = OwnDenoiser(model.unet, image_size=16, num_halvings=1), OwnGuide(guide)
    plans = {steps: make_plan(config, steps) for steps in (None, config.surrogate_steps)}
    with (
        fake_gpu() as mode,
        mock.patch.object(_launch.Launch, "run", lambda launch: launches.append(launch.kernel.__name__)),
        torch.set_grad_enabled(with_gradient),
    ):
        purifier = GuidedPurifier(moved(model, dtype), moved(guide, of_guide or dtype), config, execution="loop")
        of_images = torch.promote_types(images, torch.float32)
        there = {steps: plan_there(mode, plan, None if dtype == of_images else dtype) for steps, plan in plans.items()}
        how = purifier._purification()
        shared = mock.patch.object(how.shared, "plan", lambda config, num_steps, cycle, where: there[num_steps])
        x = torch.empty(2, 3, *size, dtype=images, device=GPU).requires_grad_(with_gradient)
        for _ in range(2):
            launches.clear()
            with Host() as host, shared:
                out = purifier._purify(x, noise_of(purifier.streams, "fresh", x, draw=1), how, None)
                made = torch.autograd.grad(out.sum(), x) if with_gradient else (out,)
        assert all((result.device.type, result.dtype, result.shape) == (GPU, x.dtype, x.shape) for result in (out, *made))
    return host.found, launches


def configured(guidance="xt", **options):
    return PurifierConfig(t_star=30, num_steps=2, guidance=GuidanceConfig(scale=1.0, **GUIDANCE[guidance]), **options)


@pytest.mark.parametrize("guidance", ["none", "xt"])
@pytest.mark.parametrize(("family", "network"), [*((family, "ResNet") for family in FAMILIES), ("ADM", "WRN")])
def test_a_purification_asks_nothing_of_the_host(family, network, guidance):
    found, launches = purified(configured(guidance, cycles=2), family, network)
    assert not found
    assert {"_guided_step_kernel", "_q_sample_kernel", "_to_images_kernel", "_attention_kernel"} <= set(launches)


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("network", NETWORKS)
def test_no_guide_asks_anything_of_the_host(network, guidance):
    assert not purified(configured(guidance), network=network)[0]


def test_no_adapter_of_networks_of_ones_own_asks_anything_of_the_host():
    assert not purified(configured(), adapted=True)[0]


@pytest.mark.parametrize("network", OTHER_NETWORKS)
def test_a_guide_of_pooled_or_one_sided_images_asks_nothing_of_the_host(network):
    assert not purified(configured(), network=network)[0]


@pytest.mark.parametrize("sampler", get_args(Sampler))
def test_no_sampler_asks_anything_of_the_host(sampler):
    family = "ADM" if sampler == "ddpm_learned" else "DDPM"
    assert not purified(configured(sampler=sampler), family, with_gradient=family == "ADM")[0]


def test_the_gradient_through_what_edm_puts_out_asks_nothing_of_the_host():
    assert not purified(configured("x0, normalised"), "EDM", with_gradient=True)[0]


@pytest.mark.parametrize("clip_x0", ["consistent", "x0_only"])
def test_clipping_asks_nothing_of_the_host(clip_x0):
    assert not purified(configured("x0, normalised", sampler="ddim", clip_x0=clip_x0), with_gradient=True)[0]


@pytest.mark.parametrize(
    ("mode", "guidance"),
    [
        *((mode, "xt") for mode in get_args(GradientMode)),
        ("exact", "x0, normalised"),
        ("exact", "soft"),
        *slow(("exact", "none"), ("exact", "pixel")),
    ],
)
def test_no_gradient_asks_anything_of_the_host(mode, guidance):
    assert not purified(configured(guidance, gradient=mode, surrogate_steps=1), with_gradient=True)[0]


@pytest.mark.parametrize(("sizes", "size"), [("native", (24, 18)), ("resize", (25, 9)), ("tile", (16, 17))])
def test_no_bridge_asks_anything_of_the_host(sizes, size):
    config = configured("none", sizes=sizes, clamp=False)
    assert not purified(config, size=size, with_gradient=sizes == "resize")[0]


@pytest.mark.parametrize(("dtype", "images"), [*OF_IMAGES, *slow(*OTHERS)], ids=str)
def test_networks_and_images_may_be_of_any_floats(dtype, images):
    """The result is of the images' own: `purified` holds it to that."""
    with_gradient = images in (dtype, torch.float32)
    assert not purified(configured("x0, normalised"), dtype=dtype, images=images, with_gradient=with_gradient)[0]


@pytest.mark.parametrize(("dtype", "of_guide"), MIXED, ids=str)
def test_the_two_networks_may_be_of_different_floats(dtype, of_guide):
    assert not purified(configured("xt"), dtype=dtype, of_guide=of_guide, with_gradient=True)[0]


@pytest.mark.parametrize("name", switches.SWITCHES)
def test_no_switch_asks_anything_of_the_host(name):
    with switches.switched(**{name: not switches.SWITCHES[name].default}):
        assert not purified(configured("pixel" if name == "pixel_key" else "xt"), network="WRN")[0]


def test_what_is_born_on_the_host_or_asked_of_the_gpu_is_found():
    with fake_gpu():
        x = torch.zeros(3, device=GPU)
        with Host() as host:
            x + torch.tensor(1.0)
        assert host.found
        with Host() as host:
            x + 1.0
            torch.full_like(x, 2.0)
        assert not host.found
        with pytest.raises(Exception, match="_local_scalar_dense"):
            float(x[0])
        with pytest.raises(Exception, match="same device"):
            x + torch.zeros(3)
