"""The processes that train one network together, as torchrun started them: each has a share of every batch.

Gradients are added up once a step, in one piece, after the last part of the batch: a loss may run the network as often as it
likes, also in eval mode and for gradients of images, which the hooks of DistributedDataParallel do not allow for.
"""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor, nn

from purify_engine.config import require

PATIENCE = timedelta(hours=2)  # while the first process measures and writes


@dataclass(frozen=True)
class Processes:
    """This process among all that train together."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether it is the one that reports and writes."""
        return self.rank == 0

    def parts(self, batch_size: int, accumulate: int) -> list[slice]:
        """This process's share of a batch, in `accumulate` parts whose sizes differ by one image at most."""
        every = self.count * accumulate
        require(batch_size >= every, "batch_size", f"at least {every}, an image for each part in each process", batch_size)
        edges = [batch_size * index // every for index in range(every + 1)]
        return [slice(*ends) for ends in pairwise(edges[self.rank * accumulate : (self.rank + 1) * accumulate + 1])]

    def add_up(self, tensors: list[Tensor]) -> None:
        """Each becomes the sum of it over the processes, in place."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view(tensor.shape))

    def average_buffers(self, model: nn.Module) -> None:
        """Batch norms saw their process's images only: their statistics become the mean over the processes."""
        buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        if self.count > 1 and buffers:
            self.add_up(buffers)
            torch._foreach_div_(buffers, float(self.count))

    def largest(self, numbers: tuple[float, ...], device: torch.device) -> tuple[float, ...]:
        """The largest of each over the processes, so that all decide alike."""
        if self.count == 1:
            return numbers
        together = torch.tensor(numbers, dtype=torch.float64, device=device)
        dist.all_reduce(together, dist.ReduceOp.MAX)
        return tuple(together.tolist())

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()


def join() -> Processes:
    """This process among those of its torchrun, or of the group that its program has set up; alone where there is neither.

    Under torchrun the process's GPU, that of its LOCAL_RANK, becomes the current one, which is what the device "auto" means.
    """
    if not dist.is_available():
        return Processes()
    if not dist.is_initialized():
        if not dist.is_torchelastic_launched():
            return Processes()
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
        atexit.register(dist.destroy_process_group)
    return Processes(dist.get_rank(), dist.get_world_size())
