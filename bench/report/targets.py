"""A figure to reach, and what may be said of it: met or missed only where the whole interval of the measurement says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.report.lines import Interval, Machine
from purify_engine.markdown import table

TIMES = ("ms", "s")  # of which fewer are better


@dataclass(frozen=True)
class Target:
    """`must`, and `stretch`. `unit`: × as fast, % of a rate, or one of `TIMES`."""

    says: str
    must: float
    stretch: float
    measured: Callable[[Machine], Interval | None]
    unit: str = "×"

    def row(self, machine: Machine) -> tuple[str, ...]:
        """What was asked, what was measured, and the verdict."""
        return self.says, shown(self.must, self.unit), shown(self.stretch, self.unit), *self.verdict(machine)

    def verdict(self, machine: Machine) -> tuple[str, str]:
        """(the figure with its interval, what that decides)."""
        interval = self.measured(machine)
        if interval is None:
            return "–", "not measured"
        span = f"{interval.low:.3g} to {shown(interval.high, self.unit)}"
        figure = f"{shown(interval.value, self.unit)} ({span})"
        worst, best = self._ends(interval)
        if self._reached(worst, self.must):
            if self._reached(worst, self.stretch):
                decided = "stretch reached"
            else:
                decided = "met, stretch not decided" if self._reached(best, self.stretch) else "met"
            return figure, decided
        return figure, f"not decided: {span}" if self._reached(best, self.must) else "**missed**"

    def _ends(self, interval: Interval) -> tuple[float, float]:
        """The worst and the best that the interval allows."""
        return (interval.high, interval.low) if self.unit in TIMES else (interval.low, interval.high)

    def _reached(self, value: float, goal: float) -> bool:
        return value <= goal if self.unit in TIMES else value >= goal


def shown(value: float, unit: str) -> str:
    """A value with its unit."""
    return f"{value:.3g}{'' if unit == '×' else ' '}{unit}"


def verdicts(
    targets: Sequence[Target], machine: Machine, more: Sequence[Sequence[str]] = (), *, dated: bool = False
) -> str:
    """A row a target; `more` rows after them. `dated` adds the commit that was measured, for runs of several."""
    rows = [(*goal.row(machine), *([_at(goal, machine)] if dated else [])) for goal in targets]
    header = "target", "must", "stretch", "measured", "verdict", *(["commit"] if dated else [])
    return table(header, [*rows, *more], left=(0, 4, 5) if dated else (0, 4))


def _at(goal: Target, machine: Machine) -> str:
    interval = goal.measured(machine)
    return machine.when(interval.run) if interval else "–"
