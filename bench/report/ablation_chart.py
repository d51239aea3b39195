"""Drawings of ablations along an axis: accuracy under each attack, a whisker an interval, the values in equal distances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from bench.core.ablations import ABLATIONS
from bench.report.ablations import Outcome, outcomes, results_of
from bench.report.growth_chart import apart
from purify_engine.benchmark.chart import Line, Tick
from purify_engine.evaluation.statistics import wilson
from purify_engine.evaluation.suite import CLEAN

TEMPLATE = Path(__file__).with_name("ablation_chart.svg.j2")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 360, 56, 180, 64, 54
INSET = 16  # from the axes to the first and last values
WORST = "worst of them"


@dataclass(frozen=True)
class Whisker:
    """An interval over images, of the line of that index."""

    index: int
    x: float
    low: float
    high: float


def chart(results: Path, data: str, name: str) -> str:
    """The drawing as SVG; nothing where fewer than two values were measured."""
    records = results_of(results, data)
    known = outcomes(records, name) if any(record["ablation"] == name for record in records) else []
    rows = sorted((row for row in known if row.place is not None), key=lambda row: row.place or 0.0)
    if len(rows) < 2:
        return ""
    lines, whiskers = drawn(rows)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    frame = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM}
    x_ticks = [Tick(_x(place, len(rows)), f"{row.place:g}") for place, row in enumerate(rows)]
    y_ticks = [Tick(_y(percent / 100), str(percent)) for percent in range(0, 101, 20)]
    record = rows[0].record
    title = f"{ABLATIONS[name].about}: {data}, {record['n']} validation images"
    return template.render(title=title, axis=ABLATIONS[name].axis, lines=lines, whiskers=whiskers, x_ticks=x_ticks,
                           y_ticks=y_ticks, frame=frame) + "\n"  # fmt: skip


def drawn(rows: Sequence[Outcome]) -> tuple[list[Line], list[Whisker]]:
    """A line an attack, and one of each image's worst where there are several."""
    attacks = list(dict.fromkeys(attack for row in rows for attack, line in row.lines.items() if line.threat in ("none", "linf")))
    names = [*attacks, *([WORST] if sum(attack != CLEAN.name for attack in attacks) > 1 else [])]
    points: dict[str, list[tuple[float, float, str]]] = {}
    whiskers = []
    for index, name in enumerate(names):
        for place, row in enumerate(rows):
            scores = row.worst() if name == WORST else row.scores(name)
            if scores:
                found, x = wilson(scores), _x(place, len(rows))
                says = f"{row.name}, {name}: {100 * found.value:.1f} ({100 * found.low:.1f}–{100 * found.high:.1f})"
                points.setdefault(name, []).append((x, _y(found.value), says))
                whiskers.append(Whisker(index, x, _y(found.low), _y(found.high)))
    label_at = apart({name: own[-1][1] for name, own in points.items()}, TOP, HEIGHT - BOTTOM)
    return [Line(name, names.index(name), own, label_at[name]) for name, own in points.items()], whiskers


def _x(place: int, count: int) -> float:
    return LEFT + INSET + (WIDTH - RIGHT - LEFT - 2 * INSET) * place / (count - 1)


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * share
