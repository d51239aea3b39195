import dataclasses

import pytest
import torch

from purify_engine.config import AttackConfig, DemoConfig, GuidanceConfig
from purify_engine.evaluation import demo as demo_module
from purify_engine.evaluation.defences import calibrated, standard_defences
from purify_engine.evaluation.demo import run_demo
from purify_engine.evaluation.statistics import wilson
from purify_engine.evaluation.suite import CLEAN
from tests.evaluation.worlds import ToyPurifier, guided, linear_world

BUDGET = DemoConfig(epsilon=0.05, transfer_steps=5, num_adaptive=8, adaptive_steps=4, num_draws=3, num_exhibits=4)


def demonstration():
    classifier, images, labels = linear_world(20)
    purifier = ToyPurifier(guided(1.0))
    purifier.guide = classifier
    stages: list[str] = []
    return run_demo(purifier, classifier, images, labels, BUDGET, training_images=images, on_stage=stages.append), stages


def test_demo_compares_five_defences_in_three_columns():
    demo, stages = demonstration()
    assert [row.defence for row in demo.rows] == ["undefended", "DiffPure", "GDMP", "ours", "the guide alone"]
    for row in demo.rows:
        assert list(row.columns) == ["standard", "transferred", "adaptive"]
        assert [column.n for column in row.columns.values()] == [20, 20, 8]
        assert row.images_per_second > 0
    assert "DiffPure" in stages and len(demo.sheet) == 4 and demo.self_test["passed"] and demo.seconds > 0


def test_demo_shows_the_attack_working_and_repeats_itself():
    (first, _), (second, _) = demonstration(), demonstration()
    assert first.rows[0].columns["adaptive"].value < first.rows[0].columns["standard"].value == 1.0
    assert [row.columns for row in first.rows] == [row.columns for row in second.rows]
    assert first.sheet == second.sheet


def test_rows_differ_in_guidance_alone():
    classifier, images, _ = linear_world(20)
    purifier = ToyPurifier(guided(1.0))
    purifier.guide = classifier
    rows = standard_defences(purifier, classifier, images)
    configs = {row.name: row.purifier.config for row in rows if row.purifier is not None and row.randomised}
    assert len({dataclasses.replace(config, guidance=GuidanceConfig()) for config in configs.values()}) == 1
    kinds = {name: (config.guidance.kind, config.guidance.scale > 0) for name, config in configs.items()}
    assert kinds["DiffPure"] == ("none", False) and kinds["GDMP"] == ("pixel", True)
    assert kinds["ours"] == kinds["ours, latent"] == ("adversarial", True)
    assert configs["ours, latent"].guidance.label_weight == 0


def test_calibrated_sibling_carries_the_scale_of_its_ratio():
    purifier = calibrated(ToyPurifier(guided(1.0)), torch.rand(2, 1, 4, 4), 0.3, latent_weight=0.0)
    assert purifier.config.guidance == dataclasses.replace(guided(3.0).guidance, latent_weight=0.0)


@pytest.fixture
def watched(monkeypatch):
    """Every (defence, attack, ids, images) of a demonstration, and every scoring of one."""
    seen = {"attacks": [], "scores": []}
    whole_attack, whole_score = demo_module.attack, demo_module.score

    def attack(defence, images, labels, config, *, ids=None):
        seen["attacks"].append((defence.name, config, None if ids is None else ids.tolist(), len(images)))
        return whole_attack(defence, images, labels, config, ids=ids)

    def score(defence, images, labels, ids, draws):
        scores = whole_score(defence, images, labels, ids, draws)
        seen["scores"].append((defence.name, ids.tolist(), draws, scores))
        return scores

    monkeypatch.setattr(demo_module, "attack", attack)
    monkeypatch.setattr(demo_module, "score", score)
    return seen


def test_each_defence_meets_the_clean_images_the_transferred_attack_and_the_adaptive_ones(watched):
    demonstration()
    chosen = torch.randperm(20, generator=torch.Generator().manual_seed(0))[:8].tolist()
    own = [item for item in watched["attacks"] if item[0] == "ours" and item[2] is not None]
    transferred = AttackConfig(name="transferred", epsilon=0.05, num_steps=5, num_eot=1, gradient="blind")
    adaptive = AttackConfig(name="adaptive", epsilon=0.05, num_steps=4, num_eot=BUDGET.num_eot, gradient="straight_through")
    from_guide = dataclasses.replace(adaptive, surface="guide", num_steps=5)
    everything = list(range(20))
    assert own == [
        ("ours", CLEAN, everything, 20),
        ("ours", transferred, everything, 20),
        ("ours", adaptive, chosen, 8),
        ("ours", from_guide, chosen, 8),
    ]
    plain = [(config, count) for name, config, _, count in watched["attacks"] if name == "undefended"]
    assert plain == [(CLEAN, 20), (transferred, 20), (adaptive, 8)]  # without an argmax, straight through is the exact gradient


