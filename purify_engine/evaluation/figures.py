"""The figures of a report for programs, unrounded: CSV for spreadsheets, JSON with everything else that describes the run."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from purify_engine.evaluation.summary import Comparison, Row, to_json
from purify_engine.files import write_text

COLUMNS = ("attack", "budget", "defence", "accuracy", "low", "high", "images", "masked")


def figures_beside(report: Path) -> tuple[Path, Path]:
    """Where the CSV and the JSON of a report lie: `report.figures.csv` and `report.figures.json` beside `report.html`."""
    return report.with_suffix(".figures.csv"), report.with_suffix(".figures.json")


def write_figures(
    report: Path,
    rows: Sequence[Row],
    comparisons: Sequence[Comparison] = (),
    budgets: Mapping[str, str] | None = None,
    *,
    fresh: Sequence[Row] = (),
    **about: Any,
) -> tuple[Path, Path]:
    """Write every figure of the report at `report` beside it, in [0, 1] and unrounded; `about` goes into the JSON alone.

    fresh: rows of what was scored afresh.
    """
    csv_path, json_path = figures_beside(report)
    scored_afresh = {"fresh": to_json(fresh)["rows"]} if fresh else {}
    write_text(csv_path, as_csv([*rows, *fresh], budgets or {}))
    write_text(json_path, json.dumps(to_json(rows, comparisons, **about, **scored_afresh), indent=1, default=str) + "\n")
    return csv_path, json_path


def as_csv(rows: Sequence[Row], budgets: Mapping[str, str]) -> str:
    """A line for every attack on every defence."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        for name, each in row.columns.items():
            figures = [each.value, each.low, each.high, each.n, str(each.masked).lower()]
            writer.writerow([name, budgets.get(name, ""), row.defence, *figures])
    return text.getvalue()
