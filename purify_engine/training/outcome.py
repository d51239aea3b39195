"""How a training went: its steps, its time, its losses, and on what it computed; and the drawing of it for the model card."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from purify_engine.pages import render

TEMPLATE = "training/curve.svg.j2"
POINTS = 1000  # of a history at most: then every second one is dropped
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 300, 64, 16, 36, 44


@dataclass
class Outcome:
    """What is remembered of all runs of a training."""

    steps: int = 0
    """Those taken."""
    seconds: float = 0.0
    """Wall-clock time of all runs."""
    runs: list[dict[str, Any]] = field(default_factory=list)
    """What each run computed on, from which step."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Step, loss, learning rate and seconds of the reports."""

    def note(self, point: dict[str, float]) -> None:
        """Remember a report."""
        self.history.append(point)
        if len(self.history) > POINTS:
            self.history[:] = self.history[1::2] if len(self.history) % 2 == 0 else self.history[::2]

    def begin_run(self, step: int, computing: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Remember on what a run computes; in what it differs from the run before, (then, now)."""
        before = self.runs[-1] if self.runs else {"from_step": step, **computing}
        self.runs.append({"from_step": step, **computing})
        return {name: (before.get(name), now) for name, now in computing.items() if before.get(name) != now}


def curve(history: list[dict[str, float]], title: str) -> str | None:
    """An SVG of the losses over the steps, on a logarithmic scale where all are positive; None of fewer than two reports."""
    if len(history) < 2:
        return None
    steps, losses = [point["step"] for point in history], [point["loss"] for point in history]
    logarithmic = min(losses) > 0
    heights = [math.log10(loss) for loss in losses] if logarithmic else losses
    low, high = min(heights), max(heights)
    span, last = (high - low) or 1.0, max(steps)

    def at(step: float, height: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * step / last
        return round(across, 1), round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (height - low) / span, 1)

    points = [at(step, height) for step, height in zip(steps, heights, strict=True)]
    marks = [low + span * quarter / 4 for quarter in range(5)]
    levels = [(at(0, mark)[1], f"{10**mark if logarithmic else mark:.3g}") for mark in marks]
    ticks = [(at(last * quarter / 4, low)[0], f"{round(last * quarter / 4):,}") for quarter in range(5)]
    return render(
        TEMPLATE, title=title, points=points, levels=levels, ticks=ticks, width=WIDTH, height=HEIGHT, left=LEFT,
        right=WIDTH - RIGHT, bottom=HEIGHT - BOTTOM, axis="loss, logarithmic" if logarithmic else "loss",
    )  # fmt: skip
