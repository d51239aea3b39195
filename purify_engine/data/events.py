"""events.jsonl: what happened in a run and when, one JSON line an event. A diary, no record: nothing is resumed from it.

The lines are not awaited on the disk, and where one cannot be written the run goes on: the diary says later how many it lost.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from purify_engine.pace import Pace, memory

HEARTBEAT = 10.0  # seconds between two lines of progress
STARTS_OF_A_RUN = ("start", "resumed")
MOST_FAILURES = 100  # that get a line of their own; failed.jsonl has all of them
Told = Callable[..., None]

EventsT = TypeVar("EventsT", bound="Events")


class Events:
    """The diary of a run, as it is told: `with Events(path) as told: told("start", total=9, images_left=9)`.

    told("item", ok=True) is counted, and every ten seconds written as "progress": done, failed, images a second, memory; also
    while nothing is finished. told("part", ...) is written without its files, its failures as "failure". Everything else is
    written as it is told, lists as their lengths; a "start" of a run of which some is done already as "resumed". From any
    thread; no error of the file is raised.
    """

    def __init__(self, path: Path, heartbeat: float = HEARTBEAT) -> None:
        self.path, self.heartbeat = path, heartbeat
        self.pace, self.total, self.failed, self.failures, self.lost = Pace(), 0, 0, 0, 0
        self.descriptor: int | None = None
        self.whole = True  # the last line ended
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.thread: threading.Thread | None = None

    def __enter__(self: EventsT) -> EventsT:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.ended.set()
        if self.thread is not None:
            self.thread.join()
            if error is not None:
                self.write("stopped", error=type(error).__name__, reason=str(error))
        with self.lock:
            if self.descriptor is not None:
                os.close(self.descriptor)
            self.descriptor = None

    def __call__(self, event: str, **facts: Any) -> None:
        if event == "item":
            self.failed += not facts["ok"]
            self.pace.update(self.pace.done + 1)
        elif event == "start":
            self._start(facts)
        elif event == "part":
            self._part(facts)
        else:
            if event == "end":
                self.progress()
            self.write(event, **{name: len(value) if isinstance(value, list) else value for name, value in facts.items()})

    def progress(self) -> None:
        """A line of how far the run is."""
        rate = round(self.pace.rate, 2)
        self.write("progress", done=self.pace.done, failed=self.failed, total=self.total, images_per_second=rate, **memory())

    def write(self, event: str, **facts: Any) -> None:
        """A line with the time. Where it cannot be written, the next that can says how many were lost."""
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
        with self.lock:
            lost = {"lines_lost": self.lost} if self.lost else {}
            line = json.dumps({"time": now, "event": event, **facts, **lost}, default=str).encode() + b"\n"
            try:
                content = line if self.whole and self.descriptor is not None else self._beginning() + line
                assert self.descriptor is not None
                self.whole = os.write(self.descriptor, content) == len(content)
                self.lost = 0 if self.whole else self.lost + 1
            except OSError:
                self.lost += 1

    def _start(self, facts: dict[str, Any]) -> None:
        before = facts["total"] - facts["images_left"]
        self.total, self.failed = facts["total"], facts.get("failed", 0)
        self.pace.begin(before)
        self.write("resumed" if before else "start", **facts, pid=os.getpid())
        if self.thread is None:
            self.thread = threading.Thread(target=self._beat, name="events", daemon=True)
            self.thread.start()

    def _part(self, facts: dict[str, Any]) -> None:
        failures = facts.get("failed", [])
        for id, name, reason in failures[: MOST_FAILURES - self.failures]:
            self.write("failure", id=id, name=name, reason=reason)
        self.failures = min(MOST_FAILURES, self.failures + len(failures))
        counts = {key: facts[key] for key in ("part", "count", "ok") if key in facts}
        self.write("part", **counts, failed=len(failures), bytes=sum(file[1] for file in facts.get("files", [])))

    def _beat(self) -> None:
        while not self.ended.wait(self.heartbeat):
            self.progress()

    def _beginning(self) -> bytes:
        """Open the file where it is not; what has to stand before the next line: a kill may have cut the last one short."""
        if self.descriptor is None:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe without a reader must not wait
            self.descriptor = os.open(self.path, flags, 0o666)
            with contextlib.suppress(OSError):
                size = os.lseek(self.descriptor, 0, os.SEEK_END)
                self.whole = size == 0 or os.pread(self.descriptor, 1, size - 1) == b"\n"
        return b"" if self.whole else b"\n"


def tell_all(*observers: Told) -> Told:
    """One observer that tells each of several."""

    def told(event: str, **facts: Any) -> None:
        for observer in observers:
            observer(event, **facts)

    return told


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a diary in order, none where there is no file; a line that a kill or a full disk cut short is left out."""
    if not path.is_file():
        return []
    events = []
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and isinstance(event.get("event"), str) and isinstance(event.get("time"), str):
                events.append(event)
    return events