def test_images_are_scored_on_draws_that_no_attack_saw_by_their_ids(watched):
    demonstration()
    assert {draws for _, _, draws, _ in watched["scores"]} == {range(2**30, 2**30 + 3)}
    assert {tuple(ids) for _, ids, _, _ in watched["scores"]} == {
        tuple(range(20)),
        tuple(torch.randperm(20, generator=torch.Generator().manual_seed(0))[:8].tolist()),
    }


def test_a_figure_is_the_mean_over_images_of_the_worst_attack(monkeypatch):
    scripted = [(1.0,) * 20, (0.5,) * 20, (1.0, 0.0, 0.75, 0.5) * 2, (0.0, 1.0, 0.5, 0.75) * 2]
    calls = {"ours": 0}

    def score(defence, images, labels, ids, draws):
        if defence.name != "ours":
            return (1.0,) * len(images)
        calls["ours"] += 1
        return scripted[calls["ours"] - 1]

    monkeypatch.setattr(demo_module, "score", score)
    demo, _ = demonstration()
    (ours,) = (row for row in demo.rows if row.defence == "ours")
    assert ours.columns == {
        "standard": wilson([1.0] * 20), "transferred": wilson([0.5] * 20), "adaptive": wilson([0.0, 0.0, 0.5, 0.5] * 2),
    }  # fmt: skip


def test_the_images_and_labels_attacked_and_scored_are_those_of_the_ids(monkeypatch):
    _, images, labels = linear_world(20)
    given = []
    keep = lambda defence, images, labels, config, *, ids=None: given.append((images, labels, ids)) or images  # noqa: E731
    score = lambda defence, images, labels, ids, draws: given.append((images, labels, ids)) or (1.0,) * len(ids)  # noqa: E731
    monkeypatch.setattr(demo_module, "attack", keep)
    monkeypatch.setattr(demo_module, "score", score)
    demonstration()
    assert len(given) > 30
    for some, theirs, ids in given:
        if ids is not None:  # the contact sheet's are the first ones
            assert torch.equal(some, images[ids]) and torch.equal(theirs, labels[ids])


def test_another_confidence_and_seed_are_heeded(watched):
    classifier, images, labels = linear_world(20)
    purifier = ToyPurifier(guided(1.0))
    budget = dataclasses.replace(BUDGET, confidence=0.5, seed=3)
    demo = run_demo(purifier, classifier, images, labels, budget, training_images=images)
    scores = next(scores for name, _, _, scores in watched["scores"] if name == "undefended")
    assert demo.rows[0].columns["standard"] == wilson(scores, 0.5) and demo.config == budget
    assert {config.seed for _, config, _, _ in watched["attacks"] if config.kind != "none"} == {3}
    chosen = torch.randperm(20, generator=torch.Generator().manual_seed(3))[:8].tolist()
    assert watched["scores"][2][1] == chosen
    assert [row.defence for row in demo.rows] == ["undefended", "DiffPure", "GDMP", "ours"]  # without a guide


def test_it_says_what_is_about_to_run_and_shows_the_first_images_attacked():
    demo, stages = demonstration()
    assert stages == ["gradient self-test", "undefended", "DiffPure", "GDMP", "ours", "the guide alone", "contact sheet"]
    _, images, labels = linear_world(20)
    assert [row.label for row in demo.sheet] == [str(int(label)) for label in labels[:4]]
    assert all(row.attacked != row.input and row.input.right for row in demo.sheet)
    assert demo.self_test["rows"]["ours"]["num_images"] == 4 and demo.config == BUDGET


def test_rivals_are_calibrated_on_the_training_images():
    classifier, images, labels = linear_world(20)
    known = []

    class Calibrated(ToyPurifier):
        def configured(self, **changes):
            sibling = Calibrated(dataclasses.replace(self.config, **changes))
            sibling.guide = self.guide
            return sibling

        def calibrate(self, images, ratio):
            known.append(images)
            return 1.0

    run_demo(Calibrated(guided(1.0)), classifier, images, labels, BUDGET, training_images=images[:5])
    assert known and all(torch.equal(found, images[:5]) for found in known)


def test_speed_is_images_over_the_seconds_of_one_purification(monkeypatch):
    classifier, images, labels = linear_world(20)
    ticks = iter(range(100))
    monkeypatch.setattr(demo_module.time, "perf_counter", lambda: 0.5 * next(ticks))
    demo = run_demo(ToyPurifier(guided(1.0)), classifier, images, labels, BUDGET, training_images=images)
    assert {row.images_per_second for row in demo.rows} == {40.0} and demo.seconds == 4.5
