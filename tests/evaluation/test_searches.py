"""Who still stands, which of several finds is the worst, refinement, AutoAttack's adapter, and what a stronger attack does."""

import sys
import types

import pytest
import torch

from purify_engine.config import AttackConfig
from purify_engine.evaluation.ascent import shared_direction, step_size, with_momentum
from purify_engine.evaluation.attacks import FIRST_SCORING_DRAW, attack
from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.losses import feature_matching
from purify_engine.evaluation.protocol import score
from purify_engine.evaluation.searches import Problem, take_worst, wrongness
from tests.evaluation.worlds import ToyPurifier, guided, linear_world

MAIN = {"loss": "margin", "margin_cap": 0.5, "momentum": 0.75, "decay": "cosine"}


def noisy(spread=0.3, count=40):
    classifier, images, labels = linear_world(count)
    return Defence("noisy", classifier, ToyPurifier(guided(1.0), spread=spread), guide=classifier), images, labels


def accuracy(defence, images, labels):
    ids = torch.arange(len(images))
    return sum(score(defence, images, labels, ids, range(FIRST_SCORING_DRAW, FIRST_SCORING_DRAW + 20))) / len(images)


def test_an_image_is_as_wrong_as_the_share_of_its_draws_and_margins_decide_between_equals():
    defence, images, labels = noisy()
    config = AttackConfig(name="a", num_steps=2, num_eot=3, refine_steps=1, refine_eot=8)
    problem = Problem(defence, images, labels, torch.arange(40), config, (images, labels), None)
    found = wrongness(problem, images)
    verdicts = torch.stack([defence(images, torch.arange(40), draw).argmax(dim=1) != labels for draw in range(6, 14)])
    share = verdicts.float().mean(dim=0)
    assert torch.equal((found >= 1), share == 1) and (found - share).abs().max() <= 1e-3
    assert 0 < share.mean() < 1


def test_the_worse_of_two_is_taken_image_by_image():
    found, wrong = torch.zeros(4, 1, 1, 1), torch.tensor([0.5, 0.2, 0.9, 0.1])
    take_worst(found, wrong, torch.tensor([0, 2, 3]), torch.ones(3, 1, 1, 1), torch.tensor([0.6, 0.8, 0.1]))
    assert found.flatten().tolist() == [1, 0, 0, 0] and torch.equal(wrong, torch.tensor([0.6, 0.2, 0.9, 0.1]))


def test_refinement_goes_on_only_where_an_image_still_stands():
    defence, images, labels = noisy(0.02)
    seen = []

    class Watched(ToyPurifier):
        def configured(self, **changes):
            return self

        def forward(self, images, *, ids=None, draw=None):
            seen.append((draw, set(ids.tolist())))
            return super().forward(images, ids=ids, draw=draw)

    row = Defence("watched", defence.classifier, Watched(guided(1.0), spread=0.02))
    how = {"name": "a", "epsilon": 0.05, "num_steps": 4, "num_eot": 2, **MAIN}
    attack(row, images, labels, AttackConfig(**how, refine_steps=3, refine_eot=5))
    first = 4 * 2 + 5
    refined = [ids for draw, ids in seen if draw >= first]
    plain = attack(defence, images, labels, AttackConfig(**how))
    wrong = torch.stack([defence(plain, torch.arange(40), draw).argmax(dim=1) != labels for draw in range(8, 13)])
    standing = set((~wrong.all(dim=0)).nonzero().flatten().tolist())
    assert 0 < len(standing) < 40 and all(ids == standing for ids in refined) and len(refined) == 3 * 5 + 2 * 5


def test_steps_decay_from_twice_the_constant_and_are_as_long_in_sum():
    for decay in ("linear", "cosine"):
        config = AttackConfig(name="a", epsilon=0.2, num_steps=200, decay=decay)
        sizes = [step_size(config, step) for step in range(200)]
        assert sizes == sorted(sizes, reverse=True) and sizes[0] == pytest.approx(2 * 2.5 * 0.2 / 200)
        assert sum(sizes) == pytest.approx(2.5 * 0.2, rel=0.01)


def test_momentum_counts_gradients_the_same_however_long_and_zero_ones_not_at_all():
    config = AttackConfig(name="a", momentum=0.5)
    last, grad = torch.ones(2, 1, 1, 2), torch.tensor([[[[2.0, -4.0]]], [[[0.0, 0.0]]]])
    expected = torch.tensor([[0.5 + 2 / 3, 0.5 - 4 / 3], [0.5, 0.5]])
    torch.testing.assert_close(with_momentum(last, grad, config).flatten(1), expected)


