"""What the command says: results on stdout, progress on stderr.

A terminal gets a progress bar, anything else one JSON line every ten seconds, also while nothing is finished. `streams` sees to
it that no trouble with stderr ends the work.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from purify_engine.cli.streams import printable
from purify_engine.pace import Pace, memory
from purify_engine.pages import visible

if TYPE_CHECKING:
    from purify_engine.data import Skipped

LINE_EVERY = 10.0  # seconds
DRAW_EVERY = 0.1  # seconds between two changes of a bar, which is not drawn more often anyway

MeterT = TypeVar("MeterT", bound="Meter")


def say(result: dict[str, Any], text: str, *, as_json: bool) -> None:
    """The result of a verb: `text` for people, or `result` as one JSON line."""
    print(json.dumps(result) if as_json else printable(text), flush=True)


def named(entries: Sequence[Skipped], most: int = 5) -> str:
    """What lies in a source and is no image, as people read it: "2 other things (.git/: hidden, a.txt: no image)"."""
    told = [f"{visible(entry.name)}: {visible(entry.reason)}" for entry in entries[:most]]
    things = "other thing" if len(entries) == 1 else "other things"
    return f"{len(entries)} {things} ({', '.join([*told, *(['...'] if len(entries) > most else [])])})"


def show(table: Table) -> None:
    """A table on stdout, as wide as it needs to be where no terminal limits it."""
    Console(width=None if sys.stdout.isatty() else 200).print(table)


class Meter:
    """Progress of one long job, on stderr: `with Meter("purify") as meter: meter.update(done, total, failed=0)`."""

    def __init__(self, job: str) -> None:
        self.job = job
        self.pace = Pace()
        self.done, self.total, self.facts = 0, 0, dict[str, float | int | str]()
        self.last_line = time.monotonic()
        self.last_drawn = self.last_line - DRAW_EVERY  # the first change is drawn at once
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.bar = self._bar() if sys.stderr.isatty() else None
        self.thread = threading.Thread(target=self._beat, name="progress", daemon=True)

    def __enter__(self: MeterT) -> MeterT:
        if self.bar is not None:
            self.bar.start()
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.ended.set()
        self.thread.join()
        if self.bar is not None:
            self._draw()
            self.bar.stop()

    def begin(self, done: int, total: int) -> None:
        """`done` of `total` were finished before this job began: no rate is made of them."""
        self.pace.begin(done)
        self.done, self.total = done, total

    def update(self, done: int, total: int, **facts: float | int | str) -> None:
        """`done` of `total` are finished; `facts` are shown beside."""
        self.pace.update(done)
        self.done, self.total, self.facts = done, total, facts
        now, ends = time.monotonic(), done >= total
        if self.bar is None:
            self._line(now, ends)
        elif ends or now - self.last_drawn >= DRAW_EVERY:
            self.last_drawn = now
            self._draw()

    def _beat(self) -> None:
        """The bar's clock and memory, or the lines, also while nothing is finished."""
        while not self.ended.wait(1.0 if self.bar is not None else LINE_EVERY / 10):
            if self.bar is not None:
                self._draw()
            else:
                self._line(time.monotonic(), False)

    def _line(self, now: float, ends: bool) -> None:
        with self.lock:
            if now - self.last_line < LINE_EVERY and not ends:
                return
            self.last_line = now
        left = self.pace.seconds_left(self.total)
        line = {
            **{"job": self.job, "done": self.done, "total": self.total, "seconds": round(self.pace.seconds, 1)},
            **{"per_second": round(self.pace.rate, 3), "seconds_left": None if left is None else round(left)},
            **memory(),
            **self.facts,
        }
        print(json.dumps(line), file=sys.stderr, flush=True)

    def _draw(self) -> None:
        assert self.bar is not None
        left = self.pace.seconds_left(self.total)
        parts = [f"{self.done:,}/{self.total:,}" if self.total else "", f"{_short(self.pace.rate)}/s"]
        parts += [f"{_clock(left)} left"] if left is not None and self.done < self.total else []
        parts += [f"{visible(name)} {visible(_short(value))}" for name, value in self.facts.items()]
        parts += [*_sizes(memory()), f"{_clock(self.pace.seconds)} gone"]
        room = self.bar.console.width - len(self.job) - _bar_width(self.bar.console) - 3
        text = _fitting(parts, room)
        self.bar.update(self.bar.task_ids[0], completed=self.done, total=self.total or None, text=text)

    def _bar(self) -> Progress:
        console = Console(stderr=True)
        columns = TextColumn("{task.description}", markup=False), BarColumn(_bar_width(console))
        bar = Progress(*columns, TextColumn("{task.fields[text]}", markup=False), console=console)
        bar.add_task(visible(self.job), total=None, text="")
        return bar


def _bar_width(console: Console) -> int:
    return 12 if console.width < 100 else 24


def _fitting(parts: list[str], room: int) -> str:
    """The first of `parts` that fit into so many columns; the most important come first."""
    text = ""
    for part in filter(None, parts):
        longer = f"{text}  {part}" if text else part
        if cell_len(longer) > room:
            break
        text = longer
    return text


def _short(value: float | int | str) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def _clock(seconds: float) -> str:
    whole = round(seconds)
    if whole >= 48 * 3600:
        return f"{whole / 86400:.1f} days"
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _sizes(held: dict[str, int]) -> list[str]:
    names = {"rss_bytes": "memory", "gpu_bytes": "GPU"}
    sizes = {name: f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB" for name, count in held.items()}
    return [f"{names[name]} {size}" for name, size in sizes.items()]
