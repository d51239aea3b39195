"""diffusers' UNet2DModel: folders, names and shapes as `save_pretrained` writes them, its config.json included."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from purify_engine.files import write_text
from purify_engine.testing.published.drawing import drawn

Named = tuple[str, tuple[int, ...]]

# config.json of google/ddpm-cifar10-32, without what diffusers added later.
CIFAR10: dict[str, Any] = {
    "_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", "act_fn": "silu", "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256], "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"], "downsample_padding": 0,
    "flip_sin_to_cos": False, "freq_shift": 1, "in_channels": 3, "layers_per_block": 2, "mid_block_scale_factor": 1,
    "norm_eps": 1e-06, "norm_num_groups": 32, "out_channels": 3, "sample_size": 32, "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
CELEBAHQ256: dict[str, Any] = {  # of google/ddpm-celebahq-256 and the other four of 256 pixels
    **CIFAR10, "block_out_channels": [128, 128, 256, 256, 512, 512], "sample_size": 256,
    "down_block_types": ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
}  # fmt: skip
SMALL: dict[str, Any] = {
    **CIFAR10, "block_out_channels": [32, 64], "layers_per_block": 1, "norm_num_groups": 8, "sample_size": 8,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
TUTORIAL: dict[str, Any] = {  # as SMALL, with what UNet2DModel takes where nothing is said
    **SMALL, "attention_head_dim": 8, "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "norm_eps": 1e-05,
}  # fmt: skip
SCHEDULER: dict[str, Any] = {  # scheduler_config.json of google/ddpm-cifar10-32
    "_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "beta_end": 0.02, "beta_schedule": "linear",
    "beta_start": 0.0001, "clip_sample": True, "num_train_timesteps": 1000, "trained_betas": None, "variance_type": "fixed_large",
}  # fmt: skip
NEW, OLD = ("to_q", "to_k", "to_v", "to_out.0"), ("query", "key", "value", "proj_attn")


def state_dict(config: Mapping[str, Any], *, old_names: bool = False, seed: int = 0, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of the network that a config.json describes; `old_names`: of attention, as they were until 2023."""
    return drawn(dict(_parameters(config, OLD if old_names else NEW)), seed, device)


def save(
    folder: Path,
    config: Mapping[str, Any],
    scheduler: Mapping[str, Any] | None = None,
    *,
    pipeline: bool = False,
    pickled: bool = False,
    old_names: bool = False,
) -> Path:
    """Write a folder as diffusers does: one network's, or a pipeline's with `unet/` and `scheduler/`; pickled: a .bin file."""
    root = folder / "unet" if pipeline else folder
    root.mkdir(parents=True)
    write_text(root / "config.json", json.dumps(dict(config)))
    tensors = state_dict(config, old_names=old_names)
    if pickled:
        torch.save(tensors, root / "diffusion_pytorch_model.bin")
    else:
        save_file(tensors, root / "diffusion_pytorch_model.safetensors")
    if scheduler is not None:
        beside = folder / "scheduler" if pipeline else folder
        beside.mkdir(exist_ok=True)
        write_text(beside / "scheduler_config.json", json.dumps(dict(scheduler)))
    return folder


def _parameters(config: Mapping[str, Any], names: Sequence[str]) -> Iterator[Named]:
    widths, layers, embedded = config["block_out_channels"], config["layers_per_block"], 4 * config["block_out_channels"][0]
    yield from _layer("conv_in", widths[0], config["in_channels"], 3, 3)
    yield from _layer("time_embedding.linear_1", embedded, widths[0])
    yield from _layer("time_embedding.linear_2", embedded, embedded)
    for level, (width, kind) in enumerate(zip(widths, config["down_block_types"], strict=True)):
        inputs = [widths[max(level - 1, 0)]] + [width] * (layers - 1)
        yield from _blocks(f"down_blocks.{level}", inputs, width, embedded, names if "Attn" in kind else ())
        if level < len(widths) - 1:
            yield from _layer(f"down_blocks.{level}.downsamplers.0.conv", width, width, 3, 3)
    upwards = widths[::-1]
    for level, (width, kind) in enumerate(zip(upwards, config["up_block_types"], strict=True)):
        before, after = upwards[max(level - 1, 0)], upwards[min(level + 1, len(upwards) - 1)]
        inputs = [before + width] + [2 * width] * (layers - 1) + [width + after]
        yield from _blocks(f"up_blocks.{level}", inputs, width, embedded, names if "Attn" in kind else ())
        if level < len(upwards) - 1:
            yield from _layer(f"up_blocks.{level}.upsamplers.0.conv", width, width, 3, 3)
    yield from _attention("mid_block.attentions.0", widths[-1], names)
    for number in range(2):
        yield from _block(f"mid_block.resnets.{number}", widths[-1], widths[-1], embedded)
    yield from _norm("conv_norm_out", widths[0])
    yield from _layer("conv_out", config["out_channels"], widths[0], 3, 3)


def _blocks(name: str, inputs: Sequence[int], width: int, embedded: int, attention: Sequence[str]) -> Iterator[Named]:
    for number, channels in enumerate(inputs):
        yield from _block(f"{name}.resnets.{number}", channels, width, embedded)
        if attention:
            yield from _attention(f"{name}.attentions.{number}", width, attention)


def _block(name: str, channels: int, out_channels: int, embedded: int) -> Iterator[Named]:
    yield from _norm(f"{name}.norm1", channels)
    yield from _layer(f"{name}.conv1", out_channels, channels, 3, 3)
    yield from _layer(f"{name}.time_emb_proj", out_channels, embedded)
    yield from _norm(f"{name}.norm2", out_channels)
    yield from _layer(f"{name}.conv2", out_channels, out_channels, 3, 3)
    if channels != out_channels:
        yield from _layer(f"{name}.conv_shortcut", out_channels, channels, 1, 1)


def _attention(name: str, channels: int, names: Sequence[str]) -> Iterator[Named]:
    yield from _norm(f"{name}.group_norm", channels)
    for part in names:
        yield from _layer(f"{name}.{part}", channels, channels)


def _norm(name: str, channels: int) -> Iterator[Named]:
    yield f"{name}.weight", (channels,)
    yield f"{name}.bias", (channels,)


def _layer(name: str, *shape: int) -> Iterator[Named]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]