def test_diffhammer_climbs_for_the_draws_that_one_direction_fools_and_not_for_their_mean():
    """Three draws agree on a direction; two that no direction fools pull hard the other way, and so does the mean."""
    config = AttackConfig(name="a", epsilon=0.1)
    gradients = torch.tensor([1.0, 1.0, 1.0, -9.0, -9.0]).view(5, 1, 1, 1, 1).expand(5, 1, 1, 2, 2)
    losses = torch.tensor([0.1, 0.2, 0.1, -50.0, -60.0]).view(5, 1)
    assert (gradients.sum(dim=0) < 0).all() and (shared_direction(losses, gradients, config) > 0.9).all()


def test_features_leave_their_own_where_the_pool_has_no_other_class():
    classifier, images, labels = linear_world()
    alone = feature_matching(classifier, images, torch.zeros_like(labels))
    torch.testing.assert_close(alone(images + 0.1, torch.arange(6), 0), torch.full((6,), 16 * 0.01))
    pool = (torch.cat([images, 1 - images]), torch.cat([torch.zeros_like(labels), torch.ones_like(labels)]))
    aimed = feature_matching(classifier, images[:1], labels[:1] * 0, pool)
    nearest = (1 - images - images[:1]).square().flatten(1).sum(dim=1).min()
    torch.testing.assert_close(aimed(images[:1], torch.arange(1), 0), -nearest.view(1))


def test_stronger_attacks_only_lower_the_accuracy_until_nothing_stands():
    defence, images, labels = noisy(0.15)
    how = {"name": "a", "epsilon": 0.03, "step_size": 0.004, "start": "clean", "num_eot": 2, **MAIN, "decay": "constant"}
    found = [attack(defence, images, labels, AttackConfig(**how, num_steps=count)) for count in (1, 3, 9)]
    steps = [accuracy(defence, attacked, labels) for attacked in found]
    assert accuracy(defence, images, labels) > steps[0] > steps[1] > steps[2]
    wide = AttackConfig(name="a", epsilon=64 / 255, num_steps=20, num_eot=2, **MAIN)
    assert accuracy(defence, attack(defence, images, labels, wide), labels) < 0.02


class FakeAutoAttack:
    """Attacks the second half, then one image alone, as AutoAttack attacks what it has not fooled."""

    made: list = []

    def __init__(self, model, *, norm, eps, seed, verbose, version, device):
        self.model, self.eps = model, eps
        FakeAutoAttack.made.append((norm, version))

    def run_standard_evaluation(self, images, labels, bs):
        half = len(images) // 2
        moved = (images + self.eps * torch.rand(images.shape)).clamp(0, 1)
        self.model(images)
        self.model(moved[half:])
        self.model(moved[3:4])
        return torch.cat([images[:half], moved[half:]])


@pytest.mark.parametrize(("version", "norm"), [("rand", "linf"), ("standard", "l2")])
def test_autoattack_meets_each_images_own_noise_in_every_subset_and_another_draw_in_every_call(version, norm, monkeypatch):
    monkeypatch.setitem(sys.modules, "autoattack", types.SimpleNamespace(AutoAttack=FakeAutoAttack))
    _, images, labels = noisy(count=6)
    seen = []

    class Watched(ToyPurifier):
        def configured(self, **changes):
            return self

        def forward(self, images, *, ids=None, draw=None):
            seen.append((draw, ids.tolist()))
            return images

    classifier, _, _ = linear_world()
    ids = torch.tensor([11, 4, 7, 2, 0, 9])
    config = AttackConfig(name="a", kind="autoattack", version=version, norm=norm, epsilon=0.02, seed=2)
    state = torch.get_rng_state()
    found = attack(Defence("d", classifier, Watched(guided(1.0))), images, labels, config, ids=ids)
    assert seen == [(2 * 2**20, ids.tolist()), (2 * 2**20 + 1, [2, 0, 9]), (2 * 2**20 + 2, [2])]
    assert torch.equal(found[:3], images[:3]) and not torch.equal(found[3:], images[3:])
    assert FakeAutoAttack.made[-1] == ({"linf": "Linf", "l2": "L2"}[norm], version) and torch.equal(torch.get_rng_state(), state)
