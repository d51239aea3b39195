"""SPSA (Uesato et al. 2018): gradients estimated from the loss at pairs of random probes, climbed by Adam. No gradient is asked
for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from purify_engine.config import AttackConfig
from purify_engine.evaluation.ascent import project
from purify_engine.evaluation.chance import Chance
from purify_engine.evaluation.draws import Draws, Objective, each_draw

if TYPE_CHECKING:
    from purify_engine.types import Ids, Images

PROBE = 0.01  # how far probes stand from the image, [0, 1] units (theirs)
MEAN_DECAY, SQUARE_DECAY, SMALL = 0.9, 0.999, 1e-8  # of Adam


@torch.no_grad()
def spsa(objective: Objective, images: Images, ids: Ids, config: AttackConfig, draws: Draws, chance: Chance) -> Images:
    """Adversarial images after `num_steps` steps of `num_eot` pairs of probes x ± 0.01 v each, v of random signs.

    Each pair meets a noise draw of its own, both probes the same one; where the defence is deterministic there are as many pairs.
    Theirs: Adam, of rate 0.01. Ours: the rate is 2.5 epsilon / num_steps unless `step_size` is given.
    """
    x = images.clone()
    rate = config.step_size or 2.5 * config.epsilon / config.num_steps
    mean, square = torch.zeros_like(x), torch.zeros_like(x)
    for step in range(config.num_steps):
        grad = torch.zeros_like(x)
        for pair in range(config.num_eot):
            named = draws(step)
            signs = chance.signs(*x.shape[1:], dtype=x.dtype)
            grad += signs * _slope(objective, x, PROBE * signs, ids, named[pair % len(named)]).view(-1, 1, 1, 1)
        grad /= config.num_eot
        mean = MEAN_DECAY * mean + (1 - MEAN_DECAY) * grad
        square = SQUARE_DECAY * square + (1 - SQUARE_DECAY) * grad.square()
        unbiased = mean / (1 - MEAN_DECAY ** (step + 1)), square / (1 - SQUARE_DECAY ** (step + 1))
        x = project(x + rate * unbiased[0] / (unbiased[1].sqrt() + SMALL), images, config)
    return x


def _slope(objective: Objective, x: Images, offset: Tensor, ids: Ids, draw: int) -> Tensor:
    """The derivative of each image's loss along `offset` over its size, by a central difference."""
    ahead, behind = (each_draw(objective, (x + way * offset).clamp(0, 1), ids, [draw])[0] for way in (1, -1))
    return (ahead - behind) / (2 * PROBE)
