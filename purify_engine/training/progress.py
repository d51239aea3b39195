"""What a trainer reports while it works: dicts that JSON can hold, passed to the caller's `progress`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

Report = dict[str, Any]
Progress = Callable[[Report], None]


def silent(report: Report) -> None:
    """Report nothing."""


class LossMeter:
    """Averages the loss between two reports, and times them. Adds on the device, so that only a report waits for it."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0
        self.since = time.perf_counter()

    def add(self, loss: Tensor) -> None:
        """Count one step's loss."""
        self.total = self.total + loss.detach()
        self.count += 1

    def read(self) -> tuple[float, float]:
        """(mean loss, seconds a step) since the last reading."""
        loss = float(self.total) / self.count
        seconds = (time.perf_counter() - self.since) / self.count
        self.total, self.count, self.since = 0.0, 0, time.perf_counter()
        return loss, seconds
