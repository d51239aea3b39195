"""Tables and a sentence of the committed evaluation on held-out digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from purify_engine.evaluation.defences import BASELINES, GUIDE_ALONE, OURS
from purify_engine.evaluation.protocol import Cell, read_cells
from purify_engine.evaluation.report import figure, render_by_attack, render_table
from purify_engine.evaluation.statistics import Estimate
from purify_engine.evaluation.suite import CLEAN, EXACT, TRANSFERRED
from purify_engine.evaluation.summary import HEADLINE, UNION, compare, summarise
from purify_engine.markdown import table

HEADLINE_COLUMNS = (CLEAN.name, TRANSFERRED, EXACT, HEADLINE)


def headline(results: Path) -> str:
    """The README's table: a row a defence, few columns."""
    return render_table([replace(row, columns=_headline(row.columns)) for row in summarise(digits_cells(results))])


def attacks(results: Path) -> str:
    """Every attack on every defence: a row an attack."""
    return render_by_attack(summarise(digits_cells(results)))


def comparisons(results: Path) -> str:
    """Ours against every other defence, image by image."""
    header = ("ours against", "difference, points (95 % interval)", "picked and scored on separate draws", "McNemar, majorities")
    rows = []
    for item in compare(digits_cells(results), OURS, BASELINES):
        gaps = (
            f"{100 * gap.value:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})"
            for gap in (item.difference, item.fresh)
        )
        test = item.mcnemar
        counts = f"{test.only_a} images only ours, {test.only_b} only theirs, p = {test.p_value:.1g}"
        rows.append((item.b, *gaps, counts))
    return table(header, rows, left=range(len(header)))


def guide_alone(results: Path) -> str:
    """Whether purifying beats the guide as the classifier, in words that the paired interval allows."""
    (item,) = compare(digits_cells(results), OURS, (GUIDE_ALONE,))
    gap = item.difference
    verdict = "is better still" if gap.high < 0 else "is worse" if gap.low > 0 else "is not told apart from ours"
    interval = f"{100 * gap.value:+.1f} points for ours, {100 * gap.low:+.1f} to {100 * gap.high:+.1f}"
    union = {row.defence: figure(row.columns[UNION]) for row in summarise(digits_cells(results))}
    return (
        f"On these digits the adversarially trained guide alone {verdict} under the attacks it was trained for ({interval}). "
        f"Other norms are another matter: with ℓ2 and spatial attacks the minimum is {union[OURS]} for ours, "
        f"{union['DiffPure']} for DiffPure, {union[GUIDE_ALONE]} for {GUIDE_ALONE}."
    )


def _headline(columns: dict[str, Estimate]) -> dict[str, Estimate]:
    return {name: columns[name] for name in HEADLINE_COLUMNS if name in columns}


def digits_cells(results: Path) -> list[Cell]:
    """The committed evaluation on all held-out digits."""
    path = results / "digits.jsonl"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: `make evaluate-digits` writes it")
    return read_cells(path)


FIGURES: dict[str, Callable[[Path], str]] = {
    "digits-headline": headline,
    "digits-attacks": attacks,
    "digits-comparisons": comparisons,
    "digits-guide-alone": guide_alone,
}
