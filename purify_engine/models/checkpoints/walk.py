"""The layers of a U-Net in the order an image meets them, by their names in our state_dict: what every layout's list follows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import nn

from purify_engine.config import UNetConfig
from purify_engine.models.blocks import AttentionBlock, Conv1x1, Downsample, ResBlock, Stage, Upsample
from purify_engine.models.checkpoints.layout import Entry, pair
from purify_engine.models.unet import UNet

Side = Literal["down", "middle", "up"]


class Unit(NamedTuple):
    """A residual block, an attention block or a resampling convolution. It has no values: it stands on the meta device."""

    name: str  # in our state_dict: "encoder.3.block"
    module: ResBlock | AttentionBlock | Downsample | Upsample
    side: Side
    level: int  # 0 is full resolution
    layer: int  # its place in encoder, middle or decoder

    @property
    def projection(self) -> str:
        """A residual block's projection of the time embedding, in our state_dict."""
        assert isinstance(self.module, ResBlock)
        return f"time_embedding.projections.{self.module.index}"


@lru_cache(maxsize=4)  # a layout's list asks more than once
def units(config: UNetConfig) -> tuple[Unit, ...]:
    """Every unit with parameters, as an image meets them; a stage is a block and, where it attends, an attention block."""
    with torch.device("meta"):
        unet = UNet(config)
    top = len(config.channel_mult) - 1
    found = _side(unet.encoder, "encoder", "down", 0, 1) + _side(unet.middle, "middle", "middle", top, 0)
    found += _side(unet.decoder, "decoder", "up", top, -1)
    return tuple(unit for unit in found if any(True for _ in unit.module.parameters()))


def residual(unit: Unit, theirs: str, names: Mapping[str, str]) -> Iterator[Entry]:
    """The tensors of a residual block. `names`: theirs within it of norm1, conv1, norm2, conv2, projection and shortcut."""
    assert isinstance(unit.module, ResBlock)
    ours = {part: f"{unit.name}.{part}" for part in names} | {"projection": unit.projection}
    for part, name in names.items():
        if part != "shortcut" or isinstance(unit.module.shortcut, Conv1x1):
            yield from pair(ours[part], f"{theirs}.{name}")


def _side(layers: nn.ModuleList, name: str, side: Side, level: int, change: int) -> list[Unit]:
    found = []
    for index, layer in enumerate(layers):
        if isinstance(layer, Stage):
            found.append(Unit(f"{name}.{index}.block", layer.block, side, level, index))
            if isinstance(layer.attention, AttentionBlock):
                found.append(Unit(f"{name}.{index}.attention", layer.attention, side, level, index))
        else:  # a resampler: the last of its level
            assert isinstance(layer, ResBlock | Downsample | Upsample)
            found.append(Unit(f"{name}.{index}", layer, side, level, index))
            level += change
    return found
