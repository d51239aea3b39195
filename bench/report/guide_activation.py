"""The table of `python -m bench guide-activation`: ReLU and SiLU guides beside each other, and the purifiers they guide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from purify_engine.evaluation.report import figure
from purify_engine.evaluation.statistics import paired_difference, wilson
from purify_engine.files import read_json_lines
from purify_engine.markdown import table

Record = dict[str, Any]

NAMES = {"relu": "ReLU", "silu": "SiLU"}
CLEAN, EXACT = "standard", "exact"


def guide_activation(results: Path) -> str:
    """A column each form of guidance and activation, the mean over seeds; a row each measure."""
    path = results / "guide_activation.jsonl"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: `python -m bench guide-activation` writes it")
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in read_json_lines(path):
        groups.setdefault((record["form"], record["activation"]), []).append(record)
    ordered = [group for _, group in sorted(groups.items())]
    columns = [column(group) for group in ordered]
    header = ("", *(f"{NAMES[group[0]['activation']]}, guiding by {group[0]['form']}" for group in ordered))
    return table(header, [(name, *(each[name] for each in columns)) for name in columns[0]], left=(0,))


def column(records: list[Record]) -> dict[str, str]:
    """Every row's cell, of the lines that differ in their seed alone."""
    first = records[0]
    names = [name for name in first["scores"] if name not in (CLEAN, EXACT)]
    scores = {name: by_image(records, name) for name in first["scores"]}
    lowest = min(names, key=lambda name: mean(scores[name]))
    gap = paired_difference(scores[EXACT], scores[lowest])
    cells = {
        "trainings": str(len(records)),
        f"the guide alone, {first['guide']['n']} digits: {CLEAN}": of_guides(records, "clean"),
        "the guide alone under PGD": of_guides(records, "robust"),
    }
    for step in first["apart"]:
        label = f"exact derivative and differences of ±{float(step):g} apart, median share"
        cells[label] = over_seeds([record["apart"][step] for record in records])
    exact = replace(wilson(scores[EXACT]), masked=gap.low > 0)
    cells[f"purified, {first['n']} digits: {CLEAN}"] = figure(wilson(scores[CLEAN]))
    cells["PGD through the exact gradient"] = figure(exact)
    cells |= {name: figure(wilson(scores[name])) for name in names}
    cells["exact above the lowest other, points (paired 95 % interval)"] = (
        f"{100 * gap.value:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})"
    )
    return cells


def by_image(records: list[Record], attack: str) -> list[float]:
    """Each image's score under an attack, its mean over seeds."""
    return [mean(own) for own in zip(*(record["scores"][attack] for record in records), strict=True)]


def of_guides(records: list[Record], name: str) -> str:
    """Accuracy of guides alone, the mean over seeds."""
    n = records[0]["guide"]["n"]
    right = round(n * mean(record["guide"][name] for record in records))
    return figure(wilson([1.0] * right + [0.0] * (n - right)))


def over_seeds(values: list[float]) -> str:
    """The mean, and the lowest and the highest."""
    low, middle, high = (f"{value:.3g}" for value in (min(values), mean(values), max(values)))
    return f"{middle} ({low}–{high})" if len(values) > 1 else middle


FIGURES: dict[str, Callable[[Path], str]] = {"guide-activation": guide_activation}
