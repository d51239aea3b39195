"""Tables of `python -m bench ablation`: each row with its intervals, what it costs, and its paired difference to the base row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.core.ablations import ABLATIONS, BASE
from purify_engine.evaluation.cells import Cell
from purify_engine.evaluation.report import figure
from purify_engine.evaluation.statistics import PairedDifference, paired_difference, wilson
from purify_engine.evaluation.suite import CLEAN
from purify_engine.evaluation.summary import fresh_minimum_scores
from purify_engine.files import read_json_lines
from purify_engine.markdown import table

LINF = "linf"
THREATS = {LINF: "ℓ∞", "l2": "ℓ2", "twice the radius": "ℓ∞, twice the radius"}  # as pages call them


@dataclass(frozen=True)
class Line:
    """One row under one attack, as its line has it."""

    record: dict[str, Any]
    cell: Cell

    @property
    def attack(self) -> str:
        return self.cell.attack

    @property
    def threat(self) -> str:
        """Which threat model the attack is of; of the images as they are, none."""
        name, _, suffix = self.attack.partition(", ")
        return "none" if name == CLEAN.name else suffix or LINF


@dataclass(frozen=True)
class Outcome:
    """One row of an ablation: its lines by attack."""

    name: str
    lines: dict[str, Line]

    @property
    def record(self) -> dict[str, Any]:
        """Of any attack: what is the same under all."""
        return next(iter(self.lines.values())).record

    @property
    def place(self) -> float | None:
        return self.record["place"]

    @property
    def defence(self) -> dict[str, Any]:
        """The settings of the row."""
        return self.record["cell"]["config"]["defence"]

    def attacked(self, threat: str = LINF) -> list[Line]:
        return [line for line in self.lines.values() if line.threat == threat]

    def worst(self, threat: str = LINF) -> tuple[float, ...]:
        """Each image's score under its worst attack of a threat model, picked by other draws than it is scored by.

        Of one attack: its scores.
        """
        cells = [line.cell for line in self.attacked(threat)]
        return fresh_minimum_scores(cells) if len(cells) > 1 else cells[0].pooled if cells else ()

    def scores(self, attack: str) -> tuple[float, ...]:
        return self.lines[attack].cell.pooled if attack in self.lines else ()


def results_of(results: Path, data: str) -> list[dict[str, Any]]:
    """The lines of one data set's ablations; none where nothing was measured."""
    path = results / f"ablations-{data}.jsonl"
    return read_json_lines(path) if path.exists() else []


def outcomes(records: Iterable[dict[str, Any]], name: str) -> list[Outcome]:
    """The rows of an ablation, of the base row that was measured last, in the order of its definition."""
    own = [record for record in records if record["ablation"] == name]
    latest = [record for record in own if record["base"] == own[-1]["base"]]
    rows: dict[str, dict[str, Line]] = {}
    for record in latest:
        line = Line(record, Cell.from_record(record["cell"]))
        rows.setdefault(record["variant"], {})[line.attack] = line
    order = [variant.name for variant in ABLATIONS[name].variants] if name in ABLATIONS else list(rows)
    return [Outcome(row, rows[row]) for row in sorted(rows, key=lambda row: order.index(row) if row in order else len(order))]


def difference(a: Sequence[float], b: Sequence[float]) -> PairedDifference | None:
    """Mean of a - b image by image; None where they are not of the same images."""
    return paired_difference(a, b) if a and len(a) == len(b) else None


def points(gap: PairedDifference | None) -> str:
    """`+1.2 (-0.3 to +2.7)`, in points; – where there is none."""
    return "–" if gap is None else f"{100 * gap.value:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})"


