"""pytorch_diffusion (pesser): the DDPM of Ho et al. 2020 in PyTorch, for CIFAR-10 and for LSUN and CelebA-HQ at 256 pixels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count

from purify_engine.config import UNetConfig
from purify_engine.models.blocks import AttentionBlock, Downsample, ResBlock
from purify_engine.models.checkpoints.layout import Entry, Given, Layout, Shapes, Told, channels_of, pair, stacked
from purify_engine.models.checkpoints.sizes import Sizeless, told_size
from purify_engine.models.checkpoints.walk import Unit, residual, units
from purify_engine.models.published import DDPM_CELEBAHQ256, DDPM_CIFAR10

PUBLISHED = (DDPM_CIFAR10, DDPM_CELEBAHQ256)
RESIDUAL = {part: part for part in ("norm1", "conv1", "norm2", "conv2")} | {"projection": "temb_proj", "shortcut": "nin_shortcut"}


def recognise(shapes: Shapes, given: Given) -> UNetConfig | None:
    """The DDPM that these are."""
    network = _read(shapes)
    return None if network is None else network.completed(given, PUBLISHED)


def told(shapes: Shapes, name: str) -> list[Told]:
    """The size of a published network."""
    return told_size(_read(shapes), PUBLISHED)


def _read(shapes: Shapes) -> Sizeless | None:
    if not {"temb.dense.0.weight", "conv_in.weight", "down.0.block.0.conv1.weight"} <= set(shapes):
        return None
    base, in_channels = channels_of(shapes, "conv_in.weight")
    levels = range(_length(shapes, r"down\.(\d{1,3})\..+"))
    config = UNetConfig(
        image_size=2 ** len(levels),
        in_channels=in_channels,
        base_channels=base,
        channel_mult=tuple(channels_of(shapes, f"down.{level}.block.0.conv1.weight")[0] // base for level in levels),
        num_res_blocks=_length(shapes, r"down\.0\.block\.(\d{1,3})\..+"),
        attention_resolutions=(),
        resample="conv" if len(levels) == 1 or "down.0.downsample.conv.weight" in shapes else "pool",
        norm_min_channels=None,
    )
    return Sizeless(config, tuple(level for level in levels if f"down.{level}.attn.0.q.weight" in shapes))


def _length(shapes: Shapes, pattern: str) -> int:
    """Of the list whose index `pattern` catches."""
    return len({match[1] for name in shapes if (match := re.fullmatch(pattern, name))})


def entries(config: UNetConfig) -> Iterator[Entry]:
    """Our tensors, and theirs. Their levels count from full resolution on the way up, too."""
    yield from pair("time_embedding.mlp.0", "temb.dense.0")
    yield from pair("time_embedding.mlp.2", "temb.dense.1")
    yield from pair("conv_in", "conv_in")
    yield from pair("norm_out", "norm_out")
    yield from pair("conv_out", "conv_out")
    numbers = {place: count() for place in {_place(unit) for unit in units(config)}}
    for unit in units(config):
        theirs = f"{_place(unit)}{next(numbers[_place(unit)])}" if _is_numbered(unit) else _place(unit)
        yield from _unit(unit, theirs)


def _is_numbered(unit: Unit) -> bool:
    return isinstance(unit.module, ResBlock | AttentionBlock) and unit.side != "middle"


def _place(unit: Unit) -> str:
    """Its name, or that of the list it is the next of."""
    if unit.side == "middle":
        return "mid.attn_1" if isinstance(unit.module, AttentionBlock) else f"mid.block_{unit.layer + 1}"
    kind = {ResBlock: "block.", AttentionBlock: "attn.", Downsample: "downsample.conv"}.get(type(unit.module), "upsample.conv")
    return f"{unit.side}.{unit.level}.{kind}"


def _unit(unit: Unit, theirs: str) -> Iterator[Entry]:
    if isinstance(unit.module, ResBlock):
        yield from residual(unit, theirs, RESIDUAL)
    elif isinstance(unit.module, AttentionBlock):
        yield from pair(f"{unit.name}.norm", f"{theirs}.norm")
        for part in ("weight", "bias"):
            yield Entry(f"{unit.name}.qkv.{part}", tuple(f"{theirs}.{which}.{part}" for which in "qkv"), stacked())
        yield from pair(f"{unit.name}.out", f"{theirs}.proj_out")
    else:
        yield from pair(f"{unit.name}.conv", theirs)


PESSER = Layout(
    name="pesser",
    title="pytorch_diffusion (pesser): DDPM for CIFAR-10, LSUN and CelebA-HQ",
    recognise=recognise,
    entries=entries,
    told=told,
)
