"""Small networks with lively weights: a fresh U-Net predicts zero, which would hide every mistake."""

import copy

import torch
from torch import nn

from purify_engine.config import UNetConfig
from purify_engine.models import UNet

SMALL = {
    "image_size": 8,
    "in_channels": 1,
    "base_channels": 16,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (4,),
}
FAMILIES = {
    "ddpm": UNetConfig(**SMALL),
    "ddpm++": UNetConfig(
        **SMALL, resample="residual", resample_shortcut=True, decoder_attention="last_block", skip_rescale=True, time_offset=1.0
    ),
    "adm": UNetConfig(
        **SMALL,
        resample="residual",
        time_embedding="scale_shift",
        num_head_channels=8,
        learned_variance=True,
        sinusoid="cos_first",
        sinusoid_endpoint=False,
    ),
    "improved": UNetConfig(
        **SMALL, downsample_padding="symmetric", time_embedding="scale_shift", num_heads=2, learned_variance=True, time_scale=0.25
    ),
    "pool": UNetConfig(**SMALL, resample="pool"),
}


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    """`module` in float64 and evaluation mode, every parameter drawn from a normal that keeps activations of order one."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            spread = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.5
            parameter.copy_(spread * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def small_unet(family: str = "ddpm", seed: int = 0) -> UNet:
    """A few thousand parameters of the family, on 8 x 8 images of one channel."""
    return lively(UNet(FAMILIES[family]), seed)


def transposed(module: nn.Module) -> nn.Module:
    """A copy whose filters are turned about their diagonal: on transposed images it computes the transposed result."""
    turned = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in turned.parameters():
            if parameter.dim() == 4:
                parameter.copy_(parameter.transpose(2, 3).clone())
    return turned


def noisy_images(count: int = 2) -> torch.Tensor:
    """[count, 1, 8, 8] in float64."""
    return torch.randn(count, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
