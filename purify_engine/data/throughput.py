"""How fast a run was over its time, from its diary: a curve for the report."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
    points: list[tuple[float, int]]

    @property
    def seconds(self) -> float:
        return self.points[-1][0]

    @property
    def done(self) -> int:
        """By this process."""
        return self.points[-1][1] - self.before


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
    """The curve of all sessions; None where there is no time to speak of.

    One process after another: their times are put together. Several at once, the shares of a run: by the clock.
    """
    lasting = sorted((session for session in known if session.seconds > 0), key=lambda session: session.began)
    total = time_of(lasting)
    if total <= 0:
        return None
    starts = _starts(lasting)
    resumed = () if _overlap(lasting) else tuple(starts[1:])
    edges = np.linspace(0, total, min(BUCKETS, sum(len(session.points) - 1 for session in lasting)) + 1)
    done = np.zeros_like(edges)
    for session, start in zip(lasting, starts, strict=True):
        seconds, finished = zip(*session.points, strict=True)
        done += np.interp(edges - start, seconds, finished) - session.before
    return Curve(total, tuple(float(rate) for rate in np.diff(done) / np.diff(edges)), resumed)


def time_of(known: Sequence[Session]) -> float:
    """The seconds of the whole curve."""
    lasting = sorted((session for session in known if session.seconds > 0), key=lambda session: session.began)
    ends = (start + session.seconds for start, session in zip(_starts(lasting), lasting, strict=True))
    return max(ends, default=0.0)


def _starts(lasting: Sequence[Session]) -> list[float]:
    """When each session begins on the curve; they are sorted by when they began."""
    if _overlap(lasting):
        return [(session.began - lasting[0].began).total_seconds() for session in lasting]
    return [sum(before.seconds for before in lasting[:place]) for place in range(len(lasting))]


def _overlap(lasting: Sequence[Session]) -> bool:
    pairs = zip(lasting, lasting[1:], strict=False)
    return any((after.began - before.began).total_seconds() < before.seconds for before, after in pairs)


def _moment(text: str) -> datetime.datetime | None:
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62 else 0
