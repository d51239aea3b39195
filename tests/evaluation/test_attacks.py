import dataclasses

import pytest
import torch

from purify_engine.config import AttackConfig, EvaluationConfig
from purify_engine.evaluation.attacks import FIRST_SCORING_DRAW, attack
from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.draws import Draws, expected_gradient
from purify_engine.evaluation.losses import cross_entropy, dlr, margin, nearest_of_another_class
from purify_engine.evaluation.spatial import warp
from purify_engine.evaluation.square import square_side
from purify_engine.evaluation.suite import attack_suite, fitted
from tests.evaluation.worlds import ToyPurifier, guided, linear_world

# Of two classes, where DLR is not defined; tests/evaluation/test_apgd.py has it on more.
SUITE = [
    dataclasses.replace(item, num_steps=min(item.num_steps, 6), refine_steps=min(item.refine_steps, 2))
    for item in attack_suite(EvaluationConfig(num_eot=2, refine_eot=3, suite="thorough"))
    if item.loss != "dlr"
]


def guarded() -> tuple[Defence, torch.Tensor, torch.Tensor]:
    classifier, images, labels = linear_world()
    purifier = ToyPurifier(guided(1.0))
    return Defence("toy", classifier, purifier, guide=classifier, others=(classifier, classifier)), images, labels


def towards_the_other_class(classifier, labels):
    return classifier.weight * (1 - 2 * labels).view(-1, 1, 1, 1)


def test_linf_attack_finds_the_optimum_of_a_linear_model():
    classifier, images, labels = linear_world()
    config = AttackConfig(name="pgd", epsilon=0.1, num_steps=20)
    found = attack(Defence("linear", classifier), images, labels, config)
    optimum = images + 0.1 * towards_the_other_class(classifier, labels).sign()
    torch.testing.assert_close(found, optimum)


def test_l2_attack_finds_the_optimum_of_a_linear_model():
    classifier, images, labels = linear_world()
    config = AttackConfig(name="pgd", norm="l2", epsilon=0.3, step_size=0.1, num_steps=40)
    found = attack(Defence("linear", classifier), images, labels, config)
    optimum = images + 0.3 * towards_the_other_class(classifier, labels) / classifier.weight.norm()
    torch.testing.assert_close(found, optimum, atol=1e-4, rtol=0)


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_attack_through_a_random_purifier_finds_the_same_optimum(loss):
    defence, images, labels = guarded()
    found = attack(defence, images, labels, AttackConfig(name="pgd", epsilon=0.1, num_steps=20, loss=loss))
    torch.testing.assert_close(found, images + 0.1 * towards_the_other_class(defence.classifier, labels).sign())


@pytest.mark.parametrize("config", SUITE, ids=lambda config: config.name)
def test_every_attack_stays_inside_its_ball_and_inside_the_images_range(config):
    defence, images, labels = guarded()
    images = torch.cat([images, torch.ones_like(images[:1]), torch.zeros_like(images[:1])])
    labels = torch.cat([labels, labels.new_tensor([0, 1])])
    found = attack(defence, images, labels, config)
    assert found.min() >= 0 and found.max() <= 1
    if config.norm == "linf":
        assert (found - images).abs().max() <= config.epsilon + 1e-6
    elif config.norm == "l2":
        assert (found - images).flatten(1).norm(dim=1).max() <= config.epsilon + 1e-5
    else:  # a shift below one pixel mixes direct neighbours only
        pad = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
        assert (found <= torch.nn.functional.max_pool2d(pad, 3, 1) + 1e-6).all()
        assert (found >= -torch.nn.functional.max_pool2d(-pad, 3, 1) - 1e-6).all()


@pytest.mark.parametrize("config", SUITE[1:], ids=lambda config: config.name)
def test_every_attack_is_repeated_by_its_seed_and_leaves_the_global_generator_alone(config):
    defence, images, labels = guarded()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = attack(defence, images, labels, config)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(first, attack(defence, images, labels, config))
    assert not torch.equal(first, images)


