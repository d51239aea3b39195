"""What the command says: results on stdout, progress on stderr.

A terminal gets a progress bar, anything else one JSON line every ten seconds.
"""

from __future__ import annotations

import json
import sys
import time
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from purify_engine.cli.streams import printable

LINE_EVERY = 10.0  # seconds

MeterT = TypeVar("MeterT", bound="Meter")


def say(result: dict[str, Any], text: str, *, as_json: bool) -> None:
    """The result of a verb: `text` for people, or `result` as one JSON line."""
    print(json.dumps(result) if as_json else printable(text), flush=True)


def show(table: Table) -> None:
    """A table on stdout, as wide as it needs to be where no terminal limits it."""
    Console(width=None if sys.stdout.isatty() else 200).print(table)


class Meter:
    """Progress of one long job, on stderr: `with Meter("purify") as meter: meter.update(done, total, failed=0)`."""

    def __init__(self, job: str) -> None:
        self.job = job
        self.started = time.monotonic()
        self.last_line = self.started
        self.bar = self._bar() if sys.stderr.isatty() else None

    def __enter__(self: MeterT) -> MeterT:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, done: int, total: int, **facts: float | int | str) -> None:
        """`done` of `total` are finished; `facts` are shown beside."""
        if self.bar is not None:
            note = "  ".join(f"{name} {_short(value)}" for name, value in facts.items())
            self.bar.update(self.bar.task_ids[0], completed=done, total=total, note=note)
        elif time.monotonic() - self.last_line >= LINE_EVERY or done >= total:
            self.last_line = time.monotonic()
            line = {"job": self.job, "done": done, "total": total, "seconds": round(self.last_line - self.started, 1), **facts}
            print(json.dumps(line), file=sys.stderr, flush=True)

    def _bar(self) -> Progress:
        job, note = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
        clocks = TimeElapsedColumn(), TimeRemainingColumn()
        bar = Progress(job, BarColumn(), MofNCompleteColumn(), *clocks, note, console=Console(stderr=True))
        bar.add_task(self.job, total=None, note="")
        return bar


def _short(value: float | int | str) -> str:
    return f"{value:.3g}" if isinstance(value, float) else escape(printable(str(value)))
