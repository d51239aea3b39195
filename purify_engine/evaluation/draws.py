"""Which noise draws an attack sees, and how it averages over them: one after another, or several at once as one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from purify_engine.config import DRAWS_PER_SEED, AttackConfig

if TYPE_CHECKING:
    from purify_engine.types import Ids, Images

Objective = Callable[["Images", "Ids", "int | Tensor"], Tensor]
"""(images [n * B, C, H, W], ids [n * B], draw) -> loss [n * B], or [n * B, 2] with the verdict's margin beside it; draw is a
number, or one a row."""


class Draws:
    """Numbers the noise draws: `draws(step)` are those averaged at that step, and no two steps share one.

    averaged: False where what is attacked does not depend on the draw: one a step is enough. first: which of the seed's draws is
    the first one. at_once: how many go through the networks in one batch.
    """

    def __init__(self, config: AttackConfig, *, averaged: bool, first: int = 0, at_once: int = 1) -> None:
        self._first = config.seed * DRAWS_PER_SEED + first
        self._num_eot = config.num_eot if averaged else 1
        self.at_once = at_once

    def __call__(self, step: int) -> range:
        first = self._first + step * self._num_eot
        return range(first, first + self._num_eot)


def losses_and_gradients(
    objective: Objective, x: Images, ids: Ids, draws: Sequence[int], at_once: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each of `draws` in turn what `objective` gives each image, [B] or [B, 2], and the gradient of its loss [B, C, H, W]."""
    for group in _groups(draws, at_once):
        leaf = _repeated(x.detach(), len(group)).requires_grad_()
        with torch.enable_grad():
            values = objective(leaf, *_named(ids, group))
            losses = values if values.ndim == 1 else values[:, 0]
            gradients = torch.autograd.grad(losses.sum(), leaf)[0]
        told = values.detach().view(len(group), len(x), *values.shape[1:])
        yield from zip(told, gradients.view(len(group), *x.shape), strict=True)


def expected_gradient(objective: Objective, x: Images, ids: Ids, draws: Sequence[int], at_once: int = 1) -> Tensor:
    """Sum over `draws` of the gradient of each image's loss: the mean up to a factor that no ascent direction sees."""
    total = torch.zeros_like(x)
    for _, gradient in losses_and_gradients(objective, x, ids, draws, at_once):
        total += gradient
    return total


@torch.no_grad()
def each_draw(objective: Objective, x: Images, ids: Ids, draws: Sequence[int], at_once: int = 1) -> Tensor:
    """What `objective` gives each image on each of `draws`: [draws, B, ...]."""
    found = [objective(_repeated(x, len(group)), *_named(ids, group)) for group in _groups(draws, at_once)]
    return torch.cat([values.view(-1, len(x), *values.shape[1:]) for values in found])


def _groups(draws: Sequence[int], at_once: int) -> Iterator[Sequence[int]]:
    return (draws[first : first + at_once] for first in range(0, len(draws), at_once))


def _repeated(x: Tensor, times: int) -> Tensor:
    return x.clone() if times == 1 else x.repeat(times, *(1 for _ in x.shape[1:]))


def _named(ids: Ids, group: Sequence[int]) -> tuple[Ids, int | Tensor]:
    """The ids and the draws of the images of a group of draws, draw by draw."""
    if len(group) == 1:
        return ids, group[0]
    return ids.repeat(len(group)), torch.tensor(list(group), device="cpu").repeat_interleave(len(ids))
