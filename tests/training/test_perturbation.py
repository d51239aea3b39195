import pytest
import torch

from purify_engine.config import Perturbation
from purify_engine.training.perturbation import accuracy, perturb, robust_accuracy


@pytest.fixture
def images():
    return torch.rand(6, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.5 + 0.25


SLOPE = torch.linspace(-1, 1, 18, dtype=torch.float64).view(1, 2, 3, 3)


def linear(x):
    return (SLOPE * x).sum()


def test_linf_search_finds_the_corner_that_is_best_for_a_linear_objective(images):
    found = perturb(images, linear, Perturbation(norm="linf", epsilon=0.1, step_size=0.03, num_steps=10))
    torch.testing.assert_close(found, images + 0.1 * SLOPE.sign(), rtol=0, atol=1e-12)


def test_l2_search_finds_the_point_of_the_sphere_that_is_best_for_a_linear_objective(images):
    found = perturb(images, linear, Perturbation(norm="l2", epsilon=0.1, step_size=0.05, num_steps=60))
    # The start's 1e-3 N(0, I) is forgotten geometrically, by the projection.
    torch.testing.assert_close(found, images + 0.1 * SLOPE / SLOPE.norm(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_perturbed_images_stay_in_the_ball_and_in_the_unit_box(norm):
    images = torch.randint(2, (5, 1, 4, 4)).float()  # on the box's corners
    found = perturb(images, lambda x: -((x - 0.5) ** 2).sum(), Perturbation(norm=norm, epsilon=0.2, step_size=0.1, num_steps=5))
    order = torch.inf if norm == "linf" else 2
    assert (found - images).flatten(1).norm(order, dim=1).max() <= 0.2 + 1e-6
    assert found.min() >= 0 and found.max() <= 1
    assert (found != images).any()


class Threshold(torch.nn.Module):
    """Class 1 where the mean of the image exceeds one half."""

    def forward(self, x):
        score = 20 * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-score, score], dim=1)


def test_robust_accuracy_counts_the_images_within_reach_of_the_boundary():
    images = torch.tensor([0.1, 0.35, 0.45, 0.55, 0.65, 0.9]).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    attack = Perturbation(epsilon=0.1, step_size=0.05, num_steps=5)
    assert accuracy(Threshold(), images, labels) == 1
    assert robust_accuracy(Threshold(), images, labels, attack) == pytest.approx(4 / 6)


def test_measuring_leaves_the_random_generator_alone():
    before = torch.get_rng_state()
    robust_accuracy(Threshold(), torch.rand(4, 1, 2, 2, generator=torch.Generator()), torch.zeros(4).long(), Perturbation())
    assert torch.equal(torch.get_rng_state(), before)
