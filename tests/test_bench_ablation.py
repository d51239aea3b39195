"""Ablations: their definitions, what each variant becomes, and lines that are resumed."""

import dataclasses

import numpy as np
import pytest
import torch

from bench.core import ablations
from bench.core.ablations import ABLATIONS, BASE, DIFFPURE, TWO, Effort, Variant
from bench.runs import ablation
from bench.subjects.ablated import ADAPTIVE, FROM_GUIDE, LeftOutError, Subject, attacks, measured
from bench.subjects.two_guides import two_guides
from bench.subjects.validation import validation
from purify_engine import GuidedPurifier, load_classifier
from purify_engine.config import AttackConfig
from purify_engine.evaluation.suite import CLEAN, TRANSFERRED
from purify_engine.files import read_json_lines


@pytest.fixture(scope="module")
def subject(small_purifier):
    torch.manual_seed(0)
    loaded, classifier = GuidedPurifier.from_pretrained(small_purifier), load_classifier(small_purifier)
    purifier = GuidedPurifier(loaded.denoiser, loaded.guide, loaded.config, execution="loop")  # batches of several sizes
    return Subject(purifier, classifier, torch.rand(4, 1, 8, 8), "latent", 0.2, {"second": classifier})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "grey.npz"
    images = np.random.RandomState(0).randint(0, 256, (24, 8, 8, 1), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(24, dtype=np.uint8) % 10)
    return path


@pytest.mark.parametrize("name", ABLATIONS)
def test_rows_have_names_of_their_own_and_the_base_is_the_first(name):
    variants = ABLATIONS[name].variants
    assert variants[0] is BASE
    assert len({variant.name for variant in variants}) == len(variants)
    assert (ABLATIONS[name].axis is None) == all(variant.place is None for variant in variants)


@pytest.mark.parametrize("name", ABLATIONS)
def test_a_row_is_a_purifier_or_says_what_it_lacks(name, subject):
    """Nothing that the configuration refuses, but for what this purifier of 30 noising steps is too shallow for."""
    for variant in ABLATIONS[name].variants:
        try:
            subject.require(variant)
        except LeftOutError as reason:
            assert "--network" in str(reason) or "num_steps" in str(reason), (variant.name, reason)


def test_the_issues_of_a_study_are_all_there():
    values = {variant.ratio for variant in ABLATIONS["ratio"].variants}
    assert {0.02, 0.1, 0.2, 0.3, 0.4, 0.5} <= values and DIFFPURE in ABLATIONS["ratio"].variants
    assert {variant.place for variant in ABLATIONS["steps"].variants} >= {70, 35, 14, 7, 5, 1}
    etas = {variant.purifier.get("eta") for variant in ABLATIONS["sampler"].variants}
    assert {0.0, 0.5, 1.0} <= etas
    assert {"latent", "label", "both"} <= {variant.term for variant in ABLATIONS["terms"].variants}
    assert {"xt", "x0"} <= {variant.guidance.get("look_at") for variant in ABLATIONS["look-at"].variants}
    assert ABLATIONS["guide-question"].threats == ("linf", "linf, twice the radius", "l2", "StAdv")
    assert any(variant.guide == TWO for variant in ABLATIONS["guide-question"].variants)


def test_a_variant_changes_what_it_names_and_nothing_else(subject):
    base = subject.defence(BASE).purifier.config
    deeper = subject.defence(Variant("deeper", purifier={"t_star": 20})).purifier.config
    assert dataclasses.replace(deeper, t_star=base.t_star, guidance=base.guidance) == base
    assert base.guidance.label_weight == 0 and base.guidance.pseudo_label == "none"
    twice = subject.defence(Variant("twice", ratio=0.4)).purifier.config.guidance.scale
    assert twice == pytest.approx(2 * base.guidance.scale)
    assert subject.defence(Variant("none", ratio=0.0)).purifier.config.guidance.kind == "none"
    assert subject.defence(Variant("normalised", guidance={"normalised": True})).purifier.config.guidance.scale == 0.2


def test_no_pull_and_diffpure_are_one_setting_and_one_line(subject):
    assert subject.settings(Variant("r = 0", ratio=0.0)) == subject.settings(DIFFPURE)
    assert subject.settings(Variant("r = .1", ratio=0.1)) != subject.settings(BASE)


