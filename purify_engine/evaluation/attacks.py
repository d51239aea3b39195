"""The attacks: (defence, images, labels, AttackConfig) -> adversarial images inside the ball and inside [0, 1].

Deterministic by `AttackConfig.seed`: random starts and proposals come from a generator of their own, the purifier's
noise from numbered draws, a distinct one for each (step, EOT index). Re-scoring uses draws from `FIRST_SCORING_DRAW`
on, which no attack has seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from purify_engine.config import AttackConfig
from purify_engine.engine.masking import masking_is_known
from purify_engine.evaluation.defences import Defence
from purify_engine.evaluation.losses import Objective, make_objective, required_guide
from purify_engine.evaluation.spatial import stadv
from purify_engine.evaluation.square import square
from purify_engine.reference.balls import lengths, projected, steepest_ascent

if TYPE_CHECKING:
    from purify_engine.types import Ids, Images, Labels

FIRST_SCORING_DRAW = 2**30  # attacks use draws below: 512 seeds x 4096 steps x 256 EOT draws = 2**29
_DRAWS_PER_SEED = 2**20


@masking_is_known()  # the suite attacks by other gradients too, and marks what is masked
def attack(defence: Defence, images: Images, labels: Labels, config: AttackConfig, *, ids: Ids | None = None) -> Images:
    """Adversarial images for `defence`, of the shape of `images` and within `config`'s budget of them, in [0, 1].

    images: clean ones, [B, C, H, W] in [0, 1]. labels: the true ones, int64 [B]. ids: int64 [B], key the purifier's noise; None:
    the places in the batch. Which draws the attack sees follows from `config.seed`; score on others.
    """
    ids = torch.arange(len(images), device=images.device) if ids is None else ids
    if config.kind == "none" or config.epsilon == 0:
        return images.clone()
    objective = make_objective(defence, images, labels, config)
    generator = torch.Generator(images.device).manual_seed(config.seed)
    draws = Draws(config, averaged=needs_draws(defence, config))
    if config.kind == "square":
        return square(objective, images, ids, config, draws, generator)
    if config.kind == "stadv":
        return stadv(objective, images, ids, config, draws, generator)
    return pgd(objective, images, ids, config, draws, start_point(defence, images, labels, config, ids, generator))


def needs_draws(defence: Defence, config: AttackConfig) -> bool:
    """Whether the attacked function is random; where it is not, one evaluation in each step is enough."""
    return (
        defence.randomised and config.surface == "defence" and config.loss != "features" and config.gradient != "blind"
    )


class Draws:
    """Numbers the noise draws: `draws(step)` are those averaged at that step, and no two steps share one."""

    def __init__(self, config: AttackConfig, *, averaged: bool) -> None:
        self._first = config.seed * _DRAWS_PER_SEED
        self._num_eot = config.num_eot if averaged else 1

    def __call__(self, step: int) -> range:
        first = self._first + step * self._num_eot
        return range(first, first + self._num_eot)


def pgd(objective: Objective, images: Images, ids: Ids, config: AttackConfig, draws: Draws, start: Images) -> Images:
    """Projected gradient ascent (Madry et al. 2018) on the expectation over noise draws (EOT, Athalye et al. 2018)."""
    x = project(start, images, config)
    step_size = config.step_size or 2.5 * config.epsilon / config.num_steps
    for step in range(config.num_steps):
        grad = expected_gradient(objective, x, ids, draws(step))
        x = project(x + step_size * steepest_ascent(grad, config.norm), images, config)
    return x


def expected_gradient(objective: Objective, x: Images, ids: Ids, draws: Iterable[int]) -> Tensor:
    """Sum over `draws` of the gradient of each image's loss: the mean up to a factor that no ascent direction sees."""
    total = torch.zeros_like(x)
    for draw in draws:
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            total += torch.autograd.grad(objective(leaf, ids, draw).sum(), leaf)[0]
    return total


def project(x: Images, images: Images, config: AttackConfig) -> Images:
    """Into the ball around `images`, then into [0, 1]: clipping brings a point no further from `images`, which lie there."""
    return (images + projected(x - images, config.norm, config.epsilon)).clamp(0, 1)


def start_point(
    defence: Defence, images: Images, labels: Labels, config: AttackConfig, ids: Ids, generator: torch.Generator
) -> Images:
    """Where ascent begins: the clean images, a random point of the ball, or the guide's own adversarial example."""
    if config.start == "guide":
        required_guide(defence, "start='guide'")
        return attack(
            defence,
            images,
            labels,
            dataclasses.replace(config, surface="guide", loss="cross_entropy", start="random"),
            ids=ids,
        )
    if config.start == "clean":
        return images
    noise = torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype) * 2 - 1
    if config.norm == "linf":
        return images + config.epsilon * noise
    return images + config.epsilon * noise / lengths(noise)