@pytest.mark.parametrize(
    "config", [item for item in SUITE if item.name in ("exact", "square", "exact, l2")], ids=lambda item: item.name
)
def test_another_seed_gives_another_attack(config):
    defence, images, labels = guarded()
    config = dataclasses.replace(config, num_steps=1, step_size=1e-3)
    other = dataclasses.replace(config, seed=1)
    assert not torch.equal(attack(defence, images, labels, config), attack(defence, images, labels, other))


def test_every_step_and_eot_index_has_a_draw_of_its_own_below_those_of_scoring():
    defence, images, labels = guarded()
    attack(defence, images, labels, AttackConfig(name="pgd", num_steps=5, num_eot=3, seed=2))
    draws = defence.purifier.draws
    assert len(draws) == 15 and len(set(draws)) == 15
    last = Draws(AttackConfig(name="pgd", num_steps=4096, num_eot=256, seed=511), averaged=True)(4095)[-1]
    assert last < FIRST_SCORING_DRAW
    assert set(draws).isdisjoint(Draws(AttackConfig(name="pgd", seed=3), averaged=True)(0))


def test_expected_gradient_averages_over_draws():
    def objective(x, ids, draw):
        return (draw * x).flatten(1).sum(dim=1)

    grad = expected_gradient(objective, torch.zeros(2, 1, 2, 2), torch.arange(2), [1, 2, 6])
    assert torch.equal(grad, torch.full((2, 1, 2, 2), 9.0))


def test_blind_attack_never_runs_the_purifier_and_a_deterministic_one_needs_no_averaging():
    defence, images, labels = guarded()
    attack(defence, images, labels, AttackConfig(name="transferred", gradient="blind"))
    attack(defence, images, labels, AttackConfig(name="guide", surface="guide"))
    attack(defence, images, labels, AttackConfig(name="features", loss="features"))
    assert defence.purifier.draws == []


def test_square_lowers_the_margin_without_gradients_and_more_queries_lower_it_further():
    defence, images, labels = guarded()

    def mean_margin(num_steps):
        config = AttackConfig(name="square", kind="square", loss="margin", epsilon=0.1, num_steps=num_steps, num_eot=1)
        with torch.no_grad():
            return margin(defence.classifier(attack(defence, images, labels, config)), labels).mean()

    clean = margin(defence.classifier(images), labels).mean()
    best = margin(
        defence.classifier(images + 0.1 * towards_the_other_class(defence.classifier, labels).sign()), labels
    ).mean()
    assert clean < mean_margin(20) < mean_margin(400) <= best + 1e-5
    assert (mean_margin(400) - clean) > 0.9 * (best - clean)


def test_square_compares_on_the_same_draws_so_that_noise_alone_never_wins():
    classifier, images, labels = linear_world()
    purifier = ToyPurifier()
    attack(
        Defence("toy", classifier, purifier),
        images,
        labels,
        AttackConfig(name="square", kind="square", num_steps=3, num_eot=2),
    )
    assert [purifier.draws.count(draw) for draw in sorted(set(purifier.draws))] == [2] * 6


def test_squares_shrink_but_never_vanish():
    images = torch.zeros(1, 1, 8, 8)
    sides = [square_side(step / 300, images) for step in range(300)]
    assert sides[0] == 7 and sides[-1] == 1 and sides == sorted(sides, reverse=True)


def test_warp_by_whole_pixels_shifts_and_by_zero_keeps():
    images = torch.rand(2, 1, 5, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(warp(images, torch.zeros(2, 2, 5, 6)), images)
    flow = torch.zeros(2, 2, 5, 6)
    flow[:, 0] = 1
    torch.testing.assert_close(warp(images, flow)[..., :-1], images[..., 1:])


def test_stadv_moves_an_edge_towards_the_attackers_goal():
    classifier, _, _ = linear_world(1)
    classifier.weight = torch.tensor([0.0, 0.0, 1.0, 0.0]).expand(1, 4, 4)
    classifier.bias = -0.2
    images = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(1, 1, 4, 4)
    found = attack(
        Defence("edge", classifier),
        images,
        torch.tensor([0]),
        AttackConfig(name="st", kind="stadv", norm="spatial", epsilon=0.5),
    )
    # Fetching the third pixel from half a pixel to the left is what raises the score; at zero flow its right-hand slope is zero.
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([1.0, 1.0, 0.5, 0.0]), atol=1e-5, rtol=0)


