"""The noise predictor as the reverse loop calls it: an image, a plan, and the step as a tensor on the device."""

from __future__ import annotations

from typing import Protocol

from torch import nn

from purify_engine.models.embedding_table import EmbeddingTable
from purify_engine.models.unet import UNet
from purify_engine.types import Images, Step, Timesteps


class HasTimes(Protocol):
    """What a denoiser reads of a plan."""

    @property
    def times(self) -> Timesteps: ...

    @property
    def learns_variance(self) -> bool: ...


class Denoiser(nn.Module):
    """(x_net [B, C, H, W], plan, step) -> eps [B, C, H, W]; (eps, v) where the plan's variance is learned (docs/math.md E26).

    The channels of a learned variance are dropped where the sampler's variances are fixed.

    The time embedding is gathered from the plan's table by the device tensor `step`, so that a captured graph equals the loop.
    """

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet
        self.table = EmbeddingTable()

    def forward(self, x_net: Images, plan: HasTimes, step: Step) -> Images | tuple[Images, Images]:
        embeddings = self.table.row(self.unet.time_embedding, plan.times, step)
        predicted, channels = self.unet.decode(x_net, embeddings), self.unet.config.in_channels
        eps = predicted[:, :channels]
        return (eps, predicted[:, channels:]) if plan.learns_variance else eps

    def prepare(self, plan: HasTimes) -> None:
        """Bring what is kept for `plan` up to date: called before a captured graph that reads it is replayed."""
        self.table.table(self.unet.time_embedding, plan.times)
