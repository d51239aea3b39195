"""A run in which nothing moves any more ends its process, and says where each thread was: the same command goes on afterwards.

What may hang is out of a run's hands: a network file system, a driver, a lock inside a library.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

LOOKS, LONGEST = 20, 60.0  # within the patience of a run; seconds between two of them at most
DEEPEST = 12  # calls of a thread that are told
MARGIN = 120.0  # seconds later Python's own watchdog ends the process, which needs no turn of the interpreter
LAST_WORDS = 5.0  # seconds that telling may take, since what is told to may hang, too
TIMES_SLOWER = 10.0  # than the slowest before, an image: a batch has that long at least


def end_process() -> None:
    """With the exit code of an error of ours; nothing that is in work is waited for."""
    os._exit(1)


class Watchdog:
    """`with Watchdog(600, lambda: flow.moved, told):` ends the process once `moved()`, of time.monotonic, is so long ago."""

    def __init__(
        self, seconds: float, moved: Callable[[], float], told: Callable[..., None], end: Callable[[], None] = end_process
    ) -> None:
        self.seconds, self.moved, self.told, self.end = seconds, moved, told, end
        self.batch: tuple[int, float] | None = None  # images that are being purified, and since when
        self.ended = 0.0  # when the last of them was
        self.slowest: float | None = None  # seconds an image, of the batches before
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self.thread.join()
        faulthandler.cancel_dump_traceback_later()

    @contextmanager
    def purifying(self, images: int) -> Iterator[None]:
        """Inside, a batch is in work, which on a slow machine takes longer than anything else."""
        started = time.monotonic()
        self.batch = images, started
        try:
            yield
        finally:
            self.batch, self.ended = None, time.monotonic()
            self.slowest = max(self.slowest or 0.0, (self.ended - started) / images)

    def patience(self) -> float:
        """Seconds in which nothing need move: more for a batch, by what others took; for the first one `seconds` an image."""
        batch = self.batch
        if batch is None:
            return self.seconds
        an_image = self.seconds if self.slowest is None else TIMES_SLOWER * self.slowest
        return max(self.seconds, batch[0] * an_image)

    def _watch(self) -> None:
        interval = min(self.seconds / LOOKS, LONGEST)
        looked = since = time.monotonic()
        while not self.closing.wait(interval):
            now = time.monotonic()
            if now - looked > 3 * interval + 1:  # the whole process was stopped, or had no processor: that was not its fault
                since = now
            looked = now
            batch = self.batch
            still = now - max(since, self.moved(), self.ended, batch[1] if batch else 0.0)
            if still > self.patience():
                self._bark(still)
                return
            with suppress(ValueError, OSError, RuntimeError, OverflowError):  # for a thread that never lets this one run
                faulthandler.dump_traceback_later(self.patience() + MARGIN, exit=True, file=2)

    def _bark(self, still: float) -> None:
        facts = {"seconds": round(still, 1), "threads": stacks()}
        with suppress(OSError):
            os.write(2, (json.dumps({"event": "stalled", **facts}) + "\n").encode())
        telling = threading.Thread(target=self.told, args=("stalled",), kwargs=facts, daemon=True)
        telling.start()
        telling.join(LAST_WORDS)
        self.end()


def stacks() -> dict[str, str]:
    """Where each thread is, by its name: innermost call first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    here = threading.get_ident()
    frames = {names.get(number, str(number)): frame for number, frame in sys._current_frames().items() if number != here}
    return {name: " < ".join(_calls(frame)) for name, frame in frames.items()}


def _calls(frame: FrameType | None) -> list[str]:
    calls: list[Any] = []
    while frame is not None and len(calls) < DEEPEST:
        calls.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return calls
