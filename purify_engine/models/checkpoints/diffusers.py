"""diffusers' UNet2DModel: google/ddpm-cifar10-32 and its family, and what people train by diffusers' tutorials.

Its levels count from full resolution on the way down and from the lowest on the way up; queries, keys and values are three linear
layers. Attention's tensors had other names until 2023, which old files still have: a layout of its own here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any, NamedTuple

from purify_engine.config import ScheduleConfig, UNetConfig
from purify_engine.models.blocks import AttentionBlock, ResBlock
from purify_engine.models.checkpoints.diffusers_scheduler import read_scheduler
from purify_engine.models.checkpoints.diffusers_unet import multiples, unet_config
from purify_engine.models.checkpoints.layout import SAME, Beside, Entry, Given, Layout, Shapes, Told, as_conv1x1, pair, stacked
from purify_engine.models.checkpoints.walk import Unit, residual, units
from purify_engine.models.published import DDPM_CIFAR10


class AttentionNames(NamedTuple):
    """What the four linear layers of an attention block are called."""

    inputs: tuple[str, str, str]  # queries, keys, values
    output: str


RESIDUAL = {part: part for part in ("norm1", "conv1", "norm2", "conv2")} | {
    "projection": "time_emb_proj", "shortcut": "conv_shortcut",
}  # fmt: skip
TODAY = AttentionNames(("to_q", "to_k", "to_v"), "to_out.0")
UNTIL_2023 = AttentionNames(("query", "key", "value"), "proj_attn")

# What config.json says and weights do not. One network by Google and one by the tutorial may well have the same shapes.
UNTOLD = (
    "image_size", "num_head_channels", "norm_groups", "norm_eps", "downsample_padding", "sinusoid", "sinusoid_endpoint"
)  # fmt: skip
SCHEDULER = "scheduler_config.json"
UNSCHEDULED = f"the noise is predicted, on Ho et al.'s schedule: no {SCHEDULER} lies beside it to tell otherwise"
PUBLISHED = DDPM_CIFAR10  # google/ddpm-cifar10-32


def entries(config: UNetConfig, names: AttentionNames = TODAY) -> Iterator[Entry]:
    """Our tensors, and theirs that make them."""
    yield from pair("conv_in", "conv_in")
    yield from pair("time_embedding.mlp.0", "time_embedding.linear_1")
    yield from pair("time_embedding.mlp.2", "time_embedding.linear_2")
    yield from pair("norm_out", "conv_norm_out")
    yield from pair("conv_out", "conv_out")
    lists = {place: count() for place in {_place(unit, config) for unit in units(config)}}
    for unit in units(config):
        place = _place(unit, config)
        yield from _unit(unit, f"{place}.{next(lists[place])}", names)


def _place(unit: Unit, config: UNetConfig) -> str:
    """The list that a unit is the next of."""
    lowest = len(config.channel_mult) - 1
    side = {"down": f"down_blocks.{unit.level}", "middle": "mid_block", "up": f"up_blocks.{lowest - unit.level}"}[unit.side]
    if isinstance(unit.module, AttentionBlock):
        return f"{side}.attentions"
    if isinstance(unit.module, ResBlock) and unit.module.direction is None:
        return f"{side}.resnets"
    return f"{side}.{unit.side}samplers"


def _unit(unit: Unit, theirs: str, names: AttentionNames) -> Iterator[Entry]:
    if isinstance(unit.module, ResBlock):
        yield from residual(unit, theirs, RESIDUAL)
    elif isinstance(unit.module, AttentionBlock):
        yield from pair(f"{unit.name}.norm", f"{theirs}.group_norm")
        for part, rule in (("weight", as_conv1x1(2)), ("bias", SAME)):
            inputs = tuple(f"{theirs}.{name}.{part}" for name in names.inputs)
            yield Entry(f"{unit.name}.qkv.{part}", inputs, stacked(rule))
        yield from pair(f"{unit.name}.out", f"{theirs}.{names.output}", as_conv1x1(2))
    else:
        yield from pair(f"{unit.name}.conv", f"{theirs}.conv")


def recognise(shapes: Shapes, given: Given, names: AttentionNames = TODAY) -> UNetConfig | None:
    """The network that these are, where its config.json is missing: the fields of `UNTOLD` must be given.

    ValueError where they are of UNet2DModel, and we cannot run it or are not told enough.
    """
    if not _is_unet2d(shapes, names):
        return None
    _refuse_conditions(shapes)
    found, attends = _read(shapes, names)
    untold = [name for name in UNTOLD if name not in given]
    if untold:
        raise ValueError(
            f"this diffusers network must come with its config.json (convert the folder), or with {', '.join(untold)}, "
            f"which its weights do not tell and which must be given"
        )
    return replace(_at(found, attends, given["image_size"]), **given)


def told(shapes: Shapes, name: str, names: AttentionNames = TODAY) -> list[Told]:
    """What google/ddpm-cifar10-32 has, where these are its shapes; and what is predicted, where no scheduler tells it."""
    if not _is_unet2d(shapes, names):
        return []
    eps = Told({"prediction": "eps"}, UNSCHEDULED)
    if _at(*_read(shapes, names), PUBLISHED.image_size) != PUBLISHED:
        return [eps]
    fields = {field: getattr(PUBLISHED, field) for field in UNTOLD}
    return [Told(fields, "images of 32x32, heads and norms: as google/ddpm-cifar10-32, of the same shapes, has them"), eps]


def _is_unet2d(shapes: Shapes, names: AttentionNames) -> bool:
    blocks = {"time_embedding.linear_1.weight", "down_blocks.0.resnets.0.conv1.weight", "conv_out.weight"} <= set(shapes)
    return blocks and _width(shapes, "conv_in") > 0 and names is _names_of(shapes)


def stated(beside: Beside) -> Given:
    """What a folder says of its network, but for what shapes tell better: where it attends.

    What the network predicts stands in its scheduler's settings.
    """
    said = beside.get("config.json")
    if not isinstance(said, Mapping) or not {"_class_name", "block_out_channels"} & set(said):
        return {}
    sized = said.get("sample_size") is not None
    fields = vars(unet_config(said) if sized else unet_config(said, image_size=2 ** len(said.get("block_out_channels", ()))))
    unsaid = ("attention_resolutions", "prediction") if sized else ("attention_resolutions", "prediction", "image_size")
    predicts = {"prediction": read_scheduler(beside[SCHEDULER]).prediction} if SCHEDULER in beside else {}
    return {name: value for name, value in fields.items() if name not in unsaid} | predicts


def schedule(config: UNetConfig, beside: Beside) -> ScheduleConfig:
    """The noise that a folder's scheduler says the network was trained on; that of Ho et al. where there is none."""
    return read_scheduler(beside[SCHEDULER]).schedule if SCHEDULER in beside else ScheduleConfig()


