"""What a trainer reports while it works: dicts that JSON can hold, passed to the caller's `progress`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Report = dict[str, Any]
Progress = Callable[[Report], None]


def silent(report: Report) -> None:
    """Report nothing."""


class LossMeter:
    """Averages the loss between two reports, and times them. Adds on the device, so that only a report waits for it."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.total: Tensor | float = 0.0
        self.count = 0
        self.since = time.perf_counter()

    def add(self, loss: Tensor) -> None:
        """Count one step's loss."""
        self.losses.append(loss.detach())
        self.total = self.total + loss.detach()
        self.count += 1

    def first_broken(self) -> tuple[int, float] | None:
        """How many steps ago, and what, the first loss since the last reading was that is no finite number."""
        if not self.losses or bool(torch.isfinite(torch.as_tensor(self.total, device="cpu"))):
            return None
        losses = torch.stack(self.losses).tolist()
        where = next((index for index, loss in enumerate(losses) if not math.isfinite(loss)), len(losses) - 1)
        return len(losses) - 1 - where, losses[where]

    def read(self) -> tuple[float, float]:
        """(mean loss, seconds a step) since the last reading."""
        loss = float(self.total) / self.count
        seconds = (time.perf_counter() - self.since) / self.count
        self.losses, self.total, self.count, self.since = [], 0.0, 0, time.perf_counter()
        return loss, seconds
