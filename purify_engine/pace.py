"""How fast a long job goes, when it will be done, and how much memory the process holds. Free of torch."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque

WINDOW = 30.0  # seconds that the recent rate is taken over
SAMPLES = 60  # kept of them


class Pace:
    """Finished things over time; from several threads at once.

    The rate is that of the last `window` seconds, so that it falls to zero where a job hangs.
    """

    def __init__(self, window: float = WINDOW) -> None:
        self.window = window
        self.lock = threading.Lock()
        self.begin(0)

    def begin(self, done: int) -> None:
        """Count from here: `done` things were finished before."""
        now = time.monotonic()
        with self.lock:
            self.started, self.first, self.done = now, done, done
            self.samples = deque([(now, done)])

    def update(self, done: int) -> None:
        """`done` things are finished now."""
        now = time.monotonic()
        with self.lock:
            self.done = done
            if now - self.samples[-1][0] >= self.window / SAMPLES:
                self.samples.append((now, done))
            self._forget(now)

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Things a second, lately."""
        now = time.monotonic()
        with self.lock:
            self._forget(now)
            then, done = self.samples[0]
            return (self.done - done) / (now - then) if now > then else 0.0

    def seconds_left(self, total: int) -> float | None:
        """Until `total` are finished, at the recent rate; None where nothing was finished lately."""
        rate = self.rate
        return (total - self.done) / rate if rate > 0 else None

    def _forget(self, now: float) -> None:
        """Drop what lies before the window, but for the one sample that the window's beginning lies after."""
        while len(self.samples) > 1 and self.samples[1][0] <= now - self.window:
            self.samples.popleft()
        if len(self.samples) == 1 and self.samples[0][0] < now - self.window:
            self.samples[0] = (now - self.window, self.samples[0][1])


def memory() -> dict[str, int]:
    """Bytes that this process holds: `rss_bytes`, and on a CUDA device in use `gpu_bytes`, as PyTorch has reserved them."""
    held = {}
    try:
        with open("/proc/self/statm", encoding="ascii") as pages:  # noqa: PTH123
            held["rss_bytes"] = int(pages.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        pass  # no /proc here
    cuda = getattr(sys.modules.get("torch"), "cuda", None)  # while torch is being imported there is none
    if cuda is not None and getattr(cuda, "is_initialized", bool)():
        held["gpu_bytes"] = cuda.memory_reserved()
    return held
