"""The noise predictor as the reverse loop calls it: an image, a plan, and the step as a tensor on the device."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from purify_engine.config import require
from purify_engine.models.embedding_table import EmbeddingTable
from purify_engine.models.prediction_table import Mixing, PredictionTable
from purify_engine.models.unet import UNet
from purify_engine.types import Images, Step, Timesteps


class HasTimes(Protocol):
    """What a denoiser reads of a plan; marginals and net_dtype only where the network does not put out the noise."""

    @property
    def times(self) -> Timesteps: ...

    @property
    def marginals(self) -> Tensor: ...

    @property
    def net_dtype(self) -> torch.dtype | None: ...

    @property
    def learns_variance(self) -> bool: ...


class Denoiser(nn.Module):
    """(x_net [B, C, H, W], plan, step) -> eps [B, C, H, W]; (eps, v) where the plan's variance is learned (docs/math.md E26).

    The channels of a learned variance are dropped where the sampler's variances are fixed. A network that puts out something else
    than the noise (`UNetConfig.prediction`) is asked for it at a multiple of x_t, and eps is a mixture of the two (E27).

    The time embedding is gathered from the plan's table by the device tensor `step`, so that a captured graph equals the loop.
    """

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        config = unet.config
        is_known = config.prediction == "eps" or not config.learned_variance
        require(is_known, "prediction", "'eps' where learned_variance is True", config.prediction)
        self.unet = unet
        self.table = EmbeddingTable()
        self.mixing = PredictionTable()

    @property
    def reads_x_t(self) -> bool:
        """Whether it wants x_t itself in place of x_net: what eps has of it would be rounded in 16 bits."""
        return self.unet.config.prediction != "eps"

    def forward(self, x_net: Images, plan: HasTimes, step: Step) -> Images | tuple[Images, Images]:
        if self.unet.config.prediction != "eps":
            return self._mixed(x_net, plan, step)
        embeddings = self.table.row(self.unet.time_embedding, plan.times, step)
        predicted, channels = self.unet.decode(x_net, embeddings), self.unet.config.in_channels
        eps = predicted[:, :channels]
        return (eps, predicted[:, channels:]) if plan.learns_variance else eps

    def prepare(self, plan: HasTimes) -> None:
        """Bring what is kept for `plan` up to date: called before a captured graph that reads it is replayed."""
        prediction = self.unet.config.prediction
        mixing = None if prediction == "eps" else self.mixing.of(prediction, plan.marginals)
        self.table.table(self.unet.time_embedding, self._told(plan, mixing))

    def _told(self, plan: HasTimes, mixing: Mixing | None) -> Timesteps:
        """What the network is told at each step."""
        return plan.times if mixing is None or self.unet.config.prediction != "edm" else mixing.labels

    def _mixed(self, x_t: Images, plan: HasTimes, step: Step) -> Images:
        """eps = e_x x_t + e_F F(gain x_t), in float32 at least (E27)."""
        x_t = x_t.to(torch.promote_types(x_t.dtype, torch.float32))
        mixing = self.mixing.of(self.unet.config.prediction, plan.marginals)
        by_x, by_output, gain = mixing.rows.index_select(0, step.reshape(1)).squeeze(0).to(x_t.dtype).unbind()
        embeddings = self.table.row(self.unet.time_embedding, self._told(plan, mixing), step)
        x_net = x_t * gain if self.unet.config.prediction == "edm" else x_t
        if plan.net_dtype is not None:
            x_net = x_net.to(plan.net_dtype, memory_format=torch.channels_last)
        return by_x * x_t + by_output * self.unet.decode(x_net, embeddings).to(x_t.dtype)
