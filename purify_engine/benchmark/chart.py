"""A benchmark as one HTML file: two drawings in inline SVG and the table behind them; no scripts, nothing fetched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from purify_engine.benchmark.throughput import Benchmark, Point
from purify_engine.files import write_text
from purify_engine.pages import render

TEMPLATE = "benchmark/chart.html.j2"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 340, 64, 176, 16, 44  # the line chart, in its own units
ROW = 40  # height of a bar's row


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """One variant's throughput: where its name stands, and its points with their titles."""

    name: str
    index: int  # which colour
    points: list[tuple[float, float, str]]
    label_at: float

    @property
    def path(self) -> str:
        return " ".join(f"{'ML'[place > 0]}{x:.1f},{y:.1f}" for place, (x, y, _) in enumerate(self.points))


@dataclass(frozen=True)
class Bar:
    """One variant's latency: the median as a bar, the 99th percentile as a mark."""

    name: str
    index: int
    top: int
    median: float
    p99: float
    label: str


def write_chart(path: Path, benchmark: Benchmark) -> Path:
    """Write the drawings and the table of `benchmark` to `path`; every text is escaped."""
    drawings = {"lines": lines(benchmark), "bars": bars(benchmark), "x_ticks": x_ticks(benchmark), "y_ticks": y_ticks(benchmark)}
    frame = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "bottom": HEIGHT - BOTTOM, "row": ROW}
    title, words = f"Speed of {benchmark.purifier}", {"duration": duration, "rate": rate}
    write_text(path, render(TEMPLATE, title=title, benchmark=benchmark, frame=frame, **drawings, **words))
    return path


def lines(benchmark: Benchmark) -> list[Line]:
    """Throughput against the batch, both axes logarithmic; names keep clear of one another."""
    names = variants(benchmark)
    drawn = []
    for index, name in enumerate(names):
        own = [point for point in timed(benchmark) if point.variant == name]
        places = [(_x(benchmark, point.batch), _y(benchmark, speed(point)), _title(point)) for point in own]
        drawn.append((name, index, places))
    taken: list[float] = []
    placed = []
    for name, index, places in sorted(drawn, key=lambda item: item[2][-1][1]):
        label_at = max([places[-1][1], *(other + 16 for other in taken)])
        taken.append(label_at)
        placed.append(Line(name, index, places, label_at))
    return sorted(placed, key=lambda line: line.index)


def bars(benchmark: Benchmark) -> list[Bar]:
    """Latency at the smallest batch; the longest 99th percentile spans the drawing."""
    smallest = min((point.batch for point in timed(benchmark)), default=0)
    own = [(point, point.timing) for point in timed(benchmark) if point.batch == smallest]
    longest = max((timing.p99 for _, timing in own if timing), default=1.0)
    span = (WIDTH - RIGHT - LEFT) / longest
    return [
        Bar(point.variant, variants(benchmark).index(point.variant), place * ROW, timing.median * span, timing.p99 * span,
            f"{duration(timing.median)}, p99 {duration(timing.p99)}")
        for place, (point, timing) in enumerate(own) if timing
    ]  # fmt: skip


def x_ticks(benchmark: Benchmark) -> list[Tick]:
    """One a batch size."""
    return [Tick(_x(benchmark, batch), str(batch)) for batch in sorted({point.batch for point in timed(benchmark)})]


def y_ticks(benchmark: Benchmark) -> list[Tick]:
    """Powers of ten, and where those are few their doubles and halves."""
    low, high = _bounds(speed(point) for point in timed(benchmark))
    for steps in ((1,), (1, 3), (1, 2, 5)):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        values = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(values) >= 3:
            break
    return [Tick(_y(benchmark, value), rate(value)) for value in values]


def variants(benchmark: Benchmark) -> list[str]:
    """The variants that have timings, in the order of measurement."""
    return list(dict.fromkeys(point.variant for point in timed(benchmark)))


def timed(benchmark: Benchmark) -> Sequence[Point]:
    """The points that have a timing."""
    return [point for point in benchmark.points if point.timing is not None]


def speed(point: Point) -> float:
    """Images per second of a timed point."""
    assert point.images_per_second is not None
    return point.images_per_second


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best, three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{_digits(seconds / size)} {unit}"
    return f"{_digits(seconds / 1e-9)} ns"


def rate(value: float) -> str:
    """A number for people: three digits, thousands apart."""
    return _digits(value)


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _title(point: Point) -> str:
    return f"{point.variant}, batch {point.batch}: {rate(speed(point))} images/s"


def _x(benchmark: Benchmark, batch: int) -> float:
    return _place(batch, _bounds(point.batch for point in timed(benchmark)), LEFT, WIDTH - RIGHT)


def _y(benchmark: Benchmark, value: float) -> float:
    return _place(value, _bounds(speed(point) for point in timed(benchmark)), HEIGHT - BOTTOM, TOP)


def _bounds(values: Any) -> tuple[float, float]:
    """A little more than the range of positive values, for a logarithmic axis."""
    found = list(values) or [1.0]
    return min(found) / 1.3, max(found) * 1.3


def _place(value: float, bounds: tuple[float, float], first: float, last: float) -> float:
    low, high = map(math.log, bounds)
    return first + (math.log(value) - low) / (high - low) * (last - first)
