"""The noise predictor as the reverse loop calls it: an image, a plan, and the step as a tensor on the device."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from purify_engine.config import Prediction, require
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


class NetworkFacts(Protocol):
    """What must be known of a diffusion model: `UNetConfig` and `OwnDenoiserConfig` say it."""

    @property
    def image_size(self) -> int:
        """Pixels a side of the images that it was trained on."""
        ...

    @property
    def in_channels(self) -> int: ...

    @property
    def num_halvings(self) -> int:
        """How often it halves the pixels a side: with sizes="native" it is given multiples of 2 ** num_halvings."""
        ...

    @property
    def learned_variance(self) -> bool:
        """Whether it puts out (eps, v) where the plan asks for a variance."""
        ...

    @property
    def prediction(self) -> Prediction:
        """What its network puts out; a denoiser makes eps of it."""
        ...

    @property
    def time_offset(self) -> float:
        """What is added to a timestep's index before the network is told it."""
        ...


class EpsModel(nn.Module):
    """(x_net [B, C, H, W], plan, step) -> eps [B, C, H, W]; (eps, v) where the plan's variance is learned (docs/math.md E26).

    The channels of a learned variance are dropped where the sampler's variances are fixed. A network that puts out something else
    than the noise (`prediction`) is asked for it at a multiple of x_t, and eps is a mixture of the two (E27). How the network is
    asked is a subclass's, in `_asked`.
    """

    def __init__(self, config: NetworkFacts) -> None:
        super().__init__()
        is_known = config.prediction == "eps" or not config.learned_variance
        require(is_known, "prediction", "'eps' where learned_variance is True", config.prediction)
        self.config = config
        self.mixing = PredictionTable()

    @property
    def reads_x_t(self) -> bool:
        """Whether it wants x_t itself in place of x_net: what eps has of it would be rounded in 16 bits."""
        return self.config.prediction != "eps"

    def forward(self, x_net: Images, plan: HasTimes, step: Step) -> Images | tuple[Images, Images]:
        if self.config.prediction != "eps":
            return self._mixed(x_net, plan, step)
        predicted, channels = self._asked(x_net, plan.times, step), self.config.in_channels
        eps = predicted[:, :channels]
        return (eps, predicted[:, channels:]) if plan.learns_variance else eps

    def _asked(self, x_net: Images, times: Timesteps, step: Step) -> Images:
        """What the network puts out at times[step], by the device tensor `step`."""
        raise NotImplementedError

    def prepare(self, plan: HasTimes) -> None:
        """Bring what is kept for `plan` up to date: called before a captured graph that reads it is replayed."""
        if self.config.prediction != "eps":
            self.mixing.of(self.config.prediction, plan.marginals)

    def _told(self, plan: HasTimes, mixing: Mixing | None) -> Timesteps:
        """What the network is told at each step."""
        return plan.times if mixing is None or self.config.prediction != "edm" else mixing.labels

    def _mixed(self, x_t: Images, plan: HasTimes, step: Step) -> Images:
        """eps = e_x x_t + e_F F(gain x_t), in float32 at least (E27)."""
        x_t = x_t.to(torch.promote_types(x_t.dtype, torch.float32))
        mixing = self.mixing.of(self.config.prediction, plan.marginals)
        by_x, by_output, gain = mixing.rows.index_select(0, step.reshape(1)).squeeze(0).to(x_t.dtype).unbind()
        x_net = x_t * gain if self.config.prediction == "edm" else x_t
        if plan.net_dtype is not None:
            x_net = x_net.to(plan.net_dtype, memory_format=torch.channels_last)
        return by_x * x_t + by_output * self._asked(x_net, self._told(plan, mixing), step).to(x_t.dtype)


class Denoiser(EpsModel):
    """Our U-Net as the noise predictor of a purifier.

    The time embedding is gathered from the plan's table by the device tensor `step`, so that a captured graph equals the loop.
    """

    def __init__(self, unet: UNet) -> None:
        super().__init__(unet.config)
        self.unet = unet
        self.table = EmbeddingTable()

    def _replicate_for_data_parallel(self) -> Denoiser:
        replica = super()._replicate_for_data_parallel()
        replica.table = EmbeddingTable()
        return replica

    def _asked(self, x_net: Images, times: Timesteps, step: Step) -> Images:
        return self.unet.decode(x_net, self.table.row(self.unet.time_embedding, times, step))

    def prepare(self, plan: HasTimes) -> None:
        prediction = self.config.prediction
        mixing = None if prediction == "eps" else self.mixing.of(prediction, plan.marginals)
        self.table.table(self.unet.time_embedding, self._told(plan, mixing))
