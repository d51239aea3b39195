"""A user's images: what a purifier asks of them before it takes them, and their way to the model's space [-1, 1] and back."""

from __future__ import annotations

import torch
from torch import Tensor

from purify_engine import ops
from purify_engine.config import require
from purify_engine.engine.bridges import Bridge
from purify_engine.types import Ids, Images

ROUNDING = 1e-4  # how far outside [0, 1] a float image may lie before it is not an image


def check_images(images: Images, channels: int, bridge: Bridge, device: torch.device) -> None:
    """Refuse what is no float [B, `channels`, H, W] in [0, 1] on `device`, of a size that `bridge` takes.

    Raises TypeError where `images` are not floats, ValueError elsewhere, in one line that says how to mend it.
    """
    wanted = f"[B, {channels}, {bridge.taken}]"
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a float tensor in [0, 1], got {kind}; for uint8 use images.float() / 255")
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
        _check_range(*(float(bound) for bound in images.detach().aminmax()))


def image_ids(images: Images, ids: Ids | None = None) -> Ids:
    """`ids` as int64 [B] beside `images` [B, C, H, W], 0 … B - 1 where none are given; ValueError where they are not one each."""
    if ids is None:
        return torch.arange(len(images), device=images.device)
    require(ids.shape == images.shape[:1], "ids", f"one id an image, [{len(images)}]", list(ids.shape))
    require(not ids.is_floating_point(), "ids", "integers", ids.dtype)
    return ids.to(images.device, torch.int64)


def in_model_space(images: Images) -> Images:
    """[0, 1] to [-1, 1], in float32 at least."""
    return 2 * images.to(torch.promote_types(images.dtype, torch.float32)) - 1


def from_model_space(x: Images, dtype: torch.dtype, *, clamp: bool) -> Images:
    """[-1, 1] to floats in [0, 1] (docs/math.md E9). `clamp`: cut off what lies outside, and its gradient with it."""
    return ops.to_images(x, dtype) if clamp else ((x + 1) / 2).to(dtype)


def _check_range(low: float, high: float) -> None:
    if low != low or high != high:
        raise ValueError("images must be finite, got NaN; find them with images.isnan().flatten(1).any(1)")
    hint = "; for 0…255 divide by 255, for normalised images undo the normalisation"
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise ValueError(f"images must be in [0, 1], got values in [{low:g}, {high:g}]{hint}")
