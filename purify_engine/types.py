"""Shapes as names. B images of C channels, H by W pixels; K classes; F features; N reverse steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:  # a type checker reads plain tensors; the names stay as documentation
    Images: TypeAlias = Tensor
    Timesteps: TypeAlias = Tensor
    Logits: TypeAlias = Tensor
    Features: TypeAlias = Tensor
    Labels: TypeAlias = Tensor
    Ids: TypeAlias = Tensor
    Key: TypeAlias = Tensor
    Step: TypeAlias = Tensor
    Rows: TypeAlias = Tensor
    Marginal: TypeAlias = Tensor
else:
    Images = Float[Tensor, "B C H W"]
    Timesteps = Float[Tensor, "B"]
    Logits = Float[Tensor, "B K"]
    Features = Float[Tensor, "B F"]
    Labels = Int[Tensor, "B"]
    Ids = Int[Tensor, "B"]  # image ids, int64
    Key = Int[Tensor, ""] | Int[Tensor, "B"]  # the seed of all images, or one for each; int64, on the device
    Step = Int[Tensor, ""]  # index of the reverse step, int64, on the device
    Rows = Float[Tensor, "N 4"]  # (a, b, d, c) a reverse step
    Marginal = Float[Tensor, "2"]  # (sqrt(alpha_bar), sqrt(1 - alpha_bar))


class NoiseKey(NamedTuple):
    """Which noise: the seed, of all images [] or of each [B], and the id of each image; both int64 on the images' device."""

    key: Key
    ids: Ids


class GuideNoise(NoiseKey):
    """The noise of a guide's own: its key was derived from that of the process."""
