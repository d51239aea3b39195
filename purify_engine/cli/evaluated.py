"""What `evaluate` computes, with progress, and what it says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from purify_engine.cli.console import Meter, say, show
from purify_engine.cli.stopping import going_on
from purify_engine.config import AttackConfig, EvaluationConfig

if TYPE_CHECKING:
    from purify_engine.evaluation.cells import Cell
    from purify_engine.evaluation.defences import Defence
    from purify_engine.evaluation.sanity import SanityCheck
    from purify_engine.evaluation.summary import Comparison
    from purify_engine.evaluation.validation import Validation
    from purify_engine.purifier import GuidedPurifier
    from purify_engine.types import Ids, Images, Labels


@dataclass(frozen=True)
class Found:
    """The cells of an evaluation, and each image's worst attack scored afresh."""

    cells: list[Cell]
    validations: list[Validation]


def computed(
    rows: Sequence[Defence],
    images: Images,
    labels: Labels,
    config: EvaluationConfig,
    *,
    attacks: list[AttackConfig],
    ids: Ids,
    results: Path,
    also: Sequence[Path],
    workers: int,
    seconds: float | None,
    share: tuple[int, int],
) -> Found:
    """Attack, then validate, with progress told meanwhile; a signal stops at once, and what is finished is kept."""
    from purify_engine.evaluation import protocol
    from purify_engine.evaluation.cells import merged
    from purify_engine.evaluation.pieces import Deadline
    from purify_engine.evaluation.suite import fitted
    from purify_engine.evaluation.validation import validate

    cells: list[Cell] = []
    deadline = Deadline(seconds)
    total = len(images) * sum(fitted(attack, row) is not None for row in rows for attack in attacks)
    how: dict[str, Any] = {"attacks": attacks, "ids": ids, "results": results, "also": also, "workers": workers}
    how["worst"] = results.with_name(f"{results.stem}.worst")
    with going_on(), Meter("evaluate") as meter:

        def tell(cell: Cell) -> None:
            cells.append(cell)
            facts: dict[str, Any] = {"defence": cell.defence, "attack": cell.attack, "accuracy": cell.accuracy}
            meter.update(sum(len(piece.scores) for piece in cells), total, **facts)

        protocol.evaluate(rows, images, labels, config, **how, deadline=deadline, share=share, on_cell=tell)
        finished = merged(cells)
        return Found(finished, validate(rows, finished, images, labels, config, **how, deadline=deadline))


def sane(
    rows: Sequence[Defence], images: Images, labels: Labels, config: EvaluationConfig, *, ids: Ids, results: Path, workers: int
) -> list[SanityCheck]:
    """The sanity checks of ours, or where it is left out of the last row; their cells go into a file beside `results`."""
    from purify_engine.evaluation import protocol
    from purify_engine.evaluation.defences import OURS
    from purify_engine.evaluation.sanity import sanity_attacks, sanity_checks

    row = next((row for row in rows if row.name == OURS), rows[-1])
    attacks, done = sanity_attacks(row, config), list[int]()
    how: dict[str, Any] = {"attacks": attacks, "ids": ids, "also": [results], "workers": workers}
    beside = results.with_name(f"{results.stem}.sanity{results.suffix}")
    with going_on(), Meter("sanity") as meter:

        def tell(cell: Cell) -> None:
            done.append(len(cell.scores))
            meter.update(sum(done), len(images) * len(attacks), attack=cell.attack, accuracy=cell.accuracy)

        cells = protocol.evaluate([row], images, labels, config, **how, results=beside, on_cell=tell)
    return sanity_checks(cells)


def said_of_sanity(check: SanityCheck) -> str:
    """Whether it holds, and its accuracies in percent."""
    accuracies = ", ".join(f"{name} {100 * value:.1f}" for name, value in check.accuracies.items())
    return f"sanity: {check.name}: {'holds' if check.passed else 'FAILS'} ({accuracies}; {check.images} images)"


def found_in(results: Sequence[Path]) -> Found:
    """What the lines of several results files hold together."""
    from purify_engine.evaluation.cells import merged, read_cells
    from purify_engine.evaluation.validation import joined, read_validations

    cells = [cell for path in results for cell in read_cells(path)]
    return Found(merged(cells), joined(one for path in results for one in read_validations(path)))


def said(
    found: Found,
    self_test: dict[str, Any] | None,
    confidence: float,
    *,
    as_json: bool,
    ours: GuidedPurifier | None = None,
    about: dict[str, Any] | None = None,
    lines: Sequence[str] = (),
) -> None:
    """Tables, comparisons and the self-test for people, or all of it as one JSON line."""
    from purify_engine.devices import computing, described, in_sixteen_bits
    from purify_engine.evaluation.metrics import facts, fresh_comparisons, fresh_rows, table_of
    from purify_engine.evaluation.report import terminal_by_attack, terminal_lines
    from purify_engine.evaluation.self_test_said import self_test_said, without_gradient
    from purify_engine.evaluation.summary import against_ours, summarise, to_json

    cells, fresh = found.cells, fresh_rows(found.validations, confidence)
    rows, comparisons = summarise(cells, confidence, without_gradient(self_test)), against_ours(cells, confidence)
    afresh, beside = fresh_comparisons(found.validations, confidence), facts(cells, found.validations)
    if as_json:
        told = {**(about or {}), "self_test": self_test, "computing": ours and computing(ours)}
        more = to_json(fresh, afresh)
        say(to_json(rows, comparisons, **told, fresh=more, facts=beside), "", as_json=True)
        return
    if not cells:
        print("nothing was finished in the time given")
        return
    show(terminal_by_attack(rows, f"Accuracy on {_images(beside)} images, percent, with its interval"))
    _say_comparisons(comparisons, "McNemar p")
    if fresh:
        show(terminal_by_attack(fresh, "Each image's worst attack, scored afresh, percent, with its interval"))
        _say_comparisons(afresh, "a single fresh draw; by majorities McNemar p")
    show(terminal_lines(table_of(beside), "What the figures rest on"))
    for line in lines:
        print(line)
    if ours is not None:
        print(f"scored {described(ours)}" + ("; gradients in float32" if in_sixteen_bits(ours) else ""))
    if self_test is not None:
        for line in self_test_said(self_test):
            print(line)


def _images(beside: Sequence[dict[str, Any]]) -> str:
    """How many each row stands on: one number, or where a run was stopped the fewest and the most, of how many."""
    counts, most = [fact["images"] for fact in beside], max(fact["of"] for fact in beside)
    span = f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"
    return span if min(counts) == most else f"{span} of {most:,}"


def _say_comparisons(comparisons: Sequence[Comparison], test: str) -> None:
    for item in comparisons:
        gap, chance = item.difference, item.mcnemar.p_value
        span = f"{100 * gap.low:+.1f} to {100 * gap.high:+.1f}"
        print(f"{item.a} - {item.b}: {100 * gap.value:+.1f} points ({span}), {test} = {chance:.2g}")
