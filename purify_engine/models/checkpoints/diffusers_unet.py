"""diffusers' config.json of a UNet2DModel, read as our configuration. What our U-Net cannot do is refused by key and value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from purify_engine.config import UNetConfig, require

Resampler = Literal["conv", "resnet"]

# Keys that we translate, and what UNet2DModel takes where its config.json is silent.
READ: Mapping[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "time_embedding_dim": None,
}
FIXED: Mapping[str, tuple[Any, ...]] = {  # keys that must be so, the first where config.json is silent
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "act_fn": ("silu", "swish"),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
}
MOST_LAYERS = 100  # of a level; a number of a file decides how long the network takes to build
UNUSED = {
    "num_train_timesteps",  # of a learned time embedding; the others EMAModel writes
    "decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power",
}  # fmt: skip

# The blocks of a level: whether they attend, and how the level ends; None: as downsample_type or upsample_type says.
DOWN: Mapping[str, tuple[bool, Resampler | None]] = {
    "DownBlock2D": (False, "conv"),
    "AttnDownBlock2D": (True, None),
    "ResnetDownsampleBlock2D": (False, "resnet"),
}
UP: Mapping[str, tuple[bool, Resampler | None]] = {
    "UpBlock2D": (False, "conv"),
    "AttnUpBlock2D": (True, None),
    "ResnetUpsampleBlock2D": (False, "resnet"),
}


def unet_config(said: Mapping[str, Any], image_size: int | None = None) -> UNetConfig:
    """The configuration that a config.json says. image_size: pixels a side, where `sample_size` does not say them.

    ValueError, in one line, naming the key and its value, where the network is one that ours is not.
    """
    name = said.get("_class_name", "UNet2DModel")
    require(name == "UNet2DModel", "_class_name", "UNet2DModel", name)
    _refuse_other_networks(said)
    told = completed(said, READ, may_be_none=("attention_head_dim", "downsample_type", "upsample_type"))
    widths, size = _widths(told), image_side(told["sample_size"], image_size)
    layers = told["layers_per_block"]
    require(1 <= layers <= MOST_LAYERS, "layers_per_block", f"1 to {MOST_LAYERS}", layers)
    attends, resample = _levels(told, len(widths))
    _check_attention(told, [width for width, attention in zip(widths, attends, strict=True) if attention], widths[-1])
    _one_of(told, "time_embedding_dim", None, 4 * widths[0])
    scales = _one_of(told, "resnet_time_scale_shift", "default", "scale_shift") == "scale_shift"
    learned = _one_of(told, "out_channels", told["in_channels"], 2 * told["in_channels"]) != told["in_channels"]
    return UNetConfig(
        image_size=size,
        in_channels=told["in_channels"],
        base_channels=widths[0],
        channel_mult=multiples(widths, widths[0]),
        num_res_blocks=layers,
        attention_resolutions=tuple(size >> level for level, attention in enumerate(attends) if attention),
        middle_attention=told["add_attention"],
        num_head_channels=told["attention_head_dim"],
        time_embedding="scale_shift" if scales else "additive",
        resample="residual" if resample == "resnet" else "conv",
        downsample_padding="symmetric" if _one_of(told, "downsample_padding", 0, 1) else "asymmetric",
        learned_variance=learned,
        sinusoid="cos_first" if told["flip_sin_to_cos"] else "sin_first",
        sinusoid_endpoint=_one_of(told, "freq_shift", 0, 1) == 1,
        norm_groups=told["norm_num_groups"],
        norm_min_channels=None,
        norm_eps=told["norm_eps"],
        dropout=told["dropout"],
    )


def completed(said: Mapping[str, Any], defaults: Mapping[str, Any], may_be_none: Sequence[str] = ()) -> dict[str, Any]:
    """The keys of `defaults` as a JSON file says them, each of its default's kind; a default of None may be anything."""
    kinds: dict[type, tuple[str, tuple[type, ...]]] = {
        bool: ("true or false", (bool,)),
        int: ("an integer", (int,)),
        float: ("a number", (int, float)),
        str: ("a name", (str,)),
        tuple: ("a list", (list, tuple)),
    }
    told = {key: said.get(key, default) for key, default in defaults.items()}
    for key, default in defaults.items():
        if default is not None and not (told[key] is None and key in may_be_none):
            name, allowed = kinds[type(default)]
            require(isinstance(told[key], allowed), key, name, told[key])
    return told


