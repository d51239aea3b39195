"""Ctrl-C and SIGTERM: the first lets a run end what it is at, the second ends it at once, and neither is silent."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn, Protocol

from purify_engine.cli.streams import quoted

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
NAMES = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Stop(Protocol):
    """What a run asks before each part."""

    requested: bool


class Stopped(SystemExit):
    """The command ends by a signal; its code is that of the signal."""

    def __init__(self, number: signal.Signals, said: str = "") -> None:
        super().__init__(CODES[number])
        self.said = said or NAMES[number]


class Stopping:
    """What signals asked of a run, and how often."""

    def __init__(self, stop: Stop) -> None:
        self.stop = stop
        self.received: list[signal.Signals] = []

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.received.append(signal.Signals(number))
        if len(self.received) > 2:  # a thread that hangs is waited for no longer; what is written is whole
            os._exit(CODES[self.received[-1]])
        if len(self.received) == 2:
            last = self.received[-1]
            raise Stopped(last, f"{NAMES[last]}; go on with: {command_line()}")
        self.stop.requested = True
        _tell("stopping: what is being worked on is finished first; once more (Ctrl-C) stops at once")

    def raise_if_stopped(self, images_left: int) -> None:
        """Stopped, with the command that goes on, where a signal left something to do."""
        if self.received and images_left:
            raise Stopped(self.received[0], f"stopped with {images_left} images left; go on with: {command_line()}")


@contextmanager
def stopping(stop: Stop) -> Iterator[Stopping]:
    """Inside, the first signal sets `stop.requested`, the second raises Stopped, the third ends the process.

    A signal that is ignored, as in the background of a script, stays so.
    """
    asked = Stopping(stop)
    before = {number: signal.getsignal(number) for number in CODES}
    taken = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for number in taken:
        signal.signal(number, asked)
    try:
        yield asked
    finally:
        for number in taken:
            signal.signal(number, before[number])


def stop_at_once(number: int, frame: FrameType | None) -> NoReturn:
    """A handler for commands that have nothing to finish."""
    raise Stopped(signal.Signals(number))


@contextmanager
def going_on() -> Iterator[None]:
    """Inside, a signal ends the command at once and says which command goes on: for runs whose finished pieces are kept."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Stopped(signal.Signals(number), f"{NAMES[signal.Signals(number)]}; go on with: {command_line()}")

    before = {number: signal.getsignal(number) for number in CODES}
    taken = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for number in taken:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])


def command_line(words: Sequence[str] | None = None) -> str:
    """This process's command as a shell takes it."""
    return " ".join(["purify-engine", *map(quoted, sys.argv[1:] if words is None else words)])


def _tell(message: str) -> None:
    with suppress(OSError):
        os.write(2, f"purify-engine: {message}\n".encode())  # not by a stream, which the signal may have interrupted
