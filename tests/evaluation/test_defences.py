"""Which defences are compared, and what of each an attacker may differentiate."""

import dataclasses

import pytest
import torch

from purify_engine.config import GuidanceConfig, PurifierConfig
from purify_engine.evaluation.defences import Defence, calibrated, standard_defences
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
    undefended, diffpure, gdmp, ours, latent, alone = rows = standard_defences(purifier, classifier, images)
    assert [row.name for row in rows] == ["undefended", "DiffPure", "GDMP", "ours", "ours, latent", "the guide alone"]
    assert (undefended.classifier, undefended.purifier, undefended.guide, undefended.bare) == (classifier, None, None, None)
    assert (ours.purifier, ours.guide, ours.classifier) == (purifier, guide, classifier)
    assert (alone.classifier, alone.purifier, alone.guide, alone.bare) == (guide, None, None, classifier)
    assert (diffpure.classifier, gdmp.classifier, latent.classifier) == (classifier,) * 3
    assert (diffpure.guide, gdmp.guide, latent.guide) == (None, None, guide)
    assert diffpure.purifier.config.guidance == GuidanceConfig(kind="none")
    assert gdmp.purifier.config.guidance == GuidanceConfig(kind="pixel", scale=100.0)  # ratio 1
    terms = {"latent_weight": 1.0, "label_weight": 0.0, "pseudo_label": "none"}
    assert latent.purifier.config.guidance == dataclasses.replace(OURS, scale=80.0, **terms)  # ratio 0.8
    for row in (diffpure, gdmp, latent):
        assert dataclasses.replace(row.purifier.config, guidance=OURS) == purifier.config


def test_rivals_are_calibrated_on_the_first_256_training_images_at_a_scale_of_one(networks):
    purifier = Calibrated(PurifierConfig(t_star=10, guidance=OURS), networks[1])
    images = torch.rand(300, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    standard_defences(purifier, networks[0], images)
    (pixel, on_pixel, pixel_ratio), (latent, on_latent, latent_ratio) = purifier.asked
    assert torch.equal(on_pixel, images[:256]) and torch.equal(on_latent, images[:256])
    assert (pixel.kind, pixel.scale, pixel_ratio) == ("pixel", 1.0, 1.0)
    assert (latent.kind, latent.scale, latent.label_weight, latent_ratio) == ("adversarial", 1.0, 0.0, 0.8)


def test_without_a_label_term_there_is_no_row_without_it_and_without_a_guide_none_of_it(networks):
    classifier, guide = networks
    images = torch.rand(2, 1, 4, 4)
    latent_only = dataclasses.replace(OURS, label_weight=0.0)
    rows = standard_defences(Calibrated(PurifierConfig(t_star=10, guidance=latent_only), guide), classifier, images)
    assert [row.name for row in rows] == ["undefended", "DiffPure", "GDMP", "ours", "the guide alone"]
    rows = standard_defences(Calibrated(PurifierConfig(t_star=10, guidance=OURS)), classifier, images)
    assert [row.name for row in rows] == ["undefended", "DiffPure", "GDMP", "ours"] and rows[-1].guide is None


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
