"""Which presets follow from the ablation over steps on validation images, and the lines that say so.

faithful is the ablation's row of most steps, as the paper walks every one. fast is the row of fewest steps without a significant
paired loss against it under each image's worst attack; balanced the one without such a loss on clean images either. A loss that
there are too few images to show is none here: their number stands beside each.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.report.ablations import Outcome, difference, outcomes, points, results_of
from bench.report.guide_question import ABLATED
from purify_engine.evaluation.statistics import PairedDifference
from purify_engine.evaluation.suite import CLEAN
from purify_engine.markdown import table

STEPS = "steps"


@dataclass(frozen=True)
class Choice:
    """A preset, the row that it is, and what it loses against faithful."""

    name: str
    row: Outcome
    clean: PairedDifference | None
    worst: PairedDifference | None

    @property
    def about(self) -> str:
        """The sentence that stands in config.json."""
        record = self.row.record
        where = f"ablation {record['ablation']}, base {record['base']}, {record['n']} validation images"
        return f"{self.name}: row {self.row.name!r} ({where})"

    def changes(self) -> dict[str, Any]:
        """What config.json says of it, beside `about`."""
        purifier = self.row.defence["purifier"]
        settings = {name: purifier[name] for name in ("t_star", "num_steps", "sampler", "eta")}
        guidance = {**self.row.defence.get("guidance", {"kind": "none"})}
        if self.row.record["scale"] is not None:
            guidance["scale"] = self.row.record["scale"]
        return {**settings, "guidance": guidance, "about": self.about}


def chosen(rows: list[Outcome]) -> list[Choice]:
    """faithful, balanced and fast of the rows of an ablation over steps; nothing where no row was attacked."""
    attacked = [row for row in rows if row.worst() and row.defence.get("purifier")]
    if not attacked:
        return []
    faithful = max(attacked, key=_calls)
    compared = [Choice("", row, difference(row.scores(CLEAN.name), faithful.scores(CLEAN.name)),
                       difference(row.worst(), faithful.worst())) for row in attacked]  # fmt: skip
    as_robust = [choice for choice in compared if choice.row is faithful or not _loses(choice.worst)]
    as_good = [choice for choice in as_robust if choice.row is faithful or not _loses(choice.clean)]
    picked = {"faithful": next(choice for choice in compared if choice.row is faithful),
              "balanced": min(as_good, key=lambda choice: _calls(choice.row)),
              "fast": min(as_robust, key=lambda choice: _calls(choice.row))}  # fmt: skip
    return [Choice(name, choice.row, choice.clean, choice.worst) for name, choice in picked.items()]


def _calls(row: Outcome) -> int:
    return int(row.record["calls"]["unet"])


def _loses(gap: PairedDifference | None) -> bool:
    """Significantly; what was not measured on the same images counts as a loss."""
    return gap is None or (gap.significant and gap.value < 0)


def of_results(results: Path, data: str) -> list[Choice]:
    """The presets of one data set's ablation over steps."""
    records = results_of(results, data)
    return chosen(outcomes(records, STEPS)) if any(record["ablation"] == STEPS for record in records) else []


def presets_table(results: Path) -> str:
    """The presets of every data set, each with the row that it cites."""
    header = ("data", "preset", "row of the ablation `steps`", "U-Net calls", "ms an image", "clean, to faithful, points",
              "worst attack, to faithful, points", "validation images")  # fmt: skip
    rows = [(called, c.name, c.row.name, str(_calls(c.row)), f"{c.row.record['ms_an_image']:.3g}", points(c.clean),
             points(c.worst), str(c.row.record["n"]))
            for data, called in ABLATED.items() for c in of_results(results, data)]  # fmt: skip
    return table(header, rows, left=(0, 1, 2)) if rows else "Not measured yet: `python -m bench ablation steps` writes it."
