"""Every loss an attack climbs against its formula, written out in numpy or by hand, and its gradient against the formula's."""

import math

import numpy as np
import pytest
import torch

from purify_engine.config import AttackConfig
from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.losses import cross_entropy, dlr, make_objective, margin, nearest_of_another_class
from tests.evaluation.worlds import Linear, ToyPurifier, guided, linear_world

IDS = torch.arange(6)


def logits_and_labels(classes=5):
    generator = torch.Generator().manual_seed(4)
    logits = 3 * torch.randn(8, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (8,), generator=generator)


def slope(loss, logits, labels):
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf, labels).sum(), leaf)[0].numpy()


def test_cross_entropy_is_minus_the_log_probability_and_its_gradient_p_minus_one_hot():
    logits, labels = logits_and_labels()
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(axis=1, keepdims=True)
    rows = np.arange(8)
    np.testing.assert_allclose(cross_entropy(logits, labels), -np.log(p[rows, labels]), rtol=1e-12)
    p[rows, labels] -= 1
    np.testing.assert_allclose(slope(cross_entropy, logits, labels), p, atol=1e-12)


def test_margin_is_the_best_other_logit_over_the_labels_and_its_gradient_one_of_each():
    logits, labels = logits_and_labels()
    expected, gradient = [], np.zeros((8, 5))
    for row, (values, label) in enumerate(zip(logits.tolist(), labels.tolist(), strict=True)):
        other = max((k for k in range(5) if k != label), key=lambda k: values[k])
        expected.append(values[other] - values[label])
        gradient[row, other], gradient[row, label] = 1, -1
    np.testing.assert_allclose(margin(logits, labels), expected, rtol=1e-12)
    np.testing.assert_array_equal(slope(margin, logits, labels), gradient)


def written_dlr(values, label):
    """-(z_y - max_{i != y} z_i) / (z_pi1 - z_pi3), Croce & Hein 2020, equation 6."""
    first, _, third, *_ = sorted(values, reverse=True)
    return -(values[label] - max(values[:label] + values[label + 1 :])) / (first - third)


def test_dlr_is_the_papers_and_its_gradient_that_of_differences():
    logits, labels = logits_and_labels()
    expected = [written_dlr(values, label) for values, label in zip(logits.tolist(), labels.tolist(), strict=True)]
    np.testing.assert_allclose(dlr(logits, labels), expected, rtol=1e-9)
    for k in range(5):
        step = torch.zeros(5, dtype=torch.float64)
        step[k] = 1e-6
        pairs = zip((logits + step).tolist(), (logits - step).tolist(), labels.tolist(), strict=True)
        differences = [(written_dlr(ahead, label) - written_dlr(behind, label)) / 2e-6 for ahead, behind, label in pairs]
        np.testing.assert_allclose(slope(dlr, logits, labels)[:, k], differences, rtol=1e-6, atol=1e-8)


def test_dlr_is_finite_where_three_logits_tie_and_needs_three_classes():
    tie = dlr(torch.zeros(1, 3), torch.tensor([0]))
    assert tie.item() == 0 and dlr(torch.zeros(1, 3, requires_grad=True), torch.tensor([0])).isfinite()
    with pytest.raises(ValueError, match="loss must be cross_entropy or margin where there are fewer than 3 classes, got 'dlr'"):
        dlr(torch.zeros(1, 2), torch.tensor([0]))


@pytest.fixture
def world():
    """A defence whose guide is another network than its classifier, with its images and labels; three classes."""
    generator = torch.Generator().manual_seed(9)

    def network():
        class Affine(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("matrix", torch.randn(3, 16, generator=generator))

            def forward(self, images):
                return images.flatten(1) @ self.matrix.T

            def features_and_logits(self, images):
                features = (images**2 + 1).view(len(images), 2, 2, 4)  # of more than one dimension
                return features, self(images)

        return Affine()

    images = torch.rand(6, 1, 4, 4, generator=generator)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    return Defence("two networks", network(), ToyPurifier(guided(1.0), spread=0.1), guide=network()), images, labels


ON_LOGITS = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}


@pytest.mark.parametrize("draw", [0, 3])
@pytest.mark.parametrize("loss", ON_LOGITS)
def test_an_attack_on_the_defence_climbs_the_loss_of_the_purified_images(loss, draw, world):
    defence, images, labels = world
    objective = make_objective(defence, images, labels, AttackConfig(name="a", loss=loss))
    purified = defence.purifier(images, ids=IDS, draw=draw)
    assert torch.equal(objective(images, IDS, draw), ON_LOGITS[loss](defence.classifier(purified), labels))


@pytest.mark.parametrize("loss", ON_LOGITS)
def test_an_attack_on_the_guide_climbs_the_loss_of_the_guide_alone(loss, world):
    defence, images, labels = world
    objective = make_objective(defence, images, labels, AttackConfig(name="a", loss=loss, surface="guide"))
    assert torch.equal(objective(images, IDS, 5), ON_LOGITS[loss](defence.guide(images), labels))
    assert defence.purifier.draws == []


