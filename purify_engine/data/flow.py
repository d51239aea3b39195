"""What the threads of a run share: lines from one to the next, a limit on what is held, and the first fault, which ends all."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")
LOOK_EVERY = 0.5  # seconds between two looks at whether the run was ended


class Ended(Exception):  # noqa: N818 - no error: how the other threads learn of one
    """The run was ended while a thread waited."""


class Flow:
    """Whether a run goes on, and how much it holds between reading and writing."""

    def __init__(self, most_items: int, most_numbers: int) -> None:
        self.most_items, self.most_numbers = most_items, most_numbers
        self.items = self.numbers = 0
        self.room = threading.Condition()
        self.ended = False
        self.moved = time.monotonic()  # when an item last went a step further
        self.fault: BaseException | None = None

    def end(self, fault: BaseException | None = None) -> None:
        """End the run; the first fault is kept."""
        with self.room:
            self.fault = self.fault or fault
            self.ended = True
            self.room.notify_all()

    def enter(self) -> None:
        """Wait until there is room for one more item."""
        with self.room:
            self.room.wait_for(lambda: self.ended or (self.items < self.most_items and self.numbers <= self.most_numbers))
            if self.ended:
                raise Ended
            self.items += 1
            self.moved = time.monotonic()

    def grow(self, numbers: int) -> None:
        """An item turned out to be so many numbers."""
        with self.room:
            self.numbers += numbers
            self.moved = time.monotonic()

    def leave(self, numbers: int) -> None:
        """An item of so many numbers was written."""
        with self.room:
            self.items -= 1
            self.moved = time.monotonic()
            self.numbers -= numbers
            self.room.notify()

    def wait(self, future: Future[T], patience: float = math.inf) -> T:
        """The result of `future`; its fault, or Ended, is raised. TimeoutError where it runs for more than `patience` seconds."""
        since = time.monotonic()
        while True:
            try:
                return future.result(LOOK_EVERY)
            except TimeoutError:  # of the wait: what is awaited never raises one of its own
                if self.ended:
                    raise Ended from None
                if not future.running():
                    since = time.monotonic()
                elif time.monotonic() - since > patience:
                    raise


class Line(Generic[T]):
    """A queue from one thread to another, which ends after its last entry, or with the run."""

    _LAST: Any = object()

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.entries: SimpleQueue[T] = SimpleQueue()

    def put(self, entry: T) -> None:
        self.entries.put(entry)

    def close(self) -> None:
        """No entry follows."""
        self.entries.put(self._LAST)

    def is_empty(self) -> bool:
        return self.entries.empty()

    def __iter__(self) -> Iterator[T]:
        while True:
            entry = self._next()
            if entry is self._LAST:
                return
            yield entry

    def _next(self) -> T:
        while True:
            try:
                return self.entries.get(timeout=LOOK_EVERY)
            except Empty:
                if self.flow.ended:
                    raise Ended from None
