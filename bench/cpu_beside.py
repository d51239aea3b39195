"""Part `beside` of `bench_cpu`: is a host's own PyTorch work slower because the engine ran before it?

The engine computes on PyTorch's OpenMP threads and keeps none of its own, so whatever a host calls next finds them free. That
is timed: the same work right after a call of the U-Net, by the engine and by eager PyTorch, without a rest in between, and alone,
right after itself. After either U-Net the caches hold the U-Net's data; eager PyTorch shows what that alone costs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
import torch.nn.functional as F

from bench.cpu_subjects import Setting
from bench.run import Run
from purify_engine.benchmark.chart import duration
from purify_engine.benchmark.harness import Call, Clock, interleaved, wall_clock

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


def measure(run: Run, label: str, setting: Setting, calls: Mapping[str, Call], *, rest: float) -> None:
    """Every work of the host alone and after each of the calls, in turn, and a line for each."""
    rounds = TOY_ROUNDS if run.toy else ROUNDS
    for host, work in works(toy=run.toy).items():
        clock = right_after(work, rest=rest)
        timings = interleaved({ALONE: work, **calls}, clock, seconds=0.0, least=rounds, warm_up=1)
        for after, timing in timings.items():
            text = f"{label:<56} {host:<32} after {after:<12} {duration(timing.median):>9}"
            run.figure(text, kind="beside", case=label, **vars(setting), host=host, after=after, **timing.record())
