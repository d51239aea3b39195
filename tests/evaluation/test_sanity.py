"""What must hold of any attack, by cells whose accuracies are chosen."""

from __future__ import annotations

import pytest

from purify_engine.config import EvaluationConfig
from purify_engine.evaluation.cells import Cell
from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.sanity import DETACHED, DRAWS, STEPS, WIDE, sanity_attacks, sanity_checks
from purify_engine.evaluation.suite import EXACT, TRANSFERRED
from tests.evaluation.worlds import linear_world, toy

COUNT = 200
SOUND = {EXACT: 0.4, WIDE: 0.0, STEPS: 0.39, DRAWS: 0.4, TRANSFERRED: 0.6, "square": 0.7, DETACHED: 0.55}


def cells(**changed):
    """Cells of 200 images, of which the first share withstands each attack."""
    for name, share in {**SOUND, **changed}.items():
        scores = tuple(float(place < share * COUNT) for place in range(COUNT))
        yield Cell("ours", name, "linf", scores, scores, 1.0, name, {})


def failing(**changed):
    return [check for check in sanity_checks(cells(**changed)) if not check.passed]


def test_a_sound_attack_passes_every_check():
    checks = sanity_checks(cells())
    assert len(checks) == 8 and all(check.passed and check.images == COUNT for check in checks)
    (wide, *_) = checks
    assert wide.accuracies == {EXACT: 0.4, WIDE: 0.0}


@pytest.mark.parametrize(
    ("attack", "share", "says"),
    [
        (WIDE, 0.2, "nothing withstands a radius that hides every class"),
        (STEPS, 0.5, "more steps do not raise accuracy"),
        (DRAWS, 0.5, "more draws do not raise accuracy"),
        (STEPS, 0.36, "twice the steps lower accuracy by no more than 2 points"),
        (DRAWS, 0.37, "twice the draws lower accuracy by no more than 2 points"),
        (TRANSFERRED, 0.3, f"white box is not weaker than {TRANSFERRED}"),
        ("square", 0.3, "white box is not weaker than square"),
        (DETACHED, 0.3, "a guide taken out of the gradient does not strengthen the attack"),
    ],
)
def test_each_way_of_being_unsound_is_told_by_its_check_alone(attack, share, says):
    (check,) = failing(**{attack: share})
    assert check.name == says and check.accuracies == {EXACT: 0.4, attack: share}


def test_a_difference_within_its_interval_is_none():
    assert not failing(**{STEPS: 0.405, WIDE: 0.05})
    assert [check.name for check in failing(**{WIDE: 0.06})] == ["nothing withstands a radius that hides every class"]


def test_what_is_varied_is_the_main_attack():
    defence = Defence("undefended", linear_world()[0])
    attacks = {attack.name: attack for attack in sanity_attacks(defence, EvaluationConfig(epsilon=8 / 255))}
    main = attacks[EXACT]
    assert attacks[WIDE].epsilon == pytest.approx(64 / 255) and attacks[STEPS].num_steps == 2 * main.num_steps
    assert attacks[DRAWS].num_eot == 2 * main.num_eot and DETACHED not in attacks
    assert sanity_attacks(toy()[0], EvaluationConfig())[4].gradient == "detached_guidance"
    assert sanity_attacks(defence, EvaluationConfig(epsilon=0.5))[1].epsilon == 1.0
