"""What stands beside accuracies: metrics of fresh draws, agreement with the guide, what a minimum is over, the cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from purify_engine.evaluation.cells import Cell, common
from purify_engine.evaluation.defences import BASELINES, GUIDE_ALONE, OURS
from purify_engine.evaluation.statistics import mcnemar, paired_difference, wilson
from purify_engine.evaluation.suite import CLEAN
from purify_engine.evaluation.summary import HEADLINE, Comparison, Row, by_defence
from purify_engine.evaluation.validation import WORST_OF, Validation

SINGLE, WORST = "one draw", f"worst of {WORST_OF}"
FRESH_NOTES = (
    "fresh draws: each image's worst attack, picked by the draws that scored the attacks, judged on others, unseen.",
    f"{SINGLE}: the mean over draws. {WORST}: an image counts where ten draws are all right. majority: where most of its draws "
    "are. Three metrics, not to be compared with one another.",
    "agreement: the share of verdicts that are the guide's own answer to the same image. At 100 % the row is the guide redrawn.",
)
BY_THE_GUIDE = {"surface": ("guide",), "start": ("guide", "guide_worst"), "loss": ("joint", "features")}


def fresh_rows(validations: Iterable[Validation], confidence: float = 0.95) -> list[Row]:
    """A row a defence: of the clean images and of every minimum, the three metrics by fresh draws.

    A defence without noise has one vote, which stands for as many as the others'.
    """
    rows, validations = dict[str, Row](), list(validations)
    votes = max((one.voting for one in validations), default=1)
    for one in validations:
        columns = rows.setdefault(one.defence, Row(one.defence, {})).columns
        columns[f"{one.group}: {SINGLE}"] = wilson(one.single, confidence)
        columns[f"{one.group}: {WORST}"] = wilson(one.worst, confidence)
        voting = votes if one.voting == 1 else one.voting
        columns[f"{one.group}: majority of {voting}"] = wilson([float(right) for right in one.majority], confidence)
    return list(rows.values())


def fresh_comparisons(validations: Iterable[Validation], confidence: float = 0.95) -> list[Comparison]:
    """Ours with every baseline on the images of both, under the worst l_inf attack: single draws, and McNemar by majorities."""
    known = {one.defence: one for one in validations if one.group == HEADLINE}
    return [
        _compared(known[OURS], known[name], confidence)
        for name in BASELINES
        if OURS in known and name in known and set(known[OURS].ids) & set(known[name].ids)
    ]


def _compared(ours: Validation, other: Validation, confidence: float) -> Comparison:
    both = sorted(set(ours.ids) & set(other.ids))
    places = [{image: place for place, image in enumerate(one.ids)} for one in (ours, other)]
    single, majority = (
        [[float(values[place[image]]) for image in both] for values, place in zip(of_both, places, strict=True)]
        for of_both in ((ours.single, other.single), (ours.majority, other.majority))
    )
    difference = paired_difference(single[0], single[1], confidence)
    return Comparison(ours.defence, other.defence, difference, None, mcnemar(majority[0], majority[1]))


def facts(cells: Sequence[Cell], validations: Sequence[Validation] = ()) -> list[dict[str, Any]]:
    """Of each defence what its figures rest on; None where the results do not tell."""
    found, marks = [], unequal(cells)
    for defence, own in by_defence(cells).items():
        attacked = [cell for cell in own.values() if cell.attack != CLEAN.name]
        costs = [cell.cost for cell in own.values() if cell.cost]
        spent = costs[0]["ms_an_image"] if costs else None
        fresh = {one.group: one for one in validations if one.defence == defence}
        shown = next((one for group, one in fresh.items() if group != CLEAN.name), None)
        found.append({
            "defence": defence,
            "images": len(common(list(own.values()))[0].images),
            "of": max(cell.of or len(cell.scores) for cell in own.values()),
            "attacks_linf": sum(cell.norm == "linf" for cell in attacked),
            "attacks": len(attacked),
            "weaker": marks.get(defence, []),
            "agreement_clean": _mean([share for cell in own.values() if cell.attack == CLEAN.name for share in cell.agreement]),
            "agreement_attacked": _mean([share for cell in attacked for share in cell.agreement]),
            "calls": costs[0]["calls"] if costs else None,
            "ms_an_image": spent,
            "images_per_second": round(1e3 / spent, 2) if spent else None,
            "peak_bytes": max((each["peak_bytes"] for each in costs if each.get("peak_bytes") is not None), default=None),
            "seeds": None if shown is None else [round(value, 6) for value in shown.by_seed],
        })  # fmt: skip
    return found


def unequal(cells: Iterable[Cell]) -> dict[str, list[str]]:
    """Of each defence in which attacks it was attacked less than another row: missing, shorter, or smaller; [] for none."""
    table = by_defence(cells)
    hardest: dict[str, Cell] = {}
    for own in table.values():
        for name, cell in own.items():
            if name not in hardest or _effort(cell) > _effort(hardest[name]):
                hardest[name] = cell
    found = {}
    for defence, own in table.items():
        any_cell = next(iter(own.values()))
        missing = [name for name, cell in hardest.items() if name not in own and _applies(cell, any_cell)]
        weaker = [name for name, cell in own.items() if _effort(cell) < _effort(hardest[name])]
        found[defence] = [f"without {name}" for name in missing] + [f"weaker {name}" for name in weaker]
    return found


def _effort(cell: Cell) -> tuple[float, int, int]:
    """Radius, gradients an image (a defence without noise takes steps in place of draws), and draws of a score."""
    how = cell.config.get("attack", {})
    steps = how.get("num_steps", 0) * how.get("num_eot", 1) * how.get("restarts", 1) * max(1, how.get("targets", 0))
    return how.get("epsilon", 0.0), steps, cell.config.get("num_draws", 0)


def _applies(attack: Cell, row: Cell) -> bool:
    """Whether an attack that another row has could be run on this one: not on a guide or a purifier that it lacks."""
    how, defence = attack.config.get("attack", {}), row.config.get("defence", {})
    if row.defence == GUIDE_ALONE and how.get("surface") == "guide":  # then it is attacked itself
        return True
    if not defence.get("guided") and any(how.get(name) in values for name, values in BY_THE_GUIDE.items()):
        return False
    plain = how.get("gradient", "exact") in ("exact", "blind")
    return how.get("gradient") != "straight_through" and (plain or defence.get("purifier") is not None)


def _mean(shares: Sequence[float]) -> float | None:
    return round(sum(shares) / len(shares), 6) if shares else None


def table_of(found: Sequence[dict[str, Any]]) -> list[list[str]]:
    """`facts` as text: a header, then a line a defence."""
    header = ["defence", "images", "attacks (l∞)", "agreement: clean", "attacked", "U-Net calls", "guide calls", "ms an image",
              "images/s", "peak memory", "spread of seeds", "attacked less"]  # fmt: skip
    return [header, *([_or_dash(value) for value in _line(fact)] for fact in found)]


def _line(fact: dict[str, Any]) -> list[str | None]:
    calls, peak, seeds = fact["calls"], fact["peak_bytes"], fact["seeds"]
    guide = None if calls is None else f"{calls['guide']} forward, {calls['guide_backward']} backward"
    return [
        fact["defence"],
        f"{fact['images']:,}" if fact["images"] == fact["of"] else f"{fact['images']:,} of {fact['of']:,}",
        f"{fact['attacks']} ({fact['attacks_linf']})",
        *(None if fact[name] is None else f"{100 * fact[name]:.1f} %" for name in ("agreement_clean", "agreement_attacked")),
        None if calls is None else str(calls["unet"]),
        guide,
        None if fact["ms_an_image"] is None else f"{fact['ms_an_image']:.3g}",
        None if fact["images_per_second"] is None else f"{fact['images_per_second']:,.4g}",
        None if peak is None else f"{peak / 2**20:,.0f} MiB",
        None if not seeds else f"{100 * (max(seeds) - min(seeds)):.1f} points of {len(seeds)}",
        "; ".join(fact["weaker"]) or "no",
    ]


def _or_dash(value: str | None) -> str:
    return "–" if value is None else value
