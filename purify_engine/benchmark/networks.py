"""The networks that speed is measured on: published architectures with random weights, since learning changes no speed."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from purify_engine.config import ClassifierConfig, GuidanceConfig, PurifierConfig, UNetConfig, require
from purify_engine.models import Classifier, Denoiser, UNet, published
from purify_engine.purifier import Execution, GuidedPurifier

NETWORKS: dict[str, UNetConfig] = {
    "ddpm-cifar10": published.DDPM_CIFAR10,
    "ddpmpp-cifar10": published.DDPMPP_CIFAR10,
    "adm-imagenet256": published.ADM_IMAGENET256,
}
GUIDES: dict[str, ClassifierConfig] = {
    "resnet18": ClassifierConfig(),
    "wrn-28-10": ClassifierConfig(architecture="wide_resnet", depth=28, width=10),
}
# Small enough for a dry run and for tests: every kind of layer of the three families, a few thousand parameters, smooth.
_TOY = UNetConfig(image_size=8, base_channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,))
TOY_NETWORKS: dict[str, UNetConfig] = {
    "toy-ddpm": _TOY,
    "toy-ddpmpp": dataclasses.replace(_TOY, resample="residual", resample_shortcut=True, skip_rescale=True),
    "toy-adm": dataclasses.replace(
        _TOY, resample="residual", time_embedding="scale_shift", num_head_channels=8, learned_variance=True
    ),
}
TOY_GUIDE = ClassifierConfig(architecture="cifar_resnet", depth=8, width=8, activation="silu")

RATIO = 0.1  # the pull of guidance beside unit noise prediction: enough to matter, too little to make a random network chaotic


def random_purifier(
    network: UNetConfig,
    guide: ClassifierConfig = GUIDES["resnet18"],
    config: PurifierConfig | None = None,
    *,
    device: torch.device | str = "cpu",
    execution: Execution = "auto",
    seed: int = 0,
) -> GuidedPurifier:
    """A purifier of these architectures with random weights, adversarially guided, its guidance calibrated to `RATIO`."""
    require(network.in_channels == guide.in_channels, "guide", f"for {network.in_channels} channels", guide.in_channels)
    with torch.device(device):
        denoiser, classifier = Denoiser(UNet(network)), Classifier(guide)
    for module in (denoiser, classifier):
        with_random_weights(module, seed)
    unit = GuidanceConfig(scale=1.0)
    short = PurifierConfig(t_star=100, num_steps=2, guidance=unit)
    shape = 2, network.in_channels, network.image_size, network.image_size
    images = torch.rand(shape, device=device, generator=torch.Generator(device).manual_seed(seed))
    scale = GuidedPurifier(denoiser, classifier, short).to(device).calibrate(images, RATIO)
    config = config or PurifierConfig()
    guided = dataclasses.replace(config, guidance=dataclasses.replace(unit, scale=scale))
    return GuidedPurifier(denoiser, classifier, guided, execution=execution).to(device)


@torch.no_grad()
def with_random_weights(module: nn.Module, seed: int = 0) -> nn.Module:
    """`module` with every weight normal, scaled so that activations stay of order one.

    A fresh U-Net predicts zero: an error would not show, and zeros can run faster than data does.
    """
    generator: dict[torch.device, torch.Generator] = {}
    for name, parameter in module.named_parameters():
        source = generator.setdefault(parameter.device, torch.Generator(parameter.device).manual_seed(seed))
        if parameter.dim() > 1:
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=source)
        else:
            parameter.normal_(1.0 if name.endswith("weight") else 0.0, 0.1, generator=source)
    return module


def named_networks(name: str) -> tuple[UNetConfig, ClassifierConfig] | None:
    """The U-Net and the guide of a published name ("ddpm-cifar10", or "ddpm-cifar10+wrn-28-10" with its guide), else None."""
    network, _, guide = name.partition("+")
    if network not in NETWORKS:
        return None
    require(guide in ("", *GUIDES), "purifier", f"guided by one of {', '.join(GUIDES)}", name)
    return NETWORKS[network], GUIDES[guide or "resnet18"]
