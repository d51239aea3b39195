"""Whose noise attacks and scores draw: of the image's id and of the draw, never of the place in a batch, and never of both."""

import pytest
import torch
from torch import nn

from purify_engine.config import AttackConfig, EvaluationConfig
from purify_engine.evaluation.attacks import FIRST_SCORING_DRAW, attack
from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.protocol import evaluate
from purify_engine.evaluation.suite import attack_suite
from tests.evaluation.worlds import toy
from tests.test_purifier import images, purifier
from tests.test_purifier_state import assert_close

IDS = torch.tensor([40, 7, 3, 11])
SUBSETS = ([2], [3, 1], [1, 2, 0])  # as AutoAttack goes on with the images that still stand, in an order of its own


@pytest.fixture(scope="module")
def defended():
    return purifier(), nn.Flatten(), images(4).abs().clamp(0, 1)


def test_attacks_on_some_images_see_the_noise_that_these_have_among_all(defended):
    model, classifier, x = defended
    wrapped, row = model.defend(classifier).twin("attack"), Defence("ours", classifier, model)
    whole = wrapped(x, ids=IDS, draw=5), row(x, IDS, 5)
    for rows in SUBSETS:
        assert_close(wrapped(x[rows], ids=IDS[rows], draw=5), whole[0][rows])
        assert_close(row(x[rows], IDS[rows], 5), whole[1][rows])
    assert (whole[0] - whole[1]).abs().max() > 0.01, "the attacker's stream is another"
    assert (whole[0] - wrapped(x, ids=IDS, draw=6)).abs().max() > 0.01
    assert (whole[0] - wrapped(x, ids=IDS.flip(0), draw=5)).abs().max() > 0.01


def test_an_attack_on_some_images_is_the_attack_on_them_among_all():
    row, x, labels = toy()
    x, labels, how = x[:4], labels[:4], AttackConfig(name="exact", num_steps=3, num_eot=2, start="clean", epsilon=0.05)
    whole = attack(row, x, labels, how, ids=IDS)
    for rows in SUBSETS:
        assert_close(attack(row, x[rows], labels[rows], how, ids=IDS[rows]), whole[rows])


def test_no_draw_is_both_attacked_and_scored_and_none_is_scored_twice():
    """In one evaluation, and between evaluations of two seeds."""
    scored, attacked = [], []
    for seed in (0, 1):
        config = EvaluationConfig(num_draws=3, num_steps=2, num_eot=2, num_queries=3, seed=seed)
        defence, inputs, labels = toy()
        for how in attack_suite(config)[:4]:
            defence.purifier.draws.clear()
            evaluate([defence], inputs[:6], labels[:6], config, attacks=[how])
            later = [draw for draw in defence.purifier.draws if draw >= FIRST_SCORING_DRAW]
            assert len(later) == len(set(later)) == 6, how.name
            attacked.append(set(defence.purifier.draws) - set(later))
        scored.append(set(later))
    assert not scored[0] & scored[1] and not set().union(*attacked) & set().union(*scored)
    assert max(set().union(*attacked)) < FIRST_SCORING_DRAW
