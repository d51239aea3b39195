"""Which defences are compared, and what of each an attacker may differentiate."""

import dataclasses
import re

import pytest
import torch
from torch import nn

from purify_engine.config import AttackConfig, GuidanceConfig, PurifierConfig
from purify_engine.evaluation.attacks import needs_draws
from purify_engine.evaluation.defences import Defence, calibrated, defence_names, standard_defences
from purify_engine.evaluation.protocol import score
from tests.evaluation.worlds import Linear, ToyPurifier, guided, linear_world


class Calibrated(ToyPurifier):
    """Notes what it is calibrated on; its scale is 100 times the ratio."""

    def __init__(self, config, guide=None):
        super().__init__(config)
        self.guide, self.asked = guide, []

    def configured(self, **changes):
        sibling = Calibrated(dataclasses.replace(self.config, **changes), self.guide)
        sibling.asked = self.asked
        return sibling

    def calibrate(self, images, ratio):
        self.asked.append((self.config.guidance, images, ratio))
        return 100 * ratio


@pytest.fixture
def networks():
    classifier, _, _ = linear_world()
    return classifier, Linear(-classifier.weight)


OURS = GuidanceConfig(scale=7.0, label_weight=0.5, latent_weight=0.25, pseudo_label="soft", form="mean")


def test_a_comparison_has_these_rows_in_this_order(networks):
    classifier, guide = networks
    purifier = Calibrated(PurifierConfig(t_star=10, guidance=OURS), guide)
    images = torch.rand(300, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    undefended, diffpure, gdmp, ours, latent, label, fixed, alone = rows = standard_defences(purifier, classifier, images)
    assert [row.name for row in rows] == [
        "undefended", "DiffPure", "GDMP", "ours", "ours, latent", "ours, label", "ours, fixed noise", "the guide alone"
    ]  # fmt: skip
    assert (undefended.classifier, undefended.purifier, undefended.guide, undefended.bare) == (classifier, None, None, None)
    assert (ours.purifier, ours.guide, ours.classifier) == (purifier, guide, classifier)
    assert (alone.classifier, alone.purifier, alone.guide, alone.bare) == (guide, None, None, classifier)
    assert (diffpure.classifier, gdmp.classifier, latent.classifier) == (classifier,) * 3
    assert (diffpure.guide, gdmp.guide, latent.guide) == (None, None, guide)
    assert (label.guide, fixed.guide, fixed.classifier) == (guide, guide, classifier)
    both = {"label_weight": 1.0, "latent_weight": 1.0, "pseudo_label": "pseudo"}  # as finished cells have it
    assert diffpure.purifier.config.guidance == GuidanceConfig(kind="none", **both)
    assert gdmp.purifier.config.guidance == GuidanceConfig(kind="pixel", scale=100.0, **both)  # ratio 1
    assert fixed.purifier.config == dataclasses.replace(purifier.config, noise="fixed")
    terms = {"latent_weight": 1.0, "label_weight": 0.0, "pseudo_label": "none"}
    assert latent.purifier.config.guidance == dataclasses.replace(OURS, scale=80.0, **terms)  # ratio 0.8
    terms = {"latent_weight": 0.0, "label_weight": 1.0, "pseudo_label": "pseudo"}
    assert label.purifier.config.guidance == dataclasses.replace(OURS, scale=20.0, **terms)  # ratio 0.2
    for row in (diffpure, gdmp, latent, label):
        assert dataclasses.replace(row.purifier.config, guidance=OURS) == purifier.config


TERMS = {"latent": (0.0, 1.0, "none"), "label": (1.0, 0.0, "soft"), "both": (0.5, 0.25, "pseudo")}


@pytest.mark.parametrize(("own", "weights"), TERMS.items(), ids=TERMS)
def test_ours_by_other_terms_is_a_row_where_ours_is_guided_by_these(own, weights, networks):
    label, latent, pseudo = weights
    guidance = GuidanceConfig(scale=2.0, label_weight=label, latent_weight=latent, pseudo_label=pseudo)
    purifier = Calibrated(PurifierConfig(t_star=10, guidance=guidance), networks[1])
    others = [f"ours, {name}" for name in TERMS if name != own]
    names = ["undefended", "DiffPure", "GDMP", "ours", *others, "ours, fixed noise", "the guide alone"]
    assert list(defence_names(purifier)) == names
    said = {own: purifier.config.guidance}
    rows = standard_defences(purifier, networks[0], torch.rand(2, 1, 4, 4), others)
    said |= {row.name.removeprefix("ours, "): row.purifier.config.guidance for row in rows}
    for name, guidance in said.items():
        assert (guidance.label_weight > 0, guidance.latent_weight > 0) == (name != "latent", name != "label")
    unguided = purifier.configured(guidance=dataclasses.replace(guidance, scale=0.0))
    assert [name for name in defence_names(unguided) if name.split(", ")[-1] in TERMS] == [f"ours, {name}" for name in TERMS]


def test_presets_are_rows_where_they_differ_from_ours(networks):
    config = PurifierConfig(t_star=10, guidance=OURS)
    presets = {"fast": dataclasses.replace(config, num_steps=1), "balanced": config}
    purifier = Calibrated(config, networks[1])
    names = defence_names(purifier, presets)
    assert [name for name in names if name not in defence_names(purifier)] == ["ours, fast"]
    (fast,) = standard_defences(purifier, networks[0], None, ["ours, fast"], presets=presets)
    assert fast.purifier.config == presets["fast"] and fast.guide is networks[1] and fast.name == "ours, fast"


def test_fixed_noise_is_known_to_the_attacker_and_scored_on(networks):
    """The purifier is asked without names, so that its own fixed noise is drawn; no draw is averaged over, one is scored."""

    class Fixed(ToyPurifier):
        def forward(self, images, *, ids=None, draw=None):
            asked.append((ids, draw))
            return images

    asked = []
    purifier = Fixed(PurifierConfig(t_star=10, guidance=OURS, noise="fixed"))
    defence, images, ids = Defence("ours, fixed noise", networks[0], purifier), torch.rand(3, 1, 4, 4), torch.arange(3)
    defence(images, ids, 5)
    assert asked == [(None, None)] and not defence.randomised
    assert score(defence, images, torch.zeros(3, dtype=torch.int64), ids, range(10)) and len(asked) == 2
    assert not needs_draws(defence, AttackConfig(name="exact"))
    assert defence.describe()["purifier"]["noise"] == "fixed"


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(1), nn.Dropout(0.5)], ids=["BatchNorm2d", "Dropout"])
def test_a_classifier_in_training_mode_is_refused_by_the_layer_that_moves(layer):
    classifier = nn.Sequential(nn.Sequential(layer), nn.Flatten()).train()
    name = type(layer).__name__
    says = f"classifier of 'ours' must be in evaluation mode, by classifier.eval(): its {name} '0.0' changes with the batch, got "
    for refused in ({"classifier": classifier}, {"classifier": nn.Flatten(), "bare": classifier}):
        with pytest.raises(ValueError, match=re.escape(says)):
            Defence("ours", **refused)
    assert Defence("ours", classifier.eval()).classifier is classifier
    assert Defence("ours", nn.Sequential(nn.Dropout(0.0), nn.BatchNorm2d(1, track_running_stats=False)))  # nothing that moves


