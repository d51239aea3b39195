"""The Square attack (Andriushchenko et al. 2020), l_inf: random search by squares, using scores and no gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from purify_engine.config import AttackConfig
from purify_engine.evaluation.chance import Chance
from purify_engine.evaluation.draws import Draws, Objective, each_draw

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
    draws: Draws,
    chance: Chance,
) -> Images:
    """Adversarial images after `num_steps` proposals an image.

    On a randomised defence a lucky draw must not win: each proposal meets the incumbent on the same fresh draws,
    never on a stored score.
    """
    stripes = chance.signs(images.shape[1], 1, images.shape[3], dtype=images.dtype)
    x = (images + config.epsilon * stripes).clamp(0, 1)
    for step in range(config.num_steps):
        proposal = _with_square(x, images, config.epsilon, square_side(step / config.num_steps, images), chance)
        better = _mean_loss(objective, proposal, ids, draws, step) > _mean_loss(objective, x, ids, draws, step)
        x = torch.where(better.view(-1, 1, 1, 1), proposal, x)
    return x


def square_side(progress: float, images: Images) -> int:
    """Side in pixels of the square to change when `progress` of the queries are spent."""
    fraction = _FIRST_FRACTION / 2 ** sum(progress > share for share in _HALVINGS)
    height, width = images.shape[2:]
    return max(1, min(round((fraction * height * width) ** 0.5), min(height, width) - 1))


def _with_square(x: Images, images: Images, epsilon: float, side: int, chance: Chance) -> Images:
    """One square an image, at a random place, set to plus or minus epsilon a channel."""
    channels, height, width = x.shape[1:]
    top = chance.below(height - side + 1, 1).view(-1, 1, 1, 1)
    left = chance.below(width - side + 1, 1).view(-1, 1, 1, 1)
    row = torch.arange(height, device=x.device).view(1, 1, -1, 1)
    column = torch.arange(width, device=x.device).view(1, 1, 1, -1)
    inside = (row >= top) & (row < top + side) & (column >= left) & (column < left + side)
    return torch.where(inside, images + epsilon * chance.signs(channels, 1, 1, dtype=x.dtype), x).clamp(0, 1)


def _mean_loss(objective: Objective, x: Images, ids: Ids, draws: Draws, step: int) -> Tensor:
    return each_draw(objective, x, ids, draws(step), draws.at_once).mean(dim=0)