def ablation_table(rows: Sequence[Outcome]) -> str:
    """A line a row: accuracy under every attack, under each image's worst, beside the base row, and the cost."""
    attacks = list(dict.fromkeys(attack for row in rows for attack in row.lines))
    threats = [name for name in dict.fromkeys(line.threat for row in rows for line in row.lines.values()) if name != "none"]
    base = next((row for row in rows if row.name == BASE.name), None)
    if len(threats) > 1:  # every attack of every threat model would be too wide
        attacks = [CLEAN.name]
    judged = [f"worst, {THREATS.get(threat, threat)}" for threat in threats]
    header = ("row", *attacks, *judged, *(f"{name}, to ours" for name in judged), "agrees with the guide", "U-Net calls",
              "ms an image")  # fmt: skip
    lines = []
    for row in rows:
        figures = [_figure(row.scores(attack)) for attack in attacks]
        worst = [_figure(row.worst(threat)) for threat in threats]
        gaps = ["–" if base is None or row is base else points(difference(row.worst(t), base.worst(t))) for t in threats]
        lines.append([row.name, *figures, *worst, *gaps, _agreement(row), *_cost(row)])
    return table(header, lines)


def _figure(scores: Sequence[float]) -> str:
    return figure(wilson(scores) if scores else None)


def _agreement(row: Outcome) -> str:
    """Share of verdicts on attacked images that are the guide's own."""
    attacked = [line.record["agreement"] for line in row.lines.values() if line.threat != "none"]
    return f"{fmean(attacked):.2f}" if attacked else "–"


def _cost(row: Outcome) -> tuple[str, str]:
    measured = min(line.record["ms_an_image"] for line in row.lines.values())
    return str(row.record["calls"]["unet"]), f"{measured:.3g}"


def about(rows: Sequence[Outcome]) -> str:
    """What stands over a table: the base row's settings, the images, the attacks and the machine."""
    first = rows[0]
    record, settings = first.record, first.defence
    purifier, guidance = settings.get("purifier", {}), settings.get("guidance", {})
    steps = purifier.get("num_steps") or purifier.get("t_star")
    terms = [name for name, weight in (("latent", "latent_weight"), ("label", "label_weight")) if guidance.get(weight)]
    pull = f"{' and '.join(terms)} guidance at r = {settings['ratio']:g}" if "ratio" in settings else "no guidance"
    said = [f"Ours: t* = {purifier.get('t_star')}, {steps} steps of {purifier.get('sampler')}, {pull}."]
    budgets = [f"{name}, {_budget(line.cell.config['attack'])}" for name, line in first.lines.items() if line.threat != "none"]
    draws = 2 * record["cell"]["config"]["num_draws"]
    said.append(f"{record['n']} validation images, verdicts of {draws} fresh draws. Attacks: {'; '.join(budgets)}.")
    said.append(f"{record['machine']}, {record['when'][:10]}, commit {record['commit']}.")
    return " ".join(said)


def _budget(how: dict[str, Any]) -> str:
    level = how["epsilon"] * 255
    radius = f"{level:.3g}/255" if how["norm"] == "linf" and abs(level - round(level)) < 1e-6 else f"{how['epsilon']:g}"
    norm = {"linf": "ℓ∞", "l2": "ℓ2", "spatial": "shift"}[how["norm"]]
    return f"{norm} {radius}, {how['num_steps']} steps × EOT {how['num_eot']}, {how['gradient']} gradient"


def every_ablation(results: Path, data: str, drawings: dict[str, str]) -> str:
    """A heading, a table and where there is one a drawing for each ablation that was measured; what was not is named.

    drawings: ablation -> path of its drawing as the page links it.
    """
    records = results_of(results, data)
    parts, missing = [], []
    for name, ablation in ABLATIONS.items():
        rows = outcomes(records, name) if any(record["ablation"] == name for record in records) else []
        if not rows:
            missing.append(name)
            continue
        drawing = [f"![{ablation.about}]({drawings[name]})"] if name in drawings else []
        parts.append("\n\n".join([f"#### {ablation.about} (`{name}`)", about(rows), ablation_table(rows), *drawing]))
    left = f"Not measured yet: {', '.join(f'`{name}`' for name in missing)} (`python -m bench ablation NAME`)." if missing else ""
    return "\n\n".join([*parts, *([left] if left else [])])
