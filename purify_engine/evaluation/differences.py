"""Central differences along random directions, and how far a gradient is from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from purify_engine.types import Images

FLOOR = 1e-3  # of a gradient's length: a direction nearly orthogonal to it has no relative error


def normal(shape: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal float64 numbers of `shape`, drawn on the CPU: the same on every device."""
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64, device="cpu").to(device)


@torch.no_grad()
def central_differences(function: Callable[[Tensor], Tensor], images: Images, directions: Tensor, step: float) -> Tensor:
    """Derivative [D, B] along each direction [D, B, C, H, W] of `function`, which takes images [..., B, C, H, W] to [..., B]."""
    offsets = step * directions
    ahead, behind = function(torch.stack([images + offsets, images - offsets]))
    return (ahead - behind) / (2 * step)


def errors_along(grad: Tensor, directions: Tensor, differences: Tensor) -> Tensor:
    """|<grad, v> - difference| over |<grad, v>| or `FLOOR` of the gradient's length [D, B], whichever is larger."""
    along = (grad * directions).flatten(2).sum(dim=2)
    floor = FLOOR * grad.flatten(1).norm(dim=1)
    return (along - differences).abs() / torch.maximum(along.abs(), floor).clamp(min=1e-300)
