"""ART's gradients through the preprocessor are the purifier's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.test_defended import CLASSES, classifier
from tests.test_purifier import images, purifier

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def model():
    return purifier(noise="fixed")


@pytest.fixture(scope="module")
def network():
    return classifier()


@pytest.fixture(scope="module")
def preprocessor(model):
    from purify_engine.integrations.art import PurifierPreprocessor

    return PurifierPreprocessor(model)


@pytest.fixture(scope="module")
def estimator(network, preprocessor):
    from art.estimators.classification import PyTorchClassifier

    options = {"clip_values": (0, 1), "preprocessing_defences": [preprocessor]}
    return PyTorchClassifier(network, F.cross_entropy, (1, 8, 8), CLASSES, **options)


def test_predictions_are_those_of_purified_images(model, network, estimator, preprocessor):
    expected = network(model(images())).detach().numpy()
    np.testing.assert_allclose(estimator.predict(images().numpy()), expected, rtol=1e-5, atol=1e-6)
    purified, labels = preprocessor(images().numpy(), np.arange(5))
    np.testing.assert_array_equal(purified, model(images()).numpy())
    np.testing.assert_array_equal(labels, np.arange(5))


def test_gradients_are_those_of_autograd(model, network, estimator, preprocessor):
    x, labels = images().requires_grad_(), torch.arange(5) % CLASSES
    logits = network(model(x))
    (of_loss,) = torch.autograd.grad(F.cross_entropy(logits, labels), x, retain_graph=True)
    found = estimator.loss_gradient(images().numpy(), np.eye(CLASSES, dtype=np.float32)[labels])
    assert np.abs(found).max() > 0
    np.testing.assert_allclose(found, of_loss.numpy(), rtol=1e-4, atol=1e-6)
    by_class = estimator.class_gradient(images().numpy())
    for number in range(CLASSES):
        (expected,) = torch.autograd.grad(logits[:, number].sum(), x, retain_graph=True)
        np.testing.assert_allclose(by_class[:, number], expected.numpy(), rtol=1e-4, atol=1e-6)
    weights = np.linspace(-1, 1, x.numel(), dtype=np.float32).reshape(x.shape)
    (expected,) = torch.autograd.grad((torch.from_numpy(weights) * model(x)).sum(), x)
    np.testing.assert_allclose(preprocessor.estimate_gradient(images().numpy(), weights), expected.numpy(), rtol=1e-4, atol=1e-6)


def test_training_sees_images_as_they_are_unless_asked_for(model, preprocessor):
    from purify_engine.integrations.art import PurifierPreprocessor

    assert (preprocessor.apply_fit, preprocessor.apply_predict) == (False, True)
    assert PurifierPreprocessor(model, apply_fit=True).apply_fit
    assert preprocessor.device == model.device


def test_a_defended_classifier_is_a_model_of_arts(model, network):
    from art.estimators.classification import PyTorchClassifier

    defended = model.defend(network, num_draws=2)
    estimator = PyTorchClassifier(defended, F.cross_entropy, (1, 8, 8), CLASSES, clip_values=(0, 1))
    np.testing.assert_allclose(estimator.predict(images().numpy()), defended(images()).detach().numpy(), rtol=1e-5, atol=1e-6)
