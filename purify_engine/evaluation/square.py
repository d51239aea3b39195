"""The Square attack (Andriushchenko et al. 2020), l_inf: random search by squares, using scores and no gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from purify_engine.config import AttackConfig
from purify_engine.evaluation.losses import Objective

if TYPE_CHECKING:
    from purify_engine.types import Ids, Images

_FIRST_FRACTION = 0.8  # of the image that the first squares cover
_HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # shares of the queries after which the fraction halves


@torch.no_grad()
def square(
    objective: Objective,
    images: Images,
    ids: Ids,
    config: AttackConfig,
    draws: Callable[[int], range],
    generator: torch.Generator,
) -> Images:
    """Adversarial images after `num_steps` proposals an image.

    On a randomised defence a lucky draw must not win: each proposal meets the incumbent on the same fresh draws,
    never on a stored score.
    """
    random = _Random(images, generator)
    x = (images + config.epsilon * random.signs(len(images), images.shape[1], 1, images.shape[3])).clamp(
        0, 1
    )  # vertical stripes
    for step in range(config.num_steps):
        proposal = _with_square(x, images, config.epsilon, square_side(step / config.num_steps, images), random)
        better = _mean_loss(objective, proposal, ids, draws(step)) > _mean_loss(objective, x, ids, draws(step))
        x = torch.where(better.view(-1, 1, 1, 1), proposal, x)
    return x


def square_side(progress: float, images: Images) -> int:
    """Side in pixels of the square to change when `progress` of the queries are spent."""
    fraction = _FIRST_FRACTION / 2 ** sum(progress > share for share in _HALVINGS)
    height, width = images.shape[2:]
    return max(1, min(round((fraction * height * width) ** 0.5), min(height, width) - 1))


def _with_square(x: Images, images: Images, epsilon: float, side: int, random: _Random) -> Images:
    """One square an image, at a random place, set to plus or minus epsilon a channel."""
    batch, channels, height, width = x.shape
    top = random.below(height - side + 1, batch).view(-1, 1, 1, 1)
    left = random.below(width - side + 1, batch).view(-1, 1, 1, 1)
    row = torch.arange(height, device=x.device).view(1, 1, -1, 1)
    column = torch.arange(width, device=x.device).view(1, 1, 1, -1)
    inside = (row >= top) & (row < top + side) & (column >= left) & (column < left + side)
    return torch.where(inside, images + epsilon * random.signs(batch, channels, 1, 1), x).clamp(0, 1)


def _mean_loss(objective: Objective, x: Images, ids: Ids, draws: range) -> Tensor:
    return torch.stack([objective(x, ids, draw) for draw in draws]).mean(dim=0)


class _Random:
    """Random signs and places, from one generator, like the images."""

    def __init__(self, images: Images, generator: torch.Generator) -> None:
        self._like, self._generator = images, generator

    def below(self, limit: int, *shape: int) -> Tensor:
        return torch.randint(0, limit, shape, generator=self._generator, device=self._like.device)

    def signs(self, *shape: int) -> Tensor:
        return (2 * self.below(2, *shape) - 1).to(self._like.dtype)
