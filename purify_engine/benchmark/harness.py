"""Timing that can be trusted: named variants in turn, events on a GPU with the cache cold and warm, quantiles, nothing lost.

Variants are measured round-robin in one run, so that a machine that warms up or is shared slows all of them alike. A figure is
a median with its spread; figures of different runs are never divided by one another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from purify_engine.config import require
from purify_engine.files import append_json_line, read_json_lines

Call = Callable[[], object]
Clock = Callable[[Call], float]  # runs the call once and gives its seconds

LEAST_FLUSH = 2**27  # bytes; more than twice the last-level cache of any GPU so far


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, over `n` calls: quantiles by linear interpolation between order statistics."""

    n: int
    min: float
    q25: float
    median: float
    q75: float
    p90: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """The quantiles of at least one measurement."""
        require(len(seconds) > 0, "seconds", "at least one measurement", list(seconds))
        return cls(len(seconds), *np.quantile(seconds, (0, 0.25, 0.5, 0.75, 0.9, 0.99)).tolist())

    @property
    def spread(self) -> float:
        """The interquartile range."""
        return self.q75 - self.q25

    def record(self) -> dict[str, float]:
        """As the keys of a JSON line, seconds."""
        return {**asdict(self), "spread": self.spread}


def wall_clock(call: Call) -> float:
    """Seconds of a call that computes on the CPU."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


class CudaClock:
    """Seconds between two events around a call on a GPU: `device`, by default the current one.

    cold: the L2 cache is flushed before every call, by writing a buffer of at least twice its size; otherwise the call finds what
    the one before it left. queued: the device is kept busy until the host has queued the whole call, so that the time is the
    device's alone; otherwise the host's launches count where the device waits for them, as they do for a user.
    """

    HOLD = 2_000_000  # device clock cycles: a millisecond, longer than the host takes to queue one op

    def __init__(self, *, cold: bool, queued: bool = False, device: torch.device | str = "cuda") -> None:
        self.queued, self.device = queued, device
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        size = max(LEAST_FLUSH, 2 * torch.cuda.get_device_properties(device).L2_cache_size)
        self.flush = torch.empty(size, dtype=torch.uint8, device=device) if cold else None

    def __call__(self, call: Call) -> float:
        with torch.cuda.device(self.device):  # events, waiting and sleeping are the current device's
            return self._timed(call)

    def _timed(self, call: Call) -> float:
        if self.flush is not None:
            self.flush.zero_()
        if self.queued:
            torch.cuda._sleep(self.HOLD)
        else:
            torch.cuda.synchronize()
        self.start.record()
        call()
        self.end.record()
        self.end.synchronize()
        return self.start.elapsed_time(self.end) / 1000


def clocks(device: torch.device | str, *, queued: bool = False) -> dict[str, Clock]:
    """The clocks of a device by the state of its cache: "cold" and "warm" on a GPU, "warm" on a CPU."""
    if torch.device(device).type != "cuda":
        return {"warm": wall_clock}
    return {name: CudaClock(cold=name == "cold", queued=queued, device=device) for name in ("cold", "warm")}


def interleaved(
    variants: Mapping[str, Call], clock: Clock, *, seconds: float = 5.0, least: int = 5, most: int = 1000, warm_up: int = 3
) -> dict[str, Timing]:
    """Every variant in turn, round after round, until `seconds` are over: at least `least` rounds, at most `most`.

    `warm_up` rounds come first and are not counted: compilation, algorithm choice, allocation. The budget is for all together.
    """
    require(least >= 1, "least", "at least 1", least)
    for _ in range(warm_up):
        for call in variants.values():
            clock(call)
    taken: dict[str, list[float]] = {name: [] for name in variants}
    ends = time.monotonic() + seconds
    rounds = 0
    while rounds < least or (rounds < most and time.monotonic() < ends):
        for name, call in variants.items():
            taken[name].append(clock(call))
        rounds += 1
    return {name: Timing.of(measured) for name, measured in taken.items()}


class Records:
    """A file of JSON lines that only grows: each line is on the disk before the next measurement begins.

    `common` stands in every line. A file whose last line a kill cut short goes on in a fresh line.
    """

    def __init__(self, path: Path, **common: Any) -> None:
        self.path, self.common = path, common

    def __call__(self, **record: Any) -> dict[str, Any]:
        whole = {**self.common, **record}
        append_json_line(self.path, whole)
        return whole


def read_records(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The lines of some files of records, in order; one cut short by a kill is not one."""
    return [record for path in paths for record in read_json_lines(path)]
