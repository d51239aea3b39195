"""Tables of the launches that `python -m bench launches` counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from purify_engine.files import read_json_lines
from purify_engine.markdown import table

NOT_COUNTED = "Not counted yet: `python -m bench launches` writes it."
ON, OFF = "all on", "all off"

Column = dict[str, Any]  # the lines of one part of one case, by the state of the switches


def columns(results: Path) -> dict[str, Column]:
    """By its heading. A part that is the same in several cases stands once, under the first of them."""
    path = results / "launches.jsonl"
    found: dict[tuple[Any, ...], Column] = {}
    for line in read_json_lines(path) if path.exists() else ():
        found.setdefault((line["part"], line["network"], line["guide"], line["batch"]), {})[line["state"]] = line
    headed: dict[str, Column] = {}
    for (part, network, guide, batch), column in found.items():
        own = f"{part}: {guide if part == 'guide' else network}"
        for heading in ("update" if part == "update" else own, own, f"{own}, batch {batch}"):
            if _counts(headed.setdefault(heading, column)) == _counts(column):
                break
    return headed


def _counts(column: Column) -> dict[str, Any]:
    return {state: line["groups"] for state, line in column.items()}


def by_switch(results: Path) -> str:
    """Launches with all ways on and off, and how many more there are without each."""
    headed = columns(results)
    if not headed:
        return NOT_COUNTED
    states = list(dict.fromkeys(state for column in headed.values() for state in column))
    rows = []
    for state in states:
        counts = (column[state]["launches"] for column in headed.values())
        if state in (ON, OFF):
            rows.append((state, *map(str, counts)))
        else:
            more = (count - column[ON]["launches"] for count, column in zip(counts, headed.values(), strict=True))
            rows.append((state, *(f"{number:+d}" if number else "–" for number in more)))
    return table(("launches a step", *headed), rows, left=(0,))


def by_group(results: Path) -> str:
    """Launches by groups of kernels, with all ways on and off."""
    headed = columns(results)
    if not headed:
        return NOT_COUNTED
    groups = list(dict.fromkeys(group for column in headed.values() for state in (ON, OFF) for group in column[state]["groups"]))
    rows = []
    for group in groups:
        pairs = ([column[state]["groups"].get(group, 0) for state in (ON, OFF)] for column in headed.values())
        rows.append((group, *(f"{on}, {off}" if on or off else "–" for on, off in pairs)))
    return table(("launches a step: all on, all off", *headed), rows, left=(0,))


FIGURES: dict[str, Callable[[Path], str]] = {"launches": by_switch, "launches-by-group": by_group}
