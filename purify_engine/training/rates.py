"""The learning rate over a training: up while it warms up, held, and down again before its end."""

from __future__ import annotations

import math

from purify_engine.config import Training

AFTER_THE_DROP = 0.1


def rate_at(position: float, config: Training) -> float:
    """Factor on the learning rate. `position` in [0, steps] is the step, or how far the time budget has come as steps."""
    warm = min(1.0, (position + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.decay == "step":
        return warm * (1.0 if position < config.drop_at * config.steps else AFTER_THE_DROP)
    return warm * falling(position, config.steps, max(config.hold * config.steps, config.warmup_steps), config.decay)


def falling(position: float, steps: int, start: float, decay: str) -> float:
    """1 up to `start`, then half a cosine or a line down to 0 at `steps`."""
    if position < start:
        return 1.0
    if decay == "linear":
        return 1 - (position - start) / max(1, steps - start)
    return 0.5 * (1 + math.cos(math.pi * (position - start) / max(1, steps - start)))
