"""What purifies a batch: a purifier, between NumPy arrays."""

from __future__ import annotations

import hashlib
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from purify_engine.config import to_dict
from purify_engine.images import refuse_other_ranges

# What libraries say that have no kind of error for it: CUDA itself, PyTorch on Apple's GPUs and on CPUs, cuBLAS and cuDNN.
OUT_OF_MEMORY = (
    "CUDA error: out of memory", "backend out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED",
)  # fmt: skip


class PurifierCompute:
    """A purifier, or any module called as one: `purifier(images, ids=...)`, float32 in [0, 1]."""

    def __init__(self, purifier: nn.Module) -> None:
        refuse_other_ranges(purifier)
        self.purifier = purifier
        held = chain(purifier.buffers(), purifier.parameters())
        self.device = next((tensor.device for tensor in held), torch.device("cpu"))
        self.way: Here | SideStreams = SideStreams(self.device) if self.device.type == "cuda" else Here(self.device)

    def start(self, images: np.ndarray, ids: np.ndarray) -> Any:
        """Begin with a batch: uint8, or float32 in [0, 1], [B, C, H, W]. On a GPU this returns before it is done."""
        batch, keys = self.way.there(images, ids)
        with torch.no_grad():
            purified = self.purifier(batch.float() / 255 if batch.dtype == torch.uint8 else batch, ids=keys)
        return self.way.back(purified)

    def finish(self, started: Any) -> np.ndarray:
        """Wait for what `start` returned: float32 [B, C, H, W]."""
        return self.way.arrived(started).numpy()

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether fewer images at once may do."""
        said = isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
        return said or isinstance(error, MemoryError | torch.OutOfMemoryError)

    def thread_choices(self) -> list[int]:
        """How many threads may compute, from PyTorch's own number down; none on a GPU, where they make no difference."""
        most = torch.get_num_threads()
        return [most >> halvings for halvings in range(most.bit_length())] if self.device.type == "cpu" else []

    def use_threads(self, threads: int) -> None:
        """Of this process, for all of PyTorch."""
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)

    def identity(self) -> dict[str, Any]:
        config = getattr(self.purifier, "config", None)
        return {"config": {} if config is None else to_dict(config), "weights": weights_digest(self.purifier)}


class Here:
    """The way to a CPU, where images lie in memory that it reads, and to every other device that has no streams of ours."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def there(self, images: np.ndarray, ids: np.ndarray) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(images).to(self.device), torch.from_numpy(ids).to(self.device)

    def back(self, purified: Tensor) -> Tensor:
        return purified.float().cpu()

    def arrived(self, started: Tensor) -> Tensor:
        return started


class SideStreams:
    """The way to a GPU and back beside its work: one stream brings images, one takes them away, the current one purifies.

    Memory of the host is pinned, by an allocator of PyTorch's that hands it out again once no copy needs it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.to, self.fro = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def __reduce__(self) -> tuple[type[SideStreams], tuple[torch.device]]:
        return SideStreams, (self.device,)  # streams are a process's own

    def there(self, images: np.ndarray, ids: np.ndarray) -> tuple[Tensor, Tensor]:
        pinned = [torch.from_numpy(array).pin_memory() for array in (images, ids)]
        purifying = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.to):
            batch, keys = (tensor.to(self.device, non_blocking=True) for tensor in pinned)
        purifying.wait_stream(self.to)
        for tensor in (batch, keys):
            tensor.record_stream(purifying)  # its memory belongs to the other stream, which must not use it again before
        return batch, keys

    def back(self, purified: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        self.fro.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.fro):
            host = torch.empty(purified.shape, dtype=torch.float32, device="cpu", pin_memory=True)
            host.copy_(purified, non_blocking=True)
            purified.record_stream(self.fro)
            there = torch.cuda.Event()
            there.record(self.fro)
        return host, there

    def arrived(self, started: tuple[Tensor, torch.cuda.Event]) -> Tensor:
        host, there = started
        there.synchronize()
        return host


def weights_digest(module: nn.Module) -> str:
    """One hash of all parameters and buffers, by name."""
    digest = hashlib.sha256(type(module).__name__.encode())
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        if not tensor.is_meta:  # which hold no values
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
