"""Random values for the tensors of a published layout."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def drawn(shapes: Mapping[str, tuple[int, ...]], seed: int = 0, device: str = "cpu") -> dict[str, Tensor]:
    """A float32 tensor of each shape, in the same order; values keep activations of order one. On "meta" there are none."""
    if device == "meta":
        return {name: torch.empty(shape, device=device) for name, shape in shapes.items()}
    generator = torch.Generator().manual_seed(seed)

    def one(shape: tuple[int, ...]) -> Tensor:
        spread = math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.5
        return torch.randn(shape, generator=generator, device=device) * spread

    return {name: one(shape) for name, shape in shapes.items()}
