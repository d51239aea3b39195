"""The layers a U-Net is made of, for the three published families: DDPM, DDPM++ (score_sde) and ADM (guided-diffusion).

Every layer that the U-Net walks through is called as `layer(x, embeddings)`: the residual blocks read their own projection of the
time embedding, at the index they were given; the others do not look at it. On the way up a stage is given a skip, too.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purify_engine import ops
from purify_engine.config import UNetConfig, require
from purify_engine.models.time_embedding import Embeddings

Direction = Literal["down", "up"]


def zero_init(conv: nn.Conv2d) -> nn.Conv2d:
    """`conv` with all parameters zero, so that its branch starts as the identity (Ho et al. 2020, init_scale = 0)."""
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def group_count(channels: int, config: UNetConfig) -> int:
    """`norm_groups`, or with `norm_min_channels` at most so many, dividing `channels`: score_sde's and EDM's min(C // 4, 32)."""
    most, least = config.norm_groups, config.norm_min_channels
    if least is None:
        require(channels % most == 0, "norm_groups", f"a divisor of a norm's {channels} channels, or norm_min_channels", most)
        return most
    return max(groups for groups in range(1, max(1, min(most, channels // least)) + 1) if channels % groups == 0)


def average_pool(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, H/2, W/2], the mean of each 2x2."""
    return F.avg_pool2d(x, 2)


def nearest(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, 2H, 2W], each pixel four times."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def add(x: Tensor, h: Tensor, rescale: bool) -> Tensor:
    """The residual sum; rescaled to unit variance in DDPM++ (Song et al. 2021, appendix H)."""
    return (x + h) * math.sqrt(0.5) if rescale else x + h


RESIZE = {"down": average_pool, "up": nearest}


class GroupNormSiLU(nn.Module):
    """GroupNorm, an optional scale and shift by the time embedding, and SiLU, in one op."""

    def __init__(self, channels: int, config: UNetConfig, silu: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.num_groups = group_count(channels, config)
        self.norm_eps = config.norm_eps
        self.silu = silu

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, skip: Tensor | None = None) -> Tensor:
        return ops.group_norm_silu(x, *self.norm(scale, shift), silu=self.silu, skip=skip)

    def norm(self, scale: Tensor | None = None, shift: Tensor | None = None) -> ops.Norm:
        """The norm as an argument of an op, which applies it with SiLU."""
        return ops.Norm(self.weight, self.bias, scale, shift, self.num_groups, self.norm_eps)


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution with what stands around it, in one op: a norm before it, an embedding, a residual and a gain after it."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 3, padding=1)

    def forward(
        self,
        x: Tensor,
        norm: ops.Norm | None = None,
        temb: Tensor | None = None,
        residual: Tensor | None = None,
        gain: float = 1.0,
        upsample: bool = False,
    ) -> Tensor:
        return ops.conv3x3(x, self.weight, self.bias, norm, temb=temb, residual=residual, gain=gain, upsample=upsample)


class Conv1x1(nn.Conv2d):
    """A 1x1 convolution."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 1)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        return ops.conv1x1(x, self.weight, self.bias, skip)


class StridedConv3x3(nn.Conv2d):
    """A 3x3 convolution of every second pixel; zeros are padded all around, or right and below alone."""

    def __init__(self, channels: int, symmetric: bool) -> None:
        super().__init__(channels, channels, 3, stride=2, padding=int(symmetric))
        self.symmetric = symmetric

    def forward(self, x: Tensor) -> Tensor:
        return self.convolved(x, self.bias)

    def convolved(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """With this bias, or without one."""
        if not self.symmetric:
            return ops.downsampled(x, self.weight, bias)
        return ops.conv2d(x, self.weight, bias, (2, 2), (1, 1))


class ResBlock(nn.Module):
    """norm, SiLU, (resize), conv, time embedding, norm, SiLU, conv; plus the shortcut.

    With `resize` both branches are halved (2x2 mean) or doubled (nearest), as in BigGAN: the resampling of DDPM++ and ADM.
    """

    index: int  # which entry of the embeddings is ours; the U-Net numbers its blocks

    def __init__(self, channels: int, out_channels: int, config: UNetConfig, resize: Direction | None = None) -> None:
        super().__init__()
        self.scale_shift = config.time_embedding == "scale_shift"
        self.direction = resize
        self.gain = math.sqrt(0.5) if config.skip_rescale else 1.0
        self.norm1 = GroupNormSiLU(channels, config)
        self.conv1 = Conv3x3(channels, out_channels)
        self.embedding_width = out_channels * (2 if self.scale_shift else 1)
        self.norm2 = GroupNormSiLU(out_channels, config)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = zero_init(Conv3x3(out_channels, out_channels))
        projected = channels != out_channels or (resize is not None and config.resample_shortcut)
        self.shortcut = Conv1x1(channels, out_channels) if projected else nn.Identity()

    def forward(self, x: Tensor, embeddings: Embeddings, skip: Tensor | None = None) -> Tensor:
        row = embeddings[self.index]
        scale, shift = row.expand(len(x), -1).chunk(2, dim=1) if self.scale_shift else (None, None)
        temb = None if self.scale_shift else row
        if skip is not None:
            x, skip = ops.side_by_side(x, skip, self.norm1.norm())
        h, shortcut = self._first(x, skip, temb), self._shortcut(x, skip)
        if self.training and self.dropout.p > 0:
            h = self.dropout(self.norm2(h, scale, shift))
            return self.conv2(h, residual=shortcut, gain=self.gain)
        return self.conv2(h, self.norm2.norm(scale, shift), residual=shortcut, gain=self.gain)

    def _first(self, x: Tensor, skip: Tensor | None, temb: Tensor | None) -> Tensor:
        if skip is not None:
            return self.conv1(self.norm1(x, skip=skip), temb=temb)
        if self.direction == "down":
            return self.conv1(average_pool(self.norm1(x)), temb=temb)
        return self.conv1(x, self.norm1.norm(), temb=temb, upsample=self.direction == "up")

    def _shortcut(self, x: Tensor, skip: Tensor | None) -> Tensor:
        if skip is not None:
            return torch.cat([x, skip], dim=1) if isinstance(self.shortcut, nn.Identity) else self.shortcut(x, skip)
        return self.shortcut(RESIZE[self.direction](x) if self.direction else x)


def head_count(channels: int, config: UNetConfig) -> int:
    """Attention heads of `channels` channels: `num_heads`, or as many as `num_head_channels` makes."""
    width = config.num_head_channels
    argument, divisor = ("num_heads", config.num_heads) if width is None else ("num_head_channels", width)
    require(divisor >= 1 and channels % divisor == 0, argument, f"a divisor of an attention block's {channels} channels", divisor)
    return divisor if width is None else channels // width


class AttentionBlock(nn.Module):
    """Self-attention over the pixels, added to its input (Ho et al. 2020; heads as in Nichol & Dhariwal 2021).

    `qkv` puts out all queries, then all keys, then all values; each is [heads, head_dim], head-major.
    """

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.num_heads = head_count(channels, config)
        self.rescale = config.skip_rescale
        self.gain = math.sqrt(0.5) if config.skip_rescale else 1.0
        self.norm = GroupNormSiLU(channels, config, silu=False)
        self.qkv = Conv1x1(channels, 3 * channels)
        self.out = zero_init(Conv1x1(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return add(x, self.out(self.heads(self.norm(x))), self.rescale)

    def heads(self, h: Tensor) -> Tensor:
        """What the heads make of the normed image [B, C, H, W], side by side: the same shape."""
        # [B, 3C, H, W] -> three of [B, heads, tokens, head_dim], a view in any memory format
        qkv = self.qkv(h).flatten(2).unflatten(1, (3, self.num_heads, -1)).transpose(3, 4)
        return ops.attention(*qkv.unbind(1)).transpose(2, 3).reshape(h.shape)


class Stage(nn.Module):
    """A residual block, then attention where this resolution has it: one step of either side of the U."""

    def __init__(self, channels: int, out_channels: int, config: UNetConfig, attention: bool) -> None:
        super().__init__()
        self.block = ResBlock(channels, out_channels, config)
        self.attention = AttentionBlock(out_channels, config) if attention else nn.Identity()

    def forward(self, x: Tensor, embeddings: Embeddings, skip: Tensor | None = None) -> Tensor:
        return self.attention(self.block(x, embeddings, skip))


def is_stage(layer: nn.Module) -> bool:
    """Whether a layer of a U-Net is a `Stage`, compiled or not."""
    return isinstance(getattr(layer, "_orig_mod", layer), Stage)


class Downsample(nn.Module):
    """Halve the resolution by a strided 3x3 convolution, or by a 2x2 mean without parameters."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        # Ho et al. pad right and bottom only, which is TensorFlow's "same"; improved-diffusion pads all around.
        symmetric = config.downsample_padding == "symmetric"
        self.conv = StridedConv3x3(channels, symmetric) if config.resample == "conv" else None

    def forward(self, x: Tensor, embeddings: Embeddings) -> Tensor:
        return average_pool(x) if self.conv is None else self.conv(x)


class Upsample(nn.Module):
    """Double the resolution by repeating pixels, then smooth by a 3x3 convolution where resampling is by convolution."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.conv = Conv3x3(channels, channels) if config.resample == "conv" else None

    def forward(self, x: Tensor, embeddings: Embeddings) -> Tensor:
        return nearest(x) if self.conv is None else self.conv(x, upsample=True)


def resampler(direction: Direction, channels: int, config: UNetConfig) -> nn.Module:
    """The layer that changes the resolution between two levels, as `config.resample` says."""
    if config.resample == "residual":
        return ResBlock(channels, channels, config, resize=direction)
    return Downsample(channels, config) if direction == "down" else Upsample(channels, config)
