"""How much memory there is, how much a computation takes, and how many images therefore are attacked at once."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from purify_engine.types import Images

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
PER_NUMBER = 128 * 2**10  # bytes that the exact gradient of a large U-Net (35.7 M, CIFAR-10) holds for each number of its images
SHARE_OF_GPU, SHARE_OF_MACHINE = 0.7, 0.4  # of what is free: the rest is for what was not measured, and for others
UNMEASURED = 32  # images at once where memory cannot be read
PROBED = 2


@dataclass
class Peak:
    """The most bytes held beyond those at the beginning; None where the system does not tell."""

    bytes: int | None = None


@contextmanager
def peak_of(device: torch.device) -> Iterator[Peak]:
    """What is run inside, on `device`: PyTorch's own count on GPUs, this process's resident memory elsewhere."""
    found = Peak()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        torch.cuda.synchronize(device)
        found.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    known = _forget_peak()
    resident, highest = _resident("VmRSS"), _resident("VmHWM")
    yield found
    after = _resident("VmHWM")
    if resident is not None and highest is not None and after is not None and (known or after > highest):
        found.bytes = max(0, after - resident)


def free_bytes(device: torch.device) -> int | None:
    """What may be taken: of a GPU's free memory, or of the machine's and of this process's group; None where nothing tells it."""
    if device.type == "cuda":
        return int(SHARE_OF_GPU * torch.cuda.mem_get_info(device)[0])
    said = [value for value in (_available(), _left_to_group()) if value is not None]
    return int(SHARE_OF_MACHINE * min(said)) if said else None


def images_at_once(images: Images, gradient: Callable[[int], object], most: int, processes: int = 1) -> int:
    """How many of `images` [N, C, H, W] fit into memory, in [1, most]; `gradient(n)` is the costliest thing done to n of them.

    Small images are all taken at once without a trial.
    """
    free = free_bytes(images.device)
    if free is None:
        return min(most, UNMEASURED)
    free //= processes
    if images[:most].numel() * PER_NUMBER <= free or len(images) <= PROBED:
        return most
    gradient(1)  # what is prepared once and kept
    with peak_of(images.device) as peak:
        gradient(PROBED)
    if peak.bytes is None:
        return min(most, UNMEASURED)
    by_estimate = PER_NUMBER * images[0].numel() // 64  # a trial that found freed memory again says too little
    return max(1, min(most, free // max(by_estimate, peak.bytes // PROBED)))


def _forget_peak() -> bool:
    try:
        asked = os.open(CLEAR_REFS, os.O_WRONLY)
    except OSError:
        return False
    try:
        os.write(asked, b"5")
    except OSError:
        return False
    finally:
        os.close(asked)
    return True


def _resident(name: str) -> int | None:
    try:
        found = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return None if found is None else 1024 * int(found[1])


def _available() -> int | None:
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    except OSError:
        return None
    return None if found is None else 1024 * int(found[1])


def _left_to_group() -> int | None:
    """Of a container's limit (cgroup v2)."""
    try:
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text(encoding="ascii") for name in ("max", "current"))
        return int(limit) - int(used)
    except (OSError, ValueError):  # no such file, or "max"
        return None
