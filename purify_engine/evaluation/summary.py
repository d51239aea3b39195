"""From cells to conclusions: rows with intervals, masked figures, per-image minima (docs/math.md E23), comparisons."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from purify_engine.evaluation.cells import Cell, common
from purify_engine.evaluation.defences import BASELINES, OURS
from purify_engine.evaluation.statistics import Estimate, McNemar, PairedDifference, mcnemar, paired_difference, wilson
from purify_engine.evaluation.suite import BY_EXACT_GRADIENT, CLEAN, EXACT, UNMASKING

HEADLINE, UNION = "minimum, linf", "minimum, all norms"
NORMS = ("linf", "l2", "spatial")
OTHER_SURFACES = ("guide", "others")  # networks that an attack climbs in place of the defence
WITHOUT_GRADIENT = ("none", "square", "spsa")  # kinds of attacks that ask for answers alone

NOTES = (
    "A figure is the expected accuracy of a single noise draw; beside it its Wilson interval over images.",
    "minimum: each image under its worst attack; over noisy scores it is biased low. The one over l_inf attacks is the headline.",
    "masked: an attack without the exact gradient beats `exact` by more than the paired interval: no evidence of robustness.",
    "no gradient: that of the defence is zero everywhere, so what climbs it attacks nothing: no evidence of robustness.",
    "l2 and StAdv are other threat models; neither the guide nor the guidance was made for them.",
)


@dataclass(frozen=True)
class Row:
    """One defence in a table: its columns in order, and how fast it purifies."""

    defence: str
    columns: dict[str, Estimate]
    images_per_second: float | None = None


@dataclass(frozen=True)
class Comparison:
    """a against b on the same images, by the headline scores; `fresh` by `fresh_minimum_scores`, None where there are none."""

    a: str
    b: str
    difference: PairedDifference
    fresh: PairedDifference | None
    mcnemar: McNemar


def summarise(cells: Iterable[Cell], confidence: float = 0.95, without_gradient: Sequence[str] = ()) -> list[Row]:
    """A row a defence: standard accuracy, the headline over l_inf attacks, the minimum over all, then every attack.

    A minimum needs two attacks to be taken over, one for all needs two norms: a single attack's figure is not called one.
    without_gradient: defences whose gradient is zero everywhere; their figures under attacks that climb it are marked.
    """
    rows, table = [], by_defence(cells)
    minima = _minima([cell for own in table.values() for cell in own.values() if cell.attack != CLEAN.name])
    for defence, own in table.items():
        columns = {CLEAN.name: wilson(own[CLEAN.name].pooled, confidence)} if CLEAN.name in own else {}
        attacked = [cell for cell in own.values() if cell.attack != CLEAN.name]
        masked = bool(unmasked_by(own, confidence))
        for name, norms in minima:
            if minimum := minimum_scores([cell for cell in attacked if cell.norm in norms]):
                columns[name] = wilson(minimum, confidence)
        for cell in attacked:
            estimate = wilson(cell.pooled, confidence)
            columns[cell.attack] = dataclasses.replace(estimate, masked=masked and cell.attack in BY_EXACT_GRADIENT)
        if defence in without_gradient:
            columns = _without_gradient(columns, attacked)
        rows.append(Row(defence, columns))
    return rows


def _without_gradient(columns: dict[str, Estimate], attacked: Sequence[Cell]) -> dict[str, Estimate]:
    """The columns, marked where the attack climbs the defence's gradient, and with them the minima."""
    asked = [cell.config.get("attack", {}) for cell in attacked]
    others = [how.get("name") for how in asked if how.get("kind") in WITHOUT_GRADIENT or how.get("surface") in OTHER_SURFACES]
    sound = {CLEAN.name, *others}
    return {name: each if name in sound else dataclasses.replace(each, no_gradient=True) for name, each in columns.items()}


def _minima(attacked: Sequence[Cell]) -> list[tuple[str, tuple[str, ...]]]:
    """The columns of minima that the attacks are enough for, each with the norms that it is taken over."""
    attacks_of = {norm: {cell.attack for cell in attacked if cell.norm == norm} for norm in NORMS}
    headline = [(HEADLINE, ("linf",))] if len(attacks_of["linf"]) > 1 else []
    return headline + ([(UNION, NORMS)] if sum(map(bool, attacks_of.values())) > 1 else [])


def minimum_scores(cells: Sequence[Cell]) -> tuple[float, ...]:
    """Each image's score under its worst attack, over all draws; of the images that every attack has."""
    return tuple(map(min, zip(*(cell.pooled for cell in common(cells)), strict=True)))


def fresh_minimum_scores(cells: Sequence[Cell]) -> tuple[float, ...]:
    """The same with the worst attack picked by one set of draws and scored on the other: no bias from the noise it picks by.

    Few draws leave many attacks equal, at 0 above all: then the one counts that is stronger over all images, by the same draws.
    """
    cells = sorted(common(cells), key=lambda cell: sum(cell.selection))
    if not cells:
        return ()
    images = range(len(cells[0].scores))
    worst = [min(cells, key=lambda cell, image=i: cell.selection[image]) for i in images]  # type: ignore[misc]
    return tuple(cell.scores[i] for i, cell in zip(images, worst, strict=True))


def unmasked_by(own: dict[str, Cell], confidence: float = 0.95) -> list[str]:
    """The attacks without the exact gradient that beat it by more than the paired interval: then `exact` is masked."""
    if EXACT not in own:
        return []
    pairs = [common([own[EXACT], own[name]]) for name in UNMASKING if name in own]
    return [
        other.attack
        for exact, other in pairs
        if exact.images and paired_difference(exact.pooled, other.pooled, confidence).low > 0
    ]


def compare(cells: Iterable[Cell], a: str, baselines: Sequence[str], confidence: float = 0.95) -> list[Comparison]:
    """Paired comparison of defence `a` with each baseline, by the per-image minimum over l_inf attacks, on the images of both."""
    linf = {name: [cell for cell in own.values() if cell.norm == "linf"] for name, own in by_defence(cells).items()}

    def against(b: str) -> Comparison | None:
        both = common([*linf[a], *linf[b]])
        own, theirs = both[: len(linf[a])], both[len(linf[a]) :]
        if not (own and theirs and both[0].images):
            return None
        mine, others = minimum_scores(own), minimum_scores(theirs)
        again = paired_difference(fresh_minimum_scores(own), fresh_minimum_scores(theirs), confidence)
        return Comparison(a, b, paired_difference(mine, others, confidence), again, mcnemar(mine, others))

    return [found for found in map(against, (b for b in baselines if b in linf)) if found is not None]


def against_ours(cells: Sequence[Cell], confidence: float = 0.95) -> list[Comparison]:
    """Ours with every baseline that an l_inf attack was run on; nothing where none was run on ours."""
    attacked = {cell.defence for cell in cells if cell.norm == "linf"}
    return compare(cells, OURS, [name for name in BASELINES if name in attacked], confidence) if OURS in attacked else []


def by_defence(cells: Iterable[Cell]) -> dict[str, dict[str, Cell]]:
    """defence -> attack -> cell, in the order they came."""
    table: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        table.setdefault(cell.defence, {})[cell.attack] = cell
    return table


def to_json(rows: Sequence[Row], comparisons: Sequence[Comparison] = (), **about: Any) -> dict[str, Any]:
    """Rows and comparisons as plain data, with whatever else describes the run."""
    return {
        **about,
        "rows": [dataclasses.asdict(row) for row in rows],
        "comparisons": [dataclasses.asdict(item) for item in comparisons],
    }
