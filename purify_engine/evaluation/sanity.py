"""Is the attack sound? What must hold of an attack on any defence, whatever its figures are (Carlini et al. 2019, 1902.06705).

Where one of these fails, the figures of the evaluation say how weak the attack is, not how strong the defence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from purify_engine.config import AttackConfig, EvaluationConfig
from purify_engine.evaluation.cells import Cell
from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.statistics import paired_difference
from purify_engine.evaluation.suite import EXACT, TRANSFERRED, known_attacks

FACTOR, LEFT_OVER = 8, 0.05  # 64/255 for 8/255, within which any image can be made another; the share that may be left
SETTLED = 0.02  # what twice the work may lower accuracy by: beyond that the attack was not exhausted
WIDE, STEPS, DRAWS, DETACHED = f"{FACTOR} times the radius", "twice the steps", "twice the draws", "without the guide's gradient"
BLACK_BOX = (TRANSFERRED, "square")


@dataclass(frozen=True)
class SanityCheck:
    """One check: the accuracies that it compares, on how many images, and whether it holds."""

    name: str
    passed: bool
    accuracies: dict[str, float]
    """Of each attack compared, in [0, 1]: the expected accuracy of a single draw."""
    images: int


def sanity_attacks(defence: Defence, config: EvaluationConfig) -> list[AttackConfig]:
    """The main attack as `config` has it, and the variants of it, and the black boxes, that it is compared with on `defence`."""
    known = known_attacks(config)
    main = known[EXACT]
    changed: dict[str, dict[str, Any]] = {
        WIDE: {"epsilon": min(1.0, FACTOR * main.epsilon)},
        STEPS: {"num_steps": min(4096, 2 * main.num_steps)},
        DRAWS: {"num_eot": min(256, 2 * main.num_eot)},
    }
    if defence.purifier is not None and defence.guide is not None:
        changed[DETACHED] = {"gradient": "detached_guidance"}
    return [main, *(replace(main, name=name, **fields) for name, fields in changed.items()), *(known[name] for name in BLACK_BOX)]


def sanity_checks(cells: Iterable[Cell]) -> list[SanityCheck]:
    """What the cells of `sanity_attacks`, of one defence and the same images, say.

    The wide radius must leave no more than a twentieth. Twice the steps and twice the draws must not raise accuracy, by the
    paired interval, nor lower it by more than two points: else the attack was not exhausted, and its figures are too high.
    By the paired interval, neither a black box nor a gradient from which the guide was taken out may lower accuracy below the
    main attack's.
    """
    found = {cell.attack: cell for cell in cells}
    main, checks = found[EXACT], []
    if WIDE in found:
        nothing_left = found[WIDE].accuracy <= LEFT_OVER
        checks.append(_check("nothing withstands a radius that hides every class", nothing_left, [main, found[WIDE]]))
    for name, what in ((STEPS, "more steps do not raise accuracy"), (DRAWS, "more draws do not raise accuracy")):
        if name in found:
            checks.append(_check(what, not _above(found[name], main), [main, found[name]]))
            what = f"{name} lower accuracy by no more than {100 * SETTLED:g} points"
            checks.append(_check(what, main.accuracy - found[name].accuracy <= SETTLED, [main, found[name]]))
    for name in BLACK_BOX:
        if name in found:
            what = f"white box is not weaker than {name}"
            checks.append(_check(what, not _above(main, found[name]), [main, found[name]]))
    if DETACHED in found:
        what = "a guide taken out of the gradient does not strengthen the attack"
        checks.append(_check(what, not _above(main, found[DETACHED]), [main, found[DETACHED]]))
    return checks


def _above(a: Cell, b: Cell) -> bool:
    """Whether accuracy under `a` is significantly higher than under `b`, image by image."""
    gap = paired_difference(a.pooled, b.pooled)
    return gap.significant and gap.value > 0


def _check(name: str, passed: bool, cells: list[Cell]) -> SanityCheck:
    return SanityCheck(name, passed, {cell.attack: round(cell.accuracy, 6) for cell in cells}, len(cells[0].scores))
