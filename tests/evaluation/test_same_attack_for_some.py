"""An image is attacked in the same way whichever others are attacked with it, in batches of any size, by every kind of attack."""

import dataclasses

import pytest
import torch

from purify_engine import GuidedPurifier, load_classifier
from purify_engine.config import DRAWS_PER_SEED, AttackConfig
from purify_engine.evaluation.attacks import FIRST_SCORING_DRAW, attack
from purify_engine.evaluation.chance import Chance
from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.draws import Draws, each_draw, expected_gradient
from tests.evaluation.worlds import ToyPurifier, guided, linear_world

REFINED = {"loss": "margin", "margin_cap": 0.1, "momentum": 0.75, "decay": "cosine", "refine_steps": 2, "refine_eot": 4}
WAYS = {
    "main": REFINED,
    "targeted": {"loss": "margin", "targets": 1, "restarts": 2},
    "l2": {"norm": "l2", "decay": "linear"},
    "apgd": {"kind": "apgd"},
    "diffhammer": {"kind": "diffhammer", "loss": "margin"},
    "filters": {"kind": "low_frequency"},
    "spsa": {"kind": "spsa", "loss": "margin"},
    "square": {"kind": "square", "loss": "margin"},
    "stadv": {"kind": "stadv", "norm": "spatial", "epsilon": 0.5},
    "features": {"loss": "features"},
    "worst guide": {"start": "guide_worst"},
    "preview start": {"start": "preview"},
    "others": {"surface": "others"},
}
SOME = torch.tensor([1, 3, 4])


def world(count=6):
    classifier, images, labels = linear_world(count)
    rival = type(classifier)(-classifier.weight, 0.1)
    return Defence("toy", classifier, ToyPurifier(guided(1.0)), guide=classifier, others=(classifier, rival)), images, labels


@pytest.mark.parametrize("way", WAYS)
def test_some_images_are_attacked_as_among_all_of_them(way):
    defence, images, labels = world()
    ids = torch.tensor([7, 3, 9, 1, 0, 5])
    config = AttackConfig(**{"name": "a", "epsilon": 0.05, "num_steps": 3, "num_eot": 2, "seed": 1, **WAYS[way]})
    whole = attack(defence, images, labels, config, ids=ids)
    some = attack(defence, images[SOME], labels[SOME], config, ids=ids[SOME], pool=(images, labels))
    torch.testing.assert_close(some, whole[SOME])
    torch.testing.assert_close(attack(defence, images, labels, config, ids=ids, batch_size=4), whole)
    assert not torch.equal(whole, images)
    assert max(defence.purifier.draws, default=0) < 2 * DRAWS_PER_SEED < FIRST_SCORING_DRAW
    assert min(defence.purifier.draws, default=DRAWS_PER_SEED) >= DRAWS_PER_SEED  # seed 1 has the second share of them


@pytest.fixture(scope="module")
def real(small_purifier):
    purifier = GuidedPurifier.from_pretrained(small_purifier)
    network = load_classifier(small_purifier)
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return Defence("ours", network, purifier, purifier.guide), images, torch.tensor([0, 1, 0])


def test_several_draws_of_a_purifier_in_one_batch_are_those_one_by_one(real):
    defence, images, labels = real
    ids, draws = torch.tensor([5, 2, 9]), range(40, 45)
    logits = [each_draw(defence, images, ids, draws, at_once) for at_once in (1, 2, 5)]
    assert logits[0].shape[:2] == (5, 3)
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0])

    def objective(x, ids, draw):
        values = defence.through("exact")(x, ids, draw)
        return values.gather(1, labels.repeat(len(x) // 3)[:, None])[:, 0]

    one, several = (expected_gradient(objective, images, ids, draws, at_once) for at_once in (1, 4))
    torch.testing.assert_close(several, one, rtol=1e-4, atol=1e-5 * float(one.abs().max()))
    assert not torch.equal(logits[0][0], logits[0][1])


@pytest.mark.parametrize("gradient", ["preview", "ddim"])
def test_cheap_surrogates_walk_fewer_or_deterministic_steps_of_the_same_purifier(real, gradient):
    defence, images, labels = real
    purifier = defence.purifier.configured(t_star=20, num_steps=4, eta=0.0)
    row = dataclasses.replace(defence, purifier=purifier)
    other = row.through(gradient).purifier
    assert (other.config.sampler, other.config.num_steps) == (("ddpm", 1) if gradient == "preview" else ("ddim", 4))
    assert other.config.gradient == "exact" and other.denoiser is purifier.denoiser and other.config.t_star == 20
    found = attack(row, images, labels, AttackConfig(name="a", epsilon=0.1, num_steps=1, num_eot=1, gradient=gradient))
    assert (found - images).abs().max() <= 0.1 + 1e-6 and not torch.equal(found, images)


def test_random_numbers_are_each_images_own_and_no_call_repeats_another():
    ids = torch.tensor([3, 8, 2**40])
    first, second = Chance(1, ids), Chance(1, ids[1:])
    for _ in range(3):
        for shape in ((2, 5), (40, 40)):
            whole, some = (chance.uniform(*shape, dtype=torch.float32) for chance in (first, second))
            assert torch.equal(whole[1:], some) and not torch.equal(whole[0], whole[1])
            assert whole.abs().max() <= 1
    other = Chance(1, ids, search=1).uniform(40, 40, dtype=torch.float32)
    assert not torch.equal(other, Chance(1, ids).uniform(40, 40, dtype=torch.float32))
    assert set(first.below(3, 90).unique().tolist()) == {0, 1, 2}
    assert set(first.signs(90, dtype=torch.float32).unique().tolist()) == {-1, 1}


def test_searches_and_refinement_have_draws_of_their_own():
    config = AttackConfig(name="a", num_steps=3, num_eot=2, targets=2, refine_steps=2, refine_eot=4)
    assert config.draws_of_a_search == 3 * 2 + 4 and config.most_draws == 2 * 10 + 3 * 4
    second = Draws(config, averaged=True, first=config.draws_of_a_search)
    assert list(second(0)) == [10, 11] and list(second(2)) == [14, 15]
    with pytest.raises(ValueError, match=r"num_steps \* num_eot must be so few that an attack takes at most 1048576 noise draws"):
        AttackConfig(name="a", num_steps=4096, num_eot=256, refine_steps=1)
