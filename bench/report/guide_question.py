"""When does purification add to its own guide? The answer in words, and the table behind it.

Everywhere a paired difference, image by image, of each image's worst attack: the purifier with a guide before the classifier,
less that guide as the classifier. The worst attack is picked by other noise draws than it is scored by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.report.ablations import THREATS, Outcome, difference, outcomes, points, results_of
from bench.report.sentences import listed
from purify_engine.evaluation.cells import Cell, common, read_cells
from purify_engine.evaluation.defences import FIXED, GUIDE_ALONE, OURS
from purify_engine.evaluation.report import figure
from purify_engine.evaluation.statistics import Estimate, PairedDifference, paired_difference, wilson
from purify_engine.evaluation.summary import NORMS, by_defence, fresh_minimum_scores
from purify_engine.markdown import table

ASKED = "**When does purification add to its own guide?**"
EVALUATIONS = {"the handwritten digits": "digits.jsonl", "CIFAR-10": "cifar10-small.jsonl"}
ABLATED = {"digits": "the handwritten digits", "cifar10": "CIFAR-10"}
NAMES = {"linf": "ℓ∞", "l2": "ℓ2", "spatial": "StAdv"}


@dataclass(frozen=True)
class Finding:
    """A purifier against its own guide under one threat model."""

    data: str
    row: str
    threat: str
    gap: PairedDifference
    ours: Estimate
    guide: Estimate


def evaluated(results: Path) -> list[Finding]:
    """Of the evaluations that are committed: every guided row, in every norm that both it and the guide were attacked in."""
    found = []
    for data, name in EVALUATIONS.items():
        if (results / name).exists():
            table_of = by_defence(read_cells(results / name))
            rows = [row for row in table_of if row.startswith(OURS) and row != FIXED]
            for row in rows if GUIDE_ALONE in table_of else []:
                found += [made for norm in NORMS if (made := _in_norm(data, row, norm, table_of))]
    return found


def _in_norm(data: str, row: str, norm: str, table_of: dict[str, dict[str, Cell]]) -> Finding | None:
    count = len(own := [cell for cell in table_of[row].values() if cell.norm == norm])
    alone = [cell for cell in table_of[GUIDE_ALONE].values() if cell.norm == norm]
    shared = common([*own, *alone])
    if not own or not alone or not shared[0].scores:
        return None
    scores, guide = fresh_minimum_scores(shared[:count]), fresh_minimum_scores(shared[count:])
    return Finding(data, row, NAMES[norm], paired_difference(scores, guide), wilson(scores), wilson(guide))


def varied(results: Path, data: str) -> list[tuple[Finding, Outcome]]:
    """Of the ablation: every purifier beside the guide that it has, under every threat model."""
    records = results_of(results, data)
    rows = outcomes(records, "guide-question") if any(record["ablation"] == "guide-question" for record in records) else []
    alone = {row.defence.get("guide"): row for row in rows if row.defence["kind"] == GUIDE_ALONE}
    found = []
    for row in rows:
        guide = alone.get(row.defence.get("guide"))
        if row.defence["kind"] != "ours" or guide is None:
            continue
        for threat in dict.fromkeys(line.threat for line in row.lines.values() if line.threat != "none"):
            ours, own = row.worst(threat), guide.worst(threat)
            if (gap := difference(ours, own)) is not None:
                named = Finding(ABLATED[data], row.name, THREATS.get(threat, threat), gap, wilson(ours), wilson(own))
                found.append((named, row))
    return found


def answer(results: Path) -> str:
    """The answer by the committed evaluations, worded for any outcome."""
    found = evaluated(results)
    if not found:
        return f"{ASKED} Not measured yet."
    unmeasured = [data for data in EVALUATIONS if data not in {finding.data for finding in found}]
    return " ".join([ASKED, *_outcomes(found), *(f"{data}: not measured yet." for data in unmeasured)])


def _outcomes(found: Sequence[Finding]) -> list[str]:
    """What is better, what is worse and what the images do not tell apart, each with its paired interval."""
    better = _grouped(finding for finding in found if finding.gap.significant and finding.gap.value > 0)
    worse = _grouped(finding for finding in found if finding.gap.significant and finding.gap.value < 0)
    same = _grouped(finding for finding in found if not finding.gap.significant)
    said = [f"Where it was measured to: {better}." if better else "In nothing that was measured so far."]
    said += [f"The guide alone is better than {worse}."] if worse else []
    said += [f"Not told apart from the guide alone: {same}."] if same else []
    return [*said, "Points of each image's worst attack, purifier less guide, with paired 95 % intervals."]


def _grouped(found: Iterable[Finding]) -> str:
    """`ours on CIFAR-10 (n = 512: ℓ∞ +0.8 (-0.1 to +1.8), ℓ2 ...)`, and so on; empty where nothing was found."""
    groups: dict[tuple[str, str, int], list[str]] = {}
    for finding in found:
        groups.setdefault((finding.row, finding.data, finding.gap.n), []).append(f"{finding.threat} {points(finding.gap)}")
    said = [f"“{row}” on {data} (n = {n}: {', '.join(gaps)})" for (row, data, n), gaps in groups.items()]
    return listed(said) if said else ""


def evaluated_table(results: Path) -> str:
    """A line a guided row and norm."""
    return findings_table(evaluated(results)) or "Not measured yet."


def findings_table(found: Iterable[Finding]) -> str:
    """Both accuracies under each image's worst attack, and their paired difference."""
    header = ("data", "purifier", "threat", "with the purifier", "its guide alone", "difference, points", "images")
    rows = [(f.data, f.row, f.threat, figure(f.ours), figure(f.guide), points(f.gap), str(f.gap.n)) for f in found]
    return table(header, rows, left=(0, 1, 2)) if rows else ""


def varied_table(results: Path) -> str:
    """The same of the ablation, with how often the purifier is right where its guide is wrong."""
    found = [pair for data in ABLATED for pair in varied(results, data)]
    if not found:
        return "Not measured yet: `python -m bench ablation guide-question` writes it."
    header = ("data", "purifier", "threat", "with the purifier", "its guide alone", "difference, points",
              "right where the guide is wrong", "validation images")  # fmt: skip
    rows = [(f.data, f.row, f.threat, figure(f.ours), figure(f.guide), points(f.gap), restored(row, f.threat), str(f.gap.n))
            for f, row in found]  # fmt: skip
    return table(header, rows, left=(0, 1, 2))


def restored(row: Outcome, threat: str) -> str:
    """Accuracy on attacked images that the guide misclassifies, over the attacks of a threat model."""
    lines = [line for line in row.lines.values() if line.threat != "none" and THREATS.get(line.threat, line.threat) == threat]
    judged = [pair for line in lines for pair in zip(line.cell.pooled, line.record["guide_right"], strict=True)]
    scores = [score for score, right in judged if not right]
    return f"{100 * sum(scores) / len(scores):.1f} % of {len(scores)}" if scores else "–"


FIGURES: dict[str, Callable[[Path], str]] = {
    "guide-question": answer,
    "guide-question-evaluated": evaluated_table,
    "guide-question-varied": varied_table,
}
