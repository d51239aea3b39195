"""The guidance's formulas: against numbers worked out by hand, against autograd, and where nothing pulls at all."""

from __future__ import annotations

import math

import pytest
import torch

from purify_engine.reference.guidance import (
    label_objective,
    latent_objective,
    normalise,
    one_hot,
    pixel_gradient,
    pull_ratio,
    tweedie,
)
from purify_engine.reference.process import diffuse

MARGINAL = torch.tensor([0.8, 0.6], dtype=torch.float64)
IMAGES, OTHERS = torch.randn(2, 3, 2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_the_label_term_is_the_log_probability_of_the_label_summed_over_the_batch():
    logits = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]], dtype=torch.float64).log() + 3.0  # logits know no scale
    hard = torch.tensor([[0, 0, 1], [1, 0, 0]], dtype=torch.float64)
    soft = torch.tensor([[0, 0.5, 0.5], [1, 0, 0]], dtype=torch.float64)
    assert float(label_objective(logits, hard)) == pytest.approx(math.log(0.7) + math.log(0.5), rel=1e-12)
    assert float(label_objective(logits, soft)) == pytest.approx(0.5 * math.log(0.2 * 0.7) + math.log(0.5), rel=1e-12)


def test_the_latent_term_is_minus_the_squared_distance_and_no_mean():
    features = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    target = torch.tensor([[0.0, 4.0], [3.0, -1.0]])
    assert float(latent_objective(features, target)) == -(1 + 4 + 9)


def test_the_pixel_gradient_is_that_of_the_squared_distance():
    x = IMAGES.clone().requires_grad_()
    (expected,) = torch.autograd.grad(-(x - OTHERS).square().sum(), x)
    torch.testing.assert_close(pixel_gradient(IMAGES, OTHERS), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tweedie_takes_the_noise_out_again(dtype):
    x_start, noise = IMAGES.to(dtype), OTHERS.to(dtype)
    found = tweedie(diffuse(x_start, noise, MARGINAL), noise, MARGINAL)
    assert found.dtype == dtype
    torch.testing.assert_close(found, x_start)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_normalised_pull_has_its_length_in_every_image_and_keeps_its_direction(dtype):
    grad = (IMAGES * torch.tensor([1e-3, 1.0, 50.0], dtype=torch.float64).view(3, 1, 1, 1)).to(dtype)
    pull = normalise(grad, MARGINAL, 1e-8)
    assert pull.dtype == dtype
    lengths = pull.flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full((3,), math.sqrt(2 * 4 * 5) / 0.6, dtype=dtype))
    torch.testing.assert_close(pull.flatten(1) / lengths[:, None], torch.nn.functional.normalize(grad.flatten(1), dim=1))


def test_where_nothing_pulls_the_normalised_pull_is_zero_and_its_gradient_finite():
    """At 0 the pull is linear, with the slope sqrt(n) / (sigma norm_eps): a root without norm_eps in it would give NaN."""
    grad = torch.zeros(2, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    pull = normalise(grad, MARGINAL, 1e-3)
    assert not pull.any()
    (slope,) = torch.autograd.grad(pull.sum(), grad)
    torch.testing.assert_close(slope, torch.full_like(slope, 2 / (0.6 * 1e-3)))


def test_norm_eps_is_a_length_beside_the_pulls_own():
    grad = torch.full((1, 1, 1, 1), 3.0, dtype=torch.float64)
    assert float(normalise(grad, MARGINAL, 4.0)) == pytest.approx(3 / (0.6 * 5))  # 3, 4, 5


def test_the_pull_ratio_is_guidance_beside_unit_noise_in_every_image():
    grad = torch.tensor([[3.0, 4.0], [0.0, 2.0]], dtype=torch.float64).view(2, 1, 1, 2)
    expected = torch.tensor([0.1 * 5 * 0.6 / math.sqrt(2), 0.1 * 2 * 0.6 / math.sqrt(2)], dtype=torch.float64)
    torch.testing.assert_close(pull_ratio(grad, MARGINAL, 0.1), expected)
    torch.testing.assert_close(pull_ratio(normalise(IMAGES, MARGINAL, 1e-9), MARGINAL, 0.3), torch.full((3,), 0.3).double())


def test_hard_labels_become_distributions_in_the_logits_dtype():
    found = one_hot(torch.tensor([2, 0]), torch.zeros(2, 3, dtype=torch.float64))
    assert found.dtype == torch.float64
    assert found.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_one_hot_labels_have_every_class_of_the_logits_and_their_precision():
    logits = torch.zeros(3, 5, dtype=torch.float64)
    hot = one_hot(torch.tensor([2, 0, 1]), logits)
    assert hot.dtype == torch.float64
    assert hot.tolist() == [[0, 0, 1, 0, 0], [1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]
