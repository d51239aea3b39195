"""One U-Net for three published families: DDPM (Ho et al. 2020), DDPM++ (Song et al. 2021) and ADM (Dhariwal & Nichol 2021).

Time and image are two calls, `embeddings(t)` and `decode(x, embeddings)`: what depends on the time alone can be computed once
for a whole plan (embedding_table.py).
"""

from __future__ import annotations

from torch import nn

from purify_engine import ops
from purify_engine.config import UNetConfig
from purify_engine.models import summed
from purify_engine.models.blocks import Conv3x3, GroupNormSiLU, ResBlock, Stage, is_stage, resampler, zero_init
from purify_engine.models.derived import Watched, notice_writes
from purify_engine.models.time_embedding import Embeddings, TimeEmbedding
from purify_engine.types import Images, Timesteps


class UNet(nn.Module):
    """Predicts the noise in x_t: (x [B, C, H, W], t [B] or [1]) -> [B, C, H, W], or [B, 2C, H, W] with learned variance.

    x lives in [-1, 1] but for its noise; t is the timestep index, from 0. H and W must be multiples of 2 ** (levels - 1). Runs in
    any float dtype; twice differentiable in x and in the parameters. A fresh network predicts zero, as the papers start theirs.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.base_channels * mult for mult in config.channel_mult]
        self.conv_in = Conv3x3(config.in_channels, config.base_channels)
        self.encoder, skips = _encoder(widths, config)
        lowest = widths[-1]
        self.middle = nn.ModuleList(Stage(lowest, lowest, config, attention) for attention in (config.middle_attention, False))
        self.decoder = _decoder(widths, skips, config)
        self.norm_out = GroupNormSiLU(widths[0], config)
        out_channels = config.in_channels * (2 if config.learned_variance else 1)
        self.conv_out = zero_init(Conv3x3(widths[0], out_channels))

        blocks = [module for module in self.modules() if isinstance(module, ResBlock)]  # in the order an image meets them
        for index, block in enumerate(blocks):
            block.index = index
        self.time_embedding = TimeEmbedding([block.embedding_width for block in blocks], config)
        self.watched = Watched(self)

    def forward(self, x: Images, t: Timesteps) -> Images:
        if not (self.training or ops.is_observed()):
            notice_writes(self)
        return self.decode(x, self.embeddings(t))

    def _replicate_for_data_parallel(self) -> UNet:
        replica = super()._replicate_for_data_parallel()
        replica.watched = Watched(replica)
        return replica

    def embeddings(self, t: Timesteps) -> Embeddings:
        """What each residual block is told about the time: a tuple of [B, n], one a block."""
        return self.time_embedding(t)

    def decode(self, x: Images, embeddings: Embeddings) -> Images:
        """The rest of the network. Embeddings of batch 1 serve every image of `x`."""
        if summed.is_taken(x, self):
            return self._decode_summed(x, embeddings)
        layout = ops.memory_format(x)
        x = self.conv_in(x.to(memory_format=layout)).to(memory_format=layout)  # twice: one channel is in both layouts
        skips = [x]
        for layer in self.encoder:
            x = layer(x, embeddings)
            skips.append(x)
        for layer in self.middle:
            x = layer(x, embeddings)
        for layer in self.decoder:
            x = layer(x, embeddings, skips.pop()) if is_stage(layer) else layer(x, embeddings)
        return self.conv_out(x, self.norm_out.norm())

    def _decode_summed(self, x: Images, embeddings: Embeddings) -> Images:
        """The same where norms add up what they read. A skip is what the layer behind it read."""
        h, skips = summed.convolved(self.conv_in, x), []
        for layer in (*self.encoder, self.middle[0]):
            read, h = summed.through(layer, h, embeddings)
            skips.append(read)
        for layer in (*self.middle[1:], *self.decoder):
            skip = skips.pop() if layer is not self.middle[1] and isinstance(layer, Stage) else None
            _, h = summed.through(layer, h, embeddings, skip)
        _, y = summed.normed(self.norm_out, h, write_sum=False)
        return self.conv_out(y)


def _encoder(widths: list[int], config: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """The layers from full resolution down, and the widths of the skips they leave behind (the first is conv_in's)."""
    layers, skips = nn.ModuleList(), [config.base_channels]
    for level, width in enumerate(widths):
        attention = config.image_size >> level in config.attention_resolutions
        for _ in range(config.num_res_blocks):
            layers.append(Stage(skips[-1], width, config, attention))
            skips.append(width)
        if level < len(widths) - 1:
            layers.append(resampler("down", width, config))
            skips.append(width)
    return layers, skips


def _decoder(widths: list[int], skips: list[int], config: UNetConfig) -> nn.ModuleList:
    """The layers back up; each stage takes one skip beside its input, the last one first."""
    layers, channels, unused = nn.ModuleList(), widths[-1], list(skips)
    for level, width in reversed(list(enumerate(widths))):
        attends = config.image_size >> level in config.attention_resolutions
        for block in range(config.num_res_blocks + 1):  # one more than the encoder's: its resampler or conv_in left a skip, too
            last = block == config.num_res_blocks
            attention = attends and (last or config.decoder_attention == "every_block")
            layers.append(Stage(channels + unused.pop(), width, config, attention))
            channels = width
        if level > 0:
            layers.append(resampler("up", width, config))
    return layers
