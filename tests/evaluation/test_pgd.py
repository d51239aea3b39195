"""Projected gradient ascent step by step, against the same written out in numpy; what an attack is given, and what it draws."""

import dataclasses

import numpy as np
import pytest
import torch

from purify_engine.config import AttackConfig
from purify_engine.evaluation import attacks
from purify_engine.evaluation.ascent import pgd
from purify_engine.evaluation.attacks import FIRST_SCORING_DRAW, attack, needs_draws, start_point
from purify_engine.evaluation.chance import Chance
from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.draws import Draws
from tests.evaluation.worlds import Linear, ToyPurifier, guided, linear_world

IMAGES = torch.rand(3, 1, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
CENTRE = torch.rand(3, 1, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
IDS = torch.tensor([4, 8, 15])


def bowl(x, ids, draw):
    """Minus the distance to a point that the draw shifts."""
    return -(x - CENTRE - 0.01 * draw).square().sum(dim=(1, 2, 3))


def written(norm, epsilon, step_size, num_steps, num_eot, seed, start):
    """Madry et al. 2018 on the mean over draws, in numpy, one image at a time."""
    images, centre, x = IMAGES.numpy(), CENTRE.numpy(), start.numpy().copy()
    for step in range(num_steps):
        draws = [seed * 2**20 + step * num_eot + k for k in range(num_eot)]
        for row in range(3):
            grad = np.mean([-2 * (x[row] - centre[row] - 0.01 * draw) for draw in draws], axis=0)
            ascent = np.sign(grad) if norm == "linf" else grad / np.sqrt(np.sum(grad**2))
            delta = x[row] + step_size * ascent - images[row]
            length = np.sqrt(np.sum(delta**2))
            delta = np.clip(delta, -epsilon, epsilon) if norm == "linf" else delta * min(1, epsilon / length)
            x[row] = np.clip(images[row] + delta, 0, 1)
    return x


@pytest.mark.parametrize("step_size", [None, 0.03])
@pytest.mark.parametrize("num_eot", [1, 3])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_walks_as_written(norm, num_eot, step_size):
    config = AttackConfig(name="a", norm=norm, epsilon=0.2, step_size=step_size, num_steps=7, num_eot=num_eot, seed=0)
    found = pgd(bowl, IMAGES, IDS, config, Draws(config, averaged=True), IMAGES)
    expected = written(norm, 0.2, step_size or 2.5 * 0.2 / 7, 7, num_eot, 0, IMAGES)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_pgd_projects_its_start_and_hands_on_ids_and_draws():
    seen = []

    def objective(x, ids, draw):
        seen.append((x.detach().clone(), ids, draw))
        return (0 * x).sum(dim=(1, 2, 3))

    config = AttackConfig(name="a", epsilon=0.1, num_steps=2, num_eot=2, seed=3)
    found = pgd(objective, IMAGES, IDS, config, Draws(config, averaged=True), IMAGES + 0.5)
    assert torch.equal(found, (IMAGES + 0.1).clamp(0, 1)) and torch.equal(seen[0][0], found)
    assert [draw for _, _, draw in seen] == [3 * 2**20 + k for k in range(4)] and all(ids is IDS for _, ids, _ in seen)


def plain(classifier):
    return Defence("plain", classifier)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_random_start_fills_the_ball_by_its_seed(dtype):
    classifier, images, labels = linear_world(500)
    images = images.to(dtype)

    def start(**settings):
        config = AttackConfig(name="a", epsilon=0.2, **settings)
        ids = torch.arange(500)
        return start_point(plain(classifier), images, labels, config, ids, Chance(config.seed, ids)) - images

    cube, sphere = start(), start(norm="l2")
    assert cube.dtype == sphere.dtype == dtype
    # Of 8000 numbers none lies in the last 1/800 on a side with a chance of 5e-5.
    assert 0.1995 < cube.max() <= 0.2 + 1e-6 and -0.2 - 1e-6 <= cube.min() < -0.1995
    assert abs(cube.mean()) < 0.004 and cube.std() == pytest.approx(0.2 / 3**0.5, rel=0.02)  # uniform over 8000 numbers
    assert sphere.flatten(1).norm(dim=1).numpy() == pytest.approx(0.2, rel=1e-5) and abs(sphere.mean()) < 0.002
    assert torch.equal(start(seed=4), start(seed=4)) and not torch.equal(start(seed=4), cube)
    assert start(start="clean").abs().max() == 0


def test_a_guide_start_attacks_the_guide_by_cross_entropy_from_a_random_start():
    classifier, images, labels = linear_world()
    defence = Defence("d", classifier, ToyPurifier(guided(1.0)), guide=Linear(-classifier.weight))
    config = AttackConfig(name="a", start="guide", loss="margin", epsilon=0.1, num_steps=3, step_size=0.02, seed=2)
    found = start_point(defence, images, labels, config, torch.arange(6), Chance(0, torch.arange(6)))
    alone = AttackConfig(name="b", surface="guide", epsilon=0.1, num_steps=3, step_size=0.02, seed=2)
    assert torch.equal(found, attack(defence, images, labels, alone)) and defence.purifier.draws == []
    with pytest.raises(ValueError, match="^defence must be guided for start='guide', got 'plain'$"):
        start_point(plain(classifier), images, labels, config, torch.arange(6), Chance(0, torch.arange(6)))


def test_a_guide_start_leaves_everything_else_of_the_attack_as_it_is(monkeypatch):
    classifier, images, labels = linear_world()
    asked = []
    monkeypatch.setattr(attacks, "attack", lambda *words, **named: asked.append((words, named)) or images)
    config = AttackConfig(name="a", start="guide", loss="joint", gradient="bpda", norm="l2", num_steps=3, num_eot=2, seed=2)
    defence, ids = Defence("d", classifier, guide=classifier), torch.arange(6)
    assert start_point(defence, images, labels, config, ids, Chance(0, ids)) is images
    wanted = dataclasses.replace(config, surface="guide", loss="cross_entropy", start="random")
    assert asked == [((defence, images, labels, wanted), {"ids": ids})]


@pytest.mark.parametrize("settings", [{"kind": "none"}, {"epsilon": 0.0}, {"kind": "none", "epsilon": 0.0}], ids=str)
def test_no_attack_leaves_a_copy_of_the_images(settings):
    classifier, images, labels = linear_world()
    found = attack(plain(classifier), images, labels, AttackConfig(name="standard", **settings))
    assert torch.equal(found, images) and found.data_ptr() != images.data_ptr()


@pytest.mark.parametrize("kind", ["pgd", "square", "stadv"])
def test_ids_key_the_noise_and_count_from_zero_unless_given(kind, monkeypatch):
    classifier, images, labels = linear_world()
    seen = []

    class Recorder(ToyPurifier):
        def forward(self, images, *, ids=None, draw=None):
            seen.append(ids.tolist())
            return images

        def configured(self, **changes):
            return self

    defence = Defence("d", classifier, Recorder())
    norm = "spatial" if kind == "stadv" else "linf"
    config = AttackConfig(name="a", kind=kind, norm=norm, num_steps=1, num_eot=1)
    attack(defence, images, labels, config)
    assert seen and all(ids == [0, 1, 2, 3, 4, 5] for ids in seen)
    seen.clear()
    attack(defence, images, labels, config, ids=torch.tensor([9, 7, 5, 3, 2, 0]))
    assert seen and all(ids == [9, 7, 5, 3, 2, 0] for ids in seen)


@pytest.mark.parametrize(
    ("settings", "random"),
    [
        ({}, True),
        ({"surface": "guide"}, False),
        ({"loss": "features"}, False),
        ({"loss": "joint"}, True),
        ({"gradient": "blind"}, False),
        ({"gradient": "bpda"}, True),
        ({"kind": "square"}, True),
    ],
    ids=str,
)
def test_draws_are_averaged_where_what_is_attacked_is_random(settings, random):
    classifier, _, _ = linear_world()
    config = AttackConfig(name="a", **settings)
    assert needs_draws(Defence("d", classifier, ToyPurifier(guided(1.0)), guide=classifier), config) is random
    assert needs_draws(plain(classifier), config) is False


def test_draws_are_numbered_by_seed_step_and_eot_index():
    config = AttackConfig(name="a", num_eot=3, seed=2)
    averaged, single = Draws(config, averaged=True), Draws(config, averaged=False)
    assert list(averaged(0)) == [2 * 2**20, 2 * 2**20 + 1, 2 * 2**20 + 2] and list(averaged(5)) == [
        2 * 2**20 + 15 + k for k in range(3)
    ]
    assert list(single(0)) == [2 * 2**20] and list(single(5)) == [2 * 2**20 + 5]
    assert FIRST_SCORING_DRAW == 2**30


@pytest.mark.parametrize("kind", ["pgd", "square", "stadv"])
def test_an_attack_averages_as_many_draws_as_it_is_asked_to(kind):
    classifier, images, labels = linear_world()
    defence = Defence("d", classifier, ToyPurifier(guided(1.0)), guide=classifier)
    norm = "spatial" if kind == "stadv" else "linf"
    config = AttackConfig(name="a", kind=kind, norm=norm, num_steps=2, num_eot=3, seed=1)
    attack(defence, images, labels, config)
    assert sorted(set(defence.purifier.draws)) == [2**20 + k for k in range(6)]


def test_the_random_numbers_of_an_attack_are_seeded_by_the_attack(monkeypatch):
    classifier, images, labels = linear_world()
    seeds = []

    def caught(objective, images, ids, config, draws, chance):
        seeds.append(chance.seed)
        return images

    monkeypatch.setattr(attacks, "square", caught)
    monkeypatch.setattr(attacks, "stadv", caught)
    attack(plain(classifier), images, labels, AttackConfig(name="a", kind="square", seed=6))
    attack(plain(classifier), images, labels, AttackConfig(name="a", kind="stadv", norm="spatial", seed=7))
    assert seeds == [6, 7]
