"""An attack on a twin is scored on the purifier as on unseen noise; scored on the noise that it was made on, it flatters itself.

PGD through the exact gradient at one draw, on the embedded digits without guidance, whose verdicts depend on the noise the most.
"""

import pytest
import torch
import torch.nn.functional as F

from purify_engine import GuidanceConfig, GuidedPurifier, load_classifier
from purify_engine.data import digits
from purify_engine.evaluation.statistics import paired_difference

COUNT, EPSILON, STEPS = 48, 0.2, 4
ATTACKED, UNSEEN = range(1), range(100, 108)  # draws


@pytest.fixture(scope="module")
def defence():
    purifier = GuidedPurifier.from_pretrained("digits").configured(guidance=GuidanceConfig(kind="none"))
    images, labels = digits("test")
    return purifier, load_classifier("digits"), images[:COUNT], labels[:COUNT]


def attacked(purifier, classifier, images, labels):
    """Adversarial images by PGD, at draw 0 of the purifier that it is given."""
    ids, adversarial = torch.arange(len(images)), images
    for _ in range(STEPS):
        leaf = adversarial.clone().requires_grad_()
        loss = F.cross_entropy(classifier(purifier(leaf, ids=ids, draw=0)), labels, reduction="sum")
        (grad,) = torch.autograd.grad(loss, leaf)
        moved = adversarial + 2.5 * EPSILON / STEPS * grad.sign()
        adversarial = (images + (moved - images).clamp(-EPSILON, EPSILON)).clamp(0, 1)
    return adversarial


def scores(purifier, classifier, images, labels, draws):
    """Share of `draws` that each image is classified on rightly."""
    ids = torch.arange(len(images))
    with torch.no_grad():
        right = [classifier(purifier(images, ids=ids, draw=draw)).argmax(dim=1) == labels for draw in draws]
    return torch.stack(right).double().mean(dim=0).tolist()


def compared(defence, attacker):
    """Unseen noise against draw 0, both the purifier's own, after an attack on `attacker` at its draw 0: paired by image."""
    purifier, classifier, images, labels = defence
    adversarial = attacked(attacker, classifier, images, labels)
    unseen, seen = (scores(purifier, classifier, adversarial, labels, draws) for draws in (UNSEEN, ATTACKED))
    return paired_difference(unseen, seen)


def test_an_attack_on_a_twin_is_scored_as_on_unseen_draws_and_one_on_the_purifier_itself_is_not(defence):
    itself, twin = (compared(defence, attacker) for attacker in (defence[0], defence[0].twin("attack")))
    assert itself.significant and itself.value > 0.1  # on its own draw, fewer images are classified
    assert not twin.significant
    assert (twin.high - twin.low) / 2 < itself.value  # narrow enough to tell
