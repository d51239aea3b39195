"""The U-Net's layers where a norm adds up what it reads: between them goes what is still to be added to a convolution's result.

A convolution writes its bare result. Its bias, the time embedding, the residual and the gain go on to the next norm, which adds
them while it reads the image, and writes the sum where a residual or a skip needs it (`ops.sum_norm_silu`); a skip's channels are
written behind it. No image is read or written for a sum alone, but where a resampler needs one. For every family of `blocks.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from purify_engine import ops
from purify_engine.models.blocks import (
    RESIZE,
    AttentionBlock,
    Conv1x1,
    Conv3x3,
    Downsample,
    GroupNormSiLU,
    ResBlock,
    Stage,
    StridedConv3x3,
    Upsample,
)
from purify_engine.models.derived import Watched
from purify_engine.models.time_embedding import Embeddings, TimeEmbedding
from purify_engine.ops import autocast, switches
from purify_engine.types import Images

_KNOWN = frozenset(
    {AttentionBlock, Conv1x1, Conv3x3, Downsample, GroupNormSiLU, ResBlock, Stage, StridedConv3x3, TimeEmbedding, Upsample}
    | {nn.Dropout, nn.Identity, nn.Linear, nn.ModuleList, nn.SiLU, nn.Sequential}
)


class Unsummed(NamedTuple):
    """The image gain (residual + raw + bias), not yet added up."""

    raw: Images  # [B, C, H, W], a convolution's result without its bias
    bias: Tensor | None = None  # [C]
    residual: Images | None = None  # of raw's shape
    gain: float = 1.0

    def summed(self) -> Images:
        """The image: in a pass of its own, where there is anything to add."""
        if self.bias is None and self.residual is None and self.gain == 1:
            return self.raw
        return ops.residual_sum(self.raw, self.bias, self.residual, self.gain)


class Network(Protocol):
    """A network of these layers. It holds its own list of them, which so goes with it."""

    training: bool
    watched: Watched


def is_taken(x: Images, network: Network) -> bool:
    """Whether the network's norms add up what they read of `x`: it is switched on, no parameter trains, and no hook is missed."""
    if not switches.runs("sum_in_norm", x):
        return False
    if network.training or autocast.is_on(x.device.type):
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in network.watched.tensors()):
        return False
    return _are_as_built(network.watched.modules()[1:])


def _are_as_built(modules: Iterable[nn.Module]) -> bool:
    """Whether they are such as this file reads the parameters of, and no hook waits for one to be called."""
    for module in modules:  # noqa: SIM110  (no generator: this is asked for every module in every step)
        if type(module) not in _KNOWN or module._forward_hooks or module._forward_pre_hooks:
            return False
    return True


def convolved(conv: Conv3x3, x: Images, upsample: bool = False) -> Unsummed:
    """A 3x3 convolution, its bias to be added."""
    return Unsummed(ops.conv3x3(x, conv.weight, upsample=upsample), conv.bias)


def normed(
    norm: GroupNormSiLU,
    x: Unsummed,
    *,
    temb: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    skip: Images | None = None,
    write_sum: bool = True,
) -> tuple[Images, Images]:
    """(the sum with the skip's channels behind it, its norm and SiLU); the sum is empty without `write_sum`.

    Where autograd may record, it is written all the same, since the gradient reads it.
    """
    of, write_sum = norm.norm(scale, shift), write_sum or torch.is_grad_enabled()
    return ops.sum_norm_silu(x.raw, x.residual, x.bias, temb, skip, *of, x.gain, norm.silu, write_sum)


def through(layer: nn.Module, x: Unsummed, embeddings: Embeddings, skip: Images | None = None) -> tuple[Images, Unsummed]:
    """(what the layer read, what it puts out)."""
    if isinstance(layer, Stage):
        read, x = _residual(layer.block, x, embeddings, skip)
        return read, _attended(layer.attention, x) if isinstance(layer.attention, AttentionBlock) else x
    if isinstance(layer, ResBlock):
        return _residual(layer, x, embeddings, skip)
    read = x.summed()
    assert isinstance(layer, Upsample | Downsample)
    if layer.conv is None:
        return read, Unsummed(layer(read, embeddings))
    if isinstance(layer.conv, StridedConv3x3):
        return read, Unsummed(layer.conv.convolved(read), layer.conv.bias)
    return read, convolved(layer.conv, read, upsample=True)


def _residual(block: ResBlock, x: Unsummed, embeddings: Embeddings, skip: Images | None) -> tuple[Images, Unsummed]:
    """A residual block: its second sum is the next norm's."""
    row = embeddings[block.index]
    scale, shift = row.expand(len(x.raw), -1).chunk(2, dim=1) if block.scale_shift else (None, None)
    read, h = normed(block.norm1, x, skip=skip)
    if block.direction == "down":
        h = RESIZE["down"](h)
    raw = convolved(block.conv1, h, upsample=block.direction == "up")
    temb = None if block.scale_shift else row
    _, h = normed(block.norm2, raw, temb=temb, scale=scale, shift=shift, write_sum=False)
    shortcut = block.shortcut(RESIZE[block.direction](read) if block.direction else read)
    return read, Unsummed(ops.conv3x3(h, block.conv2.weight), block.conv2.bias, shortcut, block.gain)


def _attended(block: AttentionBlock, x: Unsummed) -> Unsummed:
    """Self-attention; what it adds to its input is added by the next norm."""
    read, h = normed(block.norm, x)
    raw = ops.conv1x1(block.heads(h), block.out.weight)
    return Unsummed(raw, block.out.bias, read, block.gain)
