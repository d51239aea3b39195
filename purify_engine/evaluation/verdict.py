"""What a table of figures says, in sentences; and the figures themselves, rounded as far as their intervals carry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from purify_engine.evaluation.defences import GUIDE_ALONE, OURS
from purify_engine.evaluation.protocol import Cell
from purify_engine.evaluation.statistics import Estimate, PairedDifference
from purify_engine.evaluation.suite import CLEAN
from purify_engine.evaluation.summary import HEADLINE, UNION, Comparison, Row

ADAPTIVE = "adaptive"
HEADLINES = {HEADLINE: "its worst l∞ attack", ADAPTIVE: "the adaptive attack", UNION: "its worst attack"}
UNDEFENDED = "undefended"
WHOLE_POINTS = 0.005  # half an interval as wide as this or wider: decimals would tell nothing

SIDE_OF_ZERO = 0.02  # an interval's end that is nearer to zero is not rounded to whole points


class Points(NamedTuple):
    """A paired difference as text."""

    value: str
    low: str
    high: str
    bootstrap_low: str
    bootstrap_high: str


def verdict(rows: Sequence[Row], comparisons: Sequence[Comparison] = (), self_test: dict[str, Any] | None = None) -> list[str]:
    """What follows, in sentences: a failed self-test, the accuracy under attack, ours against the guide alone, the cost."""
    said = []
    if self_test is not None and not self_test["passed"]:
        said.append("The gradient self-test failed: attacks by the exact gradient prove nothing here, nor do the figures below.")
    ours = next((row for row in rows if row.defence == OURS), None)
    headline = headline_of(rows)
    if ours is None or headline is None or headline not in ours.columns:
        return said
    bare = next((row for row in rows if row.defence == UNDEFENDED), None)
    said.append(_under_attack(ours, bare, headline))
    said += [_beside_the_guide(item, rows, headline) for item in comparisons if (item.a, item.b) == (OURS, GUIDE_ALONE)]
    said += _over_all_norms(ours, rows, headline)
    said += _without_an_attack(ours, bare)
    masked = [row.defence for row in rows if any(estimate.masked for estimate in row.columns.values())]
    if masked:
        said.append(f"Figures marked masked (of {', '.join(masked)}) flatter: attacks without the exact gradient are stronger.")
    return said


def headline_of(rows: Sequence[Row]) -> str | None:
    """The column that a defence is judged by: a minimum over attacks, or the only attack; None where neither was run."""
    known = dict.fromkeys(name for row in rows for name in row.columns if name != CLEAN.name)
    return next((name for name in HEADLINES if name in known), next(iter(known)) if len(known) == 1 else None)


def attacks_in_order(rows: Sequence[Row]) -> list[str]:
    """Every attack of any row: the headline, the images as they are, the minimum over all norms, then as the rows have them."""
    known = list(dict.fromkeys(name for row in rows for name in row.columns))
    first = [headline_of(rows), CLEAN.name, UNION]
    return sorted(known, key=lambda name: first.index(name) if name in first else len(first))


def defences_in_order(rows: Sequence[Row]) -> list[Row]:
    """Ours, then the guide alone, which it has to beat, then the others as they came."""
    first = [OURS, GUIDE_ALONE]
    return sorted(rows, key=lambda row: first.index(row.defence) if row.defence in first else len(first))


def budgets(cells: Iterable[Cell]) -> dict[str, str]:
    """attack -> its norm and epsilon, in words: "l∞, ε = 0.15"."""
    found = {}
    for cell in cells:
        how = cell.config.get("attack", {})
        if how and cell.norm != "none":
            found[cell.attack] = budget(cell.norm, how["epsilon"])
    return found


def budget(norm: str, epsilon: float) -> str:
    """A norm and its epsilon in words."""
    if norm == "spatial":
        return f"shifts up to {epsilon:g} pixels"
    levels = round(255 * epsilon)
    radius = f"{levels}/255" if norm == "linf" and abs(255 * epsilon - levels) < 1e-6 else f"{epsilon:g}"
    return f"{'l∞' if norm == 'linf' else 'l2'}, ε = {radius}"


def circumstances(cells: Sequence[Cell]) -> dict[str, str]:
    """What stands on top of a report of these cells: images, what attacks may change, noise draws, device and precision."""
    draws = sorted({2 * cell.config["num_draws"] for cell in cells if "num_draws" in cell.config})
    computed = dict.fromkeys(_computed(cell) for cell in cells if cell.computed)
    facts = {
        "images": " or ".join(f"{count:,}" for count in sorted({len(cell.scores) for cell in cells})),
        "attacks may change": "; ".join(dict.fromkeys(budgets(cells).values())),
        "noise draws an image": " or ".join(map(str, draws)),
        "computed": "; ".join(computed),
    }
    return {name: text for name, text in facts.items() if text}


def _computed(cell: Cell) -> str:
    where = cell.computed.get("gpu") or cell.computed.get("device", "")
    return f"on {where} in {cell.computed.get('precision', '')}, gradients in {cell.computed.get('gradients', '')}"


def rounded(estimate: Estimate) -> tuple[str, str, str]:
    """Value, low and high in percent, whole where the interval is a point wide or more; neither 100 nor 0 unless exactly so."""
    digits = 0 if (estimate.high - estimate.low) / 2 >= WHOLE_POINTS else 1
    value, low, high = (_rounded(number, digits) for number in (estimate.value, estimate.low, estimate.high))
    return value, low, high


def points(gap: PairedDifference) -> Points:
    """A difference and both its intervals in points with their signs; small ones with a decimal, which tells the side of zero."""
    digits = 0 if min(abs(end) for end in (gap.low, gap.high, gap.bootstrap_low, gap.bootstrap_high)) >= SIDE_OF_ZERO else 1
    return Points(*(_signed(share, digits) for share in (gap.value, gap.low, gap.high, gap.bootstrap_low, gap.bootstrap_high)))


def _under_attack(ours: Row, bare: Row | None, headline: str) -> str:
    estimate = ours.columns[headline]
    value, low, high = rounded(estimate)
    kept = f"Under {_in_words(headline)}, ours classifies {value}\u00a0% of {estimate.n:,} images correctly ({low} to {high})"
    if bare is None or headline not in bare.columns:
        return f"{kept}."
    return f"{kept}; the undefended classifier {_percent(bare.columns[headline])}."


def _beside_the_guide(item: Comparison, rows: Sequence[Row], headline: str) -> str:
    alone = next((row.columns.get(headline) for row in rows if row.defence == GUIDE_ALONE), None)
    reaches = "" if alone is None else f" classifies {_percent(alone)} correctly there"
    gap = points(item.difference)
    span = f"{gap.value} points, {gap.low} to {gap.high}, image by image"
    if not item.difference.significant:
        outcome = f"ours is not told apart from it ({span}), so these images do not show that purification adds to the guide"
    elif item.difference.value > 0:
        outcome = f"ours is better ({span}), so purification adds to the guide"
    else:
        outcome = f"ours is worse ({span}): the guide defends better without purification"
    return f"The guide alone, the robust classifier that guides,{reaches}; {outcome}."


def _in_words(headline: str) -> str:
    return HEADLINES.get(headline, f"the attack “{headline}”")


def _over_all_norms(ours: Row, rows: Sequence[Row], headline: str) -> list[str]:
    """Other norms are other threats than the one that guides are trained for."""
    alone = next((row.columns.get(UNION) for row in rows if row.defence == GUIDE_ALONE), None)
    if alone is None or UNION not in ours.columns or headline == UNION:
        return []
    both = f"ours classifies {_percent(ours.columns[UNION])}, the guide alone {_percent(alone)}"
    return [f"Under the worst of all attacks, l2 and spatial ones among them, {both}."]


def _without_an_attack(ours: Row, bare: Row | None) -> list[str]:
    own, theirs = ours.columns.get(CLEAN.name), None if bare is None else bare.columns.get(CLEAN.name)
    beside = "" if theirs is None else f", the undefended classifier {_percent(theirs)}"
    return [] if own is None else [f"Without an attack, ours classifies {_percent(own)} correctly{beside}."]


def _percent(estimate: Estimate) -> str:
    return f"{rounded(estimate)[0]}\u00a0%"


def _rounded(share: float, digits: int) -> str:
    text = f"{100 * share:.{digits}f}"
    least = 10.0**-digits
    if float(text) == 0 and share > 0:
        return f"<{least:.{digits}f}"
    if float(text) == 100 and share < 1:
        return f">{100 - least:.{digits}f}"
    return text


def _signed(share: float, digits: int) -> str:
    text = f"{100 * share:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "−")
