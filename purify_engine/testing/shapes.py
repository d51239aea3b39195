"""Shapes, layouts and variants at which ops are tested: what `cases.py` makes its calls of."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Layout = Literal["contiguous", "channels_last", "strided", "expanded"]
LAYOUTS: tuple[Layout, ...] = ("contiguous", "channels_last", "strided", "expanded")
DTYPES = (torch.float32, torch.float64)

# Around the sizes at which kernels change their mind: one element, a tile of 32, a task of 4096, a batch of none.
SHAPES = (
    (0, 3, 4, 4),
    (2, 2, 0, 3),
    (1, 1, 1, 1),
    (3, 1, 1, 7),
    (2, 3, 1, 1),
    (2, 1, 5, 6),
    (1, 4, 9, 2),
    (5, 1, 8, 8),
    (2, 2, 4, 4),
    (2, 3, 31, 33),
    (1, 3, 17, 16),
    (3, 3, 32, 32),
    (1, 6, 37, 19),
)
NUMELS = (*range(40), 63, 64, 65, 127, 255, 1000, 4095, 4096, 4097, 9001)  # elements of one image, for the ops that know no shape
DRAWING = ("philox", "philox_normal", "q_sample", "guided_step")
KEYED = ((3, 65), (2, 3, 31, 33))  # at which every image has a key of its own, too
# Shape and groups. One element a group has no spread at all: only norm_eps keeps it finite.
NORM_SHAPES = (
    ((0, 4, 3, 3), 2),
    ((2, 4, 0, 3), 2),
    ((1, 1, 1, 1), 1),
    ((2, 6, 1, 1), 3),
    ((2, 5, 3, 1), 5),
    ((3, 4, 1, 9), 1),
    ((1, 8, 5, 5), 4),
    ((2, 32, 4, 4), 32),
    ((2, 12, 7, 9), 3),
    ((1, 64, 8, 8), 32),
    ((2, 8, 31, 17), 2),
    ((3, 16, 16, 16), 8),
    ((1, 96, 3, 5), 32),
)
# Shape and groups: odd sizes, one pixel, channels that are no multiple of anything.
CONV_SHAPES = (
    ((0, 4, 3, 3), 2),
    ((1, 1, 1, 1), 1),
    ((2, 3, 5, 7), 3),
    ((1, 8, 4, 4), 2),
    ((2, 20, 9, 6), 4),
    ((1, 32, 16, 16), 8),
)
CONV_VARIANTS = (
    "plain",
    "bias-temb",
    "norm-bias-shared-temb",
    "norm-scale-bias-residual-gain",
    "bias-up",
    "norm-bias-up-residual",
)
SUM_VARIANTS = {
    "sum_norm_silu": (
        "bias-temb-only",
        "bias-shared-temb-scale-shift-only",
        "residual-bias-gain",
        "residual-bias-skip-scale-shift",
        "bias-linear",
        "skip-only",
    ),
    "sum_norm_silu_backward": ("plain", "residual", "residual-scale-shift", "residual-shift-linear"),
    "residual_sum": ("plain", "bias", "residual-bias", "residual-bias-gain", "residual"),
}
RELU_VARIANTS = ("bias", "line", "line-bias-residual", "residual")


def laid_out(images: Tensor, layout: Layout) -> Tensor:
    """The same shape in another layout. `strided` has gaps; `expanded` repeats one plane of one image, its strides being 0."""
    if layout == "channels_last":
        return images.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        return torch.stack((images, torch.full_like(images, torch.nan)), dim=-1)[..., 0]
    if layout == "expanded":
        return images[:1, :1].expand(images.shape)
    return images
