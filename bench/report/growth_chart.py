"""How the U-Net's cost grows on a CPU: docs/figures/cpu-growth.svg, drawn from the lines of `python -m bench cpu`.

Two panels, milliseconds an image against the batch and against the resolution, a line a variant. Times start at zero, batches
stand at their logarithm. One run is drawn, the one that measured most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import jinja2

from bench.report.cpu import UNET, fullest
from bench.report.lines import Machine, Record, machines
from purify_engine.benchmark.chart import Line, Tick, duration, rate

TEMPLATE = Path(__file__).with_name("growth_chart.svg.j2")
OURS, THREADS = "engine", 2
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 476, 372, 60, 146, 84, 54  # a panel, in its own units; names stand at its right
INSET, GAP = 12, 15  # from the axes to the first and last points; between names


@dataclass(frozen=True)
class Panel:
    """One drawing: `left` is where it begins, the rest is placed within it."""

    left: int
    title: str
    axis: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


def growth(results: Path) -> str:
    """The drawing as SVG; nothing where nothing was measured."""
    lines = chosen(machines(results))
    if not lines:
        return ""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    drawn = panels(lines)
    frame = {"width": WIDTH * len(drawn), "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT}
    frame |= {"top": TOP, "bottom": HEIGHT - BOTTOM}
    about = {"network": UNET, "threads": lines[0]["threads"], "machine": lines[0]["machine"], "day": lines[0]["run"][:10]}
    return template.render(panels=drawn, frame=frame, about=about) + "\n"


def chosen(known: Iterable[Machine]) -> list[Record]:
    """What the run tells that measured most of the U-Net: on two threads, or on the most where nothing was measured on two."""
    lines = fullest([record for machine in known for record in machine.of(kind="cpu", part="unet", name=UNET)])
    counts = {record["threads"] for record in lines}
    threads = THREADS if THREADS in counts else max(counts, default=0)
    return [record for record in lines if record["threads"] == threads]


def panels(lines: Sequence[Record]) -> list[Panel]:
    """Against the batch at the smallest resolution, and against the resolution at the smallest batch."""
    pixels, batch = (min(record[key] for record in lines) for key in ("pixels", "batch"))
    batches, sizes = ([r for r in lines if r[key] == least] for key, least in (("pixels", pixels), ("batch", batch)))
    drawn = (
        ("batch", f"images in a batch, at {pixels} px", _panel(batches, "batch", math.log2, variants(lines))),
        ("resolution", f"pixels a side, at batch {batch}", _panel(sizes, "pixels", float, variants(lines))),
    )
    return [Panel(n * WIDTH, f"ms an image against the {what}", axis, *parts) for n, (what, axis, parts) in enumerate(drawn)]


def variants(lines: Iterable[Record]) -> list[str]:
    """The variants that were measured, the engine first, the others in the order of measurement; the place is the colour."""
    return sorted(dict.fromkeys(record["variant"] for record in lines), key=lambda name: name != OURS)


def _panel(
    lines: Sequence[Record], key: str, scale: Callable[[float], float], names: Sequence[str]
) -> tuple[list[Line], list[Tick], list[Tick]]:
    """The lines of a panel and the ticks of its axes, `scale` being that of the horizontal one.

    A variant that was measured at one place of several has no line.
    """
    costs = {(record["variant"], record[key]): record["median"] / record["batch"] for record in lines}
    places = sorted({record[key] for record in lines})
    first, last = scale(places[0]), scale(places[-1])
    width, heights = WIDTH - RIGHT - LEFT - 2 * INSET, round_numbers(1e3 * max(costs.values()))

    def x(place: int) -> float:
        return LEFT + INSET + width * ((scale(place) - first) / (last - first) if last > first else 0.5)

    def y(milliseconds: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * milliseconds / heights[-1]

    points = {
        name: [(x(place), y(1e3 * cost), f"{name}, {_said(key, place)}: {duration(cost)} an image")
               for place in places if (cost := costs.get((name, place))) is not None]
        for name in names
    }  # fmt: skip
    drawable = {name: own for name, own in points.items() if len(own) >= min(2, len(places))}
    label_at = apart({name: own[-1][1] for name, own in drawable.items()}, TOP, HEIGHT - BOTTOM)
    drawn = [Line(name, names.index(name), own, label_at[name]) for name, own in drawable.items()]
    return drawn, [Tick(x(place), str(place)) for place in places], [Tick(y(value), rate(value)) for value in heights]


def _said(key: str, place: int) -> str:
    return f"batch {place}" if key == "batch" else f"{place} px"


def round_numbers(most: float) -> list[float]:
    """From zero, in steps that read well, six at most, to the first that is not below `most`."""
    power = 10.0 ** math.floor(math.log10(most))
    step = next(power * size for size in (0.2, 0.5, 1, 2) if most <= 6 * power * size)
    return [step * number for number in range(math.ceil(most / step) + 1)]


def apart(wanted: Mapping[str, float], highest: float, lowest: float) -> dict[str, float]:
    """Where names stand: `GAP` apart, in the order of their lines, as near to them as that allows, within the axis.

    Less a gap for each name above, places need only not fall: names that would overlap share the mean of what they want.
    """
    names = sorted(wanted, key=lambda name: wanted[name])
    groups: list[list[float]] = []
    for above, name in enumerate(names):
        group = [wanted[name] - GAP * above]
        while groups and fmean(groups[-1]) > fmean(group):
            group = groups.pop() + group
        groups.append(group)
    shared = [fmean(group) for group in groups for _ in group]
    most = lowest - GAP * (len(names) - 1)
    return {name: GAP * above + max(highest, min(most, shared[above])) for above, name in enumerate(names)}