def test_the_adaptive_attack_sees_through_a_label_and_averages_over_no_noise_that_is_not_there():
    effort = Effort(steps=3, eot=2)
    ours = {how.name: how for how in attacks("adaptive", "linf", effort, BASE, takes_label=False)}
    assert list(ours) == [CLEAN.name, TRANSFERRED, FROM_GUIDE, ADAPTIVE]
    assert ours[ADAPTIVE] == AttackConfig(name=ADAPTIVE, epsilon=8 / 255, num_steps=3, num_eot=2)
    assert attacks("adaptive", "linf", effort, BASE, takes_label=True)[-1].gradient == "straight_through"
    names = [how.name for how in attacks("adaptive", "l2", effort, DIFFPURE, takes_label=False)]
    assert names == [CLEAN.name, "transferred, l2", "adaptive, l2"]
    (harder,) = attacks("adaptive", "linf", effort, Variant("harder", attack={"num_steps": 9}), takes_label=False)
    assert (harder.name, harder.num_steps, harder.num_eot) == (ADAPTIVE, 9, 2)


def test_two_guides_see_what_either_sees(subject):
    first, second, images = subject.purifier.guide, subject.classifier, subject.known
    features, logits = two_guides(first, second, images).features_and_logits(images)
    (own, own_logits), (other, other_logits) = (guide.features_and_logits(images) for guide in (first, second))
    width = own.flatten(1).shape[1]
    assert torch.allclose(features[:, :width] / features[:, :width].norm(), own / own.norm(), atol=1e-6)
    assert features[:, :width].square().mean().item() == pytest.approx(1.0)
    assert features[:, width:].square().mean().item() == pytest.approx(1.0)
    assert torch.allclose(logits.softmax(1), (own_logits.softmax(1) * other_logits.softmax(1)).sqrt()
                          / (own_logits.softmax(1) * other_logits.softmax(1)).sqrt().sum(1, keepdim=True), atol=1e-6)  # fmt: skip


def test_scores_and_agreement_are_of_each_image_whatever_the_batch(subject):
    images, labels, ids = torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 2]), torch.tensor([5, 6, 7])
    guide, defence = subject.guide(BASE), subject.defence(BASE)
    one, whole = (measured(defence, CLEAN, images, labels, ids, guide, draws=2, batch=batch) for batch in (2, 3))
    assert (one.scores, one.selection, one.agreement) == (whole.scores, whole.selection, whole.agreement)
    own = guide(images).argmax(dim=1)
    verdicts = torch.stack([defence(images, ids, 2**30 + draw).argmax(dim=1) for draw in range(4)])
    assert one.agreement == pytest.approx((verdicts == own).double().mean().item())
    assert one.guide_right == tuple((own == labels).int().tolist())


def test_validation_images_are_the_last_ones_and_a_test_set_is_refused(data, small_purifier):
    chosen = validation(str(data), GuidedPurifier.from_pretrained(small_purifier), images=4, held=6, calibration=5)
    assert set(chosen.ids.tolist()) <= set(range(18, 24)) and len(chosen.ids) == 4 and len(chosen.known) == 5
    assert chosen.labels.tolist() == [number % 10 for number in chosen.ids.tolist()]
    with pytest.raises(ValueError, match="data must be training data"):
        validation("cifar10/test-images.npz", None, images=4, held=6, calibration=5)


def test_a_second_run_goes_on_where_the_first_one_was_stopped(data, small_purifier, tmp_path, monkeypatch, capsys):
    rows = (BASE, DIFFPURE, Variant("r = 0", ratio=0.0), Variant("plain", guide="plain"))
    monkeypatch.setitem(ablations.ABLATIONS, "ratio", ablations.Ablation("about", rows))
    words = ["ratio", "--purifier", str(small_purifier), "--data", str(data), "--images", "4", "--level", "transferred",
             "--steps", "1", "--draws", "1", "--results", str(tmp_path), "--device", "cpu"]  # fmt: skip
    assert ablation.main([*words, "--seconds", "0"]) == 0
    assert "stopped in time before ours" in capsys.readouterr().out
    assert not (tmp_path / "ablations-grey.jsonl").exists()
    assert ablation.main(words) == 0
    lines = read_json_lines(tmp_path / "ablations-grey.jsonl")
    assert [(line["variant"], line["cell"]["attack"]) for line in lines] == [
        (variant, attack) for attack in (CLEAN.name, TRANSFERRED) for variant in ("ours", "DiffPure", "r = 0")
    ]
    assert "plain is left out: it needs --network plain=PATH" in capsys.readouterr().out
    assert lines[1]["cell"]["scores"] == lines[2]["cell"]["scores"] and lines[1]["cell"]["seconds"] == lines[2]["cell"]["seconds"]
    assert lines[0]["against_base"] is None and set(lines[1]["against_base"]) == {"value", "low", "high"}
    assert lines[0]["calls"] == {"unet": 3, "guide": 4} and lines[1]["calls"] == {"unet": 3, "guide": 0}
    assert ablation.main(words) == 0
    assert read_json_lines(tmp_path / "ablations-grey.jsonl") == lines
