"""A user's images: what a purifier asks of them before it takes them, and their way to the model's space [-1, 1] and back.

`PurifierConfig.image_range` names the lowest and the highest value of the images on both sides.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from purify_engine import ops
from purify_engine.config import RANGE_ROUNDING, UNIT_RANGE, PurifierConfig, require
from purify_engine.engine.bridges import Bridge
from purify_engine.types import Ids, Images

NUM_DRAWS = 2**32
FROM_BYTES = {UNIT_RANGE: "images.float() / 255", (-1.0, 1.0): "images.float() / 127.5 - 1", (0.0, 255.0): "images.float()"}


def check_images(images: Images, channels: int, bridge: Bridge, device: torch.device, config: PurifierConfig) -> None:
    """Refuse what is no float [B, `channels`, H, W] in `config.image_range` on `device`, of a size that `bridge` takes.

    With `config.clip_input` any finite values are taken. Raises TypeError where `images` are not floats, ValueError elsewhere, in
    one line that says how to mend it.
    """
    wanted = f"[B, {channels}, {bridge.taken}]"
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        mend = f"; for uint8 use {FROM_BYTES[config.image_range]}" if config.image_range in FROM_BYTES else ""
        raise TypeError(f"images must be a float tensor in {_written(config.image_range)}, got {kind}{mend}")
    shape = list(images.shape)
    if len(shape) == 4 and shape[1] != channels and shape[3] == channels:
        raise ValueError(f"images must be NCHW {wanted}, got NHWC {shape}; use images.permute(0, 3, 1, 2)")
    require(len(shape) == 4 and shape[1] == channels, "images", wanted, shape)
    refusal = bridge.refusal(shape[2], shape[3])
    if refusal is not None:
        raise ValueError(f"images must be {wanted}, got {shape}; {refusal}")
    where = f"on the purifier's device {device} (or use purifier.to(...))"
    require(images.device == device, "images", where, str(images.device))
    if images.numel() and not images.is_meta:  # which hold no values
        _check_values(config, *(float(bound) for bound in images.detach().aminmax()))


def image_ids(images: Images, ids: Any = None) -> Ids:
    """`ids` as int64 [B] beside `images` [B, C, H, W], 0 … B - 1 where none are given.

    ids: a tensor, an array or a list of integers in [0, 2**63). ValueError, in one line, where they are not, or not one each.
    """
    if ids is None:
        return torch.arange(len(images), device=images.device)
    numbers = _whole("ids", ids, "integers, at least 0", 2**63)
    require(numbers.shape == images.shape[:1], "ids", f"one id an image, [{len(images)}]", list(numbers.shape))
    return numbers.to(images.device)


def image_draws(images: Images, draw: Any = None) -> int | Tensor | None:
    """Which independent draw of the noise: a number for all `images` [B, C, H, W], or int64 [B] on the CPU; None stays None.

    draw: an integer, or a tensor, an array or a list of B of them, in [0, 2**32). ValueError, in one line, where it is not.
    """
    if draw is None:
        return None
    if isinstance(draw, int) and not isinstance(draw, bool):
        require(0 <= draw < NUM_DRAWS, "draw", "in [0, 2**32)", draw)
        return draw
    numbers = _whole("draw", draw, f"an integer in [0, 2**32), or one an image, [{len(images)}]", NUM_DRAWS)
    if numbers.ndim == 0:
        return int(numbers)
    require(numbers.shape == images.shape[:1], "draw", f"an integer, or one an image, [{len(images)}]", list(numbers.shape))
    return numbers.cpu()


def in_model_space(images: Images, config: PurifierConfig) -> Images:
    """`config.image_range` to [-1, 1], in float32 at least."""
    low, high = config.image_range
    if config.clip_input:
        images = images.clamp(low, high)
    x = images.to(torch.promote_types(images.dtype, torch.float32))
    if config.image_range == UNIT_RANGE:
        return 2 * x - 1
    return (x - (low + high) / 2) / ((high - low) / 2)  # exactly -1 and 1 at the ends


def from_model_space(x: Images, images: Images, config: PurifierConfig) -> Images:
    """[-1, 1] to floats in `config.image_range` (docs/math.md E9), of the dtype and the memory format that `images` went in with.

    With `config.clamp` what lies outside is cut off, and its gradient with it.
    """
    return _laid_out_as(_from_model_space(x, images.dtype, config), images)


def refuse_other_ranges(purifier: nn.Module) -> None:
    """Refuse a purifier of other images than those in [0, 1], which files hold and attacks project to."""
    given = getattr(getattr(purifier, "config", None), "image_range", UNIT_RANGE)
    mend = "(0, 1) here, where images lie in [0, 1] (use purifier.configured(image_range=(0, 1)))"
    require(given == UNIT_RANGE, "image_range", mend, given)


def _from_model_space(x: Images, dtype: torch.dtype, config: PurifierConfig) -> Images:
    low, high = config.image_range
    if config.image_range == UNIT_RANGE:
        return ops.to_images(x, dtype) if config.clamp else ((x + 1) / 2).to(dtype)
    images = x * ((high - low) / 2) + (low + high) / 2
    return (images.clamp(low, high) if config.clamp else images).to(dtype)


def _laid_out_as(out: Images, images: Images) -> Images:
    """`out` with the strides that `torch.empty_like(images)` has: its own where they are these already."""
    if out.stride() == images.stride():
        return out
    laid_out = torch.empty_like(images, requires_grad=False)
    return out if out.stride() == laid_out.stride() else laid_out.copy_(out)


def _check_values(config: PurifierConfig, low: float, high: float) -> None:
    if low != low or high != high:
        raise ValueError("images must be finite, got NaN; find them with images.isnan().flatten(1).any(1)")
    (least, most), said = config.image_range, _written(config.image_range)
    if config.clip_input:
        require(max(-low, high) < float("inf"), "images", f"finite, to be cut to {said}", [low, high])
        return
    slack = RANGE_ROUNDING * (most - least)
    if low < least - slack or high > most + slack:
        known = "; for 0…255 divide by 255, for normalised images undo the normalisation"
        known = known if config.image_range == UNIT_RANGE else ""
        others = "image_range=(low, high) takes another range, clip_input=True cuts what leaves it"
        raise ValueError(f"images must be in {said}, got values in [{low:g}, {high:g}]{known}; {others}")


def _whole(name: str, given: Any, allowed: str, end: int) -> Tensor:
    """A number, a list, an array or a tensor of integers as int64, all in [0, `end`)."""
    numbers = given if isinstance(given, Tensor) else _as_tensor(name, given, allowed)
    is_whole = not (numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool)
    require(is_whole, name, allowed, numbers.dtype)
    numbers = numbers.to(torch.int64)
    if numbers.numel() and not numbers.is_meta:
        low, high = (int(bound) for bound in numbers.aminmax())
        require(low >= 0 and high < end, name, allowed, low if low < 0 else high)
    return numbers


def _as_tensor(name: str, given: Any, allowed: str) -> Tensor:
    try:
        array = np.asarray(given)
    except (TypeError, ValueError) as mixed:  # lists of several lengths, tensors of a GPU in a list
        raise ValueError(f"{name} must be {allowed}, got a {type(given).__name__} that is no array of numbers") from mixed
    if array.dtype.kind not in "iu" and not (array.size == 0 and isinstance(given, list | tuple)):
        require(False, name, allowed, given if array.ndim == 0 else f"{type(given).__name__} of {array.dtype}")
    return torch.from_numpy(array.astype(np.int64))


def _written(bounds: tuple[float, float]) -> str:
    return f"[{bounds[0]:g}, {bounds[1]:g}]"
