"""By which labels and which radii an evaluation is run: never by another data set's, and never in silence."""

from types import SimpleNamespace

import pytest
import torch

from purify_engine.cli.budget import budget, doubts, numbered, require_same_classes, with_labels
from purify_engine.cli.evaluate import EvaluationOptions
from purify_engine.cli.labelled import Labelled
from purify_engine.config import EvaluationConfig
from purify_engine.evaluation.suite import attack_suite

TRAINED = {"attack": {"norm": "linf", "epsilon": 0.03, "step_size": 0.01, "num_steps": 2}}


def data(labels, classes=None):
    return Labelled("photos", torch.tensor(labels), classes, len(labels), lambda rows: torch.zeros(len(rows), 1, 8, 8))


def network(count, names=None):
    return SimpleNamespace(config=SimpleNamespace(num_classes=count), class_names=names)


def test_the_digits_have_the_digits_radii():
    held_to = budget(None, "digits", None)
    assert held_to.config == EvaluationConfig() and not held_to.unknown
    assert held_to.said() == "attacks of linf 0.15 (the digits'), l2 0.75 (the digits'), spatial 0.3 (the digits')"


def test_other_images_have_the_radius_that_was_given_or_that_the_guide_was_trained_for():
    held_to = budget(EvaluationOptions(max_shift=1.5, num_steps=7), "photos", TRAINED)
    assert (held_to.config.epsilon, held_to.config.max_shift, held_to.config.num_steps) == (0.03, 1.5, 7)
    assert held_to.unknown == ("l2",) and held_to.origin == {"linf": "as the guide was trained for", "spatial": "--max-shift"}
    said = held_to.settings()
    assert "epsilon_l2" not in said and said["left_out"] == ["l2"] and said["epsilon"] == 0.03
    assert budget(EvaluationOptions(epsilon=0.2), "photos", TRAINED).config.epsilon == 0.2
    of_l2 = budget(EvaluationOptions(epsilon=0.2), "photos", {"attack": {**TRAINED["attack"], "norm": "l2", "epsilon": 0.5}})
    assert (of_l2.config.epsilon, of_l2.config.epsilon_l2) == (0.2, 0.5)


def test_attacks_without_a_radius_are_left_out_or_asked_for_by_the_option_that_gives_it():
    held_to = budget(None, "photos", TRAINED)
    suite = list(attack_suite(held_to.config))
    assert {attack.norm for attack in held_to.known(suite, None)} == {"linf"}
    with pytest.raises(ValueError, match=r"^epsilon_l2 must be given \(--epsilon-l2, in \[0, 1\] units\), as exact, l2 needs it"):
        held_to.known(suite, ["exact, l2"])
    says = r"^epsilon must be given \(--epsilon, in \[0, 1\] units\), as transferred needs it and the purifier does not say it"
    with pytest.raises(ValueError, match=says):
        budget(None, "photos", None).known(suite, None)


def test_folders_become_the_classifiers_numbers_by_name_whichever_are_missing():
    labels, said = numbered(data([0, 0, 1], ("cow", "dog")), network(4, ("ape", "dog", "cat", "cow")))
    assert labels.tolist() == [3, 3, 1] and said.startswith("labels by the classifier's names of its 4 classes")
    assert said.endswith(" (missing 'ape', 'cat')"), "what a figure does not speak of is said"


def test_a_folder_that_is_no_class_of_the_classifiers_is_refused_with_the_difference():
    with pytest.raises(ValueError) as refused:
        numbered(data([0, 1, 2], (".ipynb_checkpoints", "cat", "dog")), network(3, ("cat", "dog", "owl")))
    assert str(refused.value) == (
        "source must be of the classifier's classes: missing 'owl'; not among them '.ipynb_checkpoints', got 'photos'"
    )


def test_without_names_folders_are_numbered_by_position_where_their_number_is_right_and_that_is_said():
    labels, said = numbered(data([1, 0], ("cat", "dog")), network(2))
    assert labels.tolist() == [1, 0]
    assert said == "the classifier names no classes: labels by sorted position, 0 'cat' to 1 'dog'"
    with pytest.raises(ValueError, match=r"^source must be 3 class folders, .* whose names are not known, got '2 in photos'$"):
        numbered(data([1, 0], ("cat", "dog")), network(3))


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_without_a_name_is_not_counted_from_the_last(label):
    with pytest.raises(ValueError, match=rf"^labels\[1\] must be in \[0, 2\), the classes of photos, got {label}$"):
        numbered(data([0, label, 1], ("cow", "dog")), network(4, ("ape", "dog", "cat", "cow")))


@pytest.mark.parametrize("label", [-100, -1, 3])
def test_a_label_that_is_no_class_is_named_by_its_row(label):
    with pytest.raises(ValueError, match=rf"^labels\[2\] must be in \[0, 3\), the classes of the classifier, got {label}$"):
        numbered(data([0, 1, label]), network(3))


@pytest.mark.parametrize("labels", [[2, 2, 2], [0]])
def test_labels_of_one_class_leave_out_what_needs_another(labels):
    numbers, _ = numbered(data(labels), network(3))
    assert numbers.tolist() == labels
    suite = list(attack_suite(EvaluationConfig()))
    left, said = with_labels(suite, numbers, None)
    assert [attack for attack in suite if attack not in left] == [attack for attack in suite if attack.loss == "features"] != []
    assert said == "labels are of one class alone: feature matching left out"
    wanted = rf"^labels must be of two classes at least for feature matching, got 'only \[{labels[0]}\]'$"
    with pytest.raises(ValueError, match=wanted):
        with_labels(suite, numbers, ["feature matching"])
    assert with_labels(suite, torch.tensor([0, 2]), None) == (suite, None)
    with pytest.raises(ValueError, match="^source must be of one image at least, got 'photos'$"):
        numbered(Labelled("photos", torch.zeros(0, dtype=torch.int64), None, 0, lambda rows: None), network(3))


@pytest.mark.parametrize(("right", "count", "fits"), [(3, 20, False), (4, 20, True), (1, 8, False), (0, 7, True), (8, 8, True)])
def test_labels_by_which_a_classifier_is_no_better_than_chance_are_doubted(right, count, fits):
    labels = torch.arange(count) % 10
    answers = torch.where(torch.arange(count) < right, labels, (labels + 1) % 10)
    said = doubts(torch.nn.functional.one_hot(answers, 10).float(), labels)
    if fits:
        assert said is None
    else:
        answers = f"answers {right} of {count} clean images as labelled, no better than chance (10 classes)"
        assert said.startswith(f"LABELS PROBABLY DO NOT FIT: the undefended classifier {answers}")


def test_a_guide_of_other_classes_than_the_classifiers_is_refused():
    require_same_classes(None, network(2))
    require_same_classes(network(2), network(2, ("cat", "dog")))
    require_same_classes(network(2, ("cat", "dog")), network(2, ("cat", "dog")))
    with pytest.raises(ValueError, match=r"^classifier must be one of 3 classes, as the guide, got 2$"):
        require_same_classes(network(3), network(2))
    with pytest.raises(ValueError, match=r"^classifier must be one of the guide's classes: in another order, got "):
        require_same_classes(network(2, ("cat", "dog")), network(2, ("dog", "cat")))
