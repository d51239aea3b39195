"""A host's own PyTorch work: is it slower because the engine ran before it?

The engine computes on PyTorch's OpenMP threads and keeps none of its own, so whatever a host calls next finds them free. That
is timed: the same work right after a call of the U-Net, by the engine and by eager PyTorch, without a rest in between, and alone,
right after itself. After either U-Net the caches hold the U-Net's data; eager PyTorch shows what that alone costs.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F

from purify_engine.benchmark.harness import Call, Clock, wall_clock

ALONE = "nothing"
ROUNDS, TOY_ROUNDS = 30, 2


def works(*, toy: bool = False) -> dict[str, Call]:
    """What a host may compute of its own, in float32, by name."""
    side, channels, pixels, batch = (32, 4, 8, 2) if toy else (1024, 64, 32, 8)
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, side, side, generator=generator).unbind()
    x = torch.randn(batch, channels, pixels, pixels, generator=generator)
    weight = torch.randn(channels, channels, 3, 3, generator=generator)
    return {
        f"matmul {side}x{side}": lambda: left @ right,
        f"conv2d {channels}->{channels}, {pixels} px, batch {batch}": lambda: F.conv2d(x, weight, padding=1),
    }


def right_after(work: Call, *, rest: float) -> Clock:
    """A clock of `work`: what it is given runs just before, untimed, and before that all threads rest."""

    def clock(call: Call) -> float:
        time.sleep(rest)
        call()
        return wall_clock(work)

    return clock