def multiples(widths: Sequence[int], base: int) -> tuple[int, ...]:
    """The channels of every level in units of the first convolution's."""
    require(all(width and width % base == 0 for width in widths), "block_out_channels", f"multiples of {base}", list(widths))
    return tuple(width // base for width in widths)


def _refuse_other_networks(said: Mapping[str, Any]) -> None:
    for key, allowed in FIXED.items():
        _one_of({key: said.get(key, allowed[0])}, key, *allowed)
    known = {*READ, *FIXED, *UNUSED}
    strange = [key for key in said if not key.startswith("_") and key not in known]
    require(not strange, "config.json", "that of a UNet2DModel, without further keys", strange[:4])


def _one_of(said: Mapping[str, Any], key: str, *allowed: Any) -> Any:
    require(said[key] in allowed, key, " or ".join(map(repr, allowed)), said[key])
    return said[key]


def _widths(told: Mapping[str, Any]) -> list[int]:
    """Channels of each level, from full resolution down."""
    widths = list(told["block_out_channels"])
    positive = bool(widths) and all(isinstance(width, int) and width > 0 for width in widths)
    require(positive, "block_out_channels", "positive integers", widths)
    groups = told["norm_num_groups"]
    divides = groups > 0 and all(width % groups == 0 for width in widths)
    require(divides, "norm_num_groups", f"a divisor of the channels {widths}", groups)
    return widths


def image_side(said: int | Sequence[int] | None, image_size: int | None = None) -> int:
    """Pixels a side, of a `sample_size`, or given in its place."""
    if image_size is not None:
        return image_size
    side = said[0] if isinstance(said, list | tuple) and len(said) == 2 and said[0] == said[1] else said
    if not isinstance(side, int):
        raise ValueError(f"sample_size must be one number of pixels (else give image_size), got {said!r}")
    return side


def _levels(told: Mapping[str, Any], num_levels: int) -> tuple[list[bool], Resampler]:
    """Whether each level attends, from full resolution down, and how all of them are resampled."""
    down = [_block("down_block_types", name, DOWN, told["downsample_type"]) for name in told["down_block_types"]]
    up = [_block("up_block_types", name, UP, told["upsample_type"]) for name in told["up_block_types"]]
    for key, blocks in (("down_block_types", down), ("up_block_types", up)):
        require(len(blocks) == num_levels, key, f"{num_levels} names, as many as block_out_channels", told[key])
    mirrored = [attention for attention, _ in up] == [attention for attention, _ in reversed(down)]
    require(mirrored, "up_block_types", "such as attend where down_block_types do", told["up_block_types"])
    ways = {way for _, way in (*down[:-1], *up[:-1])}  # the last of either side does not resample
    alike = "such as all resample by convolutions, or all by residual blocks, down and up"
    require(len(ways) < 2, "down_block_types", alike, [*told["down_block_types"], *told["up_block_types"]])
    return [attention for attention, _ in down], ways.pop() if ways else "conv"


def _block(key: str, name: str, known: Mapping[str, tuple[bool, Resampler | None]], way: str | None) -> tuple[bool, Resampler]:
    bare = str(name).removeprefix("UNetRes")  # as they were called in 2022
    require(bare in known, key, f"of {', '.join(known)}", name)
    attention, own = known[bare]
    way_key = "downsample_type" if known is DOWN else "upsample_type"
    return attention, own or _one_of({way_key: way or "conv"}, way_key, "conv", "resnet")


def _check_attention(told: Mapping[str, Any], widths: list[int], lowest: int) -> None:
    attended = [*widths, *([lowest] if told["add_attention"] else [])]
    size = told["attention_head_dim"]
    divides = size is None or (size >= 1 and all(width % size == 0 for width in attended))
    require(divides, "attention_head_dim", f"None or a divisor of the channels {attended}", size)
    if told["add_attention"]:  # in the middle; without a number, it has no norm where the time scales and shifts
        groups = told["norm_num_groups"]
        allowed = (groups,) if told["resnet_time_scale_shift"] == "scale_shift" else (None, groups)
        _one_of(told, "attn_norm_num_groups", *allowed)
