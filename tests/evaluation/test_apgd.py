"""Auto-PGD's checkpoints, its halving steps and the point that it keeps; targeted losses on more than two classes."""

import pytest
import torch

from purify_engine.config import AttackConfig
from purify_engine.evaluation.apgd import apgd, checkpoints
from purify_engine.evaluation.attacks import attack
from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.draws import Draws
from purify_engine.evaluation.losses import cross_entropy, dlr, margin

IMAGES = 0.3 + 0.4 * torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
IDS = torch.tensor([4, 8, 15, 16])
# Of 100 steps, by the paper's recursion p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06), p_0 = 0, p_1 = 0.22 (section 3.1).
PAPER = {22, 41, 57, 70, 80, 87, 93, 99}


def test_checkpoints_are_the_papers():
    assert checkpoints(100) == PAPER and checkpoints(1) == {1}


def run(objective, norm="linf", num_steps=40, start=IMAGES, **settings):
    config = AttackConfig(name="a", kind="apgd", norm=norm, epsilon=0.2, num_steps=num_steps, num_eot=1, **settings)
    return apgd(objective, IMAGES, IDS, config, Draws(config, averaged=False), start)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_maximum_inside_the_ball_is_found_though_the_first_step_is_as_wide_as_the_ball(norm):
    peak = IMAGES + 0.03 * torch.linspace(-1, 1, 9, dtype=torch.float64).view(1, 1, 3, 3)
    found = run(lambda x, ids, draw: -(x - peak).square().sum(dim=(1, 2, 3)), norm, num_steps=100)
    # Steps of 2 epsilon that never halved would stay 0.1 away; eight checkpoints may halve them to below 0.002.
    assert (found - peak).abs().max() < 0.02


def test_the_point_of_the_largest_loss_is_kept_for_each_image():
    seen = []

    def objective(x, ids, draw):
        seen.append(x.detach().clone())
        return (torch.arange(1, 5) * (-(x - 0.5).square()).sum(dim=(1, 2, 3)) * (1 if len(seen) % 3 else -1)).double()

    found = run(objective, num_steps=9)
    signs = [1 if (place + 1) % 3 else -1 for place in range(len(seen))]
    losses = torch.stack([-sign * (x - 0.5).square().sum(dim=(1, 2, 3)) for sign, x in zip(signs, seen, strict=True)])
    best = losses.argmax(dim=0)
    assert torch.equal(found, torch.stack([seen[int(step)][image] for image, step in enumerate(best)]))


def test_a_misclassified_point_is_kept_before_one_of_larger_loss():
    """As AutoAttack, whose targeted loss may be largest where the verdict is still right."""
    calls = []

    def objective(x, ids, draw):
        calls.append(x.detach().clone())
        loss = x.sum(dim=(1, 2, 3))
        is_wrong = len(calls) == 2
        return torch.stack([loss, torch.full_like(loss, 1.0 if is_wrong else -1.0)], dim=1)

    assert torch.equal(run(objective, num_steps=6), calls[1])


class Affine(torch.nn.Module):
    """Five classes by linear scores."""

    def __init__(self):
        super().__init__()
        self.register_buffer("matrix", torch.randn(5, 9, generator=torch.Generator().manual_seed(5), dtype=torch.float64))

    def forward(self, images):
        return images.flatten(1) @ self.matrix.T


LOGITS = torch.tensor([[4.0, 1.0, 2.0, 3.5, -1.0], [0.0, 1.0, -2.0, 0.5, 3.0]], dtype=torch.float64)
LABELS, TARGET = torch.tensor([0, 1]), torch.tensor([2, 4])


def test_targeted_losses_are_those_of_the_papers():
    # By hand: (z_t - z_y) / (z_1 - (z_3 + z_4) / 2): (2 - 4) / (4 - 1.5) and (3 - 1) / (3 - 0.25).
    torch.testing.assert_close(dlr(LOGITS, LABELS, TARGET), torch.tensor([-0.8, 2 / 2.75], dtype=torch.float64))
    assert margin(LOGITS, LABELS, TARGET).tolist() == [-2.0, 2.0]
    expected = LOGITS.log_softmax(dim=1)[torch.arange(2), TARGET]
    torch.testing.assert_close(cross_entropy(LOGITS, LABELS, TARGET), expected)
    with pytest.raises(ValueError, match="loss must be cross_entropy or margin where there are fewer than 4 classes, got 'dlr'"):
        dlr(LOGITS[:, :3], LABELS, torch.tensor([2, 0]))


@pytest.mark.parametrize("kind", ["pgd", "apgd"])
def test_targets_find_the_class_whose_boundary_is_nearest(kind):
    """A linear classifier's worst image within the ball is known: for each class the sign of its weights less the label's."""
    network = Affine()
    labels = network(IMAGES).argmax(dim=1)
    config = AttackConfig(name="a", kind=kind, epsilon=0.02, num_steps=30, num_eot=1, loss="margin", targets=4)
    found = margin(network(attack(Defence("plain", network), IMAGES, labels, config, ids=IDS)), labels)
    gaps = network.matrix[None] - network.matrix[labels][:, None]
    best = (torch.einsum("bkd,bd->bk", gaps, IMAGES.flatten(1)) + 0.02 * gaps.abs().sum(dim=2)).scatter(1, labels[:, None], -9.0)
    torch.testing.assert_close(found, best.amax(dim=1), atol=1e-4, rtol=0)
