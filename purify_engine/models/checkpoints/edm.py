"""EDM (Karras et al. 2022): DDPM++ under EDM's preconditioning, as `edm-cifar10-32x32-uncond-vp.pkl` and FFHQ's and AFHQ's at 64.

The names hold the resolution of each block. Networks of other preconditioning, of classes, or of another architecture are
refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import count
from typing import Any, NoReturn

import torch
from torch import Tensor

from purify_engine.config import UNetConfig
from purify_engine.models.blocks import AttentionBlock
from purify_engine.models.checkpoints.layout import Entry, Given, Layout, Rule, Shapes, Tensors, channels_of, pair, require_fields
from purify_engine.models.checkpoints.pickled import Recorded
from purify_engine.models.checkpoints.walk import Unit, residual, units
from purify_engine.models.published import EDM_CIFAR10
from purify_engine.reference.prediction import SIGMA_DATA

MARK = "model.map_layer0.weight"
RESIDUAL = {
    "norm1": "norm0", "conv1": "conv0", "projection": "affine", "norm2": "norm1", "conv2": "conv1", "shortcut": "skip",
}  # fmt: skip
FILTER = (1, 1, 2, 2)  # of [1, 1]: pixels are averaged and repeated
PRECONDITIONING, ARCHITECTURE = "EDMPrecond", "SongUNet"

# What tells other networks of EDM by their names.
OTHERS = (
    (r"model\.map_label\..+", "a network conditional on classes: take the unconditional one"),
    (r"model\.out_conv\..+", "an ADM network of ImageNet-64 (DhariwalUNet)"),
    (r"model\.map_noise\..+", "NCSN++, told the noise by Fourier features (ve)"),
    (r"model\.(enc|dec)\.\w+_aux_(down|skip|residual|up)\..+", "NCSN++, with a progressive input or output (ve)"),
)


def recognise(shapes: Shapes, given: Given) -> UNetConfig | None:
    """The DDPM++ that these are. ValueError where they are of EDM, and another network."""
    tops = [int(match[1]) for name in shapes if (match := re.fullmatch(r"model\.enc\.(\d{1,4})x\1_conv\.weight", name))]
    if MARK not in shapes or len(tops) != 1:
        return None
    _refuse_others(shapes)
    require_fields(given, UNetConfig)
    size = tops[0]
    sizes = [size >> level for level in range(16) if f"model.enc.{size >> level}x{size >> level}_block0.conv1.weight" in shapes]
    base, in_channels = channels_of(shapes, f"model.enc.{size}x{size}_conv.weight")
    widths = [channels_of(shapes, f"model.enc.{side}x{side}_block0.conv1.weight")[0] for side in sizes]
    config = UNetConfig(
        image_size=size,
        in_channels=in_channels,
        base_channels=base,
        channel_mult=tuple(width // base for width in widths),
        num_res_blocks=sum(bool(re.fullmatch(rf"model\.enc\.{size}x{size}_block\d+\.norm0\.weight", name)) for name in shapes),
        attention_resolutions=tuple(side for side in sizes if f"model.enc.{side}x{side}_block0.qkv.weight" in shapes),
        resample="residual",
        resample_shortcut=True,
        decoder_attention="last_block",
        skip_rescale=True,
        prediction="edm",
    )
    is_published = replace(config, dropout=EDM_CIFAR10.dropout) == EDM_CIFAR10
    return replace(EDM_CIFAR10 if is_published else config, **given)


def _refuse_others(shapes: Shapes) -> None:
    for pattern, what in OTHERS:
        if any(re.fullmatch(pattern, name) for name in shapes):
            _refuse(what)
    other = {shape for name, shape in shapes.items() if name.endswith("resample_filter") and shape != FILTER}
    if other:
        _refuse(f"one that resamples by a filter of shape {min(other)}")


def _refuse(found: str) -> NoReturn:
    raise ValueError(f"a network of EDM must be an unconditional DDPM++ under {PRECONDITIONING} (uncond-vp), got {found}")


def _interleaved() -> Rule:
    """Rows [channels, (q, k, v)] of one head as [(q, k, v), channels], of a weight or of a bias."""

    def turned(weight: Tensor, first: int, second: int) -> Tensor:
        return weight.unflatten(0, (first, second)).transpose(0, 1).flatten(0, 1)

    return Rule(lambda weight: turned(weight, len(weight) // 3, 3), lambda weight: (turned(weight, 3, len(weight) // 3),))


def entries(config: UNetConfig) -> Iterator[Entry]:
    """Our tensors, and theirs by the pixels a side of each block."""
    yield from pair("time_embedding.mlp.0", "model.map_layer0")
    yield from pair("time_embedding.mlp.2", "model.map_layer1")
    top = f"{config.image_size}x{config.image_size}"
    yield from pair("conv_in", f"model.enc.{top}_conv")
    numbers = [count() for _ in range(2 * len(config.channel_mult))]
    theirs = ""
    for unit in units(config):
        if isinstance(unit.module, AttentionBlock):  # within the block before it
            yield from pair(f"{unit.name}.norm", f"{theirs}.norm2")
            yield from pair(f"{unit.name}.qkv", f"{theirs}.qkv", _interleaved(), _interleaved())
            yield from pair(f"{unit.name}.out", f"{theirs}.proj")
            continue
        number = numbers[2 * unit.level + (unit.side == "up")] if unit.side != "middle" else None
        theirs = _block(unit, config, number)
        yield from residual(unit, theirs, RESIDUAL)
    yield from pair("norm_out", f"model.dec.{top}_aux_norm")
    yield from pair("conv_out", f"model.dec.{top}_aux_conv")


def _block(unit: Unit, config: UNetConfig, number: Iterator[int] | None) -> str:
    """Its name; a block that resamples has the resolution that it makes."""
    side = config.image_size >> unit.level
    if number is None:
        return f"model.dec.{side}x{side}_in{unit.layer}"
    part = "enc" if unit.side == "down" else "dec"
    if unit.name.endswith(".block"):
        return f"model.{part}.{side}x{side}_block{next(number)}"
    side = side // 2 if unit.side == "down" else side * 2
    return f"model.{part}.{side}x{side}_{unit.side}"


def unwrap(content: Any) -> Tensors | None:
    """The averaged network of a pickle (`pickled.read_pickle`), held to what this layout can run."""
    network = content.get("ema") if isinstance(content, Mapping) else content
    if not isinstance(network, Recorded):
        return None
    if network.class_name != PRECONDITIONING:
        _refuse(f"one under {network.class_name!r}")
    sigma_data = network.state.get("sigma_data")
    if not isinstance(sigma_data, float) or sigma_data != SIGMA_DATA:  # said only where short: lists in lists may fill a memory
        _refuse(f"one with sigma_data {sigma_data if isinstance(sigma_data, float) else type(sigma_data).__name__!r}")
    held = network.state.get("_modules")
    inner = held.get("model") if isinstance(held, Mapping) else None
    if not isinstance(inner, Recorded) or inner.class_name != ARCHITECTURE:
        _refuse(f"the architecture {getattr(inner, 'class_name', None)!r}")
    tensors = {name: tensor.detach() for name, tensor in network.tensors()}
    for name, tensor in tensors.items():
        if name.endswith("resample_filter") and not torch.equal(tensor, torch.full_like(tensor, 0.25)):
            _refuse(f"one that resamples by the filter {tensor.flatten().tolist()[:4]}")
    return tensors


EDM = Layout(
    name="edm",
    title="EDM (Karras et al. 2022): unconditional DDPM++",
    recognise=recognise,
    entries=entries,
    ignored=("model.map_augment.weight", "*.resample_filter"),
    unwrap=unwrap,
)
