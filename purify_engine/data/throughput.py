"""How fast a run was over its time, from its diary: a curve for the report."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from purify_engine.data.events import STARTS_OF_A_RUN

BUCKETS = 120  # of a curve at most


@dataclass
class Session:
    """One process of the run: how many images were finished when, in seconds since it began."""

    began: datetime.datetime
    before: int
    """Images that were finished when it began."""
    points: list[tuple[float, int]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.points[-1][0] if self.points else 0.0


@dataclass(frozen=True)
class Curve:
    """Images a second over the time in which the run ran; pauses between its processes are left out."""

    seconds: float
    """The whole time."""
    rates: tuple[float, ...]
    """Of equal stretches of it."""
    resumed: tuple[float, ...]
    """When it was resumed, in seconds."""

    @property
    def most(self) -> float:
        return max(self.rates, default=0.0)


def sessions(events: Iterable[dict[str, Any]]) -> list[Session]:
    """The processes of a run, from its events; those that lack what they should hold are left out."""
    found: list[Session] = []
    by_parts = 0
    for event in events:
        moment = _moment(event["time"])
        if moment is None:
            continue
        if event["event"] in STARTS_OF_A_RUN:
            before = _count(event.get("total")) - _count(event.get("images_left"))
            found.append(Session(moment, before, [(0.0, before)]))
            by_parts = before
        elif found and event["event"] in ("progress", "part"):
            by_parts += _count(event.get("count")) if event["event"] == "part" else 0
            done = by_parts if event["event"] == "part" else _count(event.get("done"))
            last_second, last_done = found[-1].points[-1]
            second = max(last_second, (moment - found[-1].began).total_seconds())
            found[-1].points.append((second, max(last_done, done)))
    return found


def curve(known: Sequence[Session]) -> Curve | None:
    """The curve of all sessions after one another; None where there is no time to speak of."""
    seconds, done, resumed = [0.0], [0.0], list[float]()
    for session in known:
        if session.seconds > 0:
            resumed += [seconds[-1]] if seconds[-1] > 0 else []
            start, finished = seconds[-1], done[-1]
            seconds += [start + second for second, _ in session.points]
            done += [finished + count - session.before for _, count in session.points]
    if seconds[-1] <= 0:
        return None
    edges = np.linspace(0, seconds[-1], min(BUCKETS, len(set(seconds)) - 1) + 1)
    finished_by = np.interp(edges, seconds, done)
    rates = np.diff(finished_by) / np.diff(edges)
    return Curve(seconds[-1], tuple(float(rate) for rate in rates), tuple(resumed))


def _moment(text: str) -> datetime.datetime | None:
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62 else 0
