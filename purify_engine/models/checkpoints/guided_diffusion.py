"""guided-diffusion's and improved-diffusion's U-Nets: `256x256_diffusion_uncond.pt`, `cifar10_uncond_50M_500K.pt` and their kin.

Names: github.com/openai/guided-diffusion, unet.py (Dhariwal & Nichol 2021), and openai/improved-diffusion (Nichol & Dhariwal
2021), which shares them. Attention's rows are [heads, (q, k, v), channels of a head]; networks trained with
use_new_attention_order have ours, which no shape tells: that layout is taken by its name alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from purify_engine.config import ScheduleConfig, UNetConfig
from purify_engine.models.blocks import AttentionBlock, ResBlock
from purify_engine.models.checkpoints.layout import (
    SAME,
    Beside,
    Entry,
    Given,
    Layout,
    Rule,
    Shapes,
    Told,
    as_conv1x1,
    pair,
    require_fields,
)
from purify_engine.models.checkpoints.walk import Unit, residual, units
from purify_engine.models.published import (
    ADM_IMAGENET256,
    ADM_LSUN256,
    IMPROVED_CIFAR10,
    IMPROVED_IMAGENET64,
    IMPROVED_LSUN256,
    IMPROVED_SCHEDULE,
)

PUBLISHED = (ADM_IMAGENET256, ADM_LSUN256, IMPROVED_CIFAR10, IMPROVED_IMAGENET64, IMPROVED_LSUN256)
SIGNATURE = ("time_embed.0.weight", "input_blocks.0.0.weight")
CONDITIONAL = "is conditional on classes (it holds label_emb.weight), which is not supported: take the unconditional network"
RESIDUAL = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "projection": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "shortcut": "skip_connection",
}  # fmt: skip


def recognise(shapes: Shapes, given: Given) -> UNetConfig | None:
    """The configuration, from names and shapes, and what they cannot tell from a published network of the same or `given`.

    `given` has image_size and num_heads or num_head_channels where no published network has these shapes; time_scale (steps
    that are told rescaled, as improved-diffusion's 4000) is 1 where nothing else is said.
    """
    read = _structure(shapes)
    if read is None:
        return None
    require_fields(given, UNetConfig)
    published = read.published()
    if published is not None:
        return read.config(_untold(published) | _stated(given))
    missing = [name for name in ("image_size",) if name not in given]
    if not {"num_heads", "num_head_channels"} & set(given):
        missing.append("num_heads (or num_head_channels)")
    if missing:
        raise ValueError(
            f"a guided-diffusion network of {read.base_channels} channels times {read.channel_mult} is none of the published: "
            f"its weights do not tell {' and '.join(missing)}, which must be given"
        )
    return read.config(_stated(given))


def told(shapes: Shapes, name: str) -> list[Told]:
    """What a published network of these shapes has."""
    read = _structure(shapes)
    published = None if read is None else read.published()
    if published is None:
        return []
    size = f"{published.image_size}x{published.image_size}"
    return [
        Told(
            {field: getattr(published, field) for field in ("image_size", "dropout", "time_scale")},
            f"images of {size}, heads of attention and scale of the time: as the published network of these shapes has them",
        )
    ]


def schedule(config: UNetConfig, beside: Beside) -> ScheduleConfig:
    """improved-diffusion's 4000 cosine steps where the time is told rescaled to 1000 (rescale_timesteps), else Ho et al.'s."""
    return IMPROVED_SCHEDULE if config.time_scale == IMPROVED_CIFAR10.time_scale else ScheduleConfig()


def _untold(published: UNetConfig) -> dict[str, Any]:
    names = ("image_size", "num_heads", "num_head_channels", "dropout", "time_scale")
    return {name: getattr(published, name) for name in names}


def _stated(given: Given) -> dict[str, Any]:
    """num_heads replaces a published network's num_head_channels."""
    return {"num_head_channels": None, **given} if "num_heads" in given else dict(given)


def _structure(shapes: Shapes) -> _Structure | None:
    """What names and shapes tell; None where the names are another layout's. ValueError for its networks of other kinds."""
    if not all(name in shapes for name in SIGNATURE):
        return None
    if "label_emb.weight" in shapes:
        raise ValueError(f"this guided-diffusion network {CONDITIONAL}")
    if not any(name.startswith("output_blocks.") for name in shapes):
        raise ValueError("this guided-diffusion file must hold output_blocks: it is a classifier of noisy images, or cut short")
    if "out.2.weight" in shapes and (shapes["input_blocks.0.0.weight"][1], shapes["out.2.weight"][0]) in ((6, 3), (6, 6)):
        raise ValueError("this guided-diffusion network is an upsampler, which reads a small image beside x_t: not supported")
    return _Structure.read(shapes)


@dataclass(frozen=True)
class _Structure:
    """What names and shapes tell."""

    in_channels: int
    base_channels: int
    time_channels: int | None
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    attending: tuple[int, ...]  # levels
    scale_shift: bool
    resample: str
    learned_variance: bool

    @classmethod
    def read(cls, shapes: Shapes) -> _Structure:
        blocks = {int(name.split(".")[1]) for name in shapes if name.startswith("input_blocks.")}
        resample, num_res_blocks = _resampling(shapes, max(blocks) + 1)
        firsts = range(1, max(blocks) + 1, num_res_blocks + 1)  # the first block of each level
        widths = [_shape(shapes, f"input_blocks.{index}.0.in_layers.2.weight")[0] for index in firsts]
        base, channels, *_ = _shape(shapes, "input_blocks.0.0.weight")
        out_channels = _shape(shapes, "out.2.weight")[0]
        if any(width % base for width in widths):
            raise ValueError(f"this guided-diffusion network has levels of {widths} channels, which must be multiples of {base}")
        waves = _shape(shapes, "time_embed.0.weight")[1]
        if out_channels not in (channels, 2 * channels):
            raise ValueError(f"'out.2.weight' must put out {channels} or {2 * channels} channels, got {out_channels}")
        return cls(
            in_channels=channels,
            base_channels=base,
            time_channels=None if waves == base else waves,
            channel_mult=tuple(width // base for width in widths),
            num_res_blocks=num_res_blocks,
            attending=tuple(level for level, index in enumerate(firsts) if f"input_blocks.{index}.1.qkv.weight" in shapes),
            scale_shift=_shape(shapes, "input_blocks.1.0.emb_layers.1.weight")[0] == 2 * widths[0],
            resample=resample,
            learned_variance=out_channels == 2 * channels,
        )

    def published(self) -> UNetConfig | None:
        """The published network that has it."""
        return next((published for published in PUBLISHED if self.config(_untold(published)) == published), None)

    def config(self, told: dict[str, Any]) -> UNetConfig:
        """With what weights do not tell."""
        told = dict(told)
        size = told.pop("image_size")
        config = UNetConfig(
            image_size=size,
            in_channels=self.in_channels,
            base_channels=self.base_channels,
            time_channels=self.time_channels,
            channel_mult=self.channel_mult,
            num_res_blocks=self.num_res_blocks,
            attention_resolutions=tuple(size >> level for level in self.attending),
            time_embedding="scale_shift" if self.scale_shift else "additive",
            resample=self.resample,  # type: ignore[arg-type]
            downsample_padding="symmetric" if self.resample == "conv" else "asymmetric",
            learned_variance=self.learned_variance,
            sinusoid="cos_first",
            sinusoid_endpoint=False,
            norm_min_channels=None,
            norm_eps=1e-5,
        )
        return replace(config, **told)


def _resampling(shapes: Shapes, num_blocks: int) -> tuple[str, int]:
    """How the network resamples, and its residual blocks a level: the first resampler stands behind those of the first level."""
    for index in range(1, num_blocks):
        if f"input_blocks.{index}.0.op.weight" in shapes:
            return "conv", index - 1
        if f"input_blocks.{index}.0.in_layers.0.weight" not in shapes:  # a mean has no parameters
            return "pool", index - 1
        # behind the last block of a level, and behind its attention
        if any(f"output_blocks.{index - 1}.{place}.in_layers.0.weight" in shapes for place in (1, 2)):
            return "residual", index - 1
    return "conv", num_blocks - 1  # one level


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise ValueError(f"it is no whole guided-diffusion checkpoint, since it lacks {name!r}")
    return shapes[name]


def head_by_head(heads: int, rule: Rule = SAME) -> Rule:
    """Rows [heads, (q, k, v), channels of a head] as [(q, k, v), heads, channels]; each tensor is read by `rule` afterwards."""

    def turned(weight: Tensor, first: int, second: int) -> Tensor:
        return weight.unflatten(0, (first, second, -1)).transpose(0, 1).flatten(0, 2)

    return Rule(
        lambda weight: rule.read(turned(weight, heads, 3)),
        lambda weight: tuple(turned(part, 3, heads) for part in rule.write(weight)),
    )


def entries(config: UNetConfig) -> Iterator[Entry]:
    """Every tensor, by its name in a checkpoint."""
    return _entries(config, new_order=False)


def entries_in_new_order(config: UNetConfig) -> Iterator[Entry]:
    """The same where heads are split after queries, keys and values (use_new_attention_order), as ours are."""
    return _entries(config, new_order=True)


def _entries(config: UNetConfig, new_order: bool) -> Iterator[Entry]:
    yield from pair("time_embedding.mlp.0", "time_embed.0")
    yield from pair("time_embedding.mlp.2", "time_embed.2")
    yield from pair("conv_in", "input_blocks.0.0")
    place = 0  # in its sequence
    for unit in units(config):
        place = place + 1 if isinstance(unit.module, AttentionBlock) or _is_upsampler(unit) else 0
        yield from _of_unit(unit, _sequence(unit, config, place), new_order)
    yield from pair("norm_out", "out.0")
    yield from pair("conv_out", "out.2")


def _is_upsampler(unit: Unit) -> bool:
    return unit.side == "up" and not unit.name.endswith((".block", ".attention"))


def _sequence(unit: Unit, config: UNetConfig, place: int) -> str:
    """The unit's name in a checkpoint: on the way up a resampler stands in the sequence of the block before it."""
    if unit.side == "down":
        return f"input_blocks.{unit.layer + 1}.{place}"
    if unit.side == "middle":
        return f"middle_block.{2 * unit.layer + place}"
    resamplers = len(config.channel_mult) - 1 - unit.level
    return f"output_blocks.{unit.layer - resamplers - _is_upsampler(unit)}.{place}"


def _of_unit(unit: Unit, theirs: str, new_order: bool) -> Iterator[Entry]:
    module, ours = unit.module, unit.name
    if isinstance(module, ResBlock):
        yield from residual(unit, theirs, RESIDUAL)
    elif isinstance(module, AttentionBlock):
        flat = as_conv1x1(3)
        weight, bias = (flat, SAME) if new_order else (head_by_head(module.num_heads, flat), head_by_head(module.num_heads))
        yield from pair(f"{ours}.norm", f"{theirs}.norm")
        yield from pair(f"{ours}.qkv", f"{theirs}.qkv", weight, bias)
        yield from pair(f"{ours}.out", f"{theirs}.proj_out", flat)
    else:
        yield from pair(f"{ours}.conv", f"{theirs}.{'op' if unit.side == 'down' else 'conv'}")


GUIDED_DIFFUSION = Layout(
    "guided-diffusion",
    "guided-diffusion and improved-diffusion, OpenAI",
    recognise,
    entries,
    told=told,
    schedule=schedule,
)
GUIDED_DIFFUSION_NEW_ORDER = Layout(
    "guided-diffusion-new-order",
    "guided-diffusion trained with use_new_attention_order",
    recognise,
    entries_in_new_order,
    told=told,
    schedule=schedule,
    by_name_only=True,
)
