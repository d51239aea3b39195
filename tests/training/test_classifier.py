import pytest
import torch

from purify_engine.config import ClassifierTraining, Perturbation
from purify_engine.models import Classifier, load_safetensors
from purify_engine.training.classifier import train_classifier
from purify_engine.training.perturbation import accuracy

ATTACK = Perturbation(epsilon=0.4, step_size=0.1, num_steps=10)
CONFIG = ClassifierTraining(steps=40, batch_size=20, learning_rate=0.05, shift=0, attack=ATTACK)


def test_it_learns_and_its_weights_come_back(tiny_classifier, stripes, tmp_path):
    trained = train_classifier(*stripes, tiny_classifier, CONFIG, tmp_path)
    loaded = Classifier(tiny_classifier)
    load_safetensors(loaded, tmp_path / "classifier.safetensors")
    assert accuracy(loaded, *stripes) == 1
    assert torch.equal(loaded(stripes[0]), trained(stripes[0]))


def test_its_figures_are_of_the_images_they_name(tiny_classifier, stripes, tmp_path):
    images, labels = stripes
    reports = []
    train_classifier(images, labels, tiny_classifier, CONFIG, tmp_path, held_out=(images, 1 - labels), progress=reports.append)
    figures = reports[-1]["figures"]
    assert figures["training: standard accuracy"] == 1
    assert figures["held-out: standard accuracy"] == 0, "every held-out label was wrong on purpose"
    assert figures["training: robust accuracy (PGD-10, linf 0.4)"] < 0.5, "0.4 turns one stripe into the other"


def test_the_same_seed_gives_the_same_network(tiny_classifier, stripes, tmp_path):
    one, other = (train_classifier(*stripes, tiny_classifier, CONFIG, tmp_path / name) for name in "ab")
    assert torch.equal(one(stripes[0]), other(stripes[0]))


def test_labels_that_do_not_match_are_refused(tiny_classifier, stripes, tmp_path):
    with pytest.raises(ValueError, match="labels must be one per image"):
        train_classifier(stripes[0], stripes[1][:-1], tiny_classifier, CONFIG, tmp_path)
    assert list(tmp_path.iterdir()) == []
