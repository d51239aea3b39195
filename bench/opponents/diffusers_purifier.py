"""diffusers on the same weights: its U-Net and its scheduler; it guides as the eager baseline does."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn

from bench.core.comparison import AbsentError
from purify_engine.benchmark.eager_baseline import EagerPurifier, Noise, Row, gaussian
from purify_engine.config import ScheduleConfig, UNetConfig
from purify_engine.engine.plan import ReversePlan
from purify_engine.models.checkpoints.diffusers import DIFFUSERS
from purify_engine.models.checkpoints.layout import written
from purify_engine.models.published import DDPM_CIFAR10
from purify_engine.models.unet import UNet
from purify_engine.purifier import GuidedPurifier
from purify_engine.types import Images


def diffused(purifier: GuidedPurifier) -> DiffusersPurifier:
    """diffusers' UNet2DModel and DDPMScheduler on the purifier's weights."""
    if importlib.util.find_spec("diffusers") is None:
        raise AbsentError("diffusers is not installed here")
    if purifier.denoiser.unet.config != DDPM_CIFAR10:
        raise AbsentError("only the DDPM of CIFAR-10 is mapped to diffusers' layout")
    return DiffusersPurifier(purifier)


class DiffusersPurifier(EagerPurifier):
    """A lab's loop around diffusers: its U-Net, its scheduler's step, classifier guidance folded into eps."""

    def __init__(self, purifier: GuidedPurifier) -> None:
        on_gpu = purifier.device.type == "cuda"
        super().__init__(purifier, torch.bfloat16 if on_gpu else torch.float32, channels_last=on_gpu)
        network = diffusers_unet(purifier.denoiser.unet).to(purifier.device, self.dtype)
        self.unet = network.to(memory_format=self.layout).train(False).requires_grad_(False)  # type: ignore[call-overload]
        self.scale = purifier.config.guidance.scale

    def load_schedule(self, plan: ReversePlan) -> None:
        super().load_schedule(plan)
        self.timesteps = [round(float(t)) for t in plan.times]
        self.scheduler = diffusers_scheduler(self.config.schedule, self.timesteps)

    def step(self, x_t: Images, target: tuple[Tensor, ...], row: Row, noise: Noise, step: int) -> Images:
        eps = self.unet(x_t.to(self.dtype, memory_format=self.layout), self.timesteps[step], return_dict=False)[0]
        pull = self.pull(x_t, eps, target, row, noise, step)
        eps = eps if pull is None else eps - self.scale * row.sigma * pull
        if noise is gaussian:
            return self.scheduler.step(eps.float(), self.timesteps[step], x_t, return_dict=False)[0]
        return self._with_given_noise(eps, x_t, noise, step)

    def _with_given_noise(self, eps: Images, x_t: Images, noise: Noise, step: int) -> Images:
        """The scheduler's step with our noise for its own: to compare, never to time."""
        from diffusers.schedulers import scheduling_ddpm

        before = scheduling_ddpm.randn_tensor
        scheduling_ddpm.randn_tensor = lambda *_, **__: noise(x_t, step)
        try:
            return self.scheduler.step(eps.float(), self.timesteps[step], x_t, return_dict=False)[0]
        finally:
            scheduling_ddpm.randn_tensor = before


def diffusers_scheduler(schedule: ScheduleConfig, timesteps: list[int]) -> Any:
    """DDPMScheduler on our schedule and timesteps."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(
        schedule.num_timesteps, schedule.beta_start, schedule.beta_end, "linear", variance_type="fixed_small", clip_sample=False
    )
    scheduler.set_timesteps(timesteps=timesteps)
    return scheduler


def diffusers_unet(unet: UNet) -> nn.Module:
    """diffusers' U-Net of the DDPM paper with our weights."""
    from diffusers import UNet2DModel

    config: UNetConfig = unet.config
    widths = [config.base_channels * mult for mult in config.channel_mult]
    attends = [config.image_size >> level in config.attention_resolutions for level in range(len(widths))]
    network = UNet2DModel(
        sample_size=config.image_size, in_channels=config.in_channels, out_channels=config.in_channels, block_out_channels=widths,
        layers_per_block=config.num_res_blocks, norm_num_groups=config.norm_groups, norm_eps=config.norm_eps,
        down_block_types=["AttnDownBlock2D" if attention else "DownBlock2D" for attention in attends],
        up_block_types=["AttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attends)],
        downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, attention_head_dim=None,
    )  # fmt: skip
    network.load_state_dict(written(DIFFUSERS, config, unet.state_dict()))
    return network