def test_margins_change_sign_where_the_verdict_does():
    logits = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, 0.0]])
    labels = torch.tensor([0, 0])
    assert margin(logits, labels).tolist() == [-2.0, 1.0]
    torch.testing.assert_close(dlr(logits, labels), torch.tensor([-2 / 3, 1 / 2]))
    torch.testing.assert_close(dlr(7 * logits, labels), dlr(logits, labels))
    torch.testing.assert_close(cross_entropy(logits, labels), -logits.log_softmax(1)[:, 0])


def test_feature_matching_aims_at_the_nearest_image_of_another_class():
    features = torch.tensor([[0.0], [1.0], [5.0], [6.0]])
    assert nearest_of_another_class(features, torch.tensor([0, 0, 1, 1])).tolist() == [2, 2, 1, 1]
    defence, images, labels = guarded()
    found = attack(
        defence,
        images,
        labels,
        AttackConfig(name="features", loss="features", epsilon=1.0, step_size=0.01, num_steps=200),
    )
    target = images[nearest_of_another_class(images.flatten(1), labels)]
    assert (found - target).abs().max() < 0.03  # the guide's features are the pixels, so the target itself is reached


def test_guide_start_is_the_guides_own_adversarial_example():
    defence, images, labels = guarded()
    config = AttackConfig(name="start", start="guide", num_steps=1, step_size=1e-9, epsilon=0.1)
    alone = AttackConfig(name="alone", surface="guide", num_steps=1, step_size=1e-9, epsilon=0.1)
    torch.testing.assert_close(
        attack(defence, images, labels, config), attack(defence, images, labels, alone), atol=1e-6, rtol=0
    )


def test_attacks_on_the_guide_need_one():
    classifier, images, labels = linear_world()
    for config in (
        AttackConfig(name="a", surface="guide"),
        AttackConfig(name="b", loss="joint"),
        AttackConfig(name="c", start="guide"),
    ):
        with pytest.raises(ValueError, match="defence must be guided for .*, got 'plain'"):
            attack(Defence("plain", classifier), images, labels, config)


def test_suite_is_fitted_to_what_a_defence_has():
    classifier, _, _ = linear_world()
    names = {
        name: {run.name for item in SUITE if (run := fitted(item, defence))}
        for name, defence in {
            "undefended": Defence("undefended", classifier),
            "unguided": Defence("unguided", classifier, ToyPurifier(guided(0.0))),
            "guided": Defence("guided", classifier, ToyPurifier(guided(1.0)), guide=classifier),
        }.items()
    }
    assert names["guided"] == {item.name for item in SUITE} - {"transfer from others", "transfer from others, APGD"}
    guide_attacks = {"straight-through", "joint", "guide start", "feature matching"}
    guide_attacks |= {f"transfer from the guide{norm}" for norm in ("", ", l2", ", StAdv")}
    assert names["unguided"] == names["guided"] - guide_attacks
    assert names["undefended"] == names["unguided"] - {"BPDA", "surrogate", "preview", "preview start", "DDIM"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "l2", "kind": "square"}, "norm must be one of linf for kind='square', got 'l2'"),
        ({"epsilon": -1}, "epsilon must be at least 0, got -1"),
        ({"num_steps": 0}, r"num_steps must be in \[1, 4096\], got 0"),
        ({"gradient": "magic"}, "gradient must be one of .*, got 'magic'"),
        ({"seed": 512}, r"seed must be in \[0, 512\), got 512"),
    ],
)
def test_impossible_attacks_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        AttackConfig(name="bad", **changes)
