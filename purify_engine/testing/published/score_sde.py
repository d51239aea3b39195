"""DDPM++ of score_sde in PyTorch (Song et al. 2021): names and shapes as its module list makes them, and its training file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from purify_engine.testing.published.drawing import drawn

Shape = tuple[int, ...]
SMALL: dict[str, Any] = {"nf": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (4,), "image_size": 8}
DDPMPP: dict[str, Any] = {
    "nf": 128,
    "ch_mult": (1, 2, 2, 2),
    "num_res_blocks": 4,
    "attn_resolutions": (16,),
    "image_size": 32,
}
DDPMPP_DEEP = {**DDPMPP, "num_res_blocks": 8}


def state_dict(*, seed: int = 0, device: str = "cpu", **network: Any) -> dict[str, Tensor]:
    """The model's tensors, the buffer of noise levels first; `network` is as SMALL."""
    modules = enumerate(_modules(**network))
    shapes = {f"all_modules.{number}.{name}": shape for number, module in modules for name, shape in module.items()}
    sigmas = torch.linspace(50.0, 0.01, 1000, dtype=torch.float64, device=device)
    return {"sigmas": sigmas, **drawn(shapes, seed, device)}


def training_file(averages: dict[str, Tensor]) -> dict[str, Any]:
    """What `checkpoint_8.pth` holds: a model of another state than `averages`, which are listed in the model's order."""
    model = {f"module.{name}": tensor if name == "sigmas" else tensor + 1 for name, tensor in averages.items()}
    shadow = [tensor for name, tensor in averages.items() if name != "sigmas"]
    moments = {"step": 7, "exp_avg": torch.zeros(2, device="cpu")}
    optimizer = {"state": {0: moments}, "param_groups": [{"lr": 2e-4, "params": [0]}]}
    ema = {"decay": 0.9999, "num_updates": 7, "shadow_params": shadow}
    return {"optimizer": optimizer, "model": model, "ema": ema, "step": 7}


def _modules(
    nf: int, ch_mult: Sequence[int], num_res_blocks: int, attn_resolutions: Sequence[int], image_size: int, num_channels: int = 3
) -> Iterator[dict[str, Shape]]:
    yield _layer(4 * nf, nf)
    yield _layer(4 * nf, 4 * nf)
    yield _layer(nf, num_channels, 3, 3)
    skips, channels, last = [nf], nf, len(ch_mult) - 1
    for level, mult in enumerate(ch_mult):
        for _ in range(num_res_blocks):
            yield _block(channels, nf * mult, nf)
            channels = nf * mult
            skips.append(channels)
            if image_size >> level in attn_resolutions:
                yield _attention(channels)
        if level != last:
            yield _block(channels, channels, nf, resamples=True)
            skips.append(channels)
    yield _block(channels, channels, nf)
    yield _attention(channels)
    yield _block(channels, channels, nf)
    for level, mult in reversed(list(enumerate(ch_mult))):
        for _ in range(num_res_blocks + 1):
            yield _block(channels + skips.pop(), nf * mult, nf)
            channels = nf * mult
        if image_size >> level in attn_resolutions:
            yield _attention(channels)
        if level != 0:
            yield _block(channels, channels, nf, resamples=True)
    yield {"weight": (channels,), "bias": (channels,)}
    yield _layer(num_channels, channels, 3, 3)


def _layer(*shape: int, name: str = "") -> dict[str, Shape]:
    return {f"{name}weight": shape, f"{name}bias": shape[:1]}


def _norm(channels: int, name: str) -> dict[str, Shape]:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def _block(channels: int, out_channels: int, nf: int, resamples: bool = False) -> dict[str, Shape]:
    shapes = {
        **_norm(channels, "GroupNorm_0"),
        **_layer(out_channels, channels, 3, 3, name="Conv_0."),
        **_layer(out_channels, 4 * nf, name="Dense_0."),
        **_norm(out_channels, "GroupNorm_1"),
        **_layer(out_channels, out_channels, 3, 3, name="Conv_1."),
    }
    if resamples or channels != out_channels:
        shapes.update(_layer(out_channels, channels, 1, 1, name="Conv_2."))
    return shapes


def _attention(channels: int) -> dict[str, Shape]:
    shapes = _norm(channels, "GroupNorm_0")
    for number in range(4):
        shapes.update({f"NIN_{number}.W": (channels, channels), f"NIN_{number}.b": (channels,)})
    return shapes
