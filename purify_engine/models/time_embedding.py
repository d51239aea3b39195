"""What the network is told about the time: sinusoid, MLP, and one projection for each residual block."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purify_engine.config import UNetConfig
from purify_engine.devices import first_parameter
from purify_engine.types import Timesteps

Embeddings = tuple[Tensor, ...]  # one [B, n] or [1, n] projection a residual block


class TimeEmbedding(nn.Module):
    """t [B], any real dtype -> a projection [B, n] for each residual block. All that a U-Net knows of the time is in here."""

    def __init__(self, widths: list[int], config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.time_channels or config.base_channels
        hidden = 4 * channels
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.projections = nn.ModuleList(nn.Linear(hidden, width) for width in widths)

    def forward(self, t: Timesteps) -> Embeddings:
        waves = sinusoid((t.reshape(-1).to(torch.float64) + self.config.time_offset) * self.config.time_scale, self.config)
        hidden = F.silu(self.mlp(waves.to(first_parameter(self.mlp))))
        return tuple(projection(hidden) for projection in self.projections)


def sinusoid(time: Tensor, config: UNetConfig) -> Tensor:
    """float64 [B] -> [B, time_channels]: sines and cosines at frequencies from 1 down to 1/10000 (Vaswani et al. 2017)."""
    half = (config.time_channels or config.base_channels) // 2
    steps = half - 1 if config.sinusoid_endpoint else half  # the last frequency is 1/10000, or one short of it
    frequencies = torch.exp(torch.arange(half, dtype=torch.float64, device=time.device) * (-math.log(10000.0) / steps))
    angles = time[:, None] * frequencies
    waves = (angles.sin(), angles.cos())
    return torch.cat(waves if config.sinusoid == "sin_first" else waves[::-1], dim=1)
