"""StAdv (Xiao et al. 2018): move pixels instead of changing them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from purify_engine.config import AttackConfig
from purify_engine.evaluation.chance import Chance
from purify_engine.evaluation.draws import Draws, Objective

if TYPE_CHECKING:
    from purify_engine.types import Ids, Images


def stadv(
    objective: Objective,
    images: Images,
    ids: Ids,
    config: AttackConfig,
    draws: Draws,
    chance: Chance,
) -> Images:
    """Adversarial images whose every pixel was fetched from at most `epsilon` pixels away, in each direction.

    Signed ascent on the flow inside that bound; the bound takes the place of the paper's smoothness penalty. A
    bilinear fetch has kinks at whole pixels, where the ascent starts and one slope says nothing of the other, so each
    gradient is read at a jittered flow; the jitter fades to zero.
    """
    bound = config.epsilon
    flow = images.new_zeros(len(images), 2, *images.shape[2:])
    step_size = config.step_size or 2.5 * bound / config.num_steps
    for step in range(config.num_steps):
        total, jitter = torch.zeros_like(flow), bound * (1 - step / config.num_steps)
        for draw in draws(step):
            noise = chance.uniform(*flow.shape[1:], dtype=flow.dtype)
            leaf = (flow + jitter * noise).clamp(-bound, bound).requires_grad_()
            with torch.enable_grad():
                total += torch.autograd.grad(objective(warp(images, leaf), ids, draw).sum(), leaf)[0]
        flow = (flow + step_size * total.sign()).clamp(-bound, bound)
    return warp(images, flow)


def warp(images: Images, flow: Tensor) -> Images:
    """Each pixel fetched, bilinearly, from (x + flow[:, 0], y + flow[:, 1]); flow is [B, 2, H, W], in pixels."""
    height, width = images.shape[2:]
    x = torch.arange(width, dtype=images.dtype, device=images.device) + flow[:, 0]
    y = torch.arange(height, dtype=images.dtype, device=images.device)[:, None] + flow[:, 1]
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    # The clamp removes rounding only: a bilinear value lies between its neighbours.
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False).clamp(0, 1)
