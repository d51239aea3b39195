"""Ctrl-C and SIGTERM while a network is trained: they wait for the end of a step, so that a checkpoint can be kept."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Inside, the first of these signals is only noted; a second one has its usual effect at once.

    Signals that are ignored stay so; outside the main thread, which alone may receive them, nothing is changed.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether the training is to stop."""
        return self.received is not None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            found = {number: signal.getsignal(number) for number in SIGNALS}
            self.before = {number: each for number, each in found.items() if each not in (signal.SIG_IGN, None)}
            for number in self.before:
                signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            self.__exit__()
            signal.raise_signal(number)
        self.received = number

    def take_effect(self) -> None:
        """What the signal would have done, once the handlers of before are back; Ctrl-C's where another process received it."""
        signal.raise_signal(signal.SIGINT if self.received is None else self.received)
