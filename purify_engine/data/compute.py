"""What purifies a batch: a purifier, between NumPy arrays."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from purify_engine.config import to_dict
from purify_engine.images import refuse_other_ranges


class PurifierCompute:
    """A purifier, or any module called as one: `purifier(images, ids=...)`, float32 in [0, 1]."""

    def __init__(self, purifier: nn.Module) -> None:
        refuse_other_ranges(purifier)
        self.purifier = purifier
        self.device = next((buffer.device for buffer in purifier.buffers()), torch.device("cpu"))

    def start(self, images: np.ndarray, ids: np.ndarray) -> Tensor:
        batch, keys = torch.from_numpy(images).to(self.device), torch.from_numpy(ids).to(self.device)
        with torch.no_grad():
            return self.purifier(batch.float() / 255 if batch.dtype == torch.uint8 else batch, ids=keys)

    def finish(self, started: Tensor) -> np.ndarray:
        return started.float().cpu().numpy()

    def is_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, MemoryError | torch.OutOfMemoryError)

    def identity(self) -> dict[str, Any]:
        config = getattr(self.purifier, "config", None)
        return {"config": {} if config is None else to_dict(config), "weights": weights_digest(self.purifier)}


def weights_digest(module: nn.Module) -> str:
    """One hash of all parameters and buffers, by name."""
    digest = hashlib.sha256(type(module).__name__.encode())
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        if not tensor.is_meta:  # which hold no values
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
