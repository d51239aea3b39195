"""What the threads of a run share: lines from one to the next, a limit on what is held, and the first fault, which ends all."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYetError  # Python's own only from 3.11 on
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")
LOOK_EVERY = 0.5  # seconds between two looks at whether the run was ended


class Ended(Exception):  # noqa: N818 - no error: how the other threads learn of one
    """The run was ended while a thread waited."""


class HungError(Exception):
    """What is waited for takes too long."""


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
            self.room.wait_for(lambda: self.ended or (self.items < self.most_items and not self.is_full))
            if self.ended:
                raise Ended
            self.items += 1
            self.moved = time.monotonic()

    @property
    def is_full(self) -> bool:
        """Whether no image may be decoded before others are written."""
        return self.numbers > self.most_numbers

    def admit(self) -> None:
        """Wait until there is room for the numbers of one more image: how many they are is known once it is decoded."""
        with self.room:
            self.room.wait_for(lambda: self.ended or not self.is_full)
            if self.ended:
                raise Ended

    def grow(self, numbers: int) -> None:
        """An item turned out to be so many numbers."""
        with self.room:
            self.numbers += numbers
            self.moved = time.monotonic()
            if numbers < 0:
                self.room.notify_all()

    def leave(self, numbers: int) -> None:
        """An item of so many numbers was written."""
        with self.room:
            self.items -= 1
            self.moved = time.monotonic()
            self.numbers -= numbers
            self.room.notify_all()

    def wait(self, future: Future[T], patience: float = math.inf) -> T:
        """The result of `future`; its fault, or Ended, is raised. HungError where it runs for over `patience` seconds."""
        since = time.monotonic()
        while True:
            try:
                return future.result(LOOK_EVERY)
            except NotYetError:  # of the wait: what is awaited never raises one of its own
                if self.ended:
                    raise Ended from None
                if not future.running():
                    since = time.monotonic()
                elif time.monotonic() - since > patience:
                    raise HungError from None


class Pool:
    """Threads that begin calls in the order in which they were submitted. One that hangs can be left alone, and replaced.

    admit: waited for before each call is begun; it raises Ended once none is to be begun any more.
    """

    def __init__(self, threads: int, name: str, admit: Callable[[], None] = lambda: None) -> None:
        self.name, self.admit = name, admit
        self.turn = threading.Lock()  # of the thread that takes the next call: none is begun before an earlier one is
        self.calls: SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None] = SimpleQueue()
        self.threads: list[threading.Thread] = []
        self.hung = 0
        for _ in range(threads):
            self._add()

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        future: Future[T] = Future()
        self.calls.put((future, function, arguments))
        return future

    def replace_one(self) -> None:
        """One of the threads is not to be waited for."""
        self.hung += 1
        self._add()

    def end(self) -> None:
        """What was begun is finished, but for what hangs; what was not begun is cancelled."""
        with suppress(Empty):
            while True:
                call = self.calls.get_nowait()
                if call is not None:
                    call[0].cancel()
        for _ in self.threads:
            self.calls.put(None)
        while sum(thread.is_alive() for thread in self.threads) > self.hung:
            for thread in self.threads:
                thread.join(LOOK_EVERY / len(self.threads))

    def _add(self) -> None:
        thread = threading.Thread(target=self._work, name=f"{self.name}-{len(self.threads)}", daemon=True)
        thread.start()  # daemon: the process ends without waiting for one that hangs
        self.threads.append(thread)

    def _work(self) -> None:
        while (call := self._next()) is not None:
            future, function, arguments = call
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(*arguments))
                except BaseException as fault:
                    future.set_exception(fault)
            del call, future, function, arguments  # or an image would live until the next one comes

    def _next(self) -> tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None:
        with self.turn:
            call = self.calls.get()
            if call is not None:
                try:
                    self.admit()
                except Ended:
                    call[0].cancel()
            return call


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
        while not self.flow.ended:
            with suppress(Empty):
                return self.entries.get(timeout=LOOK_EVERY)
        raise Ended
