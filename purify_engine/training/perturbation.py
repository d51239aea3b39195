"""Projected gradient ascent inside a ball: the inner maximum of TRADES, and the attack of the model cards."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purify_engine.config import Perturbation
from purify_engine.reference.balls import projected, steepest_ascent
from purify_engine.types import Images, Labels

AT_ONCE = 2**18  # values of the images that are measured in one pass: 4096 of 8x8 grey pixels, 85 of 32x32 in colour
SummedObjective = Callable[[Images], Tensor]  # images -> a number to make large, summed over the batch


def perturb(images: Images, objective: SummedObjective, attack: Perturbation, start: Tensor | None = None) -> Images:
    """The images [B, C, H, W] in [0, 1], moved within the ball to raise `objective`; starts at x + 1e-3 N(0, I).

    At the image itself a divergence from the image's own prediction has no gradient: hence the start (Zhang et al. 2019), of
    which `start` is the N(0, I) where it was drawn before.
    """
    away = torch.randn_like(images) if start is None else start
    adversarial = (images + 1e-3 * away).clamp(0, 1)
    for _ in range(attack.num_steps):
        adversarial.requires_grad_()
        (gradient,) = torch.autograd.grad(objective(adversarial), adversarial)
        moved = adversarial.detach() + attack.step_size * steepest_ascent(gradient, attack.norm)
        adversarial = (images + projected(moved - images, attack.norm, attack.epsilon)).clamp(0, 1)
    return adversarial


def in_pieces(images: Images) -> list[slice]:
    """Rows of `images` that are measured in one pass each, so that memory does not grow with how many there are."""
    count = max(1, AT_ONCE // images[0].numel())
    return [slice(first, first + count) for first in range(0, len(images), count)]


def accuracy(classifier: nn.Module, images: Images, labels: Labels, batch_size: int = 500) -> float:
    """Share of the images that `classifier`, in eval mode, labels rightly."""
    classifier.eval()
    with torch.no_grad():
        predicted = torch.cat([classifier(batch).argmax(1) for batch in images.split(batch_size)])
    return float((predicted == labels).double().mean())


def robust_accuracy(classifier: nn.Module, images: Images, labels: Labels, attack: Perturbation, seed: int = 0) -> float:
    """Share that stays right under the cross-entropy attack; a figure for model cards, weaker than purify_engine.evaluation."""
    classifier.eval()
    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        torch.manual_seed(seed)
        adversarial = torch.cat([_attacked(classifier, images[rows], labels[rows], attack) for rows in in_pieces(images)])
    return accuracy(classifier, adversarial, labels)


def _attacked(classifier: nn.Module, images: Images, labels: Labels, attack: Perturbation) -> Images:
    return perturb(images, lambda x: F.cross_entropy(classifier(x), labels, reduction="sum"), attack)
