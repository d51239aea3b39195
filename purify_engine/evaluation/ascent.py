"""Ascents by gradients: projected gradient ascent, with momentum and a decaying step if asked, and DiffHammer's selective one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from purify_engine.config import AttackConfig
from purify_engine.evaluation.draws import Draws, Objective, expected_gradient, losses_and_gradients
from purify_engine.reference.balls import projected, steepest_ascent

if TYPE_CHECKING:
    from purify_engine.types import Ids, Images

SHARPNESS, ROUNDS, FORGETTING = 5.0, 5, 0.5  # of DiffHammer: lambda, rounds of EM, alpha (the authors' code)


def pgd(objective: Objective, images: Images, ids: Ids, config: AttackConfig, draws: Draws, start: Images) -> Images:
    """Projected gradient ascent (Madry et al. 2018) on the expectation over noise draws (EOT, Athalye et al. 2018).

    With momentum the direction is a running sum of gradients, each divided by its mean absolute value (Dong et al. 2018).
    """
    x, direction = project(start, images, config), torch.zeros_like(images)
    for step in range(config.num_steps):
        grad = expected_gradient(objective, x, ids, draws(step), draws.at_once)
        direction = with_momentum(direction, grad, config)
        x = project(x + step_size(config, step) * steepest_ascent(direction, config.norm), images, config)
    return x


def diffhammer(objective: Objective, images: Images, ids: Ids, config: AttackConfig, draws: Draws, start: Images) -> Images:
    """DiffHammer's selective attack (Wang et al. 2024, NeurIPS): climb for those draws that one direction can fool together.

    Theirs: a draw counts by how likely the common direction is to fool it, and that direction is found by expectation
    maximisation (`shared_direction`); what was found before fades as 1/sqrt(step). Ours: the gradient of each draw is the one
    that `config.gradient` names, where theirs grafts cheap ones onto the exact gradient of a single draw; and the last point is
    kept. Its metric is the worst of N draws, N = 10.
    """
    x, common = project(start, images, config), torch.zeros_like(images)
    for step in range(config.num_steps):
        seen = list(losses_and_gradients(objective, x, ids, draws(step), draws.at_once))
        found = shared_direction(torch.stack([loss for loss, _ in seen]), torch.stack([grad for _, grad in seen]), config)
        kept = (step + 1) ** -FORGETTING
        common = kept * found + (1 - kept) * common
        x = project(x + step_size(config, step) * steepest_ascent(common, config.norm), images, config)
    return x


def shared_direction(losses: Tensor, gradients: Tensor, config: AttackConfig) -> Tensor:
    """The mean gradient [B, C, H, W] of the draws that are vulnerable together: `losses` [K, B], `gradients` [K, B, C, H, W].

    It begins at the gradient of that draw whose own direction is expected to raise all losses most, those already fooled counting
    fully and others less and less (ELU). E: the weight of a draw is sigmoid(5 (its loss + what the common direction adds to it)).
    M: the common direction is the weighted mean gradient. Five rounds.
    """
    flat = gradients.flatten(2)  # [K, B, D]
    units = torch.stack([steepest_ascent(gradient, config.norm) for gradient in gradients]).flatten(2)
    gains = config.epsilon * torch.einsum("ibd,jbd->ijb", units, flat)  # what draw i's direction adds to draw j's loss
    best = F.elu(losses + gains).sum(dim=1).argmax(dim=0)
    common = flat[best, torch.arange(len(best), device=best.device)]
    for _ in range(ROUNDS):
        unit = steepest_ascent(common.view_as(gradients[0]), config.norm).flatten(1)
        expected = losses + config.epsilon * torch.einsum("bd,kbd->kb", unit, flat)
        weights = torch.sigmoid(SHARPNESS * expected)
        common = torch.einsum("kb,kbd->bd", weights, flat) / weights.sum(dim=0).clamp(min=1e-12)[:, None]
    return common.view_as(gradients[0])


def step_size(config: AttackConfig, step: int) -> float:
    """The length of a step: constant, or falling from twice that to 0, so that both go equally far in all."""
    constant = config.step_size or 2.5 * config.epsilon / config.num_steps
    done = step / config.num_steps
    if config.decay == "linear":
        return 2 * constant * (1 - done)
    return constant * (1 + math.cos(math.pi * done)) if config.decay == "cosine" else constant


def with_momentum(direction: Tensor, grad: Tensor, config: AttackConfig) -> Tensor:
    """`momentum` times the last direction plus this gradient, which counts the same however long it is; a zero one not at all."""
    if config.momentum == 0:
        return grad
    size = grad.abs().mean(dim=(1, 2, 3), keepdim=True)
    return config.momentum * direction + grad / torch.where(size > 0, size, 1)


def project(x: Images, images: Images, config: AttackConfig) -> Images:
    """Into the ball around `images`, then into [0, 1]: clipping brings a point no further from `images`, which lie there."""
    return (images + projected(x - images, config.norm, config.epsilon)).clamp(0, 1)
