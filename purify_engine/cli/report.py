"""`purify-engine report`: a report again, from what a run left behind."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from purify_engine.cli.console import say
from purify_engine.config import EvaluationConfig, require

if TYPE_CHECKING:
    from purify_engine.evaluation.protocol import Cell


def report(
    results: Path,
    *,
    report: Path | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Write the report of an evaluation again, from the cells of RESULTS.

    Parameters
    ----------
    results:
        The .jsonl file of `evaluate`.
    report:
        Where to write it, one HTML file; by default beside RESULTS.
    json:
        Print where it is as one JSON line.
    """
    require(results.suffix == ".jsonl", "results", "the .jsonl file of an evaluation", str(results))
    written = _of_evaluation(results, report or results.with_suffix(".html"))
    say({"report": str(written)}, f"The report is {written}", as_json=json)
    return 0


def write_evaluation(
    path: Path,
    cells: Sequence[Cell],
    *,
    confidence: float,
    about: Mapping[str, str],
    self_test: dict[str, Any] | None = None,
    configuration: dict[str, Any] | None = None,
) -> Path:
    """The report of finished cells; `about` is what stands on top besides the numbers of images, the budgets and the date."""
    from purify_engine.evaluation.report import write_report
    from purify_engine.evaluation.summary import NOTES, against_ours, summarise
    from purify_engine.evaluation.verdict import budgets, circumstances

    return write_report(
        path,
        title="Evaluation",
        rows=summarise(cells, confidence),
        comparisons=against_ours(cells, confidence),
        self_test=self_test,
        configuration=configuration,
        notes=NOTES,
        about={**circumstances(cells), **about},
        budgets=budgets(cells),
    )


def _of_evaluation(results: Path, path: Path) -> Path:
    from purify_engine.evaluation.protocol import read_cells

    cells = read_cells(results)
    require(len(cells) > 0, "results", "a file with at least one finished cell", str(results))
    written = datetime.datetime.fromtimestamp(results.stat().st_mtime).astimezone()
    about = {"cells": str(results), "last written": f"{written:%Y-%m-%d %H:%M %Z}"}
    return write_evaluation(path, cells, confidence=EvaluationConfig().confidence, about=about)
