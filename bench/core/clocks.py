"""The clocks of CPUs: caches that are cold but for what a network would find warm, and threads that have gone to sleep."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from purify_engine.benchmark.harness import Call, wall_clock

FLUSH = 100 * 2**20  # bytes; more than any cache of the processors meant here
REST = 0.05  # seconds


def rested(call: Call) -> float:
    """The wall clock, when all threads have gone to sleep."""
    time.sleep(REST)
    return wall_clock(call)


class ColdClock:
    """The wall clock, on caches that hold neither weights nor anything packed, but the image, and the memory of the last result.

    That memory is freed just before the call, and so is what the allocator gives it for its own.
    """

    def __init__(self, x: Tensor, flush: int = FLUSH) -> None:
        self.x, self.flush, self.result = x, torch.zeros(flush // 4), None

    def __call__(self, call: Callable[[], object]) -> float:
        self.flush.add_(1)
        self.x.sum()
        if isinstance(self.result, Tensor):
            self.result.sum()
        self.result = None

        def kept() -> None:
            self.result = call()

        return wall_clock(kept)