def test_rivals_are_calibrated_on_the_first_256_training_images_at_a_scale_of_one(networks):
    purifier = Calibrated(PurifierConfig(t_star=10, guidance=OURS), networks[1])
    images = torch.rand(300, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    standard_defences(purifier, networks[0], images)
    (pixel, _, pixel_ratio), (latent, _, latent_ratio), (label, _, label_ratio) = purifier.asked
    assert all(torch.equal(known, images[:256]) for _, known, _ in purifier.asked)
    assert (label.scale, label.latent_weight, label_ratio) == (1.0, 0.0, 0.2)
    assert (pixel.kind, pixel.scale, pixel_ratio) == ("pixel", 1.0, 1.0)
    assert (latent.kind, latent.scale, latent.label_weight, latent_ratio) == ("adversarial", 1.0, 0.0, 0.8)


def test_without_a_label_term_there_is_no_row_without_it_and_without_a_guide_none_of_it(networks):
    classifier, guide = networks
    images = torch.rand(2, 1, 4, 4)
    latent_only = dataclasses.replace(OURS, label_weight=0.0)
    rows = standard_defences(Calibrated(PurifierConfig(t_star=10, guidance=latent_only), guide), classifier, images)
    names = [row.name for row in rows]
    assert "ours, latent" not in names and names[-2:] == ["ours, fixed noise", "the guide alone"]
    rows = standard_defences(Calibrated(PurifierConfig(t_star=10, guidance=OURS)), classifier, images)
    assert [row.name for row in rows] == ["undefended", "DiffPure", "GDMP", "ours", "ours, fixed noise"]
    assert all(row.guide is None for row in rows)


def test_a_sibling_keeps_every_other_field_of_the_guidance():
    purifier = Calibrated(PurifierConfig(t_star=10, guidance=OURS))
    sibling = calibrated(purifier, torch.rand(2, 1, 4, 4), 0.3, label_weight=2.0)
    assert sibling.config.guidance == dataclasses.replace(OURS, label_weight=2.0, scale=30.0)


def test_a_blind_attacker_sees_the_bare_network_or_the_classifier(networks):
    classifier, guide = networks
    defence = Defence("d", classifier, ToyPurifier(guided(1.0)), guide)
    assert defence.through("blind") == Defence("d, blind", classifier)
    assert dataclasses.replace(defence, bare=guide).through("blind") == Defence("d, blind", guide)


@pytest.mark.parametrize(
    ("t_star", "num_steps", "surrogate_steps", "shorter"),
    [(10, None, 5, 5), (10, None, 9, 5), (100, 8, 9, 4), (100, 8, 3, 3), (100, 9, 9, 4), (100, 1, 9, 1), (1, None, 9, 1)],
)
def test_a_surrogate_walks_at_most_half_of_the_steps(t_star, num_steps, surrogate_steps, shorter, networks):
    config = PurifierConfig(t_star=t_star, num_steps=num_steps, surrogate_steps=surrogate_steps)
    seen = Defence("d", networks[0], ToyPurifier(config), networks[1]).through("surrogate")
    assert seen.purifier.config == dataclasses.replace(config, gradient="surrogate", surrogate_steps=shorter)
    assert (seen.name, seen.classifier, seen.guide) == ("d", *networks)


def test_a_defence_without_a_purifier_has_one_gradient(networks):
    defence = Defence("d", networks[0])
    assert defence.through("bpda") is defence and not defence.randomised


def test_a_defence_calls_its_purifier_with_ids_and_draw_and_classifies_what_comes_out(networks):
    classifier, images, _ = linear_world()
    purifier, ids = ToyPurifier(guided(1.0), spread=0.3), torch.tensor([5, 4, 3, 2, 1, 0])
    defence = Defence("d", classifier, purifier)
    purified = purifier(images, ids=ids, draw=7)
    assert torch.equal(defence.purify(images, ids, 7), purified) and not torch.equal(purified, images)
    assert torch.equal(defence(images, ids, 7), classifier(purified)) and purifier.draws == [7, 7, 7] and defence.randomised
    assert torch.equal(Defence("plain", classifier)(images, ids, 7), classifier(images))


def test_a_description_holds_every_setting_but_the_gradient_mode(networks):
    """What every purifier has always, what some have where it is given: so that a setting more leaves results what they were."""
    config = PurifierConfig(t_star=11, guidance=OURS, gradient="bpda")
    said = Defence("d", networks[0], ToyPurifier(config), networks[1]).describe()
    assert said == {"name": "d", "purifier": said["purifier"], "guided": True}
    always = {"t_star", "sampler", "num_steps", "eta", "guidance", "schedule", "cycles", "seed", "noise", "surrogate_steps"}
    assert said["purifier"].keys() == always
    given = dataclasses.replace(config, timesteps=(10, 2), landings=(3, -1))
    said_of_given = Defence("d", networks[0], ToyPurifier(given), networks[1]).describe()["purifier"]
    assert said_of_given == {**said["purifier"], "timesteps": (10, 2), "landings": (3, -1)}
    guidance = {name: value for name, value in dataclasses.asdict(OURS).items() if name != "growth"}
    assert said["purifier"]["t_star"] == 11 and said["purifier"]["guidance"] == guidance
    growing = dataclasses.replace(config, guidance=dataclasses.replace(OURS, growth="noise"))
    said_of_growing = Defence("d", networks[0], ToyPurifier(growing), networks[1]).describe()["purifier"]
    assert said_of_growing["guidance"] == {**guidance, "growth": "noise"}
    assert Defence("plain", networks[0]).describe() == {"name": "plain", "purifier": None, "guided": False}
