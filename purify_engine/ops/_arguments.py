"""What belongs together among the ops' arguments: one thing everywhere, but flat in the schemas, which know no such tuples."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Norm(NamedTuple):
    """A GroupNorm of C channels, then `* (1 + scale) + shift` where given."""

    weight: Tensor  # [C]
    bias: Tensor  # [C]
    scale: Tensor | None  # [B, C]
    shift: Tensor | None  # [B, C]
    num_groups: int
    norm_eps: float

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self[:4]


class Around(NamedTuple):
    """What surrounds a convolution to K channels in a U-Net: gain (residual + conv(up(x)) + bias + temb)."""

    bias: Tensor | None = None  # [K]
    temb: Tensor | None = None  # [B or 1, K]
    residual: Tensor | None = None  # of the result's shape
    gain: float = 1.0
    upsample: bool = False  # every pixel 2x2 before the convolution

    @property
    def zoom(self) -> int:
        """How much larger the result's sides are."""
        return 2 if self.upsample else 1


class Summands(NamedTuple):
    """What is added to a convolution's result x before a norm reads it: gain (residual + x + bias + temb), then the skip."""

    residual: Tensor | None = None  # of x's shape
    bias: Tensor | None = None  # [K]
    temb: Tensor | None = None  # [B or 1, K]
    skip: Tensor | None = None  # [B, C', H, W]: more channels
    gain: float = 1.0


class Affine(NamedTuple):
    """slope x + offset in each of C channels; x itself where both are None."""

    slope: Tensor | None = None  # [C]
    offset: Tensor | None = None  # [C]
