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


def by_hand(images, slope, attack):
    """Zhang et al. 2019, one image at a time, for an objective of this constant slope."""
    moved = (images + 1e-3 * torch.randn_like(images)).clamp(0, 1)
    for _ in range(attack.num_steps):
        for i in range(len(images)):
            step = slope.sign() if attack.norm == "linf" else slope / (slope**2).sum().sqrt()
            delta = moved[i] + attack.step_size * step[0] - images[i]
            if attack.norm == "linf":
                delta = delta.clamp(-attack.epsilon, attack.epsilon)
            elif (delta**2).sum().sqrt() > attack.epsilon:
                delta = attack.epsilon * delta / (delta**2).sum().sqrt()
            moved[i] = (images[i] + delta).clamp(0, 1)
    return moved


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_every_step_is_taken_as_written_out(norm, num_steps, images):
    attack = Perturbation(norm=norm, epsilon=0.1, step_size=0.03, num_steps=num_steps)
    calls = []
    torch.manual_seed(3)
    found = perturb(images, lambda x: calls.append(1) or linear(x), attack)
    torch.manual_seed(3)
    torch.testing.assert_close(found, by_hand(images, SLOPE, attack), rtol=0, atol=1e-12)
    assert len(calls) == num_steps and not found.requires_grad


def test_the_start_is_a_thousandth_away_and_inside_the_box():
    images = torch.randint(2, (400, 1, 2, 2)).double()
    seen = []
    perturb(images, lambda x: seen.append(x.detach().clone()) or x.sum(), Perturbation(num_steps=1))
    assert seen[0].min() >= 0 and seen[0].max() <= 1
    inward = (seen[0] - images).abs()
    # Half of the draws point out of the box and are cut to 0: the root mean square of the others is 1e-3. Five standard errors.
    assert inward[inward > 0].square().mean().sqrt() == pytest.approx(1e-3, rel=5 / (2 * 800) ** 0.5)
    assert 0.4 < (inward == 0).double().mean() < 0.6


class Moody(torch.nn.Module):
    """Class 1 where the mean exceeds one half, in eval mode, and class 0 in train mode; notes how many images it is shown."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, x):
        assert not torch.is_grad_enabled() or x.requires_grad
        self.sizes.append(len(x))
        score = (x.flatten(1).mean(1) - 0.5) * (-1 if self.training else 1)
        return torch.stack([-score, score], 1)


def test_accuracy_is_measured_in_eval_mode_in_batches():
    model, images = Moody().train(), torch.linspace(0, 1, 8).view(8, 1, 1, 1)
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 0])
    assert accuracy(model, images, labels, batch_size=3) == 7 / 8
    assert model.sizes == [3, 3, 2] and not model.training


def test_robust_accuracy_repeats_itself_and_follows_its_seed(monkeypatch):
    from purify_engine.training import perturbation

    starts = []
    monkeypatch.setattr(perturbation, "perturb", lambda images, objective, attack: starts.append(torch.rand(3)) or images)
    images, labels = torch.rand(4, 1, 2, 2), torch.ones(4).long()
    for seed in ({}, {"seed": 0}, {"seed": 1}):
        robust_accuracy(Moody(), images, labels, Perturbation(), **seed)
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


def test_robust_accuracy_attacks_the_true_label_in_eval_mode():
    images, attack = torch.full((4, 1, 2, 2), 0.55), Perturbation(epsilon=0.1, step_size=0.05, num_steps=3)
    assert robust_accuracy(Moody().train(), images, torch.ones(4).long(), attack) == 0
    assert robust_accuracy(Moody().train(), images, torch.zeros(4).long(), attack) == 0, "wrong already"
    assert robust_accuracy(Moody().train(), images + 0.2, torch.ones(4).long(), attack) == 1