def test_the_joint_loss_is_the_sum_of_both_networks_cross_entropies_and_so_is_its_gradient(world):
    defence, images, labels = world
    objective = make_objective(defence, images, labels, AttackConfig(name="a", loss="joint"))

    def gradient(of):
        leaf = images.clone().requires_grad_()
        return torch.autograd.grad(of(leaf).sum(), leaf)[0]

    def apart(x):
        """-log p of both, without the losses of this package."""
        both = defence.classifier(defence.purifier(x, ids=IDS, draw=2)), defence.guide(x)
        return sum(-logits.log_softmax(dim=1)[torch.arange(6), labels] for logits in both)

    torch.testing.assert_close(objective(images, IDS, 2), apart(images))
    torch.testing.assert_close(gradient(lambda x: objective(x, IDS, 2)), gradient(apart))
    assert (objective(images, IDS, 2) > cross_entropy(defence.guide(images), labels)).all()  # both terms count


def test_feature_matching_is_minus_the_squared_distance_to_the_nearest_image_of_another_class(world):
    defence, images, labels = world
    objective = make_objective(defence, images, labels, AttackConfig(name="a", loss="features"))
    features = (images.double().numpy() ** 2 + 1).reshape(6, -1)
    moved = images + 0.05
    there = (moved.double().numpy() ** 2 + 1).reshape(6, -1)
    expected, gradient = np.empty(6), np.empty((6, 16))
    for row in range(6):
        others = [k for k in range(6) if labels[k] != labels[row]]
        target = features[min(others, key=lambda k: np.sum((features[k] - features[row]) ** 2))]
        expected[row] = -np.sum((there[row] - target) ** 2)
        gradient[row] = -2 * (there[row] - target) * 2 * moved.double().numpy().reshape(6, -1)[row]
    np.testing.assert_allclose(objective(moved, IDS, 0), expected, rtol=1e-5)
    leaf = moved.clone().requires_grad_()
    np.testing.assert_allclose(torch.autograd.grad(objective(leaf, IDS, 0).sum(), leaf)[0].view(6, 16), gradient, atol=1e-5)
    assert defence.purifier.draws == []


def test_the_nearest_of_another_class_is_so_by_euclidean_distance_over_all_features():
    features = torch.tensor([[[0.0, 0.0]], [[3.0, 3.0]], [[0.0, 5.0]], [[0.1, 0.1]]])  # |(3, 3)| < 5, though 3 + 3 > 5
    assert nearest_of_another_class(features, torch.tensor([0, 1, 1, 0])).tolist() == [1, 3, 3, 1]


def test_feature_matching_needs_two_classes():
    with pytest.raises(ValueError, match=r"labels must be of at least two classes for feature matching, got \[4\]"):
        nearest_of_another_class(torch.rand(3, 2), torch.tensor([4, 4, 4]))


@pytest.mark.parametrize("gradient", ["exact", "bpda", "surrogate", "straight_through"])
def test_an_objective_differentiates_by_the_mode_that_the_attack_names(gradient, world):
    defence, images, labels = world
    modes = []

    class Recorder(ToyPurifier):
        def configured(self, **changes):
            return Recorder(type(self.config)(**{**vars(self.config), **changes}))

        def forward(self, images, *, ids=None, draw=None):
            modes.append(self.config.gradient)
            return images

    recorded = Defence("recorded", defence.classifier, Recorder(guided(1.0)), guide=defence.guide)
    for loss in ("cross_entropy", "joint"):
        make_objective(recorded, images, labels, AttackConfig(name="a", loss=loss, gradient=gradient))(images, IDS, 0)
    assert modes == [gradient, gradient]


def test_a_blind_attack_climbs_the_loss_of_the_bare_network():
    classifier, images, labels = linear_world()
    bare = Linear(2 * classifier.weight, 0.3)
    defence = Defence("named", classifier, ToyPurifier(guided(1.0)), bare=bare)
    objective = make_objective(defence, images, labels, AttackConfig(name="a", gradient="blind"))
    assert torch.equal(objective(images, IDS, 0), cross_entropy(bare(images), labels))
    assert not math.isclose(float(objective(images, IDS, 0)[0]), float(cross_entropy(classifier(images), labels)[0]))


@pytest.mark.parametrize(
    ("config", "feature"),
    [({"loss": "features"}, "features"), ({"surface": "guide"}, "surface='guide'"), ({"loss": "joint"}, "joint")],
)
def test_what_needs_a_guide_says_so(config, feature):
    classifier, images, labels = linear_world()
    with pytest.raises(ValueError, match=f"^defence must be guided for {feature}, got 'plain'$"):
        make_objective(Defence("plain", classifier), images, labels, AttackConfig(name="a", **config))
