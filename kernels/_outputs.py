"""The one place where host functions allocate what their kernels fill: a test poisons it here.

Call it as `_outputs.empty(...)`, through the module.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device, channels_last: bool = False) -> Tensor:
    """Memory for a result, contiguous, or channels_last where it has four dimensions and the networks read it so."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=dtype, device=device, memory_format=layout)
