"""EDM's networks (Karras et al. 2022): names and shapes as its `EDMPrecond` of a `SongUNet` has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from purify_engine.testing.published.drawing import drawn

Shape = tuple[int, ...]
SMALL: dict[str, Any] = {
    "img_resolution": 8,
    "model_channels": 32,
    "channel_mult": (2, 1),
    "num_blocks": 1,
    "attn_resolutions": (4,),
}
CIFAR10: dict[str, Any] = {
    "img_resolution": 32,
    "model_channels": 128,
    "channel_mult": (2, 2, 2),
    "num_blocks": 4,
    "attn_resolutions": (16,),
}


def state_dict(*, seed: int = 0, device: str = "cpu", **network: Any) -> dict[str, Tensor]:
    """The tensors of the preconditioned network; `network` is as SMALL."""
    shapes = {f"model.{name}": shape for name, shape in _parameters(**network)}
    made = drawn(shapes, seed, device)
    filters = {name: torch.full(shape, 0.25, device=device) for name, shape in shapes.items() if name.endswith("resample_filter")}
    return {**made, **filters}


def _parameters(
    img_resolution: int,
    model_channels: int,
    channel_mult: Sequence[int],
    num_blocks: int,
    attn_resolutions: Sequence[int],
    channels: int = 3,
    augment_dim: int = 9,
) -> Iterator[tuple[str, Shape]]:
    ch, emb, levels = model_channels, 4 * model_channels, list(enumerate(channel_mult))
    yield "map_augment.weight", (ch, augment_dim)
    yield from _layer("map_layer0", emb, ch)
    yield from _layer("map_layer1", emb, emb)
    skips, width = [ch], ch
    for level, mult in levels:
        res = f"{img_resolution >> level}x{img_resolution >> level}"
        if level == 0:
            yield from _layer(f"enc.{res}_conv", ch, channels, 3, 3)
        else:
            yield from _block(f"enc.{res}_down", width, width, emb, resamples=True)
            skips.append(width)
        for index in range(num_blocks):
            yield from _block(f"enc.{res}_block{index}", width, ch * mult, emb, img_resolution >> level in attn_resolutions)
            width = ch * mult
            skips.append(width)
    for level, mult in reversed(levels):
        res = f"{img_resolution >> level}x{img_resolution >> level}"
        if level == len(levels) - 1:
            yield from _block(f"dec.{res}_in0", width, width, emb, attention=True)
            yield from _block(f"dec.{res}_in1", width, width, emb)
        else:
            yield from _block(f"dec.{res}_up", width, width, emb, resamples=True)
        for index in range(num_blocks + 1):
            attends = index == num_blocks and img_resolution >> level in attn_resolutions
            yield from _block(f"dec.{res}_block{index}", width + skips.pop(), ch * mult, emb, attends)
            width = ch * mult
    top = f"{img_resolution}x{img_resolution}"
    yield from _norm(f"dec.{top}_aux_norm", width)
    yield from _layer(f"dec.{top}_aux_conv", channels, width, 3, 3)


def _layer(name: str, *shape: int, resamples: bool = False) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]
    if resamples:
        yield f"{name}.resample_filter", (1, 1, 2, 2)


def _norm(name: str, channels: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (channels,)
    yield f"{name}.bias", (channels,)


def _block(
    name: str, channels: int, width: int, emb: int, attention: bool = False, resamples: bool = False
) -> Iterator[tuple[str, Shape]]:
    yield from _norm(f"{name}.norm0", channels)
    yield from _layer(f"{name}.conv0", width, channels, 3, 3, resamples=resamples)
    yield from _layer(f"{name}.affine", width, emb)
    yield from _norm(f"{name}.norm1", width)
    yield from _layer(f"{name}.conv1", width, width, 3, 3)
    if resamples or channels != width:
        yield from _layer(f"{name}.skip", width, channels, 1, 1, resamples=resamples)
    if attention:
        yield from _norm(f"{name}.norm2", width)
        yield from _layer(f"{name}.qkv", 3 * width, width, 1, 1)
        yield from _layer(f"{name}.proj", width, width, 1, 1)
