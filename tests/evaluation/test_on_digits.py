"""The evaluation on the embedded purifier itself, at a size that takes seconds."""

import dataclasses

import pytest
import torch

from purify_engine import ops
from purify_engine.config import AttackConfig
from purify_engine.data import digits
from purify_engine.evaluation.attacks import attack
from purify_engine.evaluation.defences import Defence, calibrated, standard_defences
from purify_engine.evaluation.protocol import score
from purify_engine.evaluation.self_test import gradient_self_test
from purify_engine.presets import load_classifier
from purify_engine.purifier import GuidedPurifier


@pytest.fixture(scope="module")
def purifier():
    return GuidedPurifier.from_pretrained("digits")


@pytest.fixture(scope="module")
def classifier():
    return load_classifier("digits")


@pytest.mark.parametrize("form", ["latent", "soft", "pseudo", "pixel"])
def test_self_test_passes_where_the_guide_matters_and_catches_its_detachment(purifier, form):
    images, _ = digits("test")
    fields = {
        "latent": {"latent_weight": 1.0, "label_weight": 0.0, "pseudo_label": "none"},
        "soft": {"latent_weight": 0.0, "label_weight": 1.0, "pseudo_label": "soft"},
        "pseudo": {"latent_weight": 0.0, "label_weight": 1.0, "pseudo_label": "pseudo"},
        "pixel": {"kind": "pixel"},
    }[form]
    found = gradient_self_test(calibrated(purifier, images, 1.0, **fields), images[:4], num_directions=3)
    assert found["guide_matters"], found
    assert found["detached_caught"] and found["passed"], found


def test_the_undefended_classifier_falls_and_purification_brings_it_back(purifier, classifier):
    images, labels = (tensor[:32] for tensor in digits("test"))
    ids, draws = torch.arange(32), range(2**30, 2**30 + 3)
    undefended, _, _, ours, *_ = standard_defences(purifier, classifier, digits("train")[0])
    attacked = attack(undefended, images, labels, AttackConfig(name="pgd", num_steps=40, num_eot=1))
    before, after = (sum(score(item, attacked, labels, ids, draws)) / 32 for item in (undefended, ours))
    assert before < 0.2 and after > before + 0.4


@pytest.fixture(scope="module")
def purified(purifier):
    """256 held-out digits, purified by the kernels and by the specification."""
    images, ids = digits("test")[0][:256], torch.arange(256)
    with torch.no_grad():
        ours = purifier(images, ids=ids)
        with ops.backend("reference"):
            return ours, purifier(images, ids=ids)


def test_the_kernels_purify_as_the_specification_does(purified):
    ours, plain = purified
    assert (ours - plain).abs().max() <= 1 / 255


def test_the_classifier_sees_no_difference_between_the_kernels_and_the_specification(purified, classifier):
    ours, plain = purified
    with torch.no_grad():
        assert torch.equal(classifier(ours).argmax(1), classifier(plain).argmax(1))


def test_attacks_raise_the_loss_that_they_climb(purifier, classifier):
    images, labels = (tensor[:8] for tensor in digits("test"))
    defence = Defence("ours", classifier, purifier, purifier.guide)
    config = AttackConfig(name="pgd", num_steps=3, num_eot=1, gradient="straight_through")
    mild = dataclasses.replace(config, epsilon=0.01)

    def loss(adversarial):
        with torch.no_grad():
            logits = torch.stack([defence(adversarial, torch.arange(8), 2**30 + draw) for draw in range(2)])
        return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.repeat(2)))

    strong = loss(attack(defence, images, labels, config))
    assert strong > loss(attack(defence, images, labels, mild)) > 0 and strong > loss(images) + 0.1
