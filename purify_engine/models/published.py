"""The configurations of the published networks, one constant a paper. Sizes and FLOP are held by tests/models/test_published.py.

unet = UNet(DDPM_CIFAR10)
"""

from __future__ import annotations

from dataclasses import replace

from purify_engine.config import ScheduleConfig, UNetConfig

# Ho, Jain & Abbeel 2020, "Denoising diffusion probabilistic models", appendix B. 35,746,307 parameters.
DDPM_CIFAR10 = UNetConfig(
    base_channels=128,
    channel_mult=(1, 2, 2, 2),
    num_res_blocks=2,
    attention_resolutions=(16,),
    norm_min_channels=None,
    dropout=0.1,
)

# The network of the same paper for LSUN and CelebA-HQ at 256x256; DiffPure's CelebA-HQ (from SDEdit). 113,673,219 parameters.
DDPM_CELEBAHQ256 = replace(DDPM_CIFAR10, image_size=256, channel_mult=(1, 1, 2, 2, 4, 4), dropout=0.0)

# Song et al. 2021, "Score-based generative modeling through SDEs", DDPM++ cont. (VP), appendix H. 61,804,419 parameters.
DDPMPP_CIFAR10 = replace(
    DDPM_CIFAR10,
    num_res_blocks=4,
    resample="residual",
    resample_shortcut=True,
    decoder_attention="last_block",
    skip_rescale=True,
    time_offset=1.0,
    time_scale=0.999,
    norm_min_channels=4,
)

# The same, twice as deep: the network DiffPure purifies CIFAR-10 with (Nie et al. 2022). 106,632,579 parameters.
DDPMPP_DEEP_CIFAR10 = replace(DDPMPP_CIFAR10, num_res_blocks=8)

# Karras et al. 2022, "Elucidating the design space of diffusion-based generative models", unconditional CIFAR-10, the DDPM++ of
# its table 7 (VP). 55,732,739 parameters, and 1,152 more that tell it of augmentations, of which there are none in sampling.
EDM_CIFAR10 = replace(DDPMPP_CIFAR10, channel_mult=(2, 2, 2), prediction="edm", time_offset=0.0, time_scale=1.0, dropout=0.13)

# Dhariwal & Nichol 2021, "Diffusion models beat GANs on image synthesis", ImageNet 256x256 unconditional. 552,814,086 parameters.
ADM_IMAGENET256 = UNetConfig(
    image_size=256,
    base_channels=256,
    channel_mult=(1, 1, 2, 2, 4, 4),
    num_res_blocks=2,
    attention_resolutions=(32, 16, 8),
    num_head_channels=64,
    time_embedding="scale_shift",
    resample="residual",
    learned_variance=True,
    sinusoid="cos_first",
    sinusoid_endpoint=False,
    norm_min_channels=None,
    norm_eps=1e-5,
)

# The same paper, LSUN bedrooms, cats and horses 256x256: the same network (lsun_bedroom.pt, lsun_cat.pt, lsun_horse.pt).
ADM_LSUN256 = replace(ADM_IMAGENET256, dropout=0.1)

# Nichol & Dhariwal 2021, "Improved denoising diffusion probabilistic models", CIFAR-10, 4000 cosine steps. 52,546,438 parameters.
IMPROVED_CIFAR10 = UNetConfig(
    base_channels=128,
    channel_mult=(1, 2, 2, 2),
    num_res_blocks=3,
    attention_resolutions=(16, 8),
    num_heads=4,
    time_embedding="scale_shift",
    downsample_padding="symmetric",
    learned_variance=True,
    sinusoid="cos_first",
    sinusoid_endpoint=False,
    time_scale=0.25,  # its 4000 steps are told to the network as 0 to 1000
    norm_min_channels=None,
    norm_eps=1e-5,
    dropout=0.3,
)

# What it and the next were trained on.
IMPROVED_SCHEDULE = ScheduleConfig(kind="cosine", num_timesteps=4000)

# The same paper, ImageNet 64x64 unconditional (imagenet64_uncond_100M_1500K.pt), 4000 cosine steps. 121,063,942 parameters.
IMPROVED_IMAGENET64 = replace(IMPROVED_CIFAR10, image_size=64, channel_mult=(1, 2, 3, 4), dropout=0.0)

# The same, LSUN bedrooms 256x256 (lsun_uncond_100M_1200K_bs128.pt, ..._2400K_bs64.pt), 1000 linear steps. 113,676,678 parameters.
IMPROVED_LSUN256 = replace(
    IMPROVED_CIFAR10,
    image_size=256,
    channel_mult=(1, 1, 2, 2, 4, 4),
    num_res_blocks=2,
    attention_resolutions=(16,),
    num_heads=1,
    time_embedding="additive",
    time_scale=1.0,
    dropout=0.0,
)
