"""`purify-engine report`: a report again, from what a run left behind."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from purify_engine.cli.console import say
from purify_engine.config import EvaluationConfig, require

if TYPE_CHECKING:
    import numpy as np

    from purify_engine.cli.evaluated import Found
    from purify_engine.data import Source
    from purify_engine.data.contact_sheet import Classify


def report(
    results: Path,
    *,
    report: Path | None = None,
    merge: Annotated[list[Path] | None, Parameter(negative_iterable=())] = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Write the report of RESULTS again: what `purify` wrote, or the cells of `evaluate`.

    The contact sheet of a purification is read again from its source and its output, where both are still there.

    Parameters
    ----------
    results:
        The output of `purify`, or the .jsonl file of `evaluate`.
    report:
        Where to write it, one HTML file; by default report.html among the records of the output, or beside the .jsonl file.
    merge:
        Further .jsonl files of the same evaluation, such as those of other shares, put together with RESULTS.
    json:
        Print where it is as one JSON line.
    """
    if results.suffix == ".jsonl" and results.is_file():
        written = _of_evaluation([results, *(merge or ())], report or results.with_suffix(".html"))
    else:
        written = write_purification(results, path=report)
    say({"report": str(written)}, f"The report is {written}", as_json=json)
    return 0


def write_purification(output: Path, *, source: Source | None = None, path: Path | None = None) -> Path:
    """The report of a purification, with the verdicts of the classifier beside its purifier where there is one."""
    from purify_engine.data.report import purifier_of, write_report

    return write_report(output, source=source, classify=_classifier_of(*purifier_of(output)), path=path)


def _classifier_of(purifier: str | None, revision: str | None) -> Classify | None:
    import torch

    from purify_engine.presets import load_classifier

    try:
        classifier = load_classifier(purifier, revision=revision) if purifier else None
    except (ValueError, OSError, ImportError):  # a purifier alone, or one that is gone
        return None
    if classifier is None:
        return None
    names = classifier.class_names

    def classify(image: np.ndarray) -> str:
        try:
            with torch.no_grad():
                number = int(classifier(torch.from_numpy(image)[None]).argmax())
        except (ValueError, RuntimeError):  # of another size or number of channels than its own
            return ""
        return names[number] if names is not None else str(number)

    return classify


def write_evaluation(
    path: Path,
    found: Found,
    *,
    confidence: float,
    about: Mapping[str, str],
    self_test: dict[str, Any] | None = None,
    configuration: dict[str, Any] | None = None,
) -> Path:
    """The report of finished cells; `about` is what stands on top besides the numbers of images, the budgets and the date."""
    from purify_engine.evaluation.metrics import FRESH_NOTES, facts, fresh_comparisons, fresh_rows, table_of
    from purify_engine.evaluation.report import by_attack, write_report
    from purify_engine.evaluation.self_test_said import without_gradient
    from purify_engine.evaluation.summary import NOTES, against_ours, summarise
    from purify_engine.evaluation.verdict import budgets, circumstances

    cells, fresh = found.cells, fresh_rows(found.validations, confidence)
    beside = facts(cells, found.validations)
    tables = [("Scored afresh, in percent", " ".join(FRESH_NOTES[:2]), by_attack(fresh))] if fresh else []
    return write_report(
        path,
        title="Evaluation",
        rows=summarise(cells, confidence, without_gradient(self_test)),
        comparisons=against_ours(cells, confidence),
        self_test=self_test,
        configuration=configuration,
        notes=NOTES,
        about={**circumstances(cells), **about},
        budgets=budgets(cells),
        tables=[*tables, ("What the figures rest on, and what they cost", FRESH_NOTES[2], table_of(beside))],
        fresh=fresh,
        facts=beside,
        fresh_comparisons=[dataclasses.asdict(item) for item in fresh_comparisons(found.validations, confidence)],
    )


def _of_evaluation(results: Sequence[Path], path: Path) -> Path:
    from purify_engine.cli.evaluated import found_in

    found = found_in(results)
    require(len(found.cells) > 0, "results", "a file with at least one finished cell", ", ".join(map(str, results)))
    written = datetime.datetime.fromtimestamp(max(one.stat().st_mtime for one in results)).astimezone()
    about = {"cells": ", ".join(map(str, results)), "last written": f"{written:%Y-%m-%d %H:%M %Z}"}
    return write_evaluation(path, found, confidence=EvaluationConfig().confidence, about=about)
