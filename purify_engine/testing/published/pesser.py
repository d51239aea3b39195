"""The DDPM of pytorch_diffusion (pesser): names and shapes as its `Model` has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from purify_engine.testing.published.drawing import drawn

Shape = tuple[int, ...]
SMALL: dict[str, Any] = {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (4,), "resolution": 8}
CIFAR10: dict[str, Any] = {"ch": 128, "ch_mult": (1, 2, 2, 2), "num_res_blocks": 2, "attn_resolutions": (16,), "resolution": 32}
CELEBAHQ256: dict[str, Any] = {**CIFAR10, "ch_mult": (1, 1, 2, 2, 4, 4), "resolution": 256}


def state_dict(*, seed: int = 0, device: str = "cpu", **network: Any) -> dict[str, Tensor]:
    """The model's tensors; `network` is as SMALL."""
    return drawn(dict(_parameters(**network)), seed, device)


def _parameters(
    ch: int, ch_mult: Sequence[int], num_res_blocks: int, attn_resolutions: Sequence[int], resolution: int, channels: int = 3
) -> Iterator[tuple[str, Shape]]:
    yield from _layer("temb.dense.0", 4 * ch, ch)
    yield from _layer("temb.dense.1", 4 * ch, 4 * ch)
    yield from _layer("conv_in", ch, channels, 3, 3)
    before, levels = (1, *ch_mult), len(ch_mult)
    for level, mult in enumerate(ch_mult):
        attends = resolution >> level in attn_resolutions
        yield from _blocks(f"down.{level}", [before[level] * ch] + [mult * ch] * (num_res_blocks - 1), mult * ch, ch, attends)
        if level != levels - 1:
            yield from _layer(f"down.{level}.downsample.conv", mult * ch, mult * ch, 3, 3)
    inner = ch * ch_mult[-1]
    yield from _block("mid.block_1", inner, inner, ch)
    yield from _attention("mid.attn_1", inner)
    yield from _block("mid.block_2", inner, inner, ch)
    for level, mult in enumerate(ch_mult):  # in the order of the list, which is that of the levels, not of the walk
        width, below = mult * ch, ch * ch_mult[min(level + 1, levels - 1)]
        inputs = [below + width] + [2 * width] * (num_res_blocks - 1) + [width + before[level] * ch]
        yield from _blocks(f"up.{level}", inputs, width, ch, resolution >> level in attn_resolutions)
        if level != 0:
            yield from _layer(f"up.{level}.upsample.conv", width, width, 3, 3)
    yield from _norm("norm_out", ch * ch_mult[0])
    yield from _layer("conv_out", channels, ch * ch_mult[0], 3, 3)


def _blocks(name: str, inputs: Sequence[int], width: int, ch: int, attends: bool) -> Iterator[tuple[str, Shape]]:
    for number, channels in enumerate(inputs):
        yield from _block(f"{name}.block.{number}", channels, width, ch)
    for number in range(len(inputs) if attends else 0):
        yield from _attention(f"{name}.attn.{number}", width)


def _layer(name: str, *shape: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _norm(name: str, channels: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (channels,)
    yield f"{name}.bias", (channels,)


def _block(name: str, channels: int, out_channels: int, ch: int) -> Iterator[tuple[str, Shape]]:
    yield from _norm(f"{name}.norm1", channels)
    yield from _layer(f"{name}.conv1", out_channels, channels, 3, 3)
    yield from _layer(f"{name}.temb_proj", out_channels, 4 * ch)
    yield from _norm(f"{name}.norm2", out_channels)
    yield from _layer(f"{name}.conv2", out_channels, out_channels, 3, 3)
    if channels != out_channels:
        yield from _layer(f"{name}.nin_shortcut", out_channels, channels, 1, 1)


def _attention(name: str, channels: int) -> Iterator[tuple[str, Shape]]:
    yield from _norm(f"{name}.norm", channels)
    for part in ("q", "k", "v", "proj_out"):
        yield from _layer(f"{name}.{part}", channels, channels, 1, 1)
