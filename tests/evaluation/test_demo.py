import dataclasses

import torch

from purify_engine.config import DemoConfig, GuidanceConfig
from purify_engine.evaluation.defences import calibrated, standard_defences
from purify_engine.evaluation.demo import run_demo
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
    configs = {row.name: row.purifier.config for row in rows if row.purifier is not None}
    assert len({dataclasses.replace(config, guidance=GuidanceConfig()) for config in configs.values()}) == 1
    kinds = {name: (config.guidance.kind, config.guidance.scale > 0) for name, config in configs.items()}
    assert kinds["DiffPure"] == ("none", False) and kinds["GDMP"] == ("pixel", True)
    assert kinds["ours"] == kinds["ours, latent"] == ("adversarial", True)
    assert configs["ours, latent"].guidance.label_weight == 0


def test_calibrated_sibling_carries_the_scale_of_its_ratio():
    purifier = calibrated(ToyPurifier(guided(1.0)), torch.rand(2, 1, 4, 4), 0.3, latent_weight=0.0)
    assert purifier.config.guidance == dataclasses.replace(guided(3.0).guidance, latent_weight=0.0)
