"""Auto-PGD (Croce & Hein 2020, algorithm 1): no step size to choose, since it halves where the loss stops rising."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from purify_engine.config import AttackConfig
from purify_engine.evaluation.ascent import project
from purify_engine.evaluation.draws import Draws, Objective, losses_and_gradients
from purify_engine.reference.balls import steepest_ascent

if TYPE_CHECKING:
    from purify_engine.types import Ids, Images

INERTIA = 0.75  # how much of a step is new; the rest continues the last move
RISING = 0.75  # rho: where fewer steps than this share raised the loss, the step halves


def apgd(objective: Objective, images: Images, ids: Ids, config: AttackConfig, draws: Draws, start: Images) -> Images:
    """The best of `num_steps` + 1 points: the most wrong one where any is misclassified, else the one of the largest loss.

    Its first step is twice epsilon. At each checkpoint it halves for an image whose loss rose in fewer than 75 % of the steps
    since the last one, or whose step and best loss stayed the same; and that image goes on from its best point. On a random
    defence losses and gradients are means over `num_eot` draws, as AutoAttack's version rand averages gradients (its losses are
    of the last draw alone). `config.step_size` is not used.
    """
    x = project(start, images, config)
    loss, margin, grad = _look(objective, x, ids, draws, 0)
    best = _Best(x, loss, margin, grad)
    step = torch.full_like(loss, 2 * config.epsilon).view(-1, 1, 1, 1)
    last_best, halved = loss.clone(), torch.ones_like(loss, dtype=torch.bool)
    x_before, risen = x, torch.zeros_like(loss)
    stops, since = checkpoints(config.num_steps), 0
    for index in range(config.num_steps):
        ahead = project(x + step * steepest_ascent(grad, config.norm), images, config)
        new = INERTIA if index else 1.0
        x_before, x = x, project(x + new * (ahead - x) + (1 - new) * (x - x_before), images, config)
        loss_before = loss
        loss, margin, grad = _look(objective, x, ids, draws, index + 1)
        risen += loss > loss_before
        best.see(x, loss, margin, grad)
        if index + 1 in stops:
            slow = (risen <= RISING * (index + 1 - since)) | (~halved & (last_best >= best.loss))
            step = torch.where(slow.view(-1, 1, 1, 1), step / 2, step)
            x, grad = (torch.where(slow.view(-1, 1, 1, 1), kept, now) for kept, now in ((best.x, x), (best.grad, grad)))
            halved, last_best, risen, since = slow, best.loss.clone(), torch.zeros_like(loss), index + 1
    return best.worst


def checkpoints(num_steps: int) -> set[int]:
    """The steps after which step sizes are looked at: after 22 % of them, then in intervals that shrink by 3 % each to 6 %."""
    interval, reached, found = max(int(0.22 * num_steps), 1), 0, set()
    while reached + interval <= num_steps:
        reached += interval
        found.add(reached)
        interval = max(interval - max(int(0.03 * num_steps), 1), max(int(0.06 * num_steps), 1))
    return found


def _look(objective: Objective, x: Images, ids: Ids, draws: Draws, step: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """Loss [B], margin [B] where the objective tells it, and gradient, each the mean over the draws of a step."""
    named = draws(step)
    values, gradients = zip(*losses_and_gradients(objective, x, ids, named, draws.at_once), strict=True)
    told, grad = torch.stack(values).mean(dim=0), torch.stack(gradients).mean(dim=0)
    return (told, None, grad) if told.ndim == 1 else (told[:, 0], told[:, 1], grad)


class _Best:
    """The point of the largest loss of each image, with its gradient, and the most wrong one."""

    def __init__(self, x: Images, loss: Tensor, margin: Tensor | None, grad: Tensor) -> None:
        self.x, self.loss, self.grad = x.clone(), loss.clone(), grad.clone()
        self._wrong, self._margin = x.clone(), None if margin is None else margin.clone()

    def see(self, x: Images, loss: Tensor, margin: Tensor | None, grad: Tensor) -> None:
        better = (loss > self.loss).view(-1, 1, 1, 1)
        self.x, self.grad = torch.where(better, x, self.x), torch.where(better, grad, self.grad)
        self.loss = torch.maximum(self.loss, loss)
        if margin is not None and self._margin is not None:
            self._wrong = torch.where((margin > self._margin).view(-1, 1, 1, 1), x, self._wrong)
            self._margin = torch.maximum(self._margin, margin)

    @property
    def worst(self) -> Images:
        if self._margin is None:
            return self.x
        return torch.where((self._margin > 0).view(-1, 1, 1, 1), self._wrong, self.x)