def sampling(beside: Beside) -> dict[str, Any]:
    """How a folder's scheduler samples where every timestep is walked, as fields of `PurifierConfig`."""
    return read_scheduler(beside[SCHEDULER]).sampling() if SCHEDULER in beside else {}


def _names_of(shapes: Shapes) -> AttentionNames:
    return UNTIL_2023 if any(name.endswith(".proj_attn.weight") for name in shapes) else TODAY


def _refuse_conditions(shapes: Shapes) -> None:
    """Networks whose tensors have these names, and more."""
    for name in shapes:
        for part, what in (("class_embedding.", "class"), ("transformer_blocks.", "text"), ("add_embedding.", "text")):
            if part in name:
                raise ValueError(f"a diffusers network must be unconditional, got one conditional on a {what} ({name[:80]})")


def _read(shapes: Shapes, names: AttentionNames) -> tuple[UNetConfig, list[int]]:
    """What shapes tell, at no particular size, and the levels that attend."""
    base, in_channels = _width(shapes, "conv_in"), shapes["conv_in.weight"][1]
    levels = range(len({match[1] for name in shapes if (match := re.match(r"down_blocks\.(\d{1,2})\.", name))}))
    blocks = {match[1] for name in shapes if (match := re.match(r"down_blocks\.0\.resnets\.(\d{1,3})\.", name))}
    widths = [_width(shapes, f"down_blocks.{level}.resnets.0.conv1") for level in levels]
    found = replace(
        PUBLISHED,
        image_size=2 ** len(levels),
        in_channels=in_channels,
        base_channels=base,
        channel_mult=multiples(widths, base),
        num_res_blocks=len(blocks),
        attention_resolutions=(),
        middle_attention=_width(shapes, f"mid_block.attentions.0.{names.output}") > 0,
        time_embedding="scale_shift" if _width(shapes, "mid_block.resnets.0.time_emb_proj") == 2 * widths[-1] else "additive",
        resample="residual" if _width(shapes, "down_blocks.0.downsamplers.0.conv1") else "conv",
        learned_variance=_width(shapes, "conv_out") == 2 * in_channels,
    )
    return found, [level for level in levels if _width(shapes, f"down_blocks.{level}.attentions.0.{names.output}")]


def _width(shapes: Shapes, layer: str) -> int:
    """Channels that a layer puts out; 0 where there is none."""
    shape = shapes.get(f"{layer}.weight", ())
    return shape[0] if len(shape) > 1 else 0


def _at(config: UNetConfig, attends: list[int], image_size: int) -> UNetConfig:
    return replace(config, image_size=image_size, attention_resolutions=tuple(image_size >> level for level in attends))


DIFFUSERS = Layout(
    name="diffusers",
    title="diffusers' UNet2DModel: google/ddpm-cifar10-32 and its family",
    recognise=recognise,
    entries=entries,
    told=told,
    stated=stated,
    schedule=schedule,
    sampling=sampling,
)
DIFFUSERS_OLD = Layout(
    name="diffusers-old",
    title="diffusers' UNet2DModel as it was saved until 2023 (query, key, value, proj_attn)",
    recognise=partial(recognise, names=UNTIL_2023),
    entries=partial(entries, names=UNTIL_2023),
    told=partial(told, names=UNTIL_2023),
    stated=stated,
    schedule=schedule,
    sampling=sampling,
)


def layout_of(shapes: Shapes) -> Layout[UNetConfig]:
    """Which of the two these tensors have."""
    return DIFFUSERS_OLD if _names_of(shapes) is UNTIL_2023 else DIFFUSERS
