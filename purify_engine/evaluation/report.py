"""Results for people: one self-contained HTML file, a markdown table, a terminal table."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.table import Table

from purify_engine import markdown
from purify_engine.evaluation.contact_sheet import Exhibit
from purify_engine.evaluation.figures import write_figures
from purify_engine.evaluation.self_test_said import self_test_facts
from purify_engine.evaluation.statistics import Estimate
from purify_engine.evaluation.summary import Comparison, Row
from purify_engine.evaluation.verdict import attacks_in_order, defences_in_order, headline_of, points, rounded, verdict
from purify_engine.files import write_text
from purify_engine.pages import render

TEMPLATE = "evaluation/report.html.j2"
_PACKAGES = ("purify-engine", "torch", "numpy", "scipy", "pillow")


def write_report(
    path: Path,
    *,
    title: str,
    rows: Sequence[Row],
    sheet: Sequence[Exhibit] = (),
    self_test: dict[str, Any] | None = None,
    configuration: dict[str, Any] | None = None,
    comparisons: Sequence[Comparison] = (),
    notes: Sequence[str] = (),
    about: Mapping[str, str] | None = None,
    budgets: Mapping[str, str] | None = None,
    tables: Sequence[tuple[str, str, Sequence[Sequence[str]]]] = (),
    fresh: Sequence[Row] = (),
    **more: Any,
) -> Path:
    """Write the report to `path`, one file, no scripts, nothing fetched, every text escaped; its figures lie beside it.

    about: what stands on top, such as the data, the date and the device. budgets: attack -> its norm and epsilon in words.
    tables: heading, what it says, and a header with lines, of what stands beside the accuracies. fresh: rows that go into the
    figures as well. more: into the JSON alone.
    """
    about, budgets = about or {}, budgets or {}
    html = render(
        TEMPLATE,
        title=title,
        verdict=verdict(rows, comparisons, self_test),
        about=about,
        defences=defences_in_order(rows),
        attacks=attacks_in_order(rows),
        headline=headline_of(rows),
        budgets=budgets,
        sizes=sizes(rows),
        best=best(rows),
        rounded=rounded,
        points=points,
        sheet=sheet,
        self_test=None if self_test is None else {name: _short(value) for name, value in self_test_facts(self_test).items()},
        configuration=flattened(configuration or {}),
        comparisons=comparisons,
        notes=notes,
        tables=tables,
        versions=versions(),
    )
    write_text(path, html)
    told = {"title": title, "about": about, "self_test": self_test, "configuration": configuration}
    write_figures(path, rows, comparisons, budgets, fresh=fresh, **told, **more)
    return path


def render_table(rows: Sequence[Row]) -> str:
    """The rows as a markdown table in percent, each figure with its interval; the header says how many images."""
    columns = column_names(rows)
    speed = any(row.images_per_second for row in rows)
    header = ["defence", *(f"{name} (n = {sizes(rows)[name]})" for name in columns), *(["images/s"] if speed else [])]
    lines = []
    for row in rows:
        figures = [figure(row.columns.get(name)) for name in columns]
        lines.append([row.defence, *figures, *([_speed(row)] if speed else [])])
    return markdown.table(header, lines)


def terminal_table(rows: Sequence[Row], title: str) -> Table:
    """The rows for a rich console: figures over their intervals."""
    table = Table(title=title, title_justify="left", header_style="bold", pad_edge=False)
    table.add_column("defence")
    columns = column_names(rows)
    for name in columns:
        table.add_column(f"{name}\nn = {sizes(rows)[name]}", justify="right")
    table.add_column("images/s", justify="right")
    for row in rows:
        table.add_row(row.defence, *(figure(row.columns.get(name)) for name in columns), _speed(row))
    return table


def by_attack(rows: Sequence[Row]) -> list[list[str]]:
    """The same the other way round, for many attacks: a header, then a line an attack with a figure a defence."""
    lines = [["attack", *(row.defence for row in rows)]]
    return lines + [[name, *(figure(row.columns.get(name)) for row in rows)] for name in column_names(rows)]


def render_by_attack(rows: Sequence[Row]) -> str:
    """`by_attack` as a markdown table."""
    header, *lines = by_attack(rows)
    return markdown.table(header, lines)


def terminal_by_attack(rows: Sequence[Row], title: str) -> Table:
    """`by_attack` for a rich console."""
    return terminal_lines(by_attack(rows), title)


def terminal_lines(table: Sequence[Sequence[str]], title: str) -> Table:
    """A header and lines of text for a rich console."""
    header, *lines = table
    shown = Table(title=title, title_justify="left", header_style="bold", pad_edge=False)
    for index, name in enumerate(header):
        shown.add_column(name, justify="right" if index else "left")
    for line in lines:
        shown.add_row(*line)
    return shown


def figure(estimate: Estimate | None) -> str:
    """`87.3 (82.1–91.2)`, in percent; a masked figure says so, since it flatters the defence."""
    if estimate is None:
        return "–"
    text = f"{100 * estimate.value:.1f} ({100 * estimate.low:.1f}–{100 * estimate.high:.1f})"
    return " ".join([text, *(["masked"] if estimate.masked else []), *(["no gradient"] if estimate.no_gradient else [])])


def column_names(rows: Sequence[Row]) -> list[str]:
    """Every column that any row has, in the order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.columns))


def sizes(rows: Sequence[Row]) -> dict[str, int]:
    """Images behind each column."""
    return {name: next(row.columns[name].n for row in rows if name in row.columns) for name in column_names(rows)}


def best(rows: Sequence[Row]) -> dict[str, float]:
    """The largest unmasked value of each column."""
    values = {
        name: [row.columns[name].value for row in rows if name in row.columns and row.columns[name].is_evidence]
        for name in column_names(rows)
    }
    return {name: max(column, default=-1.0) for name, column in values.items()}


def flattened(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `guidance.scale: 3`, for reading."""
    lines: dict[str, str] = {}
    for name, value in settings.items():
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = dataclasses.asdict(value)
        if isinstance(value, dict):
            lines.update(flattened(value, f"{prefix}{name}."))
        else:
            lines[prefix + name] = value if isinstance(value, str) else json.dumps(value, default=str)
    return lines


def versions() -> dict[str, str]:
    """What produced the figures."""
    known = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    for package in _PACKAGES:
        try:
            known[package] = version(package)
        except PackageNotFoundError:
            known[package] = "not installed"
    return known


def _short(value: Any) -> Any:
    return float(f"{value:.3g}") if isinstance(value, float) else value


def _speed(row: Row) -> str:
    return "–" if row.images_per_second is None else f"{row.images_per_second:,.0f}"
